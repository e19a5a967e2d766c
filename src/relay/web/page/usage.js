// Usage: tokens and requests of each day, by model, key, desktop or person.

import { askJson } from './api.js';
import { chart } from './chart.js';
import { byId, el, setText } from './dom.js';
import { compact, number } from './words.js';

const DAY = 24 * 3600 * 1000;
// So many have a colour of their own; the others share one.
const NAMED = 5;
const OTHERS = 'Others';

// What a line is of, and how that is called: several may be called the same.
const WHICH = {
  model: ({ model }) => [model, model ?? 'Without a model'],
  key: ({ token }) => [token?.id, token?.label || token?.id || 'Unknown'],
  desktop: ({ bridge }) => [bridge?.id ?? bridge?.name, bridge?.name ?? 'Unknown'],
  person: ({ user }) => [user, user ?? 'You'],
};

const VALUE = {
  tokens: (line) => (line.promptTokens ?? 0) + (line.completionTokens ?? 0),
  requests: (line) => line.exchanges,
};

const shortDay = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const longDay = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });

let answer = null;
// Which asking is the last one: the answer to another is old, or was meant for somebody else.
let asking = 0;

// The largest of what is asked for, each as [id, name], and the rest as one.
function series(lines, which, value) {
  const sums = new Map();
  for (const line of lines) {
    const [id, name] = which(line);
    sums.set(id, { name, sum: (sums.get(id)?.sum ?? 0) + value(line) });
  }
  const found = [...sums].filter(([, { sum }]) => sum > 0).sort((a, b) => b[1].sum - a[1].sum).map(([id, { name }]) => [id, name]);
  return found.length > NAMED + 1 ? [...found.slice(0, NAMED), [null, OTHERS]] : found;
}

function table(lines, which, value) {
  const found = series(lines, which, value);
  const ids = found.map(([id]) => id);
  const names = found.map(([, name]) => name);
  const first = Math.floor(answer.from / DAY) * DAY;
  const days = new Map();
  for (let at = first; at < answer.to; at += DAY) days.set(at, names.map(() => 0));
  for (const line of lines) {
    const row = days.get(Math.floor(line.from / DAY) * DAY);
    const at = ids.indexOf(which(line)[0]);
    if (row !== undefined && value(line) > 0) row[at < 0 ? names.length - 1 : at] += value(line);
  }
  const rows = [...days].map(([at, values]) => ({ label: shortDay.format(at), full: longDay.format(at), values }));
  return { names, rows };
}

function total(term, text) {
  return el('div', {}, el('dt', {}, term), el('dd', {}, text));
}

function draw() {
  if (answer === null) return;
  const what = byId('usage-show').value;
  const { names, rows } = table(answer.usage, WHICH[byId('usage-by').value], VALUE[what]);
  const { exchanges, errors, promptTokens, completionTokens } = answer.total;
  byId('usage-total').replaceChildren(
    total('Requests', number(exchanges)),
    total('Tokens read', promptTokens === null ? 'Unknown' : compact(promptTokens)),
    total('Tokens written', completionTokens === null ? 'Unknown' : compact(completionTokens)),
    total('Errors', number(errors)));
  const word = what === 'tokens' ? 'Tokens' : 'Requests';
  byId('usage-chart').replaceChildren(chart(rows, names, `${word} per day; the table below has the numbers`, byId('usage-chart').clientWidth));
  byId('usage-legend').replaceChildren(...names.map((name, at) => el('li', {}, el('i', { class: `s${at + 1}` }), name)));
  const sum = (values) => values.reduce((all, value) => all + value, 0);
  byId('usage-head').replaceChildren(el('tr', {}, el('th', { scope: 'col' }, 'Day'),
    ...[...names, word].map((name) => el('th', { scope: 'col', class: 'number' }, name))));
  byId('usage-rows').replaceChildren(...rows.filter(({ values }) => sum(values) > 0).reverse().map(({ full, values }) => el('tr', {},
    el('th', { scope: 'row' }, full), ...[...values, sum(values)].map((value) => el('td', { class: 'number' }, number(value))))));
  if (byId('usage-rows').childElementCount === 0) {
    byId('usage-rows').append(el('tr', {}, el('td', { colspan: names.length + 2 }, 'Nothing was used in this time.')));
  }
}

async function load() {
  const ofPeople = byId('usage-by').value === 'person';
  const query = `days=${byId('usage-days').value}&per=day${ofPeople ? '&of=bridges' : ''}`;
  asking += 1;
  const turn = asking;
  try {
    const found = await askJson(`api/bridge/usage?${query}`);
    if (turn !== asking) return;
    answer = found;
    setText(byId('usage-error'), found.hasMore ? 'There is more than can be shown at once; choose a shorter period.' : '');
    setText(byId('usage-of'), ofPeople ? 'What everybody used on your desktops. Days are those of UTC.' : 'What you used, on any desktop. Days are those of UTC.');
    draw();
  } catch (error) {
    if (turn === asking) setText(byId('usage-error'), error.message);
  }
}

for (const id of ['usage-days', 'usage-by']) byId(id).addEventListener('change', load);
byId('usage-show').addEventListener('change', draw);
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === width) return;
  ({ width } = contentRect);
  draw();
}).observe(byId('usage-chart'));

export const usageView = {
  begin() {
    answer = null;
    asking += 1;
    for (const id of ['usage-total', 'usage-chart', 'usage-legend', 'usage-head', 'usage-rows']) byId(id).replaceChildren();
    setText(byId('usage-error'), '');
  },
  enter: load,
};
