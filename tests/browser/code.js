// Reads QR codes that the page or a program drew, as the camera of a phone would.

import decode from 'jsqr';

// How many pixels wide a cell is.
const SCALE = 4;
const [DARK, LIGHT] = [0xff000000, 0xffffffff];

// The text of a code that is so many cells wide, with its margin, and dark at these [right, down]; undefined if nothing can be read.
function read(cells, dark) {
  const size = cells * SCALE;
  const pixels = new Uint32Array(size * size).fill(LIGHT);
  for (const [right, down] of dark) {
    for (let row = 0; row < SCALE; row += 1) {
      const at = (down * SCALE + row) * size + right * SCALE;
      pixels.fill(DARK, at, at + SCALE);
    }
  }
  return decode(new Uint8ClampedArray(pixels.buffer), size, size, { inversionAttempts: 'dontInvert' })?.data;
}

// Of a drawing that src/relay/web/page/qr.js made.
export async function readDrawing(drawing) {
  const [, , cells] = (await drawing.getAttribute('viewBox')).split(' ');
  const path = await drawing.locator('path').getAttribute('d');
  return read(Number(cells), [...path.matchAll(/M(\d+) (\d+)h1v1h-1z/g)].map(([, right, down]) => [right, down]));
}

// Of lines that src/cmd/qr.rs made, for a terminal that is dark.
export function readLines(text) {
  const lines = text.split('\n').map((line) => [...line]);
  const darkIn = { '█': [], '▀': [1], '▄': [0], ' ': [0, 1] };
  const dark = lines.flatMap((line, at) => line.flatMap((square, right) => darkIn[square].map((half) => [right, 2 * at + half])));
  return read(lines[0].length, dark);
}
