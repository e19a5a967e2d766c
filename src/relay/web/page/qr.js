// Draws a QR code (ISO/IEC 18004): octets, error correction M, versions 1 to 10, which is room for 213 octets.

import { svg } from './dom.js';

// For each version: octets of error correction in a block, and the blocks as [how many, data octets in each].
const VERSIONS = [
  [10, [1, 16]], [16, [1, 28]], [26, [1, 44]], [18, [2, 32]], [24, [2, 43]],
  [16, [4, 27]], [18, [4, 31]], [22, [2, 38], [2, 39]], [22, [3, 36], [2, 37]], [26, [4, 43], [1, 44]],
];
const ALIGNMENT = [[], [6, 18], [6, 22], [6, 26], [6, 30], [6, 34], [6, 22, 38], [6, 24, 42], [6, 26, 46], [6, 28, 50]];
// Light squares around it.
const QUIET = 4;

// Arithmetic in the field of 256 elements.
const EXP = [];
const LOG = [];
for (let power = 0, value = 1; power < 255; power += 1) {
  EXP[power] = value;
  LOG[value] = power;
  value <<= 1;
  if (value > 255) value ^= 0x11d;
}
const times = (a, b) => (a === 0 || b === 0 ? 0 : EXP[(LOG[a] + LOG[b]) % 255]);

function generator(degree) {
  let polynomial = [1];
  for (let root = 0; root < degree; root += 1) {
    const next = [...polynomial, 0];
    polynomial.forEach((factor, at) => { next[at + 1] ^= times(factor, EXP[root]); });
    polynomial = next;
  }
  return polynomial;
}

function correction(data, degree) {
  const divisor = generator(degree);
  const rest = [...data, ...new Array(degree).fill(0)];
  for (let at = 0; at < data.length; at += 1) {
    const factor = rest[at];
    divisor.forEach((part, offset) => { rest[at + offset] ^= times(part, factor); });
  }
  return rest.slice(data.length);
}

const capacity = ([, ...groups]) => groups.reduce((sum, [many, octets]) => sum + many * octets, 0);
const countBits = (version) => (version < 10 ? 8 : 16);

// The data with its frame and padding, as octets.
function framed(octets, version) {
  const bits = [];
  const put = (value, length) => { for (let at = length - 1; at >= 0; at -= 1) bits.push((value >> at) & 1); };
  put(0b0100, 4);
  put(octets.length, countBits(version));
  for (const octet of octets) put(octet, 8);
  const room = capacity(VERSIONS[version - 1]) * 8;
  put(0, Math.min(4, room - bits.length));
  put(0, (8 - (bits.length % 8)) % 8);
  for (let pad = 0xec; bits.length < room; pad ^= 0xec ^ 0x11) put(pad, 8);
  const whole = [];
  for (let at = 0; at < bits.length; at += 8) whole.push(parseInt(bits.slice(at, at + 8).join(''), 2));
  return whole;
}

// Blocks and their error correction, woven into one row.
function woven(data, [degree, ...groups]) {
  const blocks = [];
  let at = 0;
  for (const [many, octets] of groups) {
    for (let block = 0; block < many; block += 1, at += octets) blocks.push(data.slice(at, at + octets));
  }
  const checks = blocks.map((block) => correction(block, degree));
  const weave = (rows) => {
    const longest = Math.max(...rows.map((row) => row.length));
    return Array.from({ length: longest }, (_, column) => rows.filter((row) => column < row.length).map((row) => row[column])).flat();
  };
  return [...weave(blocks), ...weave(checks)];
}

// A square of cells, some of which belong to the pattern and not to the data.
class Grid {
  constructor(version) {
    this.version = version;
    this.size = 17 + 4 * version;
    this.dark = Array.from({ length: this.size }, () => new Array(this.size).fill(false));
    this.fixed = Array.from({ length: this.size }, () => new Array(this.size).fill(false));
  }

  set(row, column, isDark) {
    if (row < 0 || column < 0 || row >= this.size || column >= this.size) return;
    this.dark[row][column] = Boolean(isDark);
    this.fixed[row][column] = true;
  }

