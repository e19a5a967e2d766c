// Keys: list, make (shown once, with a QR code for a phone), revoke.

import { baseUrl } from './address.js';
import { askJson } from './api.js';
import { announce, byId, copy, during, el, open, setOptions, setText, show } from './dom.js';
import { sorted } from './live.js';
import { qrCode } from './qr.js';
import { credential } from './session.js';
import { ago, day, moment, span } from './words.js';

const DAY = 24 * 3600;

let may = false;
// When the token of the relay ends that is used here, seconds since 1970: no key outlives it. A sign-in bounds none.
let most = null;
let revoking = null;
// Which asking for the keys is the last one: the answer to another is old, or was meant for somebody else.
let asking = 0;

function state(key) {
  if (key.revoked !== null) return 'revoked';
  return key.expires !== null && key.expires * 1000 <= Date.now() ? 'ended' : 'valid';
}

const bound = ({ kind, expires }) => (kind === 'sign-in' ? null : expires);

const nameOf = (key) => key.label || key.id;

function time(at, words) {
  return at === null ? null : el('time', { datetime: new Date(at * 1000).toISOString(), title: moment(at * 1000) }, words(at * 1000));
}

// The label is for narrow screens, where no head is above.
const cell = (label, content) => el('td', { 'data-label': label }, content);

function row(key) {
  const now = state(key);
  const revoke = now !== 'valid' ? null
    : el('button', { class: 'small', 'aria-label': `Revoke ${nameOf(key)}`, onclick: () => askToRevoke(key) }, 'Revoke');
  return el('tr', { class: now === 'valid' ? null : 'over' },
    el('th', { scope: 'row', class: 'free' }, nameOf(key)),
    cell('Desktop', key.bridge ?? 'All'),
    cell('Most requests', key.rate ?? 'No limit'),
    cell('Made', time(key.issued, day)),
    cell('Last used', time(key.lastUsed, ago) ?? 'Never'),
    cell('Ends', time(key.expires, day) ?? 'Never'),
    cell('State', now),
    el('td', {}, revoke));
}

async function list() {
  asking += 1;
  const turn = asking;
  try {
    const { keys } = await askJson('-/keys');
    if (turn !== asking) return;
    setText(byId('keys-error'), '');
    byId('keys-rows').replaceChildren(...keys.map(row));
    show(byId('keys-box'), keys.length > 0);
    setText(byId('keys-need'), 'No key yet.');
    show(byId('keys-need'), keys.length === 0);
  } catch (error) {
    if (turn === asking) setText(byId('keys-error'), error.message);
  }
}

// Which ends can be had, and the one that is usual.
function offerEnds() {
  const left = most === null ? Infinity : most - Date.now() / 1000;
  const ends = [['30', 'In 30 days'], ['90', 'In 90 days'], ['365', 'In a year'], ['', 'Never']];
  const possible = ends.filter(([days]) => left >= (days === '' ? Infinity : Number(days) * DAY));
  const isLimited = possible.length < ends.length;
  if (isLimited) possible.push(['most', `In ${span(left * 1000)}, as your token does`]);
  setOptions(byId('key-ends'), possible);
  byId('key-ends').value = possible.some(([days]) => days === '90') ? '90' : possible[possible.length - 1][0];
  setText(byId('key-ends-hint'), isLimited ? 'A key ends no later than the token that you use here.' : '');
}

function askForKey() {
  const own = sorted().filter(({ owner }) => !owner);
  setOptions(byId('key-bridge'), [['', 'All of mine'], ...own.map(({ name }) => [name, name])]);
  byId('key-label').value = '';
  byId('key-bridge').value = '';
  byId('key-rate').value = '';
  setText(byId('key-error'), '');
  offerEnds();
  open(byId('key-dialog'));
}

async function make() {
  const ends = byId('key-ends').value;
  const wish = {
    label: byId('key-label').value.trim() || null,
    bridge: byId('key-bridge').value || null,
    rate: byId('key-rate').value || null,
    expires: ends === '' || ends === 'most' ? null : Math.floor(Date.now() / 1000) + Number(ends) * DAY,
  };
  try {
    const made = await askJson('-/keys', { method: 'POST', body: wish });
    // Who signed out meanwhile leaves no secret on the screen.
    if (credential() === null) return;
    byId('key-dialog').close();
    present(made.key);
    await list();
  } catch (error) {
    setText(byId('key-error'), error.message);
  }
}

function present(key) {
  const url = baseUrl();
  setText(byId('new-key'), key);
  setText(byId('new-key-url'), url);
  byId('new-key-copy').onclick = () => copy(key);
  byId('new-key-url-copy').onclick = () => copy(url);
  const code = qrCode(`${url}\n${key}`, 'QR code of base URL and key');
  byId('new-key-qr').replaceChildren(...(code === null ? [] : [code]));
  open(byId('new-key-dialog'));
}

// Nothing of it stays in the page.
byId('new-key-dialog').addEventListener('close', () => {
  setText(byId('new-key'), '');
  byId('new-key-copy').onclick = null;
  byId('new-key-qr').replaceChildren();
  byId('key-add').focus();
});

function askToRevoke(key) {
  revoking = key;
  setText(byId('revoke-title'), `Revoke ${nameOf(key)}?`);
  setText(byId('revoke-error'), '');
  open(byId('revoke-dialog'));
}

async function revoke() {
  try {
    await askJson(`-/keys/${encodeURIComponent(revoking.id)}`, { method: 'DELETE' });
    byId('revoke-dialog').close();
    announce(`${nameOf(revoking)} is revoked.`);
    await list();
    byId('key-add').focus();
  } catch (error) {
    setText(byId('revoke-error'), error.message);
  }
}

function need(me) {
  if (!me.accounts) return 'This relay keeps no accounts, so it has no keys.';
  return 'Keys are made by who has signed in, or with a token that has the scope manage. What you use here does not have it.';
}

byId('key-add').addEventListener('click', askForKey);
byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  during(byId('key-make'), make);
});
byId('revoke-yes').addEventListener('click', () => during(byId('revoke-yes'), revoke));

export const keysView = {
  begin() {
    asking += 1;
    show(byId('keys-box'), false);
    byId('keys-rows').replaceChildren();
    setText(byId('keys-error'), '');
  },
  allow(me) {
    may = me.accounts && me.scopes.includes('manage');
    most = bound(me);
    show(byId('key-add'), may);
    show(byId('keys-need'), !may);
    setText(byId('keys-need'), need(me));
  },
  enter() {
    if (may) list();
  },
};
