// The page under a path, behind a proxy that takes the path off: it is used with nothing but a keyboard, keeps a conversation where
// that is wished, and shows names as text. Reads {"tunnel": PROGRAM, "home": FOLDER} as its argument; ends with 0 if every promise was
// kept.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, request } from 'node:http';
import { Program, openBrowser, person, shows, step, watch } from './stage.js';

const { tunnel, home } = JSON.parse(process.argv[2]);
const PREFIX = '/models';
const MODEL = '<b>bold</b>:latest';
const OWNER = '<i>ann</i>';

const relay = new Program(tunnel, home, ['relay', '--demo', '--demo-pace', '5ms', '--listen', '127.0.0.1:0']);
const [printed] = await relay.line(/http:\/\/\S+\/#code=\S+/);
const behind = new URL(printed);

// The desktop is somebody else's, and has a model, whose names want to be markup.
function renamed(path, text) {
  if (path === '/-/events') return text.replaceAll('"owner":null', `"owner":${JSON.stringify(OWNER)}`);
  return text.replaceAll('"demo:latest"', JSON.stringify(MODEL));
}

const outside = [];
const server = createServer((asked, answer) => {
  if (!asked.url.startsWith(`${PREFIX}/`)) {
    outside.push(asked.url);
    return answer.writeHead(404).end();
  }
  const path = asked.url.slice(PREFIX.length);
  const { host, 'content-length': before, ...headers } = asked.headers;
  const passed = request(new URL(path, behind), { method: asked.method, headers }, (found) => {
    const { 'content-length': after, ...kept } = found.headers;
    const isJson = /json/.test(kept['content-type'] ?? '');
    answer.writeHead(found.statusCode, isJson ? kept : found.headers);
    answer.flushHeaders();
    found.on('data', (piece) => answer.write(isJson ? renamed(path, piece.toString()) : piece));
    found.on('end', () => answer.end());
  });
  passed.on('error', () => answer.destroy());
  answer.on('close', () => passed.destroy());
  return asked.on('data', (piece) => passed.write(piece.toString().replaceAll(JSON.stringify(MODEL), '"demo:latest"')))
    .on('end', () => passed.end());
}).listen(0, '127.0.0.1');
await once(server, 'listening');
const origin = `http://127.0.0.1:${server.address().port}`;
const start = `${origin}${PREFIX}/`;

const ann = await person(await openBrowser(), origin, origin);
watch([ann]);
const { page } = ann;
const main = page.getByRole('navigation', { name: 'Main' });
const answers = page.getByRole('log', { name: 'Conversation' }).getByRole('article', { name: 'Answer' });

// Goes on by Tab until this has the focus.
async function reach(locator) {
  for (let presses = 0; presses < 40; presses += 1) {
    if (await locator.evaluate((element) => element === document.activeElement)) return;
    await page.keyboard.press('Tab');
  }
  throw new Error(`no Tab leads to ${locator}`);
}

await step('an address of the demonstration signs in below a path, and all that is asked for is below it', async () => {
  await page.goto(start + behind.hash);
  await page.getByRole('heading', { name: 'Chat', level: 1 }).waitFor();
  await page.locator('#chat-model option').filter({ hasText: MODEL }).waitFor({ state: 'attached' });
  assert.equal(new URL(page.url()).pathname, `${PREFIX}/`);
  assert.deepEqual(outside, []);
});

await step('with nothing but a keyboard: a question, its answer, and the conversation is kept', async () => {
  await reach(page.getByLabel('Message'));
  await page.keyboard.type('Hello!');
  await page.keyboard.press('Enter');
  await shows(answers.locator('.facts'), 'tokens/s');
  assert.ok(await page.getByLabel('Message').evaluate((element) => element === document.activeElement));
  await reach(page.locator('#chat-options summary'));
  await page.keyboard.press('Enter');
  await reach(page.getByLabel('Keep this conversation in this browser'));
  await page.keyboard.press('Space');
  const said = await answers.locator('.text').textContent();
  await page.reload();
  await answers.locator('.text').waitFor();
  assert.equal(await answers.locator('.text').textContent(), said);
});

await step('names of models and people are text', async () => {
  await shows(answers.getByRole('heading'), MODEL);
  await main.getByRole('link', { name: 'Desktops' }).press('Enter');
  await shows(page.getByRole('list', { name: 'Desktops' }).getByRole('article'), OWNER);
  await shows(page.getByRole('list', { name: 'Models' }), MODEL);
  assert.equal(await page.locator('#cards i, #cards b').count(), 0);
});

await step('an answer of a provider that nobody here asked for, and a code that was used, change nothing', async () => {
  await page.goto(`${start}?code=x&state=y`);
  await shows(page.locator('#announce'), 'This sign-in was not begun here');
  await main.waitFor();
  assert.equal(new URL(page.url()).search, '');
  ann.expectFailures(true);
  await page.evaluate((hash) => { location.hash = hash; }, behind.hash);
  await shows(page.locator('#announce'), 'used already');
  await main.waitFor();
  assert.doesNotMatch(page.url(), /code/);
  ann.expectFailures(false);
});

await step('what is not to be kept any more is gone', async () => {
  await main.getByRole('link', { name: 'Chat' }).press('Enter');
  await page.locator('#chat-options summary').press('Enter');
  await page.getByLabel('Keep this conversation in this browser').press('Space');
  await page.reload();
  await page.getByRole('heading', { name: 'Chat', level: 1 }).waitFor();
  assert.equal(await answers.count(), 0);
  assert.equal(await page.evaluate(() => localStorage.length), 0);
});

await step('no error, no violation of the policy, no request to anybody else', async () => {
  assert.deepEqual(ann.complaints, []);
  assert.deepEqual(outside, []);
});

process.exit(0);
