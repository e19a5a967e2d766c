// "Share": who may use a desktop beside its owner; and what is shared of desktops that are away.

import { askJson } from './api.js';
import { announce, byId, during, el, open, setText, show } from './dom.js';
import { desktops, live } from './live.js';

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

// All shares of the user, as they were told last.
let shares = [];
// Which asking for them is the last one: the answer to another is old, or was meant for somebody else.
let asking = 0;

function item(share, words, act) {
  const button = el('button', {
    class: 'small', 'aria-label': `Take back ${words === whom(share) ? '' : `${share.name} `}from ${whom(share)}`, onclick: () => during(button, act),
  }, 'Take back');
  return el('li', {}, el('span', {}, words), button);
}

async function list() {
  asking += 1;
  const turn = asking;
  const told = await askJson('-/shares').catch((error) => {
    if (turn === asking) throw error;
  });
  if (turn !== asking) return;
  ({ shares } = told);
  showAway();
  if (bridge === null) return;
  const own = shares.filter((share) => share.bridge === bridge.id);
  byId('shared').replaceChildren(...own.map((share) => item(share, whom(share), () => takeBack(share))));
  show(byId('shared-none'), own.length === 0);
}

// Those of desktops that have no card to share them from.
function showAway() {
  const here = new Set([...desktops.values()].map(({ id }) => id));
  const away = live.known ? shares.filter((share) => !here.has(share.bridge)) : [];
  const ids = away.map(({ id }) => id).join(' ');
  show(byId('shared-away-box'), away.length > 0);
  if (byId('shared-away').dataset.ids === ids) return;
  byId('shared-away').dataset.ids = ids;
  byId('shared-away').replaceChildren(...away.map((share) => item(share, `${share.name} with ${whom(share)}`, () => takeBackAway(share))));
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

async function remove(share) {
  await askJson(`-/shares/${encodeURIComponent(share.id)}`, { method: 'DELETE' });
  announce(`${share.name} is not shared with ${whom(share)} any more.`);
}

function takeBack(share) {
  return carryOut(async () => {
    await remove(share);
    byId('share-title').focus();
  });
}

async function takeBackAway(share) {
  setText(byId('shared-away-error'), '');
  try {
    await remove(share);
    await list();
    byId(byId('shared-away-box').hidden ? 'desktops-title' : 'shared-away-title').focus();
  } catch (error) {
    setText(byId('shared-away-error'), error.message);
  }
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
  const { name: desktop } = bridge;
  during(byId('share-make'), () => carryOut(async () => {
    const share = await askJson('-/shares', {
      method: 'POST', body: { bridge: desktop, with: chosen === 'all' ? 'all' : `${chosen}:${name}` },
    });
    byId('share-name').value = '';
    announce(`${desktop} is shared with ${whom(share)}.`);
  }));
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

// Asks anew what is shared of desktops that are away; for nobody, there is nothing.
export async function lookAway(may) {
  if (!may) {
    asking += 1;
    shares = [];
    showAway();
    return;
  }
  // It is asked again when the view is entered.
  await list().catch(() => {});
}

dialog.addEventListener('close', () => { bridge = null; });
live.addEventListener('change', showAway);
