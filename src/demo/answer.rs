//! What the model says, at the pace it says it; and the vectors it makes of texts.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;

use super::prompt::Prompt;
use crate::transport::Body;

const QUOTE_CHARS: usize = 200;
const DIMENSIONS: usize = 16;

/// An answer under way: its words are fixed, the time they take is not over.
#[derive(Debug)]
pub(super) struct Answer {
    words: Vec<String>,
    complete: bool,
    prompt_words: usize,
    pace: Duration,
    began: Instant,
}

impl Answer {
    /// Answers a prompt with at most `limit` words. A limit that is not positive is none, as in
    /// Ollama.
    pub(super) fn new(prompt: &Prompt, limit: Option<i64>, pace: Duration) -> Self {
        let mut words = compose(&prompt.said);
        let limit = limit
            .filter(|limit| *limit > 0)
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        let complete = words.len() <= limit;
        words.truncate(limit);
        Self {
            words,
            complete,
            prompt_words: prompt.words,
            pace,
            began: Instant::now(),
        }
    }

    /// All of its text, as soon as the last word is due.
    pub(super) async fn text(&self) -> String {
        self.due(self.words.len()).await;
        self.words.concat()
    }

    /// Its text as a body: `opening` at once, then what `write` makes of each word as it is due,
    /// and of `None` after the last.
    ///
    /// The timer lives in the body, so a caller that leaves takes the answer with it.
    pub(super) fn stream<F>(self, opening: Option<String>, write: F) -> Body
    where
        F: Fn(&Self, Option<&str>) -> String + Send + 'static,
    {
        let written = stream::unfold((self, write, 0), |(answer, write, index)| async move {
            let chunk = match answer.words.get(index) {
                Some(word) => {
                    answer.due(index + 1).await;
                    write(&answer, Some(word))
                }
                None if index == answer.words.len() => write(&answer, None),
                None => return None,
            };
            Some((chunk, (answer, write, index + 1)))
        });
        let frames = stream::iter(opening)
            .chain(written)
            .map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        StreamBody::new(frames).boxed_unsync()
    }

    /// Whether it was said to its end, not cut off by a limit.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// Why it ends, in the words Ollama and OpenAI share.
    pub(super) fn reason(&self) -> &'static str {
        if self.complete { "stop" } else { "length" }
    }

    pub(super) fn words(&self) -> usize {
        self.words.len()
    }

    pub(super) fn prompt_words(&self) -> usize {
        self.prompt_words
    }

    /// How long it has taken by now.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How much of that went by before the first word.
    pub(super) fn lead(&self) -> Duration {
        self.pace.min(self.elapsed())
    }

    /// Waits until `count` words are due, reckoned from the start: each wait comes out a little
    /// late, and that must not add up.
    async fn due(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let wait = self.pace.saturating_mul(count).saturating_sub(self.elapsed());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The answer's words, each but the first with the space before it.
fn compose(said: &str) -> Vec<String> {
    let text = format!(
        "Hello! I am tunnel's demonstration model: no weights, only a few lines of code. {}. \
         If you can read this, your request found its way here, and my answer comes back to you \
         one word at a time.",
        quote(said)
    );
    text.split_whitespace()
        .enumerate()
        .map(|(index, word)| {
            if index == 0 {
                word.to_owned()
            } else {
                format!(" {word}")
            }
        })
        .collect()
}

fn quote(said: &str) -> String {
    let said = said.trim();
    if said.is_empty() {
        return "You said nothing yet".to_owned();
    }
    match said.char_indices().nth(QUOTE_CHARS) {
        Some((end, _)) => format!("You said: “{}…”", &said[..end]),
        None => format!("You said: “{said}”"),
    }
}

/// A vector of length 1 for a text; texts that share words point in similar directions.
pub(super) fn embedding(text: &str) -> Vec<f32> {
    let mut sum = [0_f32; DIMENSIONS];
    for word in text.split_whitespace() {
        let mut state = fnv1a(word.to_lowercase().as_bytes());
        for component in &mut sum {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *component += f32::from((state >> 48) as u16) / 32_768.0 - 1.0;
        }
    }
    let length = sum.iter().map(|component| component * component).sum::<f32>().sqrt();
    if length == 0.0 {
        sum[0] = 1.0;
        return sum.to_vec();
    }
    sum.iter().map(|component| component / length).collect()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(quote(&"ä".repeat(200)), format!("You said: “{}”", "ä".repeat(200)));
        assert_eq!(quote(&"ä".repeat(201)), format!("You said: “{}…”", "ä".repeat(200)));
        assert_eq!(quote(" \n"), "You said nothing yet");
    }

    #[test]
    fn vectors_have_length_one_and_tell_texts_apart() {
        let dot = |left: &[f32], right: &[f32]| -> f32 { left.iter().zip(right).map(|(l, r)| l * r).sum() };
        let (one, same, other) = (
            embedding("the red fox"),
            embedding("The  red fox"),
            embedding("tax returns"),
        );
        for vector in [&one, &other, &embedding("")] {
            assert_eq!(vector.len(), DIMENSIONS);
            assert!((dot(vector, vector) - 1.0).abs() < 1e-5);
        }
        assert_eq!(one, same);
        assert!(dot(&one, &embedding("the red fax")) > dot(&one, &other));
    }
}