  patterns() {
    const last = this.size - 7;
    for (let at = 8; at < this.size - 8; at += 1) {
      this.set(6, at, at % 2 === 0);
      this.set(at, 6, at % 2 === 0);
    }
    for (const [row, column] of [[0, 0], [0, last], [last, 0]]) this.rings(row + 3, column + 3, 4, [0, 1, 3]);
    const centres = ALIGNMENT[this.version - 1];
    for (const row of centres) {
      for (const column of centres) {
        const isCorner = (row === 6 && (column === 6 || column === this.size - 7)) || (column === 6 && row === this.size - 7);
        if (!isCorner) this.rings(row, column, 2, [0, 2]);
      }
    }
    if (this.version >= 7) this.versionBits();
    this.formatBits(0);
  }

  rings(row, column, radius, darkOnes) {
    for (let down = -radius; down <= radius; down += 1) {
      for (let right = -radius; right <= radius; right += 1) {
        this.set(row + down, column + right, darkOnes.includes(Math.max(Math.abs(down), Math.abs(right))));
      }
    }
  }

  versionBits() {
    let rest = this.version;
    for (let step = 0; step < 12; step += 1) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
    const bits = (this.version << 12) | rest;
    for (let at = 0; at < 18; at += 1) {
      const [near, far] = [Math.floor(at / 3), this.size - 11 + (at % 3)];
      this.set(near, far, (bits >> at) & 1);
      this.set(far, near, (bits >> at) & 1);
    }
  }

  formatBits(mask) {
    // Error correction M is 00.
    let rest = mask;
    for (let step = 0; step < 10; step += 1) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
    const bits = ((mask << 10) | rest) ^ 0x5412;
    for (let at = 0; at < 15; at += 1) {
      const bit = (bits >> at) & 1;
      const along = at < 6 ? at : at < 8 ? at + 1 : 14 - at;
      if (at < 8) {
        this.set(along, 8, bit);
        this.set(8, this.size - 1 - at, bit);
      } else {
        this.set(8, at === 8 ? 7 : along, bit);
        this.set(this.size - 15 + at, 8, bit);
      }
    }
    this.set(this.size - 8, 8, true);
  }

  fill(octets) {
    let at = 0;
    for (let right = this.size - 1; right >= 1; right -= 2) {
      if (right === 6) right = 5;
      for (let step = 0; step < this.size; step += 1) {
        const row = ((right + 1) & 2) === 0 ? this.size - 1 - step : step;
        for (const column of [right, right - 1]) {
          if (this.fixed[row][column]) continue;
          this.dark[row][column] = at < octets.length * 8 && ((octets[at >> 3] >> (7 - (at & 7))) & 1) === 1;
          at += 1;
        }
      }
    }
  }

  // Any mask can be read; this one breaks up what texts look like.
  mask() {
    for (let row = 0; row < this.size; row += 1) {
      for (let column = 0; column < this.size; column += 1) {
        if (!this.fixed[row][column] && (row + column) % 2 === 0) this.dark[row][column] = !this.dark[row][column];
      }
    }
    this.formatBits(0);
  }
}

// The cells of the code for a text, true where they are dark.
function cells(text) {
  const octets = new TextEncoder().encode(text);
  const version = 1 + VERSIONS.findIndex((blocks, at) => octets.length * 8 + 4 + countBits(at + 1) <= capacity(blocks) * 8);
  if (version === 0) return null;
  const grid = new Grid(version);
  grid.patterns();
  grid.fill(woven(framed(octets, version), VERSIONS[version - 1]));
  grid.mask();
  return grid.dark;
}

// The code as a drawing; none if the text is too long for one.
export function qrCode(text, label) {
  const dark = cells(text);
  if (dark === null) return null;
  const whole = dark.length + 2 * QUIET;
  let path = '';
  dark.forEach((row, down) => row.forEach((isDark, right) => {
    if (isDark) path += `M${right + QUIET} ${down + QUIET}h1v1h-1z`;
  }));
  return svg('svg', { viewBox: `0 0 ${whole} ${whole}`, role: 'img', 'aria-label': label, 'shape-rendering': 'crispEdges' },
    svg('rect', { width: whole, height: whole, fill: '#fff' }), svg('path', { d: path, fill: '#000' }));
}
