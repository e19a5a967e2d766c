//! Answers and uploads piece by piece: each piece carries the time it was sent, so what holds pieces back shows as what it is.

use std::time::Duration;

use futures_util::future::join;
use futures_util::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::remedy::Cause;
use super::report::{Check, Group, Verdict, figure, ms};
use super::site::{SMALL, Site};
use super::through::Through;
use crate::bridge::choice::Transport;
use crate::cmd::rig::lines::Lines;
use crate::cmd::rig::upstream::{SINK, STREAM};
use crate::cmd::rig::{now, now_us, pattern};
use crate::transport::{collect, empty};

const CHUNKS: u32 = 20;
const EVERY: Duration = Duration::from_millis(100);
/// Later than this behind the quickest piece, a piece was held back.
const HELD: Duration = Duration::from_millis(120);
/// Fewer late pieces are the network's moods: half a second in which nothing passes makes four.
const SEVERAL: usize = 5;
/// A piece of an upload, octets.
const PIECE: usize = 1000;

/// Does all checks through one bridge.
pub(super) async fn run(site: &Site, through: &Through) {
    let begin = |name| site.board.begin(Group::Streaming, name, Some(through.transport));
    let (ndjson, events, gzip, upload) = (begin("ndjson"), begin("sse"), begin("gzip"), begin("upload"));
    let answers = async {
        let (ndjson, events, lines, data) = tokio::join!(
            respond(site, through, ndjson, "ndjson"),
            respond(site, through, events, "sse"),
            watch(site, through, "ndjson", "gzip"),
            watch(site, through, "sse", "gzip"),
        );
        let verdict = if ndjson && events {
            judge_gzip(site, [lines, data])
        } else {
            Verdict::skipped("streams do not come in time without it either")
        };
        gzip.finish(verdict);
    };
    join(answers, upload.run(uploaded(site, through))).await;
}

/// Streams one answer; whether it came in time.
async fn respond(site: &Site, through: &Through, check: Check, format: &'static str) -> bool {
    check
        .run(async {
            match watch(site, through, format, "identity").await {
                Ok(seen) => judge(site, through, &seen.pieces, Cause::ResponseBuffered),
                Err(verdict) => verdict,
            }
        })
        .await
}

/// What came of one streamed answer.
struct Watched {
    /// When each piece was sent and when it came.
    pieces: Vec<Piece>,
    /// How it was compressed on the way, if it was.
    encoding: Option<String>,
    /// From the first octets to the last.
    lasted: Duration,
}

/// The times of one piece, since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    sent: Duration,
    came: Duration,
}

async fn watch(site: &Site, through: &Through, format: &str, accepts: &'static str) -> Result<Watched, Verdict> {
    let limit = site.board.limit();
    let watched = timeout(limit, read(site, through, format, accepts)).await;
    watched.unwrap_or_else(|_| {
        let seen = format!("not done within {} s", limit.as_secs());
        Err(Verdict::fail(seen, site.remedy(Cause::ReadTimeout)))
    })
}

async fn read(site: &Site, through: &Through, format: &str, accepts: &'static str) -> Result<Watched, Verdict> {
    let path = format!(
        "{STREAM}?chunks={CHUNKS}&every_us={}&format={format}",
        EVERY.as_micros()
    );
    let encodings = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accepts))]);
    let asked = through.caller.send(Method::GET, &path, encodings, empty());
    let response = asked
        .await
        .map_err(|error| Verdict::fail(error, site.remedy(Cause::ReadTimeout)))?;
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        let body = collect(body, SMALL).await.unwrap_or_default();
        return Err(site.unexpected(head.status, &head.headers, &body));
    }
    let encoding = head.headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let mut lines = Lines::default();
    let mut pieces = Vec::new();
    let mut times = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let seen = format!("broke off after {} of {CHUNKS} pieces: {error}", pieces.len());
            Verdict::fail(seen, site.remedy(Cause::ReadTimeout))
        })?;
        if let Some(data) = frame.data_ref() {
            let now = now();
            times = Some((times.map_or(now, |(first, _)| first), now));
            // What is compressed has no lines.
            let _ = lines.push(data);
            let sent = std::iter::from_fn(|| lines.read()).filter_map(|line| sent(&line));
            pieces.extend(sent.map(|sent| Piece { sent, came: now }));
        }
    }
    Ok(Watched {
        pieces,
        encoding: encoding.filter(|encoding| *encoding != "identity").map(str::to_owned),
        lasted: times.map_or(Duration::ZERO, |(first, last)| last - first),
    })
}

