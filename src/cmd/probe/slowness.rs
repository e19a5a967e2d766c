//! Silence: before the first byte of an answer, as a cold model needs it, and on an idle link.

use std::time::Duration;

use futures_util::future::{join, join_all};
use http::{HeaderMap, Method, StatusCode};
use tokio::time::{Instant, sleep};

use super::remedy::Cause;
use super::report::{Group, Verdict, ms};
use super::site::{SMALL, Site, code};
use super::through::Through;
use crate::bridge::choice::Transport;
use crate::bridge::status::Phase;
use crate::cmd::rig::upstream::{SLOW, Upstream};
use crate::transport::empty;

/// A little more than five seconds, a limit that people set.
const SHORT: Duration = Duration::from_millis(5500);
/// A little more than the limits that proxies come with.
const LONG: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(65),
    Duration::from_secs(130),
];
/// What an answer may need beyond the silence.
const SLACK: Duration = Duration::from_secs(15);

/// Does the checks through one bridge; `long` looks for the idle limit of the whole path.
pub(super) async fn run(site: &Site, through: &Through, upstream: &Upstream, long: bool) {
    let begin = |name| site.board.begin(Group::Slowness, name, Some(through.transport));
    let first = begin("first byte").run_for(SHORT + SLACK, first_byte(site, through, &[SHORT]));
    if !long {
        first.await;
        return;
    }
    let longest = LONG[LONG.len() - 1];
    let silence = begin("long silence").run_for(longest + SLACK, first_byte(site, through, &LONG));
    let idle = begin("idle link").run_for(longest + SLACK, idle(site, upstream, through.transport, longest));
    join(first, join(silence, idle)).await;
}

/// Answers that come after so long each, all at once.
async fn first_byte(site: &Site, through: &Through, silences: &[Duration]) -> Verdict {
    let asked = silences.iter().map(|silence| async move {
        let began = Instant::now();
        let path = format!("{SLOW}?ms={}", silence.as_millis());
        let asked = through
            .caller
            .fetch(Method::GET, &path, HeaderMap::new(), empty(), SMALL);
        let answer = asked.await;
        let after = began.elapsed();
        let seen = match answer {
            Ok(answer) if answer.status == StatusCode::OK => return (*silence, None),
            Ok(answer) if code(&answer.headers).is_some() => {
                return (*silence, Some((after, site.unexpected_answer(&answer))));
            }
            Ok(answer) => format!("something before the relay answered {}", answer.status.as_u16()),
            Err(error) => error.to_string(),
        };
        let seen = format!("a silent answer is cut after {}: {seen}", seconds(after));
        (
            *silence,
            Some((after, Verdict::fail(seen, site.remedy(Cause::ReadTimeout)))),
        )
    });
    let answers = join_all(asked).await;
    let longest = answers
        .iter()
        .filter(|(_, cut)| cut.is_none())
        .map(|(silence, _)| *silence)
        .max();
    let cut = answers.iter().find_map(|(_, cut)| cut.as_ref());
    let survived = longest.unwrap_or_default().as_secs_f64();
    match cut {
        None => Verdict::pass(format!(
            "an answer after {} of silence comes",
            seconds(longest.unwrap_or_default())
        )),
        Some((after, verdict)) => verdict.clone().with("cutAfterSeconds", after.as_secs_f64()),
    }
    .with("survivedSeconds", survived)
}

/// Leaves a link alone and counts how often it is lost.
async fn idle(site: &Site, upstream: &Upstream, transport: Transport, time: Duration) -> Verdict {
    // Through the other bridges something is always on its way.
    let through = match Through::open(site, upstream, transport).await {
        Ok(through) => through,
        Err(why) => return Verdict::skipped(why),
    };
    let lost = losses(&through, time).await;
    match lost.first() {
        None => Verdict::pass(format!("stands for {}", seconds(time))),
        Some(first) => {
            let cause = match transport {
                Transport::Ws => Cause::IdleTimeout,
                Transport::Poll => Cause::ReadTimeout,
            };
            Verdict::warn(
                format!(
                    "lost {} times, first after {}; it connects again by itself",
                    lost.len(),
                    ms(*first)
                ),
                site.remedy(cause),
            )
        }
    }
    .with("lost", lost.len())
}

/// When the link was lost, since now.
async fn losses(through: &Through, time: Duration) -> Vec<Duration> {
    let began = Instant::now();
    let mut phase = through.bridge.status().phase();
    let mut lost = Vec::new();
    let watched = async {
        loop {
            if phase
                .wait_for(|phase| !matches!(phase, Phase::Connected { .. }))
                .await
                .is_err()
            {
                return;
            }
            lost.push(began.elapsed());
            if phase
                .wait_for(|phase| matches!(phase, Phase::Connected { .. }))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = watched => {}
        () = sleep(time) => {}
    }
    lost
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
