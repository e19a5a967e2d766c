// Who is signed in: the credential, kept in sessionStorage and nowhere else; sign-in at the provider by code and PKCE (RFC 7636).

import { base } from './address.js';

const SESSION = 'tunnel.session';
const PENDING = 'tunnel.pending';
const SCOPE = 'openid profile email offline_access';
// So long before a token ends, a fresh one is asked for; of one that is short, half of its life.
const AHEAD = 30_000;
// How long the relay and the provider may take.
const PATIENCE = 20_000;
// After a renewal that came to nothing, the next one waits so long.
const PAUSE = 5000;
// With these the provider says that it will not give a token, now or later (RFC 6749 section 5.2, RFC 8707).
const FINAL = new Set([
  'invalid_grant', 'invalid_client', 'invalid_request', 'invalid_scope', 'invalid_target',
  'unauthorized_client', 'unsupported_grant_type', 'access_denied', 'login_required', 'consent_required', 'interaction_required',
]);

let current = JSON.parse(sessionStorage.getItem(SESSION) ?? 'null');
let renewal = null;
// When a renewal came to nothing last.
let missed = null;

// Tells "ended" when the credential is not accepted any more.
export const changes = new EventTarget();

export const credential = () => current?.token ?? null;

function keep(session) {
  current = session;
  if (session === null) sessionStorage.removeItem(SESSION);
  else sessionStorage.setItem(SESSION, JSON.stringify(session));
}

// How people sign in here: null where there is no provider.
export async function provider() {
  const response = await fetch(new URL('-/auth/config', base), { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
  return response.ok ? (await response.json()).oidc : null;
}

// Takes a key or a token that somebody has.
export function use(token) {
  keep({ token });
}

export function forget() {
  keep(null);
}

// The credential was refused. Who has another one meanwhile is not concerned.
export function ended(asker) {
  if (asker !== credential()) return;
  keep(null);
  changes.dispatchEvent(new Event('ended'));
}

function random() {
  return encoded(crypto.getRandomValues(new Uint8Array(32)));
}

function encoded(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

// Goes to the provider; the page begins anew when it comes back.
export async function signIn(oidc) {
  if (crypto.subtle === undefined) throw new Error('Signing in needs https; open this page by its https address.');
  const pending = { verifier: random(), state: random(), nonce: random(), back: location.hash };
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(pending.verifier));
  sessionStorage.setItem(PENDING, JSON.stringify(pending));
  const url = new URL(oidc.endpoints.authorization);
  const asked = {
    response_type: 'code',
    client_id: oidc.clientId,
    redirect_uri: base.href,
    scope: SCOPE,
    state: pending.state,
    nonce: pending.nonce,
    code_challenge: encoded(new Uint8Array(hash)),
    code_challenge_method: 'S256',
    // Without being asked anew, nobody has to be given a refresh token (OpenID Connect Core, section 11).
    prompt: 'consent',
    ...forAudience(oidc),
  };
  for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
  location.assign(url);
}

// Providers differ in how they are told for whom a token is to be. A resource must be a URL (RFC 8707), and some refuse another.
function forAudience({ audience }) {
  if (!audience) return {};
  return /^https?:\/\//.test(audience) ? { audience, resource: audience } : { audience };
}

// Whether the provider sent somebody here; its answer is out of the address before anything else happens.
export function takeAnswer() {
  const answer = new URLSearchParams(location.search);
  if (!answer.has('state') || !(answer.has('code') || answer.has('error'))) return null;
  const pending = JSON.parse(sessionStorage.getItem(PENDING) ?? 'null');
  sessionStorage.removeItem(PENDING);
  history.replaceState(null, '', `${base.pathname}${pending?.back ?? ''}`);
  return { answer, pending };
}

// Turns the answer of the provider into a credential.
export async function finishSignIn({ answer, pending }) {
  if (pending === null || answer.get('state') !== pending.state) {
    throw new Error('This sign-in was not begun here; press “Sign in” to begin one.');
  }
  if (answer.has('error')) {
    const words = answer.get('error_description') ?? answer.get('error');
    throw new Error(`The provider did not sign you in: ${words}.`);
  }
  const oidc = await provider();
  if (!oidc?.endpoints) throw new Error('The relay cannot reach the provider; try again in a moment.');
  const tokens = await exchange(oidc, {
    grant_type: 'authorization_code',
    code: answer.get('code'),
    redirect_uri: base.href,
    code_verifier: pending.verifier,
  });
  const { nonce, aud } = claims(tokens.id_token);
  if (nonce !== pending.nonce || ![aud].flat().includes(oidc.clientId)) {
    throw new Error('The provider answered another sign-in than this one; sign in again.');
  }
  keepTokens(tokens);
}

// The provider will not give a token; all else says nothing about the sign-in.
class Refused extends Error {}

// Whether somebody is still signed in cannot be told now.
class Unknown extends Error {
  constructor() {
    super('Your sign-in cannot be renewed right now; it is tried again by itself.');
  }
}

async function exchange(oidc, fields) {
  const body = new URLSearchParams({ client_id: oidc.clientId, ...fields });
  for (const [name, value] of Object.entries(forAudience(oidc))) body.set(name, value);
  let response;
  try {
    response = await fetch(oidc.endpoints.token, {
      method: 'POST', body, cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(PATIENCE),
    });
  } catch {
    throw new Error('The provider cannot be reached from this browser; it must allow this page’s origin (CORS).');
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok || !answer.access_token) {
    const words = `The provider gave no token: ${answer.error_description ?? answer.error ?? response.status}.`;
    throw FINAL.has(answer.error) ? new Refused(words) : new Error(words);
  }
  return answer;
}

// What an ID token says; nothing, if it is none. It came from the provider itself, so its signature needs no look.
function claims(token) {
  try {
    const [, body] = token.replaceAll('-', '+').replaceAll('_', '/').split('.');
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0))));
  } catch {
    return {};
  }
}

