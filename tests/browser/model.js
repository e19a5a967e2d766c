// A model whose words a story says.

import { once } from 'node:events';
import { createServer } from 'node:http';

// An Ollama that says the next piece of an answer only when it is told to.
export class Model {
  #asked = [];
  #waiting = [];

  async start() {
    this.server = createServer((request, response) => this.#answer(request, response));
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    this.address = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  #answer(request, response) {
    const json = (body) => response.setHeader('content-type', 'application/json').end(JSON.stringify(body));
    const model = { name: 'm1:latest', model: 'm1:latest', size: 1, digest: 'x', modified_at: '2026-01-01T00:00:00Z', details: {} };
    switch (request.url) {
      case '/api/tags': return json({ models: [model, { ...model, name: 'm2:latest', model: 'm2:latest' }] });
      case '/api/ps': return json({ models: [model] });
      case '/api/version': return json({ version: '0.9.0' });
      case '/v1/models': return json({ object: 'list', data: [{ id: 'm1:latest', object: 'model' }] });
      case '/v1/chat/completions': return this.#completion(response);
      case '/api/chat': return this.#chat(request, response);
      default: return response.writeHead(404).end('404 page not found');
    }
  }

  #completion(response) {
    response.setHeader('content-type', 'text/event-stream');
    const say = (delta, finish_reason = null) =>
      response.write(`data: ${JSON.stringify({ id: 'c', object: 'chat.completion.chunk', model: 'm1:latest', choices: [{ index: 0, delta, finish_reason }] })}\n\n`);
    say({ role: 'assistant', content: 'by ' });
    say({ content: 'key' });
    say({}, 'stop');
    response.end('data: [DONE]\n\n');
  }

  async #chat(request, response) {
    const body = [];
    for await (const piece of request) body.push(piece);
    const exchange = { asked: JSON.parse(Buffer.concat(body).toString()), response, closed: once(response, 'close') };
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    response.flushHeaders();
    const waiting = this.#waiting.shift();
    if (waiting) waiting(exchange);
    else this.#asked.push(exchange);
  }

  // The next chat that somebody began.
  async next() {
    return this.#asked.shift() ?? (await new Promise((resolve) => this.#waiting.push(resolve)));
  }
}

export const say = ({ response }, content) =>
  response.write(`${JSON.stringify({ model: 'm1:latest', message: { role: 'assistant', content }, done: false })}\n`);
export const finish = ({ response }) =>
  response.end(`${JSON.stringify({ model: 'm1:latest', message: { role: 'assistant', content: '' }, done: true, done_reason: 'stop', prompt_eval_count: 7, eval_count: 20, eval_duration: 1e9 })}\n`);
