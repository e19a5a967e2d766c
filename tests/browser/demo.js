// The page of a demonstration: the address that is printed opens it signed in, once, and a chat works at once.
// Reads {"tunnel": PROGRAM, "home": FOLDER, "pictures": FOLDER|null} as its argument; ends with 0 if every promise was kept.

import assert from 'node:assert/strict';
import { Program, openBrowser, person, shows, step, watch } from './stage.js';

const { tunnel, home, pictures } = JSON.parse(process.argv[2]);

const relay = new Program(tunnel, home, ['relay', '--demo', '--demo-pace', '5ms', '--listen', '127.0.0.1:0']);
const [address] = await relay.line(/http:\/\/\S+\/#code=\S+/);
const { origin } = new URL(address);
const browser = await openBrowser();
const ann = await person(browser, origin, origin);
const bob = await person(browser, origin, origin);
watch([ann, bob]);

await step('the address that is printed opens the page signed in, and the code does not stay in it', async () => {
  await ann.page.goto(address);
  await ann.page.getByRole('heading', { name: 'Chat', level: 1 }).waitFor();
  assert.doesNotMatch(ann.page.url(), /code/);
});

await step('desktop and model are chosen, and a chat works at once', async () => {
  await ann.page.getByLabel('Message').fill('Hello!');
  await ann.page.getByRole('button', { name: 'Send' }).click();
  const answer = ann.page.getByRole('log', { name: 'Conversation' }).getByRole('article', { name: 'Answer' });
  await answer.locator('.facts').filter({ hasText: 'tokens/s' }).waitFor();
  assert.notEqual((await answer.locator('.text').textContent()).trim(), '');
  await ann.pictures(pictures, 'demo');
});

await step('keys, codes and usage work there too', async () => {
  const main = ann.page.getByRole('navigation', { name: 'Main' });
  await main.getByRole('link', { name: 'Desktops' }).click();
  await ann.page.getByRole('button', { name: 'Add a desktop' }).click();
  await ann.page.locator('#add-command').filter({ hasText: '--code' }).waitFor();
  await ann.page.keyboard.press('Escape');
  await main.getByRole('link', { name: 'Keys' }).click();
  await ann.page.getByRole('button', { name: 'New key' }).click();
  await ann.page.getByRole('button', { name: 'Make the key' }).click();
  await ann.page.locator('#new-key').filter({ hasText: 'tun_' }).waitFor();
});

await step('nothing went wrong so far, and the code is good once', async () => {
  assert.deepEqual(ann.complaints, []);
  await bob.page.goto(address);
  await shows(bob.page.locator('#signed-out-note'), 'used already');
  assert.equal(await bob.page.getByRole('navigation', { name: 'Main' }).count(), 0);
});

process.exit(0);
