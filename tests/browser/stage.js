// What a story in the browser stands on: programs, a browser, and people in it of whom every complaint is kept.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

// How long anything may take.
const PATIENCE = 60_000;
const SIZES = { narrow: { width: 360, height: 740 }, wide: { width: 1600, height: 1000 } };

// A program that is ended with this one.
export class Program {
  #lines = [];
  #news = [];

  constructor(program, home, args) {
    const env = { PATH: process.env.PATH, HOME: home, XDG_CONFIG_HOME: `${home}/.config`, XDG_STATE_HOME: `${home}/.state` };
    this.child = spawn(program, args, { env, stdio: ['pipe', 'pipe', 'pipe'] });
    this.ended = new Promise((resolve) => this.child.on('close', resolve));
    for (const output of [this.child.stdout, this.child.stderr]) {
      createInterface({ input: output }).on('line', (line) => {
        this.#lines.push(line);
        this.#news.splice(0).forEach((tell) => tell());
      });
    }
    process.on('exit', () => this.child.kill('SIGKILL'));
  }

  // Waits for a line like this.
  async line(pattern) {
    for (let at = 0; ; at += 1) {
      while (at >= this.#lines.length) {
        const over = this.ended.then(() => true);
        if (await Promise.race([over, new Promise((resolve) => this.#news.push(resolve))])) {
          throw new Error(`it ended without saying ${pattern}:\n${this.told()}`);
        }
      }
      const found = this.#lines[at].match(pattern);
      if (found) return found;
    }
  }

  // How it ended.
  end() {
    return this.ended;
  }

  told() {
    return this.#lines.join('\n');
  }
}

// A relay that people sign in at, with a provider that gives tokens so.
export async function openRelay(tunnel, home, lives = {}) {
  const provider = new Program(process.execPath, home, ['provider.js', JSON.stringify(lives)]);
  const { issuer } = JSON.parse((await provider.line(/^\{.*/))[0]);
  const relay = new Program(tunnel, home, [
    'relay', '--listen', '127.0.0.1:0', '--data-dir', `${home}/relay`,
    '--oidc-issuer', issuer, '--oidc-audience', 'https://relay.example.com', '--oidc-client-id', 'page',
    '--oidc-allow-all',
  ]);
  const [, origin] = await relay.line(/listens on (http:\/\/\S+)/);
  return { issuer, origin };
}

// Adds a desktop with the two commands that the page gives, and waits until it is connected.
export async function addDesktop(page, tunnel, home, more) {
  await page.getByRole('button', { name: 'Add a desktop' }).click();
  await shows(page.locator('#add-command'), /--code \S/);
  const commands = await page.locator('#add-command').textContent();
  const [, first, code, again] = commands.match(/^tunnel bridge login --relay (\S+) --code (\S+)\ntunnel bridge --relay (\S+)$/);
  const login = new Program(tunnel, home, ['bridge', 'login', '--relay', first, '--code', code]);
  assert.equal(await login.end(), 0, login.told());
  const bridge = new Program(tunnel, home, ['bridge', '--relay', again, ...more]);
  await bridge.line(/connected relay=/);
  return { bridge, addresses: [first, again] };
}

// The Chromium that the environment names; nothing in it calls home.
export function openBrowser() {
  const args = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
  ];
  return chromium.launch({ executablePath: process.env.CHROMIUM, args });
}

// Somebody with a browser of their own, at a page of this origin that signs people in at another.
export async function person(browser, origin, issuer) {
  const context = await browser.newContext({ viewport: SIZES.wide, colorScheme: 'light', reducedMotion: 'reduce' });
  context.setDefaultTimeout(PATIENCE);
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin });
  const page = await context.newPage();
  const complaints = [];
  let expected = false;
  const own = (url) => url.startsWith(`${origin}/`) || url === origin;
  page.on('pageerror', (error) => complaints.push(`error: ${error}`));
  page.on('console', (message) => {
    if (!['error', 'warning'].includes(message.type()) || !own(message.location().url)) return;
    if (expected && message.text().includes('Failed to load resource')) return;
    complaints.push(`${message.type()}: ${message.text()} (${message.location().url})`);
  });
  // The provider's own pages want fonts of the Internet, and look well enough without.
  await page.route((url) => url.origin !== origin && url.origin !== issuer, (route) => route.abort());
  page.on('request', (request) => {
    const url = request.url();
    if (own(request.frame().url()) && !own(url) && !url.startsWith(`${issuer}/`) && !url.startsWith('data:') && !url.startsWith('blob:')) {
      complaints.push(`a request to ${url}`);
    }
  });
  // What the browser itself says of it names no file of the page.
  const news = new EventEmitter();
  await page.exposeFunction('policyViolated', (text) => {
    complaints.push(text);
    news.emit('policy', text);
  });
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => window.policyViolated(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });

  // Pictures of what is there now: both widths, light and dark.
  const pictures = async (folder, name) => {
    if (!folder) return;
    for (const [size, viewport] of Object.entries(SIZES)) {
      for (const colorScheme of ['light', 'dark']) {
        await page.setViewportSize(viewport);
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: `${folder}/${name}-${size}-${colorScheme}.png` });
      }
    }
    await page.setViewportSize(SIZES.wide);
    await page.emulateMedia({ colorScheme: 'light' });
  };
  // While it is so, requests may fail: the browser itself tells of each.
  const expectFailures = (is) => {
    expected = is;
  };
  return { page, complaints, news, pictures, expectFailures };
}

// A violation of the policy, made on purpose: what is heard of it.
export async function planted({ page, news }) {
  const [heard] = await Promise.all([once(news, 'policy'), page.evaluate(() => {
    const image = document.createElement('img');
    image.src = 'https://example.com/picture';
    document.body.append(image);
  })]);
  return heard[0];
}

// Signs somebody in at the provider.
export async function signIn({ page }, origin, user) {
  await page.goto(origin);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByPlaceholder('Enter any login').fill(user);
  await page.getByPlaceholder('and password').fill('any');
  await page.getByRole('button', { name: 'Sign-in' }).click();
  await page.getByRole('button', { name: 'Continue' }).click();
  await page.getByRole('navigation', { name: 'Main' }).waitFor();
  assert.equal((await page.locator('#who').textContent()).trim(), user);
}

// The text that is on the page, once it is this one.
export async function shows(locator, text) {
  await locator.filter({ hasText: text }).waitFor();
}

// Nothing that is shown is wider than a phone, but for what can be moved sideways by itself.
export async function fits({ page }) {
  await page.setViewportSize(SIZES.narrow);
  const wide = await page.evaluate(() => [...document.querySelectorAll('html, body, main, dialog[open], section:not([hidden])')]
    .filter((part) => part.scrollWidth > part.clientWidth)
    .map((part) => `${part.localName}#${part.id} ${part.scrollWidth} > ${part.clientWidth}`));
  assert.deepEqual(wide, []);
  await page.setViewportSize(SIZES.wide);
}

let shown = [];
// Whose pages are told of when a promise is not kept.
export const watch = (people) => { shown = people; };

export async function step(promise, keep) {
  console.log(promise);
  try {
    await keep();
  } catch (error) {
    console.error(`NOT KEPT: ${promise}\n${error.stack}`);
    for (const { page, complaints } of shown) {
      console.error(page.url(), complaints, await page.locator('body').ariaSnapshot().catch(() => ''));
    }
    process.exit(1);
  }
}
