// Reads a body as it comes: lines, and the events of server-sent events.

// No line that is meant for this page comes near it, characters.
const LONGEST = 16 * 1024 * 1024;

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = value.split('\n');
      parts[0] = rest + parts[0];
      rest = parts.pop();
      if (rest.length > LONGEST) throw new Error('The answer has a line that is too long for this page.');
      yield* parts;
    }
    if (rest !== '') yield rest;
  } finally {
    // Whoever stops reading lets the other end know.
    reader.cancel().catch(() => {});
  }
}

export async function* ndjson(response) {
  for await (const line of lines(response)) {
    if (line.trim() !== '') yield JSON.parse(line);
  }
}

// The data of each event, as text.
export async function* events(response) {
  let data = [];
  for await (const raw of lines(response)) {
    const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
    if (line.startsWith('data:')) {
      data.push(line.slice(line[5] === ' ' ? 6 : 5));
    } else if (line === '' && data.length > 0) {
      yield data.join('\n');
      data = [];
    }
  }
  if (data.length > 0) yield data.join('\n');
}
