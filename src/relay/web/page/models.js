// Which models a desktop has, asked of the desktop itself: few at once, and no desktop oftener than twice a minute.

import { askJson } from './api.js';

const AT_ONCE = 3;
const FRESH = 30_000;

// By address: {at, models: [{name, loaded}] or null, openai, error}.
const known = new Map();
const waiting = new Map();
let asking = 0;

export const lastKnown = (address) => known.get(address) ?? null;

export function clear() {
  known.clear();
}

// What the desktop has, as new as half a minute.
export function models(address) {
  const last = known.get(address);
  if (last !== undefined && Date.now() - last.at < FRESH) return Promise.resolve(last);
  const other = waiting.get(address);
  if (other !== undefined) return other.promise;
  const entry = {};
  entry.promise = new Promise((resolve) => { entry.resolve = resolve; });
  waiting.set(address, entry);
  next();
  return entry.promise;
}

function next() {
  for (const [address, entry] of waiting) {
    if (asking >= AT_ONCE) return;
    if (entry.begun) continue;
    entry.begun = true;
    asking += 1;
    look(address).then((found) => {
      known.set(address, found);
      entry.resolve(found);
      waiting.delete(address);
      asking -= 1;
      next();
    });
  }
}

async function look(address) {
  const signal = AbortSignal.timeout(15_000);
  const at = Date.now();
  try {
    const { models: tags } = await askJson(`b/${address}/api/tags`, { signal });
    const running = await askJson(`b/${address}/api/ps`, { signal }).catch(() => ({}));
    const loaded = new Set((running.models ?? []).map(({ name }) => name));
    return { at, openai: false, models: tags.map(({ name }) => ({ name, loaded: loaded.has(name) })) };
  } catch (error) {
    if (error.status !== 404) return { at, openai: false, models: null, error };
  }
  try {
    const { data } = await askJson(`b/${address}/v1/models`, { signal });
    return { at, openai: true, models: data.map(({ id }) => ({ name: id, loaded: false })) };
  } catch (error) {
    return { at, openai: true, models: null, error };
  }
}
