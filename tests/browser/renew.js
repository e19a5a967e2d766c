// The page with tokens that live for seconds: it renews them while a chat goes on, and nothing but a refusal signs anybody out.
// Reads {"tunnel": PROGRAM, "transport": "ws"|"poll", "home": FOLDER} as its argument; ends with 0 if every promise was kept.

import assert from 'node:assert/strict';
import { Model, finish, say } from './model.js';
import { addDesktop, openBrowser, openRelay, person, shows, signIn, step, watch } from './stage.js';

const { tunnel, transport, home } = JSON.parse(process.argv[2]);
const RENEWALS = 3;

const model = await new Model().start();
const { issuer, origin } = await openRelay(tunnel, home, { accessLife: 6 });
const ann = await person(await openBrowser(), origin, issuer);
watch([ann]);
const { page } = ann;
const main = page.getByRole('navigation', { name: 'Main' });

const token = () => page.evaluate(() => JSON.parse(sessionStorage.getItem('tunnel.session'))?.token);
// Once the page has another token than this one.
const renewed = (old) => page.waitForFunction((before) => {
  const now = JSON.parse(sessionStorage.getItem('tunnel.session'))?.token;
  return now !== undefined && now !== before;
}, old);

await step('ann signs in and adds a desktop', async () => {
  await signIn(ann, origin, 'ann');
  await addDesktop(page, tunnel, home, ['--name', 'box', '--upstream', model.address, '--transport', transport]);
  await page.getByRole('link', { name: 'Chat with box' }).click();
});

await step(`a chat goes on whole while the page renews its token ${RENEWALS} times`, async () => {
  await page.locator('#chat-model').filter({ hasText: 'm1:latest' }).waitFor();
  await page.getByLabel('Message').fill('Hello!');
  await page.getByRole('button', { name: 'Send' }).click();
  const exchange = await model.next();
  const answer = page.getByRole('article', { name: 'Answer' }).locator('.text');
  let text = 'Begun';
  say(exchange, text);
  for (let turn = 1; turn <= RENEWALS; turn += 1) {
    await renewed(await token());
    say(exchange, ` ${turn}`);
    text += ` ${turn}`;
    await shows(answer, new RegExp(`^\\s*${text}\\s*$`));
  }
  finish(exchange);
  await page.locator('.facts').filter({ hasText: 'tokens/s' }).waitFor();
  assert.deepEqual(ann.complaints, []);
});

await step('a provider that cannot be reached signs nobody out', async () => {
  ann.expectFailures(true);
  const ends = `${issuer}/token`;
  await page.route(ends, (route) => route.abort());
  await page.locator('#away').filter({ hasText: /\S/ }).waitFor();
  await main.waitFor();
  const busy = page.waitForResponse((answer) => answer.url() === ends && answer.status() === 503);
  await page.route(ends, (route) => route.fulfill({ status: 503, body: 'busy', headers: { 'access-control-allow-origin': origin } }));
  await busy;
  await main.waitFor();
  const before = await token();
  await page.unroute(ends);
  await renewed(before);
  await page.locator('#away').waitFor({ state: 'hidden' });
  ann.expectFailures(false);
});

await step('a relay that is in trouble while the page is reloaded costs nobody the sign-in', async () => {
  ann.expectFailures(true);
  await page.route(`${origin}/-/me`, (route) => route.fulfill({ status: 503, json: { error: 'the relay is restarting' } }));
  await page.reload();
  await shows(page.locator('#away'), 'The relay is restarting.');
  await page.unroute(`${origin}/-/me`);
  await main.waitFor();
  ann.expectFailures(false);
});

await step('a sign-in that the provider ended is over, and the page says so', async () => {
  ann.expectFailures(true);
  await page.route(`${issuer}/token`, (route) => route.fulfill({
    status: 400, json: { error: 'invalid_grant' }, headers: { 'access-control-allow-origin': origin },
  }));
  await shows(page.locator('#signed-out-note'), 'Your sign-in has ended.');
  await page.getByRole('button', { name: 'Sign in' }).waitFor();
  ann.expectFailures(false);
});

await step('no error, no violation of the policy, no request to anybody else', async () => {
  assert.deepEqual(ann.complaints, []);
});

process.exit(0);
