// Reads a QR code that the page drew, as the camera of a phone would.

import decode from 'jsqr';

// How many pixels wide a cell is.
const SCALE = 4;
const [DARK, LIGHT] = [0xff000000, 0xffffffff];

// The text in a drawing that src/relay/web/page/qr.js made; undefined if nothing can be read there.
export async function readCode(drawing) {
  const size = Number((await drawing.getAttribute('viewBox')).split(' ')[3]) * SCALE;
  const pixels = new Uint32Array(size * size).fill(LIGHT);
  const path = await drawing.locator('path').getAttribute('d');
  for (const [, right, down] of path.matchAll(/M(\d+) (\d+)h1v1h-1z/g)) {
    for (let row = 0; row < SCALE; row += 1) {
      const at = (down * SCALE + row) * size + right * SCALE;
      pixels.fill(DARK, at, at + SCALE);
    }
  }
  return decode(new Uint8ClampedArray(pixels.buffer), size, size, { inversionAttempts: 'dontInvert' })?.data;
}
