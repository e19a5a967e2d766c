//! A small exchange: the version of the upstream, which costs it next to nothing.

use std::time::Instant;

use http::{HeaderMap, Method, Response, StatusCode};

use super::check_head;
use crate::cmd::bench::measurement::Wrong;
use crate::cmd::rig::caller::Caller;
use crate::transport::empty;

/// Longer is no version.
const LONGEST: usize = 64 * 1024;

/// One of them; tells when the answer was there.
pub(super) async fn exchange(caller: &Caller) -> Result<Instant, Wrong> {
    let asked = caller.fetch(Method::GET, "/api/version", HeaderMap::new(), empty(), LONGEST);
    let answer = asked.await?;
    let at = Instant::now();
    check(answer.status, &answer.headers, &answer.body)?;
    Ok(at)
}

fn check(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), Wrong> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    head.headers_mut().clone_from(headers);
    check_head(&head)?;
    let answer: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let version = answer.as_ref().and_then(|answer| answer.get("version")?.as_str());
    match version {
        Some(version) if !version.is_empty() => Ok(()),
        _ => Err(Wrong("a wrong body: no version in it".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_under_200_is_right() {
        let ask = |status, body: &str| check(status, &HeaderMap::new(), body.as_bytes());
        assert_eq!(ask(StatusCode::OK, r#"{"version":"0.17.1"}"#), Ok(()));
        for body in ["", "{}", r#"{"version":""}"#, r#"{"version":1}"#, "<html>"] {
            assert!(ask(StatusCode::OK, body).is_err(), "{body}");
        }
        let wrong = ask(StatusCode::BAD_GATEWAY, r#"{"version":"0.17.1"}"#).unwrap_err();
        assert_eq!(wrong.0, "answered 502");
    }
}
