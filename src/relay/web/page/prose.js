// Shows what a model writes: paragraphs, lists, code blocks, bold and inline code. All of it is put in as text.

import { copy, el, setText } from './dom.js';

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;
const INLINE = /(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*/g;
// In a line that is longer, nothing is looked for, characters.
const LONGEST = 2000;

// The blocks of a text, and where in it each begins. One that is not ended yet is a block all the same.
function blocks(text) {
  const found = [];
  let open = null;
  let at = 0;
  let next = 0;
  const add = (block) => {
    found.push({ at, ...block });
    return found.at(-1);
  };
  for (const line of text.split('\n')) {
    at = next;
    next += line.length + 1;
    if (open?.kind === 'code') {
      if (new RegExp(`^ {0,3}${open.fence[0]}{${open.fence.length},}\\s*$`).test(line)) open = null;
      else open.lines.push(line);
      continue;
    }
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (fence) open = add({ kind: 'code', fence: fence[1], language: fence[2].trim(), lines: [] });
    else if (line.trim() === '') open = null;
    else if (heading) {
      add({ kind: 'heading', lines: [heading[1]] });
      open = null;
    } else if (item) {
      const kind = item[1] === undefined ? 'ul' : 'ol';
      if (open?.kind !== kind) open = add({ kind, start: item[1], lines: [] });
      open.lines.push(item[2]);
    } else if (open?.kind === 'ul' || open?.kind === 'ol') open.lines.push(`${open.lines.pop()}\n${line.trim()}`);
    else {
      if (open?.kind !== 'paragraph') open = add({ kind: 'paragraph', lines: [] });
      open.lines.push(line);
    }
  }
  return found;
}

function inline(text) {
  // No markup goes over the end of a line.
  return text.split(/(?<=\n)/).flatMap(marked);
}

function marked(text) {
  if (text.length > LONGEST) return [text];
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(at, match.index));
    parts.push(match[1] === undefined ? el('strong', {}, match[3]) : el('code', {}, match[2].trim()));
    at = match.index + match[0].length;
  }
  parts.push(text.slice(at));
  return parts.filter((part) => part !== '');
}

function codeBlock(block) {
  const code = el('code');
  const button = el('button', { class: 'small quiet', 'aria-label': 'Copy code', onclick: () => copy(code.textContent) }, 'Copy');
  return el('div', { class: 'block' },
    el('header', {}, el('span', {}, block.language || 'text'), button),
    el('pre', { tabindex: 0, role: 'region', 'aria-label': `Code, ${block.language || 'text'}` }, code));
}

function make(block) {
  const text = block.lines.join('\n');
  if (block.kind === 'code') return codeBlock(block);
  if (block.kind === 'heading') return el('p', {}, el('strong', {}, ...inline(text)));
  if (block.kind === 'paragraph') return el('p', {}, ...inline(text));
  return el(block.kind, { start: block.start }, ...block.lines.map((line) => el('li', {}, ...inline(line))));
}

// An element that shows a text as it grows; of what is there already, only the end is read again and touched.
export class Prose {
  constructor(element) {
    this.element = element;
    this.shown = [];
  }

  update(text) {
    // What looked like a new block may still turn out to belong to the one before.
    const ended = Math.max(this.shown.length - 2, 0);
    const from = this.shown[ended]?.at ?? 0;
    const next = blocks(text.slice(from));
    next.forEach((block, offset) => {
      const at = ended + offset;
      const source = `${block.kind} ${block.language ?? ''} ${block.lines.join('\n')}`;
      const old = this.shown[at];
      if (old?.source === source) return;
      let { node } = old ?? {};
      const grows = block.kind === 'code' && old?.kind === 'code' && old.language === block.language;
      if (!grows) {
        const made = make(block);
        if (node === undefined) this.element.append(made);
        else node.replaceWith(made);
        node = made;
      }
      if (block.kind === 'code') setText(node.querySelector('code'), block.lines.join('\n'));
      this.shown[at] = { source, node, at: from + block.at, kind: block.kind, language: block.language };
    });
    for (const { node } of this.shown.splice(ended + next.length)) node.remove();
  }
}
