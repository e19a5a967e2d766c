// A chart of stacked bars, one for each day; the table beneath it says the same in numbers.

import { svg } from './dom.js';
import { compact } from './words.js';

const LEFT = 44;
const TOP = 10;
const BOTTOM = 24;
const GAP = 0.28;

// A round number that is no less, for the top of the scale.
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 4, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

function scale(most, width, height) {
  const lines = [0, 0.5, 1].filter((part) => Number.isInteger(most * part));
  return lines.flatMap((part) => {
    const y = TOP + height * (1 - part);
    return [
      svg('line', { class: 'grid', x1: LEFT, x2: LEFT + width, y1: y, y2: y }),
      svg('text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' }, compact(most * part)),
    ];
  });
}

// Days are {label, full, values}; series are names, in the order of their colours.
export function chart(days, series, label, boxWidth) {
  const width = Math.max(boxWidth, 260) - LEFT - 4;
  const height = Math.min(260, Math.max(150, width / 3));
  const most = roundUp(Math.max(1, ...days.map(({ values }) => values.reduce((sum, value) => sum + value, 0))));
  const step = width / days.length;
  const every = Math.ceil(58 / step);
  const marks = days.flatMap(({ label: name, full, values }, at) => {
    let below = 0;
    const x = LEFT + at * step + (step * GAP) / 2;
    const parts = values.map((value, which) => {
      const tall = (value / most) * height;
      below += tall;
      return value === 0 ? null : svg('rect', {
        class: `s${which + 1}`, x, width: Math.max(step * (1 - GAP), 1), y: TOP + height - below, height: Math.max(tall, 0.5),
      }, svg('title', {}, `${full}, ${series[which]}: ${compact(value)}`));
    });
    const isNamed = (days.length - 1 - at) % every === 0 && x > LEFT;
    const text = svg('text', { x: x + (step * (1 - GAP)) / 2, y: TOP + height + 16, 'text-anchor': at === days.length - 1 ? 'end' : 'middle' }, name);
    return [...parts, isNamed ? text : null];
  });
  const whole = [LEFT + width + 4, TOP + height + BOTTOM];
  return svg('svg', { viewBox: `0 0 ${whole.join(' ')}`, role: 'img', 'aria-label': label }, ...scale(most, width, height), ...marks);
}
