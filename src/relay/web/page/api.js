// Asks the relay, with the credential of whoever is signed in, and puts refusals into words.

import { base } from './address.js';
import { credential, ended, renew } from './session.js';

// What to do about an error, by the code in the header Tunnel-Error.
const REMEDIES = {
  no_bridge: 'The desktop is not connected. Look whether it is on and “tunnel bridge” runs there.',
  bridge_gone: 'The desktop was lost on the way. It connects again by itself; try again in a moment.',
  upstream_unreachable: 'Ollama does not run on the desktop. Start it there, then try again.',
  rate_limited: 'Too many requests for this key or token. Wait a moment, then try again.',
  timeout: 'The desktop did not answer in time. It may be loading a large model; try again.',
  draining: 'The relay is restarting. Try again in a moment.',
  too_large: 'This is too large for the relay. Begin a new conversation, or send less.',
};

export class Failure extends Error {
  constructor(code, status, detail) {
    super(REMEDIES[code] ?? sentence(detail) + (code === 'overloaded' ? ' Try again in a moment.' : ''));
    this.code = code;
    this.status = status;
  }
}

function sentence(text) {
  const whole = text === '' ? 'That did not work' : text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

const UNREACHABLE = 'the relay cannot be reached; look whether this device is online, then try again';
const SLOW = 'the relay did not answer in time; try again';
// How long an answer may take that comes whole.
const PATIENCE = 30_000;

// What went wrong on the way, in words; the browser's own say nothing to a person.
function lost(error, path) {
  if (error.name === 'AbortError' || error instanceof Failure) return error;
  if (error.name === 'TimeoutError') return path.startsWith('b/') ? new Failure('timeout', 0, '') : new Failure('', 0, SLOW);
  return new Failure('unreachable', 0, UNREACHABLE);
}

async function send(path, options) {
  const headers = { ...options.headers, Authorization: `Bearer ${credential()}` };
  if (options.body !== undefined) headers['Content-Type'] = 'application/json';
  const body = options.body === undefined ? undefined : JSON.stringify(options.body);
  try {
    return await fetch(new URL(path, base), {
      method: options.method ?? 'GET', headers, body, signal: options.signal, cache: 'no-store', credentials: 'omit',
    });
  } catch (error) {
    throw lost(error, path);
  }
}

async function failure(response) {
  const text = await response.text().catch(() => '');
  let detail = '';
  try {
    const { error } = JSON.parse(text);
    detail = String(error?.message ?? error ?? '');
  } catch {
    detail = `the answer was ${response.status}`;
  }
  return new Failure(response.headers.get('Tunnel-Error') ?? '', response.status, detail);
}

const isOver = (refusal) => refusal.status === 401 && refusal.code === 'unauthorized';

// A response that is one of success; its body is still to come.
export async function ask(path, options = {}) {
  await renew();
  const asker = credential();
  if (asker === null) throw new Failure('unauthorized', 401, 'nobody is signed in');
  const response = await send(path, options);
  if (response.ok) return response;
  const refusal = await failure(response);
  if (!isOver(refusal)) throw refusal;
  if (!(await renew(asker))) {
    ended(asker);
    throw refusal;
  }
  const other = credential();
  const second = await send(path, options);
  if (second.ok) return second;
  const last = await failure(second);
  if (isOver(last)) ended(other);
  throw last;
}

export async function askJson(path, options = {}) {
  const limit = AbortSignal.timeout(PATIENCE);
  const signal = options.signal === undefined ? limit : AbortSignal.any([options.signal, limit]);
  const response = await ask(path, { ...options, signal });
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) throw new Failure('', response.status, 'the answer was not one that this page understands');
    throw lost(error, path);
  }
}
