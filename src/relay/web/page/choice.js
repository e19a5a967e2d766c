// Two selects that go together: a desktop, and a model that it has.

import { setOptions } from './dom.js';
import { desktops, live, sorted } from './live.js';
import { lastKnown, models } from './models.js';
import { desktopName } from './words.js';

export class Choice {
  constructor(desktopSelect, modelSelect, changed) {
    this.desktopSelect = desktopSelect;
    this.modelSelect = modelSelect;
    this.changed = changed;
    this.wish = {};
    desktopSelect.addEventListener('change', () => this.showModels().then(changed));
    modelSelect.addEventListener('change', changed);
    live.addEventListener('change', () => this.refresh());
  }

  get address() {
    return this.desktopSelect.value;
  }

  get model() {
    return this.modelSelect.value;
  }

  // What the desktop chosen is called and speaks; it may be away.
  get desktop() {
    const bridge = desktops.get(this.address);
    return { name: bridge ? desktopName(bridge) : 'the desktop', openai: lastKnown(this.address)?.openai ?? false };
  }

  // Whether the model is known to be in the desktop's memory.
  get isLoaded() {
    return lastKnown(this.address)?.models?.some(({ name, loaded }) => name === this.model && loaded) ?? false;
  }

  // Chooses once what is wished for is there.
  want(wish) {
    this.wish = { ...this.wish, ...wish };
    this.refresh(true);
  }

  async refresh(now = false) {
    // While it is not looked at, nothing is asked of desktops.
    if (!now && this.desktopSelect.offsetParent === null) return;
    const before = this.address;
    const options = sorted().map((bridge) => [bridge.address, desktopName(bridge)]);
    if (before !== '' && !desktops.has(before)) options.push([before, `${this.nameOf(before)} (away)`]);
    setOptions(this.desktopSelect, options.length > 0 ? options : [['', live.known ? 'None connected' : 'Looking…']]);
    if (this.wish.address && desktops.has(this.wish.address)) {
      this.desktopSelect.value = this.wish.address;
      delete this.wish.address;
    }
    if (now || this.address !== before) {
      await this.showModels();
      this.changed();
    }
  }

  nameOf(address) {
    const shown = [...this.desktopSelect.options].find((option) => option.value === address);
    return (shown?.text ?? address).replace(/ \(away\)$/, '');
  }

  async showModels() {
    const { address } = this;
    if (address === '') {
      setOptions(this.modelSelect, [['', 'None']]);
      return;
    }
    if (lastKnown(address) === null) setOptions(this.modelSelect, [['', 'Asking…']]);
    const found = await models(address);
    if (address !== this.address) return;
    const options = (found.models ?? []).map(({ name, loaded }) => [name, loaded ? `${name} · loaded` : name]);
    setOptions(this.modelSelect, options.length > 0 ? options : [['', found.models === null ? 'It does not answer' : 'None yet']]);
    if (options.some(([name]) => name === this.wish.model)) {
      this.modelSelect.value = this.wish.model;
      delete this.wish.model;
    }
  }
}