/// When a line was sent, as it tells itself.
fn sent(line: &[u8]) -> Option<Duration> {
    let line = line.strip_prefix(b"data: ").unwrap_or(line);
    let value: Value = serde_json::from_slice(line).ok()?;
    value["sentUs"].as_u64().map(Duration::from_micros)
}

/// How pieces came along.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    /// As they were sent.
    InTime,
    /// Some waited for others.
    Bunched,
    /// All waited for the last.
    Whole,
    /// Not all came.
    Missing,
}

/// Judges; pieces may come later than the quickest one by `slack` and still be in time.
fn flow(pieces: &[Piece], slack: Duration) -> Flow {
    let late = |piece: &Piece| piece.came.saturating_sub(piece.sent);
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return Flow::Missing;
    };
    if pieces.len() < CHUNKS as usize {
        return Flow::Missing;
    }
    let quickest = pieces.iter().map(late).min().unwrap_or_default();
    let held = pieces.iter().filter(|piece| late(piece) > quickest * 2 + slack).count();
    let (lasted, came) = (
        last.sent.saturating_sub(first.sent),
        last.came.saturating_sub(first.came),
    );
    if came < lasted * 3 / 10 {
        Flow::Whole
    } else if held >= SEVERAL {
        Flow::Bunched
    } else {
        Flow::InTime
    }
}

fn judge(site: &Site, through: &Through, pieces: &[Piece], buffered: Cause) -> Verdict {
    let late = |piece: &Piece| piece.came.saturating_sub(piece.sent);
    let slowest = pieces.iter().map(late).max().unwrap_or_default();
    let gaps: Vec<Duration> = pieces
        .windows(2)
        .map(|pair| pair[1].came.saturating_sub(pair[0].came))
        .collect();
    let longest = gaps.iter().max().copied().unwrap_or_default();
    let uploads = buffered == Cause::RequestBuffered;
    // Over polling, a piece waits until the one before has made its way.
    let waits = match through.transport {
        Transport::Ws => Duration::ZERO,
        Transport::Poll => 3 * site.trip(),
    };
    // On a busy machine the others are kept waiting as well.
    let verdict = match flow(pieces, HELD + waits + site.stall()) {
        Flow::InTime => Verdict::pass(format!("pieces at most {} on their way", ms(slowest))),
        Flow::Bunched => Verdict::warn(
            format!("pieces come in bunches, up to {} late", ms(slowest)),
            site.remedy(Cause::Bunched),
        ),
        Flow::Whole if uploads => Verdict::warn(
            "request buffered: its first piece arrived with its last",
            site.remedy(buffered),
        ),
        Flow::Whole => Verdict::fail(
            format!(
                "response buffered: its first piece came {} late, with its last",
                ms(late(&pieces[0]))
            ),
            site.remedy(buffered),
        ),
        Flow::Missing => Verdict::fail(
            format!("{} of {CHUNKS} pieces came", pieces.len()),
            site.remedy(Cause::ReadTimeout),
        ),
    };
    verdict
        .with("latestMs", figure(slowest))
        .with("longestGapMs", figure(longest))
        .with("gapsMs", gaps.into_iter().map(figure).collect::<Vec<_>>())
}

/// Whether compression, where the caller takes it, holds back what comes in time without.
fn judge_gzip(site: &Site, compressed: [Result<Watched, Verdict>; 2]) -> Verdict {
    let mut verdict = Verdict::pass("nothing on the way compresses streams");
    for watched in compressed {
        let watched = match watched {
            Ok(watched) => watched,
            Err(verdict) => return verdict,
        };
        let Some(encoding) = watched.encoding else {
            continue;
        };
        if watched.lasted < EVERY * (CHUNKS - 1) * 3 / 10 {
            let seen = format!("held back by {encoding}: nothing came before the end");
            return Verdict::fail(seen, site.remedy(Cause::Gzip));
        }
        let seen = format!("compressed by {encoding} on the way, still in time");
        verdict = Verdict::warn(seen, site.remedy(Cause::Gzip));
    }
    verdict
}

