// Desktops: a card each, live. Only what differs is touched, and only once a frame.

import { byId, el, setText, show } from './dom.js';
import { desktops, live, order } from './live.js';
import { models } from './models.js';
import { lookAway, openShare } from './share.js';
import { ago, compact, count, desktopName, milliseconds, moment } from './words.js';

// Between two looks at a desktop's models: while it works, and while it rests. Each look is a request that the desktop counts.
const BUSY_AGAIN = 30_000;
const IDLE_AGAIN = 300_000;

// What is shown of a desktop, by its address.
const cards = new Map();
// Whether desktops can be added and shared.
let may = false;
let shown = false;

const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cards.get(target.dataset.address);
    if (card === undefined) continue;
    card.inView = isIntersecting;
    if (isIntersecting) freshen(card);
  }
}, { rootMargin: '100px' });

const TRANSPORTS = { ws: 'WebSocket', poll: 'HTTP polling' };

function way(bridge) {
  const name = TRANSPORTS[bridge.transport] ?? bridge.transport;
  return bridge.reason ? `By ${name}: ${bridge.reason}` : `By ${name}`;
}

function lastHour({ lastHour: hour }) {
  if (!hour) return 'unknown';
  const tokens = (hour.promptTokens ?? 0) + (hour.completionTokens ?? 0);
  return tokens > 0 ? `${count(hour.exchanges, 'request')}, ${compact(tokens)} tokens` : count(hour.exchanges, 'request');
}

function fact(term, value) {
  return el('div', {}, el('dt', {}, term), value);
}

function build(bridge) {
  const id = `card-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const parts = {
    busy: el('p', { class: 'busy' }),
    way: el('p', { class: 'way' }),
    trip: el('dd'),
    since: el('dd'),
    hour: el('dd'),
    models: el('ul', { class: 'models', 'aria-label': 'Models' }, el('li', { class: 'none' }, 'Asking for its models…')),
  };
  const name = desktopName(bridge);
  const chat = el('a', { href: `#chat/${bridge.address}`, 'aria-label': `Chat with ${name}` }, 'Chat');
  const share = bridge.owner || !may ? null
    : el('button', { class: 'quiet', 'aria-label': `Share ${name}`, onclick: () => openShare(desktops.get(bridge.address)) }, 'Share');
  const item = el('li', { 'data-address': bridge.address }, el('article', { class: 'card', 'aria-labelledby': id },
    el('header', {},
      el('h2', { id }, bridge.name, bridge.owner ? el('span', { class: 'owner' }, ` of ${bridge.owner}`) : null),
      parts.busy),
    parts.way,
    el('dl', {}, fact('Round trip', parts.trip), fact('Connected', parts.since), fact('Last hour', parts.hour)),
    parts.models,
    el('div', { class: 'doing' }, chat, share)));
  return { ...parts, item, bridge, inView: false, asked: -Infinity, worked: false };
}

function update(card, bridge) {
  card.bridge = bridge;
  card.worked ||= bridge.inFlight > 0;
  setText(card.busy, `${bridge.inFlight} in flight`);
  card.busy.classList.toggle('some', bridge.inFlight > 0);
  setText(card.way, way(bridge));
  setText(card.trip, bridge.roundTripMs === null ? 'not measured yet' : milliseconds(bridge.roundTripMs));
  setText(card.hour, lastHour(bridge));
  since(card);
}

function since(card) {
  setText(card.since, ago(card.bridge.connectedSince));
  const title = `since ${moment(card.bridge.connectedSince)}`;
  if (card.since.title !== title) card.since.title = title;
}

async function freshen(card) {
  if (!shown || Date.now() - card.asked < (card.worked ? BUSY_AGAIN : IDLE_AGAIN)) return;
  card.asked = Date.now();
  card.worked = card.bridge.inFlight > 0;
  const found = await models(card.bridge.address);
  // One that did not answer is asked again soon.
  card.worked ||= found.models === null;
  const items = found.models === null
    ? [el('li', { class: 'none' }, found.error.message)]
    : found.models.map(({ name, loaded }) => el('li', { class: loaded ? 'loaded' : null }, loaded ? `${name} · loaded` : name));
  card.models.replaceChildren(...(items.length > 0 ? items : [el('li', { class: 'none' }, 'No model yet: run “ollama pull” there.')]));
}

function insert(card) {
  const list = byId('cards');
  const following = [...list.children].find((item) => order(card.bridge, cards.get(item.dataset.address).bridge) < 0);
  list.insertBefore(card.item, following ?? null);
  inView.observe(card.item);
}

function remove(address) {
  const card = cards.get(address);
  inView.unobserve(card.item);
  card.item.remove();
  cards.delete(address);
}

function change(addresses) {
  const arrived = [];
  for (const address of addresses) {
    const bridge = desktops.get(address);
    const card = cards.get(address);
    if (bridge === undefined && card !== undefined) remove(address);
    else if (bridge !== undefined && card !== undefined) update(card, bridge);
    else if (bridge !== undefined) arrived.push(bridge);
  }
  for (const bridge of arrived.sort(order)) {
    const card = build(bridge);
    cards.set(bridge.address, card);
    update(card, bridge);
    insert(card);
  }
  empty();
}

function empty() {
  const text = live.known
    ? `No desktop is connected. ${may ? 'Press “Add a desktop”, or start “tunnel bridge” on one.' : 'Start “tunnel bridge” on one.'}`
    : 'Looking for your desktops…';
  show(byId('no-desktops'), desktops.size === 0);
  setText(byId('no-desktops'), text);
}

export const desktopsView = {
  begin() {
    lookAway(false);
  },
  allow(me) {
    may = me.accounts && me.scopes.includes('manage');
    show(byId('add-desktop'), may);
    for (const address of [...cards.keys()]) remove(address);
    change(desktops.keys());
  },
  enter() {
    shown = true;
    lookAway(may);
    for (const card of cards.values()) if (card.inView) freshen(card);
  },
  leave() {
    shown = false;
  },
};

live.addEventListener('change', ({ detail }) => {
  if (detail.size === 0) for (const address of [...cards.keys()]) remove(address);
  change(detail);
});

setInterval(() => {
  if (!shown || document.hidden) return;
  for (const card of cards.values()) {
    if (!card.inView) continue;
    since(card);
    freshen(card);
  }
}, 5000);
