// The page in a real browser: two people sign in at a real provider, add a desktop, chat, stop, share, make a key and take it back.
// Reads {"tunnel": PROGRAM, "transport": "ws"|"poll", "home": FOLDER, "pictures": FOLDER|null} as its argument; ends with 0 if every
// promise was kept.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { readDrawing } from './code.js';
import { Model, finish, say } from './model.js';
import { addDesktop, fits, openBrowser, openRelay, person, planted, shows, signIn, step, watch } from './stage.js';

const { tunnel, transport, home, pictures } = JSON.parse(process.argv[2]);
const ANN = 'ann';
const BOB = 'bob';

// What a model would say that wants to be more than text.
const EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>';

const model = await new Model().start();
const { issuer, origin } = await openRelay(tunnel, home);
const browser = await openBrowser();
const ann = await person(browser, origin, issuer);
const bob = await person(browser, origin, issuer);
watch([ann, bob]);

const open = ({ page }, name) => page.getByRole('navigation', { name: 'Main' }).getByRole('link', { name }).click();
const desktop = ({ page }, name) => page.getByRole('list', { name: 'Desktops' }).getByRole('article', { name, exact: true });
const answer = ({ page }) => page.getByRole('log', { name: 'Conversation' }).getByRole('article', { name: 'Answer' }).last();

async function ask({ page }, text) {
  await page.getByLabel('Message').fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
  return model.next();
}

let added;

await step('ann signs in at the provider, and nothing of it stays in the address or outlives the tab', async () => {
  await signIn(ann, origin, ANN);
  const { search, hash, stored } = await ann.page.evaluate(() => ({
    search: location.search, hash: location.hash, stored: Object.keys(localStorage).length,
  }));
  assert.deepEqual({ search, stored }, { search: '', stored: 0 });
  assert.doesNotMatch(hash, /code|state/);
});

await step('she adds a desktop with the two commands that the page gives', async () => {
  added = await addDesktop(ann.page, tunnel, home, ['--name', 'box', '--upstream', model.address, '--transport', transport]);
  assert.deepEqual(added.addresses.map((address) => new URL(address).origin), [origin, origin]);
  await shows(ann.page.locator('#announce'), 'box is connected.');
  await ann.page.getByRole('dialog').waitFor({ state: 'hidden' });
  await shows(desktop(ann, 'box'), 'm1:latest');
});

await step('a chat arrives in the page piece by piece, as the desktop says it', async () => {
  await desktop(ann, 'box').getByRole('link', { name: 'Chat with box' }).click();
  const exchange = await ask(ann, 'Hello!');
  assert.equal(exchange.asked.messages.at(-1).content, 'Hello!');
  let text = '';
  for (const piece of ['One', ' two', ' three', ' four']) {
    say(exchange, piece);
    text += piece;
    await shows(answer(ann).locator('.text'), new RegExp(`^\\s*${text}\\s*$`));
  }
  say(exchange, `\n\n\`\`\`python\nprint("${'x'.repeat(200)}")\n\`\`\`\n${EVIL}`);
  finish(exchange);
  await shows(answer(ann).locator('.facts'), '20.0 tokens/s');
  await answer(ann).getByRole('button', { name: 'Copy code' }).waitFor();
});

await step('what a model says is text, whatever it is', async () => {
  await shows(answer(ann).locator('.text'), EVIL);
  assert.equal(await answer(ann).locator('img, script').count(), 0);
  assert.doesNotMatch(await ann.page.title(), /^[12]$/);
});

await ann.pictures(pictures, 'chat');

await step('Stop stops the desktop, and says so', async () => {
  const exchange = await ask(ann, 'Tell me everything.');
  say(exchange, 'Everything ');
  await shows(answer(ann).locator('.text'), 'Everything');
  await ann.page.getByRole('button', { name: 'Stop' }).click();
  await exchange.closed;
  assert.equal(exchange.response.writableFinished, false);
  await shows(ann.page.locator('#chat-state'), 'Stopped: box is no longer working on it.');
});

