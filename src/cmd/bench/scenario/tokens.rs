//! Streams of tokens: when the first comes, how even the others, how long each is on its way, and how many octets it costs. The
//! upstream here writes when it sent each of them; a real model does not.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{ask, broken};
use crate::cmd::bench::measurement::{Slice, Wrong};
use crate::cmd::bench::pacing::ANSWER_WITHIN;
use crate::cmd::bench::settings::Settings;
use crate::cmd::bench::stage::{Link, STREAMS, Way};
use crate::cmd::rig::caller::Caller;
use crate::cmd::rig::lines::Lines;
use crate::cmd::rig::now_us;
use crate::cmd::rig::upstream::STREAM;
use crate::transport::full;

/// Streams go on after the first token, as answers do.
const AFTER_FIRST: (u64, Duration) = (2, Duration::from_millis(4));
/// Streams whose octets are counted.
const COUNTED: (u64, Duration) = (40, Duration::from_millis(5));
/// As much as a real model writes.
const MODEL_TOKENS: u64 = 64;
/// About as much as a caller asks.
const PROMPT: &str = "Write a few sentences about tunnels: who dug the first ones, how they are kept dry, and what people \
                      use them for today. Begin with the oldest one that is still in use.";

/// Until the first token is there; then reads the rest.
pub(super) async fn first(caller: &Caller, model: Option<&str>) -> Result<Instant, Wrong> {
    let (count, every) = AFTER_FIRST;
    let mut stream = Stream::begin(caller, model, count, every).await?;
    let first = stream.next().await?.ok_or_else(|| Wrong("no token came".to_owned()))?;
    while stream.next().await?.is_some() {}
    Ok(first.at)
}

/// Streams side by side, for twice the slice; one, if the model is a real one.
pub(super) async fn measure(way: &Way, settings: &Settings) -> anyhow::Result<Slice> {
    let mut slice = Slice::new()?;
    let model = settings.subject.model();
    let every = settings.token_interval;
    let count = match model {
        Some(_) => MODEL_TOKENS,
        None => ((settings.slice * 2).as_secs_f64() / every.as_secs_f64()).max(2.0) as u64,
    };
    let streams = if model.is_some() { 1 } else { STREAMS };
    let began = Instant::now();
    let streams = way.callers.iter().take(streams).zip(0..).map(async |(caller, number)| {
        // Nobody begins at the same moment.
        tokio::time::sleep(every * number / STREAMS as u32).await;
        let mut seen = Vec::new();
        let ended = watch(caller, model, count, every, &mut seen).await;
        (seen, ended)
    });
    for (seen, ended) in join_all(streams).await {
        note(&mut slice, &seen);
        if let Err(wrong) = ended {
            slice.errors.note(wrong);
        }
    }
    slice.elapsed = began.elapsed();
    Ok(slice)
}

/// Reads one stream to its end.
async fn watch(
    caller: &Caller,
    model: Option<&str>,
    count: u64,
    every: Duration,
    seen: &mut Vec<Token>,
) -> Result<(), Wrong> {
    let mut stream = Stream::begin(caller, model, count, every).await?;
    while let Some(token) = stream.next().await? {
        seen.push(token);
    }
    Ok(())
}

fn note(slice: &mut Slice, seen: &[Token]) {
    slice.done += seen.len() as u64;
    for token in seen {
        if let Some(transit) = token.transit() {
            slice.transit.note(transit);
        }
    }
    for pair in seen.windows(2) {
        let gap = pair[1].at - pair[0].at;
        slice.times.note(gap);
        if let (Some(before), Some(after)) = (pair[0].sent_us, pair[1].sent_us) {
            let sent = Duration::from_micros(after.saturating_sub(before));
            slice.deviation.note(gap.abs_diff(sent));
        }
    }
}

/// Counts what a stream's tokens, after the first one, cost between bridge and relay.
pub(super) async fn count_octets(link: &Link, slice: &mut Slice) {
    let Some((caller, wire)) = &link.counted else { return };
    let (count, every) = COUNTED;
    let counted = async {
        let mut stream = Stream::begin(caller, None, count, every).await?;
        stream.next().await?;
        let (before, mut after, mut tokens) = (wire.octets(), 0, 0);
        while stream.next().await?.is_some() {
            (after, tokens) = (wire.octets(), tokens + 1);
        }
        Ok((after.saturating_sub(before), tokens))
    };
    match counted.await {
        Ok(counted) => slice.wire = Some(counted),
        Err(wrong) => slice.errors.note(wrong),
    }
}

/// A token that came.
#[derive(Debug, Clone, Copy)]
struct Token {
    at: Instant,
    at_us: u64,
    sent_us: Option<u64>,
}

impl Token {
    fn transit(&self) -> Option<Duration> {
        self.sent_us
            .map(|sent| Duration::from_micros(self.at_us.saturating_sub(sent)))
    }
}

/// An answer that is being written.
struct Stream {
    body: Incoming,
    lines: Lines,
    expected: Expected,
    ended: bool,
}

/// What must come.
#[derive(Debug)]
enum Expected {
    /// These many, numbered.
    Numbered { next: u64, count: u64 },
    /// What a model likes to write, and then `done`.
    Written { done: bool },
}

