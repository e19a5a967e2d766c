// Prints what a QR code holds that a program drew in a terminal. Reads {"drawn": LINES} as its argument.

import { readLines } from './code.js';

console.log(readLines(JSON.parse(process.argv[2]).drawn));
