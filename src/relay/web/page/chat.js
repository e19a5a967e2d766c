// Chat: a conversation with a model of one desktop, streamed, and stopped for good.

import { answer } from './answer.js';
import { Choice } from './choice.js';
import * as conversation from './conversation.js';
import { byId, announce, el, setText, show } from './dom.js';
import { watchStop } from './stopping.js';
import { AnswerTurn, questionTurn } from './turn.js';

// Without a first token for so long, it is said what is waited for.
const COLD = 4000;
const NEAR_END = 60;
// Drawing takes a part of the time that is no larger than one in so many, however long an answer is.
const SHARE = 5;

const log = byId('log');
const message = byId('message');
const keepBox = byId('chat-keep');
const system = byId('chat-system');

// Turns of the conversation: {role, content}, and for answers what is known of them.
let turns = [];
// The answer under way.
let running = null;
let lastTurn = null;
let user = null;
let choice = null;

const say = (text) => setText(byId('chat-state'), text);

function save() {
  // Nothing of who signed out is kept.
  if (!keepBox.checked || user === null) return;
  const what = { turns, system: system.value, ...choice.chosen };
  if (!conversation.keep(user, what)) announce('This browser has no room to keep the conversation.');
}

function isAtEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
}

function add(element) {
  log.querySelector('.start')?.remove();
  log.append(element);
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

function startText() {
  log.replaceChildren(el('p', { class: 'start' }, 'Choose a desktop and a model, and write to it. What you write goes to that desktop and nowhere else.'));
}

// What the model is told: what was said and answered, but for what failed before a word came.
function messages() {
  const said = turns.filter(({ content }) => content !== '').map(({ role, content }) => ({ role, content }));
  return system.value.trim() === '' ? said : [{ role: 'system', content: system.value }, ...said];
}

function setRunning(next) {
  running = next;
  show(byId('send'), next === null);
  show(byId('stop'), next !== null);
  for (const part of [byId('chat-new'), byId('chat-desktop'), byId('chat-model')]) part.disabled = next !== null;
}

function ask(text) {
  turns.push({ role: 'user', content: text });
  add(questionTurn(text));
  run();
}

// Gets an answer to what was said last, and shows it as it comes.
async function run() {
  lastTurn?.settle();
  const turn = { role: 'assistant', content: '', model: choice.model };
  const view = new AnswerTurn(turn.model);
  lastTurn = view;
  const abort = new AbortController();
  const exchange = { abort, turn, address: choice.address, name: choice.desktop.name, stopping: null };
  const sent = messages();
  turns.push(turn);
  setRunning(exchange);
  add(view.element);
  view.busy(true);
  toEnd();
  say('Waiting for the answer…');
  const cold = setTimeout(() => say(choice.isLoaded
    ? 'Still waiting: the desktop may be busy with another request.'
    : 'Still waiting: it may be loading the model. A large one takes a minute or more.'), COLD);
  try {
    await receive(exchange, view, sent, cold);
    say('');
  } catch (error) {
    if (running !== exchange) return;
    setRunning(null);
    if (abort.signal.aborted) stopped(exchange);
    else failed(error, turn, view);
  } finally {
    clearTimeout(cold);
    view.busy(false);
    if (running === exchange) setRunning(null);
    if (turns.includes(turn)) save();
  }
}

async function receive({ abort, turn }, view, sent, cold) {
  const began = performance.now();
  let firstAt = null;
  let drawn = null;
  let pause = 0;
  const draw = () => {
    drawn = null;
    const at = performance.now();
    const follow = isAtEnd();
    view.update(turn);
    if (follow) toEnd();
    pause = (performance.now() - at) * (SHARE - 1);
  };
  // A page that is not looked at draws no frames: then a timer does.
  const later = () => (document.hidden || pause > 20 ? setTimeout(draw, Math.max(pause, 100)) : requestAnimationFrame(draw));
  try {
    const { address, model, desktop: { openai } } = choice;
    for await (const part of answer({ address, model, openai, messages: sent, signal: abort.signal })) {
      if (firstAt === null && part.done === undefined) {
        firstAt = performance.now();
        clearTimeout(cold);
        say('Answering…');
      }
      turn.content += part.text ?? '';
      if (part.thinking) turn.thinking = (turn.thinking ?? '') + part.thinking;
      if (part.done) turn.facts = speed(part.done, began, firstAt);
      drawn ??= later();
    }
  } finally {
    turn.facts ??= speed({}, began, firstAt);
    draw();
  }
}

// The model's own word on its speed, or else that of this browser's clock.
function speed({ tokens, rate }, began, firstAt) {
  if (firstAt === null) return {};
  const took = (performance.now() - firstAt) / 1000;
  return { firstMs: firstAt - began, tokens: tokens ?? undefined, rate: rate ?? (tokens > 1 && took > 0 ? (tokens - 1) / took : undefined) };
}

function failed(error, turn, view) {
  say('');
  const follow = isAtEnd();
  view.fail(error.message, () => again(turn, view));
  if (follow) toEnd();
}

// Asks the same anew, in place of what failed.
function again(turn, view) {
  if (running !== null) return;
  turns = turns.filter((other) => other !== turn);
  view.element.remove();
  message.focus();
  run();
}

async function stopped({ name, stopping, turn }) {
  say('Stopping…');
  const outcome = await stopping;
  const words = {
    stopped: `Stopped: ${name} is no longer working on it.`,
    gone: `Stopped. ${name} is not connected any more.`,
    unknown: `Stopped. ${name} was told to stop; the relay has not seen it do so yet.`,
  };
  // Something else may go on meanwhile.
  if (running === null && turns.includes(turn)) say(words[outcome]);
}

function stop() {
  if (running === null) return;
  running.stopping ??= watchStop(running.address);
  running.abort.abort();
}

function clear() {
  stop();
  setRunning(null);
  turns = [];
  lastTurn = null;
  say('');
  startText();
}

const isChosen = () => choice.address !== '' && choice.model !== '';

async function send(event) {
  event?.preventDefault();
  if (running !== null || message.value.trim() === '') return;
  if (!isChosen()) {
    say('Waiting for desktop and model…');
    await choice.known();
  }
  const text = message.value.trim();
  if (running !== null || text === '') return;
  if (!isChosen()) {
    say(choice.problem);
    return;
  }
  message.value = '';
  choice.settle();
  ask(text);
  message.focus();
}

function restore(what) {
  system.value = what.system ?? '';
  turns = what.turns ?? [];
  choice.want({ address: what.address, model: what.model });
  if (turns.length === 0) return;
  log.replaceChildren();
  for (const turn of turns) {
    if (turn.role === 'user') add(questionTurn(turn.content));
    else {
      const view = new AnswerTurn(turn.model ?? 'Answer');
      view.update(turn);
      add(view.element);
    }
  }
  toEnd();
}

function wire() {
  choice = new Choice(byId('chat-desktop'), byId('chat-model'), save);
  byId('composer').addEventListener('submit', send);
  byId('stop').addEventListener('click', () => {
    stop();
    message.focus();
  });
  message.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) send(event);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !event.isComposing && !byId('view-chat').hidden && !document.querySelector('dialog[open]') && running !== null) {
      stop();
      message.focus();
    }
  });
  byId('chat-new').addEventListener('click', () => {
    clear();
    save();
    message.focus();
  });
  keepBox.addEventListener('change', () => (keepBox.checked ? save() : conversation.drop()));
  system.addEventListener('change', save);
}

export const chatView = {
  begin(me) {
    if (choice === null) wire();
    choice.clear();
    ({ user } = me);
    message.value = '';
    system.value = '';
    clear();
    const kept = conversation.kept(user);
    const stashed = conversation.takeStash(user);
    keepBox.checked = kept !== null;
    if (stashed ?? kept) restore(stashed ?? kept);
    message.value = stashed?.draft ?? '';
  },
  enter(address) {
    choice.want(address === '' ? {} : { address });
    if (matchMedia('(hover: hover)').matches) message.focus();
  },
  // Keeps what is here while somebody is at the provider and back.
  stash(whose) {
    if (whose === null || whose !== user) return;
    conversation.stash(user, { turns, system: system.value, ...choice.chosen, draft: message.value });
  },
  forget() {
    user = null;
    keepBox.checked = false;
    clear();
    message.value = '';
  },
};