/// Sends a body piece by piece; the upstream tells when each arrived.
async fn uploaded(site: &Site, through: &Through) -> Verdict {
    let (times, mut sent) = mpsc::channel(CHUNKS as usize);
    // The clock starts when the first piece is asked for: a connection may have to be made before.
    let pieces = stream::unfold((0_u32, times, None), move |(number, times, began)| async move {
        if number == CHUNKS {
            return None;
        }
        let began = began.unwrap_or_else(Instant::now);
        sleep_until(began + EVERY * number).await;
        let piece = pattern::piece(u64::from(number) * PIECE as u64, PIECE);
        times.try_send(now_us()).ok()?;
        Some((Ok(Frame::data(piece)), (number + 1, times, Some(began))))
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    let kind = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))]);
    let answer = match site.ask(&through.caller, Method::POST, SINK, kind, body).await {
        Ok(answer) if answer.status == StatusCode::OK => answer,
        Ok(answer) => return site.unexpected_answer(&answer),
        Err(error) => return Verdict::fail(error, site.remedy(Cause::ReadTimeout)),
    };
    let seen: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if seen["octets"] != json!(u64::from(CHUNKS) * PIECE as u64) || !seen["wrongAt"].is_null() {
        return Verdict::fail(
            "the upload did not arrive as it was sent",
            site.remedy(Cause::BadGateway),
        );
    }
    let sent: Vec<u64> = std::iter::from_fn(|| sent.try_recv().ok()).collect();
    judge(site, through, &arrivals(&seen, &sent), Cause::RequestBuffered)
}

/// When each piece was sent, and when the last octet of it arrived.
fn arrivals(seen: &Value, sent: &[u64]) -> Vec<Piece> {
    let arrived: Vec<(u64, u64)> = serde_json::from_value(seen["arrivals"].clone()).unwrap_or_default();
    let pieces = sent.iter().enumerate().filter_map(|(number, sent)| {
        let end = (number as u64 + 1) * PIECE as u64;
        let (_, came) = arrived.iter().find(|(octets, _)| *octets >= end)?;
        Some(Piece {
            sent: Duration::from_micros(*sent),
            came: Duration::from_micros(*came),
        })
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(late_ms: impl Fn(u64) -> u64) -> Vec<Piece> {
        (0..u64::from(CHUNKS))
            .map(|number| Piece {
                sent: Duration::from_millis(1000 + number * 100),
                came: Duration::from_millis(1000 + number * 100 + late_ms(number)),
            })
            .collect()
    }

    #[test]
    fn what_holds_pieces_back_shows_as_what_it_is() {
        assert_eq!(flow(&pieces(|_| 3), HELD), Flow::InTime);
        assert_eq!(flow(&pieces(|_| 400), HELD), Flow::InTime, "a long way is no buffer");
        let hiccup = pieces(|number| {
            if (7..11).contains(&number) {
                (11 - number) * 100
            } else {
                3
            }
        });
        assert_eq!(
            flow(&hiccup, HELD),
            Flow::InTime,
            "a machine that was busy for a moment is no buffer"
        );
        assert_eq!(flow(&pieces(|number| 1900 - number * 100), HELD), Flow::Whole);
        assert_eq!(flow(&pieces(|number| 2500 - number * 100), HELD), Flow::Whole);
        assert_eq!(flow(&pieces(|number| (4 - number % 5) * 100), HELD), Flow::Bunched);
        assert_eq!(
            flow(&pieces(|number| if number < 19 { 200 } else { 1 }), HELD),
            Flow::Bunched
        );
        assert_eq!(
            flow(&pieces(|number| if number % 10 == 5 { 400 } else { 1 }), HELD),
            Flow::InTime
        );
        assert_eq!(flow(&pieces(|_| 3)[..7], HELD), Flow::Missing);
        assert_eq!(flow(&[], HELD), Flow::Missing);
    }

    #[test]
    fn a_line_tells_when_it_was_sent_in_each_format() {
        let at = Some(Duration::from_micros(5));
        assert_eq!(sent(b"data: {\"number\":0,\"sentUs\":5}"), at);
        assert_eq!(sent(b"{\"number\":0,\"sentUs\":5}"), at);
        assert_eq!((sent(b""), sent(b"{}")), (None, None));
    }

    #[test]
    fn a_piece_of_an_upload_arrives_with_its_last_octet() {
        let seen = json!({"arrivals": [[500, 10], [1500, 20], [2000, 30]]});
        let found = arrivals(&seen, &[1, 2, 3]);
        let came: Vec<_> = found.iter().map(|piece| piece.came.as_micros()).collect();
        assert_eq!(came, [20, 30]);
    }
}