await step('an answer that breaks off says so, keeps what came, and can be tried again', async () => {
  const exchange = await ask(ann, 'Break.');
  say(exchange, 'It was going so well');
  await shows(answer(ann).locator('.text'), 'going so well');
  ann.expectFailures(true);
  exchange.response.destroy();
  await answer(ann).getByRole('alert').waitFor();
  await shows(answer(ann).locator('.text'), 'going so well');
  ann.expectFailures(false);
  await answer(ann).getByRole('button', { name: 'Try again' }).click();
  const again = await model.next();
  assert.equal(again.asked.messages.at(-1).content, 'Break.');
  say(again, 'Whole now.');
  finish(again);
  await shows(answer(ann).locator('.text'), 'Whole now.');
});

await step('bob, who signs in too, sees nothing until ann shares', async () => {
  await signIn(bob, origin, BOB);
  await shows(bob.page.locator('#no-desktops'), 'No desktop is connected.');
  await open(ann, 'Desktops');
  await ann.page.getByRole('button', { name: 'Share box' }).click();
  const dialog = ann.page.getByRole('dialog', { name: 'Share box' });
  await dialog.getByLabel('A person').check();
  await dialog.getByLabel('User name').fill(BOB);
  await dialog.getByRole('button', { name: 'Share', exact: true }).click();
  await dialog.getByRole('button', { name: `Take back from ${BOB}` }).waitFor();
  await ann.pictures(pictures, 'share');
  await desktop(bob, `box of ${ANN}`).waitFor();
});

await step('bob chats with the desktop of ann', async () => {
  await desktop(bob, `box of ${ANN}`).getByRole('link').click();
  const exchange = await ask(bob, 'Hello, box of ann!');
  say(exchange, 'Hello, bob.');
  await shows(answer(bob).locator('.text'), 'Hello, bob.');
  finish(exchange);
  await answer(bob).locator('.facts').waitFor();
});

await step('what is taken back is gone at once, with what is under way', async () => {
  const exchange = await ask(bob, 'Go on.');
  say(exchange, 'On');
  await shows(answer(bob).locator('.text'), 'On');
  bob.expectFailures(true);
  await ann.page.getByRole('dialog', { name: 'Share box' }).getByRole('button', { name: `Take back from ${BOB}` }).click();
  await exchange.closed;
  await answer(bob).getByRole('alert').waitFor();
  await ann.page.getByRole('dialog', { name: 'Share box' }).getByRole('button', { name: 'Close' }).click();
  await open(bob, 'Desktops');
  await shows(bob.page.locator('#no-desktops'), 'No desktop is connected.');
  bob.expectFailures(false);
});

await ann.pictures(pictures, 'desktops');

await step('a key that the page makes serves an OpenAI client, until it is revoked there', async () => {
  await open(ann, 'Keys');
  await ann.page.getByRole('button', { name: 'New key' }).click();
  const dialog = ann.page.getByRole('dialog', { name: 'New key' });
  const label = 'phone <b>bold</b>';
  await dialog.getByLabel('Label').fill(label);
  await dialog.getByRole('button', { name: 'Make the key' }).click();
  await shows(ann.page.locator('#new-key'), 'tun_');
  const apiKey = (await ann.page.locator('#new-key').textContent()).trim();
  assert.match(apiKey, /^tun_[0-9a-z]{26}$/);
  assert.equal(await ann.page.locator('#new-key-url').textContent(), origin);
  const code = ann.page.getByRole('img', { name: 'QR code of base URL and key' });
  assert.equal(await readDrawing(code), `${origin}\n${apiKey}`);
  await ann.pictures(pictures, 'key');
  await ann.page.getByRole('button', { name: 'Done' }).click();
  const client = new OpenAI({ baseURL: `${origin}/v1`, apiKey, maxRetries: 0 });
  const stream = await client.chat.completions.create({
    model: 'm1:latest', messages: [{ role: 'user', content: 'Hello!' }], stream: true,
  });
  let text = '';
  for await (const part of stream) text += part.choices[0]?.delta.content ?? '';
  assert.equal(text, 'by key');
  const row = ann.page.getByRole('table', { name: 'Your keys' }).getByRole('row').filter({ hasText: label });
  assert.equal(await row.locator('b').count(), 0, 'a label is text');
  await row.getByRole('button', { name: `Revoke ${label}` }).click();
  await ann.page.getByRole('button', { name: 'Revoke', exact: true }).click();
  await shows(row, 'revoked');
  await assert.rejects(client.models.list(), (error) => error.status === 401);
  assert.ok(!(await ann.page.content()).includes(apiKey), 'a key is shown once');
});

