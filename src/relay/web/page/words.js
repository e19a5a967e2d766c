// Numbers and times as people read them.

const numbers = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const days = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', year: 'numeric' });
const moments = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'medium' });

export const number = (value) => numbers.format(value);
export const compact = (value) => short.format(value);
export const day = (ms) => days.format(ms);
export const moment = (ms) => moments.format(ms);

export function count(value, one) {
  return `${number(value)} ${value === 1 ? one : `${one}s`}`;
}

// A length of time in its largest unit.
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return count(seconds, 'second');
  if (seconds < 3600) return count(Math.floor(seconds / 60), 'minute');
  if (seconds < 86400) return count(Math.floor(seconds / 3600), 'hour');
  return count(Math.floor(seconds / 86400), 'day');
}

export const ago = (ms) => (Date.now() - ms < 5000 ? 'just now' : `${span(Date.now() - ms)} ago`);

export function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function seconds(ms) {
  if (ms < 995) return milliseconds(ms);
  return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

// A desktop as people call it.
export function desktopName(bridge) {
  return bridge.owner ? `${bridge.name} of ${bridge.owner}` : bridge.name;
}
