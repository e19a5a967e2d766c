// "Add a desktop": the one command with a code that is good once, until a desktop came by it or its time is over.

import { askJson } from './api.js';
import { baseUrl } from './address.js';
import { byId, copy, open, setText, show } from './dom.js';
import { span } from './words.js';

const dialog = byId('add-dialog');
const COPY = byId('add-copy');
let ticking;
let mine = null;

async function makeCode() {
  setText(byId('add-error'), '');
  setText(byId('add-command'), '');
  setText(byId('add-left'), 'Making a code…');
  COPY.disabled = true;
  show(byId('add-again'), false);
  try {
    const { code, expires } = await askJson('-/pair', { method: 'POST' });
    const command = `tunnel bridge login --relay ${baseUrl()} --code ${code} && tunnel bridge`;
    setText(byId('add-command'), command);
    COPY.onclick = () => copy(command);
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

export const addWired = {
  begin(me) {
    mine = me.user;
  },
  // Whether a desktop that appeared is worth a word: one of the user's own; then there is nothing left to add.
  took(bridge) {
    if (mine === null || bridge.owner) return false;
    dialog.close();
    return true;
  },
};