await ann.pictures(pictures, 'keys');

await step('usage is counted for each person', async () => {
  await open(ann, 'Usage');
  await ann.page.getByLabel('By').selectOption({ label: 'Person' });
  const table = ann.page.getByRole('table', { name: 'Usage per day' });
  await shows(table, BOB);
  await shows(table, ANN);
  await ann.pictures(pictures, 'usage');
});

await step('the snippets have the address of this relay and no credential', async () => {
  await open(ann, 'Developers');
  const main = ann.page.getByRole('main');
  await shows(main, `${origin}/b/box/v1`);
  const { token, refresh } = await ann.page.evaluate(() => JSON.parse(sessionStorage.getItem('tunnel.session')));
  for (const secret of [token, refresh]) {
    assert.ok(secret.length > 20 && !(await main.textContent()).includes(secret));
  }
  await ann.pictures(pictures, 'developers');
});

await step('no view is wider than a phone', async () => {
  for (const view of ['Desktops', 'Chat', 'Keys', 'Usage', 'Developers']) {
    await open(ann, view);
    await fits(ann);
  }
});

await step('what is shared of a desktop that is away is told, and can be taken back', async () => {
  await open(ann, 'Desktops');
  await ann.page.getByRole('button', { name: 'Share box' }).click();
  const dialog = ann.page.getByRole('dialog', { name: 'Share box' });
  await dialog.getByLabel('A group').check();
  await dialog.getByLabel('Name of the group').fill('staff');
  await dialog.getByRole('button', { name: 'Share', exact: true }).click();
  await dialog.getByRole('button', { name: 'Take back from group staff' }).waitFor();
  await dialog.getByRole('button', { name: 'Close' }).click();
  added.bridge.child.kill('SIGTERM');
  const away = ann.page.getByRole('list', { name: 'Shared, but away' });
  await shows(away, 'box with group staff');
  await away.getByRole('button', { name: 'Take back box from group staff' }).click();
  await away.waitFor({ state: 'hidden' });
});

await step('signed out, nothing is left in the browser', async () => {
  await open(ann, 'Chat');
  await ann.page.locator('#chat-options summary').click();
  await ann.page.getByLabel('Keep this conversation in this browser').check();
  assert.equal(await ann.page.evaluate(() => localStorage.length), 1);
  await ann.page.getByRole('button', { name: 'Sign out' }).click();
  // The provider asks whether it may end its own session, too.
  await ann.page.waitForURL((url) => url.origin === issuer);
  await ann.page.goto(origin);
  await ann.page.getByRole('button', { name: 'Sign in' }).waitFor();
  const left = await ann.page.evaluate(() => ({ session: sessionStorage.length, local: localStorage.length }));
  assert.deepEqual(left, { session: 0, local: 0 });
  await ann.pictures(pictures, 'signed-out');
});

await step('no error, no violation of the policy, no request to anybody else', async () => {
  assert.deepEqual([...ann.complaints, ...bob.complaints], []);
});

await step('a violation of the policy would have been seen', async () => {
  assert.match(await planted(ann), /policy: img-src https:\/\/example\.com/);
});

process.exit(0);
