// One turn of the conversation as it is shown: what was asked, or what was answered.

import { el, setText, show } from './dom.js';
import { Prose } from './prose.js';
import { number, seconds } from './words.js';

export function questionTurn(text) {
  return el('article', { class: 'turn you', 'aria-label': 'You' }, el('h2', { class: 'unseen' }, 'You'), el('div', { class: 'text' }, text));
}

// What is known of an answer's speed, in words.
function facts({ firstMs, rate, tokens }) {
  const known = [];
  if (firstMs !== undefined) known.push(`First token after ${seconds(firstMs)}`);
  if (rate) known.push(`${rate.toFixed(1)} tokens/s`);
  if (tokens) known.push(`${number(tokens)} tokens`);
  return known.join(' · ');
}

export class AnswerTurn {
  constructor(model) {
    this.thought = el('p');
    this.thinking = el('details', { hidden: true }, el('summary', {}, 'Thinking'), this.thought);
    this.text = el('div', { class: 'text prose' });
    this.facts = el('p', { class: 'facts' });
    this.element = el('article', { class: 'turn', 'aria-label': 'Answer' },
      el('h2', {}, model), this.thinking, this.text, this.facts);
    this.prose = new Prose(this.text);
  }

  // While it grows, screen readers wait.
  busy(isBusy) {
    this.element.setAttribute('aria-busy', String(isBusy));
  }

  update({ content, thinking = '', facts: known = {} }) {
    show(this.thinking, thinking !== '');
    setText(this.thought, thinking);
    this.prose.update(content);
    setText(this.facts, facts(known));
  }

  // Says what went wrong, and what can be done.
  fail(text, again) {
    const button = el('button', { class: 'small', onclick: again }, 'Try again');
    this.element.append(el('div', { class: 'failed' }, el('p', { role: 'alert' }, text), button));
  }

  // Only the last answer can be tried again.
  settle() {
    this.element.querySelector('.failed button')?.remove();
  }
}
