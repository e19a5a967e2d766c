// Which models a desktop has, asked of the desktop itself: few at once, and no desktop oftener than twice a minute.

import { askJson, Failure } from './api.js';
import { desktops, live } from './live.js';

const AT_ONCE = 3;
const FRESH = 30_000;
// One that did not answer may be asked again so soon.
export const RETRY = 10_000;

// What one user was told; another begins with nothing, and what is still under way is for the first.
const nothing = () => ({ known: new Map(), waiting: new Map(), asking: 0 });

// Known by address: {at, models: [{name, loaded}] or null, openai, error}.
let state = nothing();

export const lastKnown = (address) => state.known.get(address) ?? null;

export function clear() {
  state = nothing();
}

// One that comes back may have others.
live.addEventListener('change', ({ detail }) => {
  for (const address of detail) if (!desktops.has(address)) state.known.delete(address);
});

// What the desktop has, as new as half a minute.
export function models(address) {
  const last = state.known.get(address);
  if (last !== undefined && Date.now() - last.at < (last.models === null ? RETRY : FRESH)) return Promise.resolve(last);
  const other = state.waiting.get(address);
  if (other !== undefined) return other.promise;
  const entry = {};
  entry.promise = new Promise((resolve) => { entry.resolve = resolve; });
  state.waiting.set(address, entry);
  next(state);
  return entry.promise;
}

function next(mine) {
  for (const [address, entry] of mine.waiting) {
    if (mine.asking >= AT_ONCE || mine !== state) return;
    if (entry.begun) continue;
    entry.begun = true;
    mine.asking += 1;
    look(address).then((found) => {
      mine.known.set(address, found);
      entry.resolve(found);
      mine.waiting.delete(address);
      mine.asking -= 1;
      next(mine);
    });
  }
}

// The names in a list; throws if the answer is none of the kind.
function names(list, field) {
  if (!Array.isArray(list)) throw new Failure('', 200, 'it answers, but not as Ollama or another server of models does');
  return list.map((model) => String(model?.[field] ?? '')).filter((name) => name !== '');
}

// Whether what a desktop has may be no Ollama, or not all of one.
const mayBeOther = ({ status, code }) => status === 404 || status === 200 || (status === 403 && code === 'policy');

async function look(address) {
  const signal = AbortSignal.timeout(15_000);
  const at = Date.now();
  const list = async (path) => (await askJson(`b/${address}/${path}`, { signal })) ?? {};
  try {
    const found = names((await list('api/tags')).models, 'name');
    const running = await list('api/ps').then(({ models: there }) => names(there, 'name')).catch(() => []);
    return { at, openai: false, models: found.map((name) => ({ name, loaded: running.includes(name) })) };
  } catch (error) {
    if (!mayBeOther(error)) return { at, openai: false, models: null, error };
  }
  try {
    return { at, openai: true, models: names((await list('v1/models')).data, 'id').map((name) => ({ name, loaded: false })) };
  } catch (error) {
    return { at, openai: true, models: null, error };
  }
}
