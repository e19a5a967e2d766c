// "Add a desktop": the two commands, with a code that is good once, until a desktop came by it or its time is over.

import { askJson } from './api.js';
import { baseUrl } from './address.js';
import { byId, copy, open, setText, show } from './dom.js';
import { span } from './words.js';

const dialog = byId('add-dialog');
const COPY = byId('add-copy');
let ticking;

async function makeCode() {
  setText(byId('add-error'), '');
  setText(byId('add-command'), '');
  setText(byId('add-left'), 'Making a code…');
  COPY.disabled = true;
  show(byId('add-again'), false);
  try {
    const { code, expires } = await askJson('-/pair', { method: 'POST' });
    const url = baseUrl();
    // A line each: not every shell knows "&&".
    const commands = `tunnel bridge login --relay ${url} --code ${code}\ntunnel bridge --relay ${url}`;
    setText(byId('add-command'), commands);
    COPY.onclick = () => copy(commands);
    COPY.disabled = false;
    count(expires * 1000);
  } catch (error) {
    setText(byId('add-left'), '');
    setText(byId('add-error'), error.message);
    show(byId('add-again'), true);
  }
}

function count(ends) {
  clearInterval(ticking);
  const tick = () => {
    const left = ends - Date.now();
    if (left > 0) {
      setText(byId('add-left'), `The code is good once, and for ${span(left + 999)} more.`);
      return;
    }
    clearInterval(ticking);
    setText(byId('add-left'), 'The time of this code is over.');
    COPY.disabled = true;
    show(byId('add-again'), true);
  };
  tick();
  ticking = setInterval(tick, 1000);
}

byId('add-desktop').addEventListener('click', () => {
  open(dialog);
  makeCode();
});
byId('add-again').addEventListener('click', makeCode);
dialog.addEventListener('close', () => clearInterval(ticking));

export const closeAdd = () => dialog.close();
