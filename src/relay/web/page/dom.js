// Finds and builds elements. What comes from outside goes in as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

// Touches the page only where something differs.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

// Says something for a moment, to eyes and screen readers alike; within a dialog that is open, for all else is silent then.
let silence;
export function announce(text) {
  const place = byId('announce');
  place.textContent = '';
  (document.querySelector('dialog[open]') ?? document.body).append(place);
  clearTimeout(silence);
  requestAnimationFrame(() => {
    place.textContent = text;
    silence = setTimeout(() => { place.textContent = ''; }, 5000);
  });
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce('Copied.');
  } catch {
    announce('The browser does not let this page copy; select the text and copy it yourself.');
  }
}

// Opens a dialog; the browser gives the focus back to where it was when it closes.
export function open(dialog) {
  if (!dialog.open) dialog.showModal();
}

export function wireDialogs() {
  for (const dialog of document.querySelectorAll('dialog')) {
    for (const button of dialog.querySelectorAll('[data-close]')) {
      button.addEventListener('click', () => dialog.close());
    }
  }
}

// Carries something out while a button can not be pressed again.
export async function during(button, act) {
  if (button.disabled) return;
  button.disabled = true;
  try {
    await act();
  } finally {
    button.disabled = false;
  }
}

// Fills a select, and keeps what was chosen where that is still there.
export function setOptions(select, options) {
  const now = [...select.options].map((option) => `${option.value}\n${option.text}`).join('\n\n');
  const then = options.map(([value, text]) => `${value}\n${text}`).join('\n\n');
  if (now === then) return;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => el('option', { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}