function keepTokens(tokens, before) {
  const life = tokens.expires_in * 1000;
  keep({
    token: tokens.access_token,
    refresh: tokens.refresh_token ?? before?.refresh,
    // Null where the provider does not say when it ends.
    renewAt: life > 0 ? Date.now() + Math.max(life - AHEAD, life / 2) : null,
  });
}

// Sees to a credential that is good for a while. Of one that was refused: whether there is another; throws if that cannot be told now.
export async function renew(refused) {
  if (current === null || (refused !== undefined && current.token !== refused)) return current !== null;
  const isOld = Boolean(current.renewAt) && current.renewAt < Date.now();
  if (!current.refresh || !(isOld || refused !== undefined)) return false;
  renewal ??= refresh().finally(() => { renewal = null; });
  // One that is still accepted serves on.
  return refused === undefined ? renewal.catch(() => false) : renewal;
}

async function refresh() {
  const asked = current;
  if (missed !== null && Date.now() - missed < PAUSE) throw new Unknown();
  try {
    const oidc = await provider();
    if (!oidc?.endpoints) throw new Unknown();
    const tokens = await exchange(oidc, { grant_type: 'refresh_token', refresh_token: asked.refresh });
    missed = null;
    if (current === asked) keepTokens(tokens, asked);
    return current !== null;
  } catch (error) {
    if (current !== asked) return current !== null;
    if (!(error instanceof Refused)) {
      missed = Date.now();
      throw new Unknown();
    }
    // Used up; the token is good to its end.
    keep({ ...asked, refresh: undefined });
    return false;
  }
}

// Forgets everything in this tab and this browser, and lets the provider know where it wants to.
export async function signOut() {
  const byProvider = current?.renewAt !== undefined;
  for (const storage of [sessionStorage, localStorage]) {
    for (const name of Object.keys(storage).filter((name) => name.startsWith('tunnel.'))) storage.removeItem(name);
  }
  current = null;
  const oidc = byProvider ? await provider().catch(() => null) : null;
  if (oidc?.endpoints?.endSession) {
    const url = new URL(oidc.endpoints.endSession);
    url.searchParams.set('client_id', oidc.clientId);
    location.assign(url);
    return;
  }
  location.replace(base.pathname);
}
