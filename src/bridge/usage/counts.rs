//! Finds the model and its tokens in an answer as it passes, whichever API it is of; pure, and in constant memory.
//!
//! | API | the prompt's | the answer's |
//! |---|---|---|
//! | Ollama | `prompt_eval_count` | `eval_count` |
//! | OpenAI | `usage.prompt_tokens` | `usage.completion_tokens` |
//! | OpenAI's responses, Anthropic | `usage.input_tokens` | `usage.output_tokens` |
//!
//! In events these stand in a `message` or a `response`, too. The latest number is the one that counts: some servers tell how far
//! they are.

use crate::bridge::scan::{Attention, Reader, Scanner};
use crate::transport::usage::{LONGEST_MODEL, Usage, is_model};

/// A longer string is neither a key that matters nor the name of a model, octets.
const LONGEST: usize = 4 * LONGEST_MODEL;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One JSON document after another.
    Documents,
    /// Server-sent events, each with a document on one `data` line.
    Events,
}

/// Reads an answer along.
#[derive(Debug)]
pub(super) struct Counter {
    framing: Framing,
    line: Line,
    scanner: Scanner,
    counts: Counts,
}

/// Where in a line of events the reading is.
#[derive(Debug, Clone, Copy)]
enum Line {
    /// So much of it is the beginning of a `data` line.
    Begun(usize),
    Data,
    Other,
}

const DATA: &[u8] = b"data:";

impl Counter {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            line: Line::Begun(0),
            scanner: Scanner::default(),
            counts: Counts::default(),
        }
    }

    /// Takes the next piece.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        match self.framing {
            Framing::Documents => self.scanner.feed(bytes, &mut self.counts),
            Framing::Events => self.feed_events(bytes),
        }
    }

    /// What was found.
    pub(super) fn usage(&self) -> &Usage {
        &self.counts.usage
    }

    fn feed_events(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            if let Line::Begun(matched) = self.line {
                bytes = &bytes[1..];
                self.line = match DATA.get(matched) {
                    _ if is_line_end(byte) => Line::Begun(0),
                    Some(expected) if *expected != byte => Line::Other,
                    _ if matched + 1 < DATA.len() => Line::Begun(matched + 1),
                    _ => Line::Data,
                };
                continue;
            }
            let end = bytes.iter().position(|byte| is_line_end(*byte));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if matches!(self.line, Line::Data) {
                self.scanner.feed(line, &mut self.counts);
            }
            if end.is_some() {
                self.line = Line::Begun(0);
                self.scanner = Scanner::default();
                self.counts.restart();
            }
            bytes = rest;
        }
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Where the reading is, as far as that matters, and what was found.
#[derive(Debug, Default)]
struct Counts {
    level: Level,
    /// Objects and arrays of no concern around this place, inside that level.
    below: u32,
    /// Whether a string here is a key.
    is_key: bool,
    /// Whose value comes.
    member: Member,
    text: Text,
    number: Number,
    usage: Usage,
}

