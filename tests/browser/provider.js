// A real OpenID Connect provider on loopback, and people who sign in at it: with a browser that cannot draw, or with Chromium.
// Its only argument is JSON: how long access tokens and device codes live, seconds.
// Says {"issuer":URL} on a line of its own. To each line it says what came of it:
//   page USER, device USER         the tokens that the user got so
//   confirm USER URL, deny USER URL, chromium USER URL
//                                  {} once somebody else's device was let in, or not
//   reuse TOKEN                    what is said to a refresh token that was used before, as a thief's

import { createHash, createPrivateKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import Provider from 'oidc-provider';
import { openBrowser } from './stage.js';

const AUDIENCE = 'https://relay.example.com';
const CALLBACK = 'http://127.0.0.1/callback';
// Of the relay's page, on any port: that of a native application may change (RFC 8252 §7.3).
const PAGE = 'http://127.0.0.1/';
const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const SCOPE = 'openid email api bridge';
// The relay lets tokens live a minute longer, in case clocks differ: as this one's does.
const BEHIND = 60;
// How long one page may take, milliseconds.
const PATIENCE = 30_000;

const { accessLife = 3600, codeLife = 600 } = JSON.parse(process.argv[2] ?? '{}');

const server = createServer().listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

// By way of PEM: Node may wait for itself for ever when the keys that it made are collected while one of them is exported as JWK.
const { privateKey: pem } = generateKeyPairSync('rsa', {
  modulusLength: 2048,
  publicKeyEncoding: { type: 'spki', format: 'pem' },
  privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
});
const key = createPrivateKey(pem).export({ format: 'jwk' });
const provider = new Provider(issuer, {
  jwks: { keys: [{ ...key, alg: 'RS256', use: 'sig' }] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  clients: [
    { client_id: 'page', grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], redirect_uris: [CALLBACK, PAGE] },
    { client_id: 'desktop', grant_types: [DEVICE, 'refresh_token'], response_types: [], redirect_uris: [] },
  ].map((client) => ({ ...client, application_type: 'native', token_endpoint_auth_method: 'none' })),
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  clientBasedCORS: () => true,
  conformIdTokenClaims: false,
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true }),
  }),
  ttl: { AccessToken: accessLife, DeviceCode: codeLife },
  formats: {
    customizers: {
      jwt: (_, token, { payload }) => {
        payload.iat -= BEHIND;
        payload.exp -= BEHIND;
      },
    },
  },
  features: {
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => AUDIENCE,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        audience: AUDIENCE,
        scope: 'api bridge',
        accessTokenFormat: 'jwt',
        accessTokenTTL: accessLife,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
});
server.on('request', provider.callback());

const unescaped = (text) => text.replaceAll('&amp;', '&').replaceAll('&quot;', '"');

// Follows redirects and sends each form filled in, until one leads to the page that began, or there is no form any more.
async function browse(url, filled) {
  const cookies = new Map();
  let options = {};
  for (let step = 0; step < 30; step += 1) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const signal = AbortSignal.timeout(PATIENCE);
    const response = await fetch(url, { ...options, headers: { cookie }, redirect: 'manual', signal });
    // Read to its end in any case, or its connection is not free again.
    const page = await response.text();
    for (const set of response.headers.getSetCookie()) {
      const [, name, value] = set.match(/^([^=]*)=([^;]*)/);
      cookies.set(name, value);
    }
    options = {};
    const location = response.headers.get('location');
    if (location !== null) {
      url = new URL(location, url).href;
      if (url.startsWith(CALLBACK)) return new URL(url);
      continue;
    }
    const form = page.match(/<form[^>]*action="([^"]*)"[^>]*>([^]*?)<\/form>/);
    if (form === null) return page;
    const fields = new URLSearchParams();
    for (const [input] of form[2].matchAll(/<input[^>]*>/g)) {
      const name = input.match(/name="([^"]*)"/)?.[1];
      const value = input.match(/value="([^"]*)"/)?.[1] ?? '';
      if (name !== undefined) fields.set(name, filled[name] ?? unescaped(value));
    }
    url = new URL(unescaped(form[1]), url).href;
    options = { method: 'POST', body: fields };
    if (filled.refuses && fields.has('confirm')) {
      fields.set('abort', 'yes');
      return (await fetch(url, { ...options, headers: { cookie } })).text();
    }
  }
  throw new Error(`it never ends: ${url}`);
}

async function post(path, fields) {
  const response = await fetch(issuer + path, { method: 'POST', body: new URLSearchParams(fields) });
  const answer = await response.json();
  if (!response.ok) throw new Error(JSON.stringify(answer));
  return answer;
}

async function page(user) {
  const verifier = randomBytes(32).toString('base64url');
  const asked = new URLSearchParams({
    client_id: 'page',
    response_type: 'code',
    redirect_uri: CALLBACK,
    scope: SCOPE,
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  });
  const back = await browse(`${issuer}/auth?${asked}`, { login: user, password: 'any' });
  const code = back.searchParams.get('code');
  const grant = { grant_type: 'authorization_code', redirect_uri: CALLBACK, client_id: 'page' };
  return post('/token', { ...grant, code, code_verifier: verifier });
}

async function device(user) {
  const asked = await post('/device/auth', { client_id: 'desktop', scope: SCOPE });
  await browse(asked.verification_uri_complete, { login: user, password: 'any' });
  return post('/token', { grant_type: DEVICE, client_id: 'desktop', device_code: asked.device_code });
}

async function confirm(user, url) {
  await browse(url, { login: user, password: 'any' });
  return {};
}

async function deny(user, url) {
  await browse(url, { login: user, password: 'any', refuses: true });
  return {};
}

// What a person does: looks at the page, presses the button, types, until it says that the device may go on.
async function chromium(user, url) {
  const browser = await openBrowser();
  try {
    const page = await browser.newPage();
    // Its pages want fonts of the Internet, and look well enough without.
    await page.route((wanted) => wanted.origin !== issuer, (route) => route.abort());
    await page.goto(url);
    await page.locator('button[autofocus], button.login').first().click();
    await page.fill('input[name=login]', user);
    await page.fill('input[name=password]', 'any');
    await page.click('button.login');
    await page.locator('button[autofocus], button.login').first().click();
    await page.getByText('Sign-in Success').first().waitFor();
    return {};
  } finally {
    await browser.close();
  }
}

async function reuse(token) {
  const body = new URLSearchParams({ grant_type: 'refresh_token', client_id: 'desktop', refresh_token: token });
  const response = await fetch(`${issuer}/token`, { method: 'POST', body });
  return response.json();
}

console.log(JSON.stringify({ issuer }));
const ways = { page, device, confirm, deny, chromium, reuse };
for await (const line of createInterface({ input: process.stdin })) {
  const [way, ...words] = line.split(' ');
  console.log(JSON.stringify(await ways[way](...words)));
}
process.exit(0);
