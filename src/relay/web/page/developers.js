// For developers: base URLs, and snippets for the desktop and model chosen. A placeholder stands for the key; what the user is
// signed in with is in none of them.

import { baseUrl } from './address.js';
import { Choice } from './choice.js';
import { byId, copy, el } from './dom.js';

const KEY = 'YOUR_KEY';

const json = (value) => JSON.stringify(value);
// In single quotes for a shell.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl({ ollama, model }) {
  const body = json({ model, messages: [{ role: 'user', content: 'Hello!' }] });
  return `curl -N ${ollama}/api/chat \\\n  -H 'Authorization: Bearer ${KEY}' \\\n  -d ${quoted(body)}`;
}

function python({ ollama, model }) {
  return `from ollama import Client

client = Client(host=${json(ollama)}, headers={"Authorization": "Bearer ${KEY}"})
messages = [{"role": "user", "content": "Hello!"}]
for part in client.chat(${json(model)}, messages, stream=True):
    print(part.message.content, end="", flush=True)`;
}

function javascript({ ollama, model }) {
  return `import { Ollama } from 'ollama';

const ollama = new Ollama({ host: ${json(ollama)}, headers: { Authorization: 'Bearer ${KEY}' } });
const messages = [{ role: 'user', content: 'Hello!' }];
const parts = await ollama.chat({ model: ${json(model)}, messages, stream: true });
for await (const part of parts) process.stdout.write(part.message.content);`;
}

function openai({ openai: url, model }) {
  return `from openai import OpenAI

client = OpenAI(base_url=${json(url)}, api_key="${KEY}")
messages = [{"role": "user", "content": "Hello!"}]
for chunk in client.chat.completions.create(model=${json(model)}, messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)`;
}

function openWebUi({ openai: url }) {
  return `docker run -d -p 3000:8080 -v open-webui:/app/backend/data \\
  -e ENABLE_OLLAMA_API=false \\
  -e OPENAI_API_BASE_URL=${url} -e OPENAI_API_KEY=${KEY} \\
  ghcr.io/open-webui/open-webui:main`;
}

function continueDev({ ollama, model }) {
  return `# ~/.continue/config.yaml
name: tunnel
version: 0.0.1
schema: v1
models:
  - name: ${json(model)}
    provider: ollama
    model: ${json(model)}
    apiBase: ${ollama}
    apiKey: ${KEY}
    requestOptions:
      headers:
        Authorization: Bearer ${KEY}`;
}

const PROGRAMS = [
  ['curl', curl],
  ['Python, package ollama', python],
  ['JavaScript, package ollama', javascript],
  ['Python, package openai', openai],
  ['Open WebUI', openWebUi],
  ['Continue', continueDev],
];

let choice = null;

function url(term, text) {
  return el('div', {}, el('dt', {}, term), el('dd', {}, el('code', {}, text)),
    el('dd', {}, el('button', { class: 'small', 'aria-label': `Copy the base URL for ${term}`, onclick: () => copy(text) }, 'Copy')));
}

function snippet([title, write], facts) {
  const text = write(facts);
  return el('section', {},
    el('div', { class: 'over' }, el('h2', {}, title),
      el('button', { class: 'small', 'aria-label': `Copy the snippet for ${title}`, onclick: () => copy(text) }, 'Copy')),
    el('pre', { tabindex: 0, role: 'region', 'aria-label': `Snippet for ${title}` }, el('code', {}, text)));
}

function draw() {
  const path = choice.address === '' ? '' : `b/${choice.address}`;
  const facts = { ollama: baseUrl(path), openai: baseUrl(path === '' ? 'v1' : `${path}/v1`), model: choice.model || 'MODEL' };
  byId('snippets').replaceChildren(
    el('dl', { class: 'urls' }, url('Ollama', facts.ollama), url('OpenAI', facts.openai), url('Anthropic', facts.ollama)),
    ...PROGRAMS.map((program) => snippet(program, facts)));
}

export const developersView = {
  begin() {
    choice?.clear();
    byId('snippets').replaceChildren();
  },
  enter() {
    choice ??= new Choice(byId('dev-desktop'), byId('dev-model'), draw);
    draw();
    choice.want({});
  },
};
