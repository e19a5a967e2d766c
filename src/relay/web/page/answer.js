// Asks a desktop's model for an answer and gives it out as it comes: Ollama's own API, or OpenAI's where a desktop has only that.

import { ask } from './api.js';
import { events, ndjson } from './stream.js';

// The answer ended before it was whole; what came of it is kept.
class Broken extends Error {
  constructor() {
    super('The connection broke before the answer was whole. What came is kept.');
  }
}

// What a page can hold and a person read, characters.
const LONGEST = 4 * 1024 * 1024;

// Gives {text}, {thinking}, and at the end {done: {tokens, rate}}; both may be unknown.
export async function* answer({ address, model, openai, messages, signal }) {
  const path = openai ? 'v1/chat/completions' : 'api/chat';
  const body = openai ? { model, messages, stream: true, stream_options: { include_usage: true } } : { model, messages, stream: true };
  const response = await ask(`b/${address}/${path}`, { method: 'POST', body, signal });
  let whole = false;
  let length = 0;
  try {
    for await (const part of openai ? ofOpenAi(response) : ofOllama(response)) {
      whole ||= part.done !== undefined;
      length += (part.text ?? part.thinking ?? '').length;
      if (length > LONGEST) throw new Error('The answer is too long for this page. What came is kept.');
      yield part;
    }
  } catch (error) {
    // The browser's own words say nothing to a person.
    throw error instanceof TypeError || error instanceof SyntaxError ? new Broken() : error;
  }
  if (!whole) throw new Broken();
}

async function* ofOllama(response) {
  for await (const line of ndjson(response)) {
    if (line.error !== undefined) throw new Error(`The model stopped: ${line.error}`);
    if (line.message?.thinking) yield { thinking: line.message.thinking };
    if (line.message?.content) yield { text: line.message.content };
    if (line.done) {
      const rate = line.eval_count && line.eval_duration ? line.eval_count / (line.eval_duration / 1e9) : null;
      yield { done: { tokens: line.eval_count ?? null, rate } };
    }
  }
}

async function* ofOpenAi(response) {
  let tokens = null;
  let isOver = false;
  for await (const data of events(response)) {
    // To its end, or the desktop would take it for one that was stopped.
    if (data === '[DONE]') {
      isOver = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error !== undefined) throw new Error(`The model stopped: ${chunk.error.message ?? chunk.error}`);
    const delta = chunk.choices?.[0]?.delta ?? {};
    const thinking = delta.reasoning_content ?? delta.reasoning;
    if (thinking) yield { thinking };
    if (delta.content) yield { text: delta.content };
    tokens = chunk.usage?.completion_tokens ?? tokens;
    // Some servers end with this, and say no more.
    isOver ||= Boolean(chunk.choices?.[0]?.finish_reason);
  }
  if (isOver) yield { done: { tokens, rate: null } };
}
