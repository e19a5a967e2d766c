// "Share": who may use a desktop beside its owner.

import { askJson } from './api.js';
import { announce, byId, el, open, setText, show } from './dom.js';

const dialog = byId('share-dialog');
let bridge = null;

function whom(share) {
  if (share.with === 'all') return 'everybody';
  const [kind, ...name] = share.with.split(':');
  return kind === 'group' ? `group ${name.join(':')}` : name.join(':');
}

function kind() {
  return dialog.querySelector('input[name=share-with]:checked').value;
}

function showKind() {
  const chosen = kind();
  show(byId('share-name-box'), chosen !== 'all');
  setText(byId('share-name-label'), chosen === 'group' ? 'Name of the group' : 'User name');
  problem('');
}

function problem(text) {
  setText(byId('share-error'), text);
  byId('share-name').setAttribute('aria-invalid', String(text !== ''));
}

async function list() {
  const { shares } = await askJson('-/shares');
  const own = shares.filter((share) => share.bridge === bridge.id);
  byId('shared').replaceChildren(...own.map((share) => el('li', {}, el('span', {}, whom(share)), el('button', {
    class: 'small', 'aria-label': `Take back from ${whom(share)}`, onclick: () => takeBack(share),
  }, 'Take back'))));
  show(byId('shared-none'), own.length === 0);
}

async function carryOut(act) {
  problem('');
  try {
    await act();
    await list();
  } catch (error) {
    problem(error.message);
  }
}

function takeBack(share) {
  return carryOut(async () => {
    await askJson(`-/shares/${encodeURIComponent(share.id)}`, { method: 'DELETE' });
    announce(`${bridge.name} is not shared with ${whom(share)} any more.`);
    byId('share-title').focus();
  });
}

byId('share-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const name = byId('share-name').value.trim();
  const chosen = kind();
  if (chosen !== 'all' && name === '') {
    problem(chosen === 'group' ? 'Write the name of the group, as the provider calls it.' : 'Write the name of the user, as the relay calls them.');
    byId('share-name').focus();
    return;
  }
  carryOut(async () => {
    const share = await askJson('-/shares', {
      method: 'POST', body: { bridge: bridge.name, with: chosen === 'all' ? 'all' : `${chosen}:${name}` },
    });
    byId('share-name').value = '';
    announce(`${bridge.name} is shared with ${whom(share)}.`);
  });
});

for (const radio of dialog.querySelectorAll('input[name=share-with]')) radio.addEventListener('change', showKind);

export function openShare(desktop) {
  bridge = desktop;
  setText(byId('share-title'), `Share ${desktop.name}`);
  byId('share-name').value = '';
  byId('shared').replaceChildren();
  showKind();
  open(dialog);
  carryOut(async () => {});
}