/// The objects that are looked into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Level {
    #[default]
    Outside,
    Top,
    /// `message` or `response`.
    Wrapper,
    Usage {
        wrapped: bool,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Member {
    #[default]
    Other,
    Wrapper,
    Usage,
    Model,
    Prompt,
    Completion,
}

#[derive(Debug, Clone, Copy, Default)]
enum Number {
    #[default]
    None,
    Whole(u64),
    /// Anything else.
    Other,
}

impl Level {
    fn member(self, key: &str) -> Member {
        match (self, key) {
            (Self::Top | Self::Wrapper, "model") => Member::Model,
            (Self::Top | Self::Wrapper, "usage") => Member::Usage,
            (Self::Top, "message" | "response") => Member::Wrapper,
            (Self::Top, "prompt_eval_count") => Member::Prompt,
            (Self::Top, "eval_count") => Member::Completion,
            (Self::Usage { .. }, "prompt_tokens" | "input_tokens") => Member::Prompt,
            (Self::Usage { .. }, "completion_tokens" | "output_tokens") => Member::Completion,
            _ => Member::Other,
        }
    }

    fn inner(self, member: Member) -> Option<Self> {
        match (self, member) {
            (Self::Outside, _) => Some(Self::Top),
            (Self::Top, Member::Wrapper) => Some(Self::Wrapper),
            (_, Member::Usage) => Some(Self::Usage {
                wrapped: self == Self::Wrapper,
            }),
            _ => None,
        }
    }

    fn outer(self) -> Self {
        match self {
            Self::Outside | Self::Top => Self::Outside,
            Self::Wrapper | Self::Usage { wrapped: false } => Self::Top,
            Self::Usage { wrapped: true } => Self::Wrapper,
        }
    }
}

impl Counts {
    /// Another document begins.
    fn restart(&mut self) {
        self.level = Level::Outside;
        self.below = 0;
        self.member = Member::Other;
        self.number = Number::None;
    }

    /// The value of a member is over.
    fn end_member(&mut self) {
        if let Number::Whole(number) = std::mem::take(&mut self.number) {
            match self.member {
                Member::Prompt => self.usage.prompt = Some(number),
                Member::Completion => self.usage.completion = Some(number),
                _ => {}
            }
        }
        self.member = Member::Other;
    }

    fn open(&mut self, mark: u8) {
        match self.level.inner(self.member).filter(|_| mark == b'{') {
            Some(level) => {
                self.level = level;
                self.is_key = true;
                self.member = Member::Other;
            }
            None => self.below += 1,
        }
    }
}

impl Reader for Counts {
    fn attention(&self) -> Attention {
        match self.level {
            _ if self.below > 0 => Attention::Nesting,
            Level::Outside => Attention::Marks,
            _ if self.is_key || self.member == Member::Model => Attention::Texts,
            _ => Attention::Marks,
        }
    }

    fn mark(&mut self, mark: u8) {
        match mark {
            b'{' | b'[' if self.below > 0 => self.below = self.below.saturating_add(1),
            b'}' | b']' if self.below > 0 => self.below -= 1,
            b'{' | b'[' => self.open(mark),
            b'}' | b']' => {
                self.end_member();
                self.level = self.level.outer();
                self.is_key = false;
            }
            b':' => self.is_key = false,
            _ => {
                self.end_member();
                self.is_key = true;
            }
        }
    }

    fn plain(&mut self, byte: u8) {
        if !matches!(self.member, Member::Prompt | Member::Completion) || self.is_key || byte.is_ascii_whitespace() {
            return;
        }
        let before = match self.number {
            Number::None => Some(0),
            Number::Whole(before) => Some(before),
            Number::Other => None,
        };
        let digit = char::from(byte).to_digit(10).map(u64::from);
        let number = before.and_then(|before| before.checked_mul(10)?.checked_add(digit?));
        self.number = number.map_or(Number::Other, Number::Whole);
    }

    fn begin_text(&mut self) {
        self.text.clear();
    }

    fn octets(&mut self, octets: &[u8]) {
        self.text.push(octets);
    }

    fn unit(&mut self, unit: u16) {
        self.text.push_unit(unit);
    }

    fn end_text(&mut self) {
        if self.is_key {
            self.member = self.text.as_str().map_or(Member::Other, |key| self.level.member(key));
        } else if self.member == Member::Model
            && let Some(model) = self.text.as_str().filter(|model| is_model(model))
            && self.usage.model.as_deref() != Some(model)
        {
            self.usage.model = Some(model.into());
        }
    }
}

/// A string that is collected, if it is short.
#[derive(Debug, Default)]
struct Text {
    octets: Vec<u8>,
    too_long: bool,
    /// The first half of a character that is written as two units.
    high: Option<u16>,
}

impl Text {
    fn clear(&mut self) {
        self.octets.clear();
        self.too_long = false;
        self.high = None;
    }

    fn push(&mut self, octets: &[u8]) {
        self.too_long |= self.octets.len() + octets.len() > LONGEST;
        if !self.too_long {
            self.octets.extend_from_slice(octets);
        }
    }

    fn push_unit(&mut self, unit: u16) {
        if self.high.is_none() && (0xD800..0xDC00).contains(&unit) {
            self.high = Some(unit);
            return;
        }
        for c in char::decode_utf16(self.high.take().into_iter().chain([unit])) {
            let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
            self.push(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.octets).ok().filter(|_| !self.too_long)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
