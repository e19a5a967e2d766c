// Begins, signs people in and out, and shows the view that the address names.

import { addWired } from './add.js';
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

// Which view, and what the address says to it.
function place() {
  const [name, ...rest] = location.hash.slice(1).split('/');
  return Object.hasOwn(VIEWS, name) ? [name, rest.join('/')] : ['desktops', ''];
}

function showView() {
  if (me === null) return;
  const [name, detail] = place();
  if (current !== null && current !== name) VIEWS[current].leave?.();
  const moved = current !== null && current !== name;
  current = name;
  for (const other of Object.keys(VIEWS)) show(byId(`view-${other}`), other === name);
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${byId(`${name}-title`).textContent} · tunnel`;
  byId('main').scrollTop = 0;
  // Who moves by keyboard or ear is at the beginning of what is new.
  if (moved) byId('main').focus({ preventScroll: true });
  VIEWS[name].enter?.(detail);
}

function enter(who) {
  me = who;
  // What another person left in this tab is not this one's.
  if (lastUser !== me.user) {
    live.clear();
    models.clear();
    for (const view of Object.values(VIEWS)) view.begin?.(me);
    addWired.begin(me);
    lastUser = me.user;
  }
  setText(byId('who'), me.user);
  if (!byId('view-signed-out').hidden) byId('main').focus();
  show(byId('view-signed-out'), false);
  show(byId('top'), true);
  live.start();
  showView();
}

async function leave(note) {
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
  });
  if (!response.ok) throw new Error('The code in this address was used already, or is too old. Start the demo again for another one.');
  session.use((await response.json()).token);
}

async function begin() {
  wireDialogs();
  byId('credential-form').addEventListener('submit', useCredential);
  byId('sign-out').addEventListener('click', signOut);
  const answer = session.takeAnswer();
  const code = /^#code=([^&]+)$/.exec(location.hash)?.[1];
  if (code !== undefined) history.replaceState(null, '', base.pathname);
  try {
    if (answer !== null) await session.finishSignIn(answer);
    if (code !== undefined) {
      await claim(decodeURIComponent(code));
      history.replaceState(null, '', '#chat');
    }
    if (session.credential() === null) await leave();
    else enter(await askJson('-/me'));
  } catch (error) {
    if (error.status === 0) retry(error);
    else {
      session.forget();
      await leave(error.message);
    }
  }
}

// The relay is away, which says nothing about the credential.
function retry(error) {
  setText(byId('away'), error.message);
  show(byId('away'), true);
  setTimeout(async () => {
    try {
      const who = await askJson('-/me');
      show(byId('away'), false);
      enter(who);
    } catch (again) {
      if (again.status === 0) retry(again);
      else await leave(again.message);
    }
  }, 3000);
}

async function signOut() {
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

live.live.addEventListener('arrived', ({ detail }) => {
  if (!addWired.took(detail)) return;
  announce(`${detail.name} is connected.`);
});

byId('skip').addEventListener('click', (event) => {
  // The address stays that of the view.
  event.preventDefault();
  byId('main').focus();
});
window.addEventListener('hashchange', showView);
begin();
