//! Large bodies, one at a time: down and up, every octet compared.

use std::time::{Duration, Instant};

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use serde_json::Value;

use super::{ask, broken, check_head};
use crate::cmd::bench::measurement::{Slice, Wrong};
use crate::cmd::bench::stage::Way;
use crate::cmd::rig::caller::Caller;
use crate::cmd::rig::pattern::{self, Check};
use crate::cmd::rig::upstream::{SINK, SOURCE};
use crate::transport::{collect, empty};

/// However slow, it comes to an end.
const WITHIN: Duration = Duration::from_secs(120);
/// An answer that tells what arrived.
const LONGEST_ANSWER: usize = 64 * 1024;

/// One body each way.
pub(super) async fn measure(way: &Way, octets: u64) -> anyhow::Result<Slice> {
    let mut slice = Slice::new()?;
    let began = Instant::now();
    for caller in way.callers.iter().take(1) {
        let down = timed(octets, download(caller, octets)).await;
        let up = timed(octets, upload(caller, octets)).await;
        for (outcome, rates) in [down, up].into_iter().zip(&mut slice.rates) {
            match outcome {
                Ok(rate) => {
                    slice.done += 1;
                    rates.push(rate);
                }
                Err(wrong) => slice.errors.note(wrong),
            }
        }
    }
    slice.elapsed = began.elapsed();
    Ok(slice)
}

/// MB/s, from the request to the last octet.
async fn timed(octets: u64, transfer: impl Future<Output = Result<Instant, Wrong>>) -> Result<f64, Wrong> {
    let began = Instant::now();
    let done = tokio::time::timeout(WITHIN, transfer).await;
    let done = done.map_err(|_| Wrong(format!("not done within {} s", WITHIN.as_secs())))??;
    Ok(octets as f64 / 1e6 / (done - began).as_secs_f64().max(1e-9))
}

async fn download(caller: &Caller, octets: u64) -> Result<Instant, Wrong> {
    let path = format!("{SOURCE}?octets={octets}");
    let mut body = ask(caller, Method::GET, &path, empty()).await?.into_body();
    let mut check = Check::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() {
            check.take(&data);
        }
    }
    let at = Instant::now();
    compare(octets, check.octets(), check.wrong_at())?;
    Ok(at)
}

async fn upload(caller: &Caller, octets: u64) -> Result<Instant, Wrong> {
    // As programs do that have the whole of a body before they send it.
    let length = HeaderMap::from_iter([(CONTENT_LENGTH, octets.into())]);
    let response = caller.send(Method::POST, SINK, length, pattern::body(octets)).await?;
    check_head(&response)?;
    let answer = collect(response.into_body(), LONGEST_ANSWER).await;
    let at = Instant::now();
    let answer: Option<Value> = answer.and_then(|answer| serde_json::from_slice(&answer).ok());
    let answer = answer.ok_or_else(|| Wrong("the answer to an upload is none of the upstream's".to_owned()))?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    compare(octets, number("octets").unwrap_or_default(), number("wrongAt"))?;
    Ok(at)
}

fn compare(octets: u64, came: u64, wrong_at: Option<u64>) -> Result<(), Wrong> {
    if wrong_at.is_some() {
        return Err(Wrong("a body came changed".to_owned()));
    }
    if came != octets {
        return Err(Wrong("a body came short or long".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_right_as_a_whole_or_an_error() {
        assert_eq!(compare(5, 5, None), Ok(()));
        assert!(compare(5, 4, None).is_err() && compare(5, 6, None).is_err() && compare(5, 5, Some(3)).is_err());
    }
}
