// Two selects that go together: a desktop, and a model that it has.

import { setOptions } from './dom.js';
import { desktops, live, sorted } from './live.js';
import { lastKnown, models, RETRY } from './models.js';
import { desktopName } from './words.js';

// How long what is to be sent waits for desktops and models, milliseconds.
const PATIENCE = 20_000;

export class Choice {
  constructor(desktopSelect, modelSelect, changed) {
    this.desktopSelect = desktopSelect;
    this.modelSelect = modelSelect;
    this.changed = changed;
    // Goes up with each user: what was asked for another is of no use.
    this.generation = 0;
    this.wish = {};
    // Whose models are shown, and what was told last.
    this.modelsOf = null;
    this.isAsking = false;
    // The last list of models, that is there or under way.
    this.shown = Promise.resolve();
    this.told = '';
    desktopSelect.addEventListener('change', () => {
      this.settle();
      this.shown = this.showModels();
    });
    modelSelect.addEventListener('change', () => {
      this.settle();
      this.tell();
    });
    live.addEventListener('change', () => this.refresh());
  }

  get address() {
    return this.desktopSelect.value;
  }

  get model() {
    return this.modelSelect.value;
  }

  // What is chosen, or will be once it is there.
  get chosen() {
    return { address: this.wish.address ?? this.address, model: this.wish.model ?? this.model };
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

  // Why nothing can be asked.
  get problem() {
    if (this.address === '') {
      return live.known ? 'No desktop is connected: start “tunnel bridge” on one.' : 'Your desktops are being looked for; try again in a moment.';
    }
    const found = lastKnown(this.address);
    if (found === null) return 'The desktop is being asked for its models; try again in a moment.';
    return found.models === null ? found.error.message : 'This desktop has no model yet: run “ollama pull” there.';
  }

  // Chooses once what is wished for is there.
  want(wish) {
    this.wish = { ...this.wish, ...wish };
    this.refresh(true);
  }

  // What is chosen now stays, whatever was wished for.
  settle() {
    this.wish = {};
  }

  // Begins anew, for somebody else.
  clear() {
    this.generation += 1;
    this.modelsOf = null;
    this.told = '';
    this.settle();
    this.desktopSelect.replaceChildren();
    this.modelSelect.replaceChildren();
  }

  refresh(now = false) {
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
    const isUnknown = desktops.has(this.address) && !lastKnown(this.address)?.models && !this.isAsking;
    if (now || this.address !== before || isUnknown) this.shown = this.showModels();
  }

  // Resolves once it is known what can be asked, or when that takes too long.
  async known() {
    const late = new Promise((resolve) => setTimeout(resolve, PATIENCE));
    if (!live.known) await Promise.race([late, new Promise((resolve) => live.addEventListener('change', resolve, { once: true }))]);
    await Promise.race([late, this.shown]);
  }

  nameOf(address) {
    const shown = [...this.desktopSelect.options].find((option) => option.value === address);
    return (shown?.text ?? address).replace(/ \(away\)$/, '');
  }

  async showModels() {
    const { address, generation } = this;
    const isOther = this.modelsOf !== address;
    this.modelsOf = address;
    if (address === '') setOptions(this.modelSelect, [['', 'None']]);
    else if (isOther && lastKnown(address) === null) setOptions(this.modelSelect, [['', 'Asking…']]);
    this.tell();
    if (address === '') return;
    this.isAsking = true;
    const found = await models(address);
    if (address !== this.address || generation !== this.generation) return;
    this.isAsking = false;
    this.offer(found, isOther);
    this.tell();
  }

  offer({ models: found }, isOther) {
    // What was chosen is chosen again when the desktop answers again.
    if (found === null && !isOther && this.model !== '') this.wish.model ??= this.model;
    const options = (found ?? []).map(({ name, loaded }) => [name, loaded ? `${name} · loaded` : name]);
    setOptions(this.modelSelect, options.length > 0 ? options : [['', found === null ? 'No answer' : 'None yet']]);
    if (options.some(([name]) => name === this.wish.model)) {
      this.modelSelect.value = this.wish.model;
      delete this.wish.model;
    }
    if (found !== null) return;
    // Asked again soon, while it is looked at.
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), RETRY);
  }

  tell() {
    const now = `${this.address}\n${this.model}`;
    if (now === this.told) return;
    this.told = now;
    this.changed();
  }
}
