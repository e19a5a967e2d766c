//! Reads along in JSON that passes in pieces of any size, in constant memory: tells strings from what stands between them, and a
//! [`Reader`] what there is of either. Neighbours: [`super::cloud`] looks for names in requests, [`super::usage`] for counts in
//! answers.

use memchr::{memchr2, memchr3};

/// What is looked through at once for several octets, octets.
const WINDOW: usize = 256;

/// Is told of a document as it passes. Only documents that are valid must be told right.
pub(super) trait Reader {
    /// What it listens to; asked again after whatever it was told.
    fn attention(&self) -> Attention;
    /// One of `{ } [ ] : ,`.
    fn mark(&mut self, mark: u8);
    /// Any other octet outside of strings: of a number or a word, or space.
    fn plain(&mut self, byte: u8);
    /// A string begins.
    fn begin_text(&mut self);
    /// Octets of the string, which is UTF-8; an escape of two characters is the octet that it stands for.
    fn octets(&mut self, octets: &[u8]);
    /// An escape `\uXXXX` of the string: a unit of UTF-16.
    fn unit(&mut self, unit: u16);
    /// The string ends.
    fn end_text(&mut self);
}

/// What a reader listens to: each more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attention {
    /// Nothing more.
    Over,
    /// Brackets.
    Nesting,
    /// All, but what stands in strings.
    Marks,
    /// What stands in strings, too.
    Texts,
}

/// Where the reading is.
#[derive(Debug, Default)]
pub(super) struct Scanner(Place);

#[derive(Debug, Clone, Copy, Default)]
enum Place {
    #[default]
    Between,
    /// In a string.
    Text,
    /// In a string, after a backslash.
    Escape,
    /// In a string, after a backslash and `u`.
    Hex { left: u8, unit: u16 },
}

impl Scanner {
    /// Takes the next piece.
    pub(super) fn feed(&mut self, mut bytes: &[u8], reader: &mut impl Reader) {
        loop {
            let attention = reader.attention();
            // Most of what passes means nothing to the reader: answers and prompts, images, vectors.
            match self.0 {
                _ if attention == Attention::Over => return,
                Place::Text => {
                    let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    let (octets, rest) = bytes.split_at(end);
                    if attention == Attention::Texts {
                        reader.octets(octets);
                    }
                    bytes = rest;
                }
                Place::Between if attention == Attention::Nesting => {
                    bytes = from_bracket(bytes);
                }
                _ => {}
            }
            let Some((&byte, rest)) = bytes.split_first() else {
                return;
            };
            self.0 = self.step(byte, attention, reader);
            bytes = rest;
        }
    }

    fn step(&self, byte: u8, attention: Attention, reader: &mut impl Reader) -> Place {
        let listens = attention > Attention::Nesting;
        let reads = attention == Attention::Texts;
        match (self.0, byte) {
            (Place::Between, b'"') => {
                if listens {
                    reader.begin_text();
                }
                return Place::Text;
            }
            (Place::Between, b'{' | b'}' | b'[' | b']' | b':' | b',') => reader.mark(byte),
            (Place::Between, _) => reader.plain(byte),
            (Place::Text, b'"') => {
                if listens {
                    reader.end_text();
                }
                return Place::Between;
            }
            (Place::Text, b'\\') => return Place::Escape,
            (Place::Escape, b'u') if reads => return Place::Hex { left: 4, unit: 0 },
            (Place::Escape, _) if reads => reader.octets(&[meant(byte)]),
            (Place::Hex { left, unit }, _) => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let unit = unit << 4 | digit as u16;
                match left.saturating_sub(1) {
                    0 => reader.unit(unit),
                    left => return Place::Hex { left, unit },
                }
            }
            (Place::Text | Place::Escape, _) => {}
        }
        match self.0 {
            Place::Between => Place::Between,
            _ => Place::Text,
        }
    }
}

/// The rest from the first string or bracket on.
fn from_bracket(bytes: &[u8]) -> &[u8] {
    // Bit by bit: where brackets stand close, each search would look far beyond the first for the others.
    for (number, window) in bytes.chunks(WINDOW).enumerate() {
        let first = memchr3(b'"', b'[', b']', window).unwrap_or(window.len());
        let first = memchr2(b'{', b'}', &window[..first]).unwrap_or(first);
        if first < window.len() {
            return &bytes[number * WINDOW + first..];
        }
    }
    &[]
}

/// What this byte means after a backslash.
fn meant(byte: u8) -> u8 {
    match byte {
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_string_or_bracket_is_found_wherever_it_stands() {
        for mark in ["\"", "{", "}", "[", "]"] {
            for before in [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW] {
                let text = format!("{}{mark}{{[\"", "1".repeat(before));
                assert_eq!(
                    from_bracket(text.as_bytes()),
                    &text.as_bytes()[before..],
                    "{mark} {before}"
                );
            }
        }
        assert!(from_bracket(&[b'1'; 3 * WINDOW]).is_empty() && from_bracket(b"").is_empty());
    }
}
