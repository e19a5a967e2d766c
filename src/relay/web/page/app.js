// Begins, signs people in and out, and shows the view that the address names.

import { closeAdd } from './add.js';
import { askJson } from './api.js';
import { base } from './address.js';
import { chatView } from './chat.js';
import { desktopsView } from './desktops.js';
import { developersView } from './developers.js';
import { byId, announce, setText, show, wireDialogs } from './dom.js';
import { keysView } from './keys.js';
import * as live from './live.js';
import * as models from './models.js';
import * as session from './session.js';
import { usageView } from './usage.js';

const VIEWS = {
  desktops: desktopsView,
  chat: chatView,
  keys: keysView,
  usage: usageView,
  developers: developersView,
};

let me = null;
let lastUser = null;
let current = null;
// Which asking for the user is the last one.
let asking = 0;

// Which view, and what the address says to it.
function place() {
  const [name, ...rest] = location.hash.slice(1).split('/');
  return Object.hasOwn(VIEWS, name) ? [name, rest.join('/')] : ['desktops', ''];
}

function showView() {
  if (me === null) return;
  const [name, detail] = place();
  const isOther = current !== null && current !== name;
  if (isOther) VIEWS[current].leave?.();
  current = name;
  for (const other of Object.keys(VIEWS)) show(byId(`view-${other}`), other === name);
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${byId(`${name}-title`).textContent} · tunnel`;
  byId('main').scrollTop = 0;
  // Who moves by keyboard or ear is at the beginning of what is new.
  if (isOther) byId('main').focus({ preventScroll: true });
  VIEWS[name].enter?.(detail);
}

function enter(who) {
  me = who;
  // What another person left in this tab is not this one's.
  if (lastUser !== me.user) {
    live.clear();
    models.clear();
    for (const view of Object.values(VIEWS)) view.begin?.(me);
    lastUser = me.user;
  }
  // The same person may do more, or less, with another credential.
  for (const view of Object.values(VIEWS)) view.allow?.(me);
  setText(byId('who'), me.user);
  if (!byId('view-signed-out').hidden) byId('main').focus();
  show(byId('view-signed-out'), false);
  show(byId('top'), true);
  live.start();
  showView();
}

async function leave(note) {
  const wasIn = me !== null;
  me = null;
  current = null;
  live.stop();
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  for (const name of Object.keys(VIEWS)) show(byId(`view-${name}`), false);
  show(byId('top'), false);
  show(byId('away'), false);
  show(byId('view-signed-out'), true);
  document.title = 'tunnel';
  setText(byId('signed-out-note'), note ?? '');
  if (wasIn) byId('signed-out-title').focus();
  await offerSignIn();
}

async function offerSignIn() {
  const oidc = await session.provider().catch(() => null);
  const possible = Boolean(oidc?.endpoints);
  show(byId('sign-in-box'), possible);
  byId('sign-in').onclick = async () => {
    for (const view of Object.values(VIEWS)) view.stash?.(lastUser);
    await session.signIn(oidc).catch((error) => setText(byId('signed-out-note'), error.message));
  };
  if (oidc !== null && !possible && me === null) {
    setText(byId('signed-out-note'), 'Nobody can sign in right now: the relay does not reach the provider. It tries again by itself.');
    setTimeout(() => { if (me === null) offerSignIn(); }, 5000);
  }
}

function credentialError(text) {
  setText(byId('credential-error'), text);
  byId('credential').setAttribute('aria-invalid', String(text !== ''));
}

async function useCredential(event) {
  event.preventDefault();
  const field = byId('credential');
  const token = field.value.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    credentialError(token === '' ? 'Paste a key or a token here.' : 'This is no key or token: it has characters that none has.');
    field.focus();
    return;
  }
  session.use(token);
  try {
    const who = await askJson('-/me');
    if (!who.scopes.includes('api')) throw new Error('This token is for bridges only. Use one with the scope api, or a key.');
    credentialError('');
    field.value = '';
    enter(who);
  } catch (error) {
    session.forget();
    credentialError(error.status === 401 ? 'The relay does not accept this key or token.' : error.message);
    field.focus();
  }
}

// A code out of the address printed by `tunnel relay --demo`.
async function claim(code) {
  const response = await fetch(new URL('-/auth/claim', base), {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ code }), cache: 'no-store',
    signal: AbortSignal.timeout(20_000),
  }).catch(() => { throw new Error('The relay cannot be reached. Open the address again in a moment.'); });
  if (!response.ok) throw new Error('The code in this address was used already, or is too old. Start the demo again for another one.');
  session.use((await response.json()).token);
  history.replaceState(null, '', '#chat');
}

// Takes such a code out of the address.
function takeCode() {
  const code = /^#code=([^&]+)$/.exec(location.hash)?.[1] ?? null;
  if (code !== null) history.replaceState(null, '', base.pathname);
  return code;
}

// Carries out what the address asked for; one that fails leaves whoever is signed in as they are.
async function arrive(act) {
  if (session.credential() === null) {
    show(byId('view-signed-out'), true);
    setText(byId('signed-out-note'), 'Signing you in…');
  }
  let note = '';
  await act().catch((error) => { note = error.message; });
  await look(note);
}

// Asks who this is until the relay says it: that it is away says nothing about the credential.
async function look(note = '') {
  asking += 1;
  const turn = asking;
  if (session.credential() === null) return leave(note);
  try {
    const who = await askJson('-/me');
    if (turn !== asking) return undefined;
    show(byId('away'), false);
    enter(who);
    if (note !== '') announce(note);
  } catch (error) {
    if (turn !== asking) return undefined;
    if ([401, 403].includes(error.status)) {
      session.forget();
      return leave(error.message);
    }
    setText(byId('away'), error.message);
    show(byId('away'), true);
    setTimeout(() => turn === asking && look(note), 3000);
  }
  return undefined;
}

function begin() {
  wireDialogs();
  byId('credential-form').addEventListener('submit', useCredential);
  byId('sign-out').addEventListener('click', signOut);
  const answer = session.takeAnswer();
  const code = takeCode();
  if (answer !== null) arrive(() => session.finishSignIn(answer));
  else if (code !== null) arrive(() => claim(code));
  else look();
}

function moved() {
  const code = takeCode();
  if (code === null) showView();
  else arrive(() => claim(code));
}

async function signOut() {
  asking += 1;
  me = null;
  live.stop();
  for (const view of Object.values(VIEWS)) view.forget?.();
  await session.signOut();
}

session.changes.addEventListener('ended', () => {
  if (me !== null) leave('Your sign-in has ended. Sign in again; what you typed is kept.');
});

live.live.addEventListener('state', () => {
  const away = live.live.state === 'away';
  if (me === null) return;
  setText(byId('away'), away ? `${live.live.problem} What you see may be old; it is tried again by itself.` : '');
  show(byId('away'), away);
});

// One of the user's own that was not there before: then there is nothing left to add.
live.live.addEventListener('arrived', ({ detail }) => {
  if (detail.owner) return;
  closeAdd();
  announce(`${detail.name} is connected.`);
});

byId('skip').addEventListener('click', (event) => {
  // The address stays that of the view.
  event.preventDefault();
  byId('main').focus();
});
window.addEventListener('hashchange', moved);
begin();
