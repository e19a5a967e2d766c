// The desktops as they are now: follows the relay's events, and asks again when they end.

import { ask, Failure } from './api.js';
import { credential } from './session.js';
import { ndjson } from './stream.js';

// Beats come each 15 seconds; without any for so long, the connection is dead.
const SILENCE = 40_000;
const LONGEST_PAUSE = 30_000;
const LOST = 'The relay cannot be reached right now.';

// Desktops by address.
export const desktops = new Map();

// Tells "change" with the addresses concerned, once a frame at most; "arrived" with a desktop that was never there before; "state".
export const live = new EventTarget();
live.state = 'begin';
live.problem = '';
live.known = false;

// The ids of all that were there.
const seen = new Set();
let changed = new Set();
let frame = null;
let running = null;

function tell(type, detail) {
  live.dispatchEvent(new CustomEvent(type, { detail }));
}

function setState(state, problem = '') {
  if (live.state === state && live.problem === problem) return;
  live.state = state;
  live.problem = problem;
  tell('state');
}

function flush() {
  frame = null;
  const addresses = changed;
  changed = new Set();
  tell('change', addresses);
}

// A page that is not looked at draws no frames: then a timer does.
function schedule() {
  frame ??= document.hidden ? setTimeout(flush, 500) : requestAnimationFrame(flush);
}

function take(line, isFirst) {
  if (line.type !== 'bridges') return;
  const bridges = line.bridges ?? [];
  const present = new Set(bridges.map(({ address }) => address));
  const gone = isFirst ? [...desktops.keys()].filter((address) => !present.has(address)) : line.gone ?? [];
  for (const address of gone) {
    desktops.delete(address);
    changed.add(address);
  }
  for (const bridge of bridges) {
    const isNew = live.known && !seen.has(bridge.id);
    seen.add(bridge.id);
    desktops.set(bridge.address, bridge);
    changed.add(bridge.address);
    if (isNew) tell('arrived', bridge);
  }
  live.known = true;
  schedule();
}

async function follow(abort) {
  let watchdog;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => abort.abort(), SILENCE);
  };
  try {
    alive();
    const response = await ask('-/events', { signal: abort.signal });
    let isFirst = true;
    for await (const line of ndjson(response)) {
      alive();
      take(line, isFirst);
      isFirst &&= line.type !== 'bridges';
      setState('here');
    }
    return !isFirst;
  } finally {
    clearTimeout(watchdog);
    abort.abort();
  }
}

async function run(stopped) {
  let pause = 500;
  while (!stopped.signal.aborted && credential() !== null) {
    const abort = new AbortController();
    stopped.signal.addEventListener('abort', () => abort.abort(), { once: true, signal: abort.signal });
    const began = Date.now();
    let problem = LOST;
    const wasThere = await follow(abort).catch((error) => {
      // The relay itself says why, if it is there.
      if (error instanceof Failure && error.status > 0) problem = error.message;
      return false;
    });
    if (stopped.signal.aborted) return;
    if (wasThere || Date.now() - began > 30_000) pause = 500;
    // One that ends in good order, as with a credential that was renewed, is no news yet.
    if (!wasThere) setState('away', problem);
    await wait(pause * (0.75 + Math.random() / 2), stopped.signal);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  }
}

function wait(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener('online', done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener('online', done);
    signal.addEventListener('abort', done);
  });
}

export function start() {
  stop();
  running = new AbortController();
  run(running);
}

export function stop() {
  running?.abort();
  running = null;
}

// Forgets what was seen, for somebody else.
export function clear() {
  stop();
  desktops.clear();
  seen.clear();
  live.known = false;
  live.state = 'begin';
  tell('change', new Set());
}

// The user's own first, by name.
export function sorted() {
  return [...desktops.values()].sort(order);
}

export function order(a, b) {
  return Number(Boolean(a.owner)) - Number(Boolean(b.owner))
    || a.name.localeCompare(b.name, 'en', { numeric: true })
    || a.address.localeCompare(b.address);
}
