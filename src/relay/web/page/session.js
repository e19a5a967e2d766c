// Who is signed in: the credential, kept in sessionStorage and nowhere else; sign-in at the provider by code and PKCE (RFC 7636).

import { base } from './address.js';

const SESSION = 'tunnel.session';
const PENDING = 'tunnel.pending';
const SCOPE = 'openid profile email offline_access';
// So long before a token ends, a fresh one is asked for.
const AHEAD = 30_000;

let current = JSON.parse(sessionStorage.getItem(SESSION) ?? 'null');
let renewal = null;

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
  const response = await fetch(new URL('-/auth/config', base), { cache: 'no-store' });
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
    ...forAudience(oidc),
  };
  for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
  location.assign(url);
}

// Providers differ in how they are told for whom a token is to be.
function forAudience({ audience }) {
  return audience ? { audience, resource: audience } : {};
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
  if (tokens.id_token !== undefined && claims(tokens.id_token).nonce !== pending.nonce) {
    throw new Error('The provider answered another sign-in than this one; sign in again.');
  }
  keepTokens(tokens);
}

class Refused extends Error {}

async function exchange(oidc, fields) {
  const body = new URLSearchParams({ client_id: oidc.clientId, ...fields });
  for (const [name, value] of Object.entries(forAudience(oidc))) body.set(name, value);
  let response;
  try {
    response = await fetch(oidc.endpoints.token, { method: 'POST', body, cache: 'no-store', credentials: 'omit' });
  } catch {
    throw new Error('The provider cannot be reached from this browser; it must allow this page’s origin (CORS).');
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok || !answer.access_token) {
    throw new Refused(`The provider gave no token: ${answer.error_description ?? answer.error ?? response.status}.`);
  }
  return answer;
}

// What an ID token says. It came from the provider itself, so its signature needs no look.
function claims(token) {
  const [, body] = token.replaceAll('-', '+').replaceAll('_', '/').split('.');
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0))));
}

function keepTokens(tokens) {
  keep({
    token: tokens.access_token,
    refresh: tokens.refresh_token ?? current?.refresh,
    expires: tokens.expires_in ? Date.now() + tokens.expires_in * 1000 : null,
  });
}

// Sees to a credential that is good for a while; true if it is another one than the one refused.
export async function renew(refused) {
  if (current === null || (refused !== undefined && current.token !== refused)) return current !== null;
  const ends = current.expires ? current.expires - AHEAD < Date.now() : false;
  if (!current.refresh || !(ends || refused !== undefined)) return false;
  renewal ??= refresh().finally(() => { renewal = null; });
  return renewal;
}

async function refresh() {
  const asked = current;
  try {
    const oidc = await provider();
    if (!oidc?.endpoints) return false;
    const tokens = await exchange(oidc, { grant_type: 'refresh_token', refresh_token: asked.refresh });
    if (current !== asked) return false;
    keepTokens(tokens);
    return true;
  } catch (error) {
    // Used up; the token is good to its end.
    if (error instanceof Refused && current === asked) keep({ ...asked, refresh: undefined });
    return false;
  }
}

// Forgets everything in this tab and this browser, and lets the provider know where it wants to.
export async function signOut() {
  const byProvider = current?.expires !== undefined;
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