impl Stream {
    async fn begin(caller: &Caller, model: Option<&str>, count: u64, every: Duration) -> Result<Self, Wrong> {
        let (path, body, expected) = match model {
            None => (
                format!("{STREAM}?chunks={count}&every_us={}", every.as_micros()),
                json!({"prompt": PROMPT}),
                Expected::Numbered { next: 0, count },
            ),
            Some(model) => (
                "/api/generate".to_owned(),
                json!({"model": model, "prompt": PROMPT, "stream": true, "options": {"num_predict": MODEL_TOKENS}}),
                Expected::Written { done: false },
            ),
        };
        let response = ask(caller, Method::POST, &path, full(body.to_string())).await?;
        Ok(Self {
            body: response.into_body(),
            lines: Lines::default(),
            expected,
            ended: false,
        })
    }

    /// The next token; none after the last. The time is when its line was whole.
    async fn next(&mut self) -> Result<Option<Token>, Wrong> {
        loop {
            if let Some(line) = self.lines.read() {
                let (at, at_us) = (Instant::now(), now_us());
                if let Some(sent_us) = self.expected.take(&line)? {
                    return Ok(Some(Token { at, at_us, sent_us }));
                }
                continue;
            }
            if self.ended {
                return self.expected.finish().map(|()| None);
            }
            let frame = tokio::time::timeout(ANSWER_WITHIN, self.body.frame()).await;
            match frame.map_err(|_| Wrong(format!("a stream stood still for {} s", ANSWER_WITHIN.as_secs())))? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        let endless = |_| Wrong("a line of a stream has no end".to_owned());
                        self.lines.push(&data).map_err(endless)?;
                    }
                }
                Some(Err(error)) => return Err(broken(&error)),
                None => self.ended = true,
            }
        }
    }
}

impl Expected {
    /// Whether this line is a token, and when it was sent if that is told.
    fn take(&mut self, line: &[u8]) -> Result<Option<Option<u64>>, Wrong> {
        let line: Value =
            serde_json::from_slice(line).map_err(|_| Wrong("a line of a stream is no JSON".to_owned()))?;
        match self {
            Self::Numbered { next, .. } => {
                if line.get("number").and_then(Value::as_u64) != Some(*next) {
                    return Err(Wrong("a token is missing, or came twice".to_owned()));
                }
                *next += 1;
                Ok(Some(line.get("sentUs").and_then(Value::as_u64)))
            }
            Self::Written { done } => {
                if line.get("error").is_some() {
                    return Err(Wrong("the model reported an error".to_owned()));
                }
                *done = line.get("done").and_then(Value::as_bool) == Some(true);
                let text = |name: &str| {
                    line.get(name)
                        .and_then(Value::as_str)
                        .is_some_and(|text| !text.is_empty())
                };
                let written = text("response") || text("thinking");
                Ok(written.then_some(None))
            }
        }
    }

    /// Whether the end may be here.
    fn finish(&self) -> Result<(), Wrong> {
        let whole = match self {
            Self::Numbered { next, count } => next == count,
            Self::Written { done } => *done,
        };
        whole
            .then_some(())
            .ok_or_else(|| Wrong("a stream ended too soon".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_and_none_may_be_missing() {
        let mut expected = Expected::Numbered { next: 0, count: 2 };
        assert_eq!(expected.take(br#"{"number":0,"sentUs":7}"#), Ok(Some(Some(7))));
        assert!(expected.finish().is_err());
        assert!(expected.take(br#"{"number":2,"sentUs":8}"#).is_err());
        assert_eq!(expected.take(br#"{"number":1,"sentUs":8}"#), Ok(Some(Some(8))));
        assert_eq!(expected.finish(), Ok(()));
    }

    #[test]
    fn a_models_words_are_tokens_its_last_line_ends_them_and_its_errors_are_errors() {
        let mut expected = Expected::Written { done: false };
        assert_eq!(expected.take(br#"{"response":"Hello","done":false}"#), Ok(Some(None)));
        assert_eq!(
            expected.take(br#"{"response":"","thinking":"Hm","done":false}"#),
            Ok(Some(None))
        );
        assert!(expected.finish().is_err());
        assert!(expected.take(br#"{"error":"out of memory"}"#).is_err());
        assert_eq!(expected.take(br#"{"response":"","done":true}"#), Ok(None));
        assert_eq!(expected.finish(), Ok(()));
    }

    #[test]
    fn what_the_way_does_to_a_gap_is_apart_from_what_the_upstream_does() {
        let began = Instant::now();
        let token = |at_ms: u64, sent_ms: u64| Token {
            at: began + Duration::from_millis(at_ms),
            at_us: at_ms * 1000,
            sent_us: Some(sent_ms * 1000),
        };
        let mut slice = Slice::new().unwrap();
        note(&mut slice, &[token(5, 0), token(30, 25), token(60, 45)]);
        assert_eq!((slice.done, slice.times.count(), slice.transit.count()), (3, 2, 3));
        let most = |times: &crate::cmd::bench::measurement::Times| (times.most().unwrap() / 1000.0).round();
        assert_eq!(
            (most(&slice.times), most(&slice.transit), most(&slice.deviation)),
            (30.0, 15.0, 10.0)
        );
    }
}
