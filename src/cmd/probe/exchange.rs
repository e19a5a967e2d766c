//! Requests and answers through a bridge: whole, unchanged, and many at once.

use std::time::Duration;

use futures_util::future::join_all;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::Instant;

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::site::{SMALL, Site, code, told};
use super::through::Through;
use crate::cmd::rig::pattern::{self, Check};
use crate::cmd::rig::upstream::{ECHO, METHOD, MIRROR, SINK, SOURCE, TWICE};
use crate::transport::headers::TUNNEL_ERROR;
use crate::transport::{collect, empty, full};

/// Requests at once.
const CROWD: usize = 100;
const MIB: u64 = 1024 * 1024;
/// A path that any rewriting on the way changes.
const PATH: &str = "/a%20b/%C3%A9/c%2Bd;e=f?q=1%202&r=a%2Fb&s=+";
/// Fields a caller may send, and fields it may not.
const SENT: HeaderName = HeaderName::from_static("probe-sent");
const CLAIMED: &str = "203.0.113.9";

/// Does all checks through one bridge.
pub(super) async fn run(site: &Site, through: &Through) {
    let begin = |name| site.board.begin(Group::Exchange, name, Some(through.transport));
    begin("methods").run(methods(site, through)).await;
    begin("headers").run(headers(site, through)).await;
    begin("path").run(path(site, through)).await;
    begin("100 at once").run(crowd(site, through)).await;
    let began = Instant::now();
    let small = begin("1 MiB").run_bulk(bulk(site, through, MIB)).await;
    let expected = began.elapsed() * 32;
    let check = begin("32 MiB");
    if small && expected > site.board.limit() * 2 {
        let seen = format!("would take about {} s", expected.as_secs());
        check.finish(Verdict::skipped(format!("{seen}; --timeout 5m gives it the time")));
    } else {
        check.run_bulk(bulk(site, through, 32 * MIB)).await;
    }
}

async fn methods(site: &Site, through: &Through) -> Verdict {
    let began = Instant::now();
    for method in [Method::GET, Method::POST, Method::HEAD] {
        let body = if method == Method::POST {
            full("a body")
        } else {
            empty()
        };
        let expected = if method == Method::POST { "a body" } else { "" };
        let asked = site
            .ask(&through.caller, method.clone(), ECHO, HeaderMap::new(), body)
            .await;
        let answer = match asked {
            Ok(answer) if answer.status == StatusCode::OK => answer,
            Ok(answer) => return site.unexpected_answer(&answer),
            Err(error) => return site.broken(&error),
        };
        let arrived = answer.headers.get(METHOD).and_then(|arrived| arrived.to_str().ok());
        if arrived != Some(method.as_str()) {
            let seen = format!("{method} arrived as {}", arrived.unwrap_or("nothing"));
            return Verdict::fail(seen, site.remedy(Cause::PathChanged));
        }
        if &answer.body[..] != expected.as_bytes() {
            return Verdict::fail(
                format!("the body of {method} was changed"),
                site.remedy(Cause::PathChanged),
            );
        }
    }
    let each = began.elapsed() / 3;
    Verdict::pass(format!("GET, POST, HEAD; {} each", ms(each))).with("eachMs", figure(each))
}

/// The request as the upstream saw it, and the head of its answer.
async fn mirrored(
    site: &Site,
    through: &Through,
    below: &str,
    headers: HeaderMap,
) -> Result<(Value, HeaderMap), Verdict> {
    let path = format!("{MIRROR}{below}");
    match site.ask(&through.caller, Method::GET, &path, headers, empty()).await {
        Ok(answer) if answer.status == StatusCode::OK => match serde_json::from_slice(&answer.body) {
            Ok(seen) => Ok((seen, answer.headers)),
            Err(_) => Err(Verdict::fail(
                "the answer was changed on the way",
                site.remedy(Cause::HeadersChanged),
            )),
        },
        Ok(answer) => Err(site.unexpected_answer(&answer)),
        Err(error) => Err(site.broken(&error)),
    }
}

async fn headers(site: &Site, through: &Through) -> Verdict {
    let mut sent = HeaderMap::new();
    for (name, value) in [
        (SENT, "one"),
        (SENT, "two"),
        (ACCEPT, "application/json"),
        (COOKIE, "probe=1"),
        (HeaderName::from_static("x-forwarded-for"), CLAIMED),
        (HeaderName::from_static("tunnel-error"), "forged"),
    ] {
        sent.append(name, HeaderValue::from_static(value));
    }
    let (seen, answered) = match mirrored(site, through, "", sent).await {
        Ok(mirrored) => mirrored,
        Err(verdict) => return verdict,
    };
    let faults = arrived_wrong(&seen).into_iter().chain(answered_wrong(&answered));
    match faults.collect::<Vec<_>>().first() {
        Some(fault) => Verdict::fail(fault, site.remedy(Cause::HeadersChanged)),
        None if seen["headers"].to_string().contains(CLAIMED) => Verdict::warn(
            "the relay believes X-Forwarded-For from this computer",
            "if --trusted-proxy is not meant to name this computer, narrow it to the proxy's own address",
        ),
        None => Verdict::pass("those that must pass did, credentials did not"),
    }
}

/// What is wrong with the fields that arrived.
fn arrived_wrong(seen: &Value) -> Vec<String> {
    let fields: Vec<(String, String)> = serde_json::from_value(seen["headers"].clone()).unwrap_or_default();
    let values = |name: &str| -> Vec<&str> {
        let found = fields.iter().filter(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).collect()
    };
    let mut wrong = Vec::new();
    // Joined by a comma they mean the same (RFC 9110 §5.3).
    if values(SENT.as_str()).join(", ") != "one, two" {
        wrong.push(format!(
            "a repeated header arrived as '{}'",
            values(SENT.as_str()).join(", ")
        ));
    }
    if values(ACCEPT.as_str()) != ["application/json"] {
        wrong.push("Accept did not arrive as it was sent".to_owned());
    }
    for name in [AUTHORIZATION, COOKIE, TUNNEL_ERROR] {
        if !values(name.as_str()).is_empty() {
            wrong.push(format!("{name} reached the upstream"));
        }
    }
    if !values(HOST.as_str()).iter().all(|host| host.starts_with("127.0.0.1")) {
        wrong.push("Host is not the upstream's own".to_owned());
    }
    wrong
}

/// What is wrong with the fields of the answer.
fn answered_wrong(headers: &HeaderMap) -> Vec<String> {
    let values = |name: &HeaderName| -> Vec<&str> {
        let found = headers.get_all(name).into_iter();
        found.filter_map(|value| value.to_str().ok()).collect()
    };
    let mut wrong = Vec::new();
    if values(&TWICE).join(", ") != "one, two" {
        wrong.push("a repeated header of the answer did not arrive as it was sent".to_owned());
    }
    // Proxies add cookies of their own.
    let cookies: Vec<_> = values(&SET_COOKIE)
        .into_iter()
        .filter(|cookie| matches!(*cookie, "a=1" | "b=2"))
        .collect();
    if cookies != ["a=1", "b=2"] {
        wrong.push("Set-Cookie of the answer did not arrive as it was sent".to_owned());
    }
    if headers.contains_key(TUNNEL_ERROR) {
        wrong.push("a forged Tunnel-Error of the upstream reached the caller".to_owned());
    }
    wrong
}

async fn path(site: &Site, through: &Through) -> Verdict {
    match mirrored(site, through, PATH, HeaderMap::new()).await {
        Err(verdict) => verdict,
        Ok((seen, _)) => {
            let expected = format!("{MIRROR}{PATH}");
            match seen["target"].as_str() {
                Some(target) if target == expected => Verdict::pass("escapes and query arrive as they were sent"),
                target => {
                    let target = target
                        .and_then(|target| target.strip_prefix(MIRROR))
                        .unwrap_or_default();
                    Verdict::fail(format!("{PATH} arrived as {target}"), site.remedy(Cause::PathChanged))
                }
            }
        }
    }
}

async fn crowd(site: &Site, through: &Through) -> Verdict {
    let began = Instant::now();
    let asked = (0..CROWD).map(|number| async move {
        let path = format!("{MIRROR}/{number}");
        match site.get(&through.caller, &path).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                let seen: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                match seen["target"] == path {
                    true => Ok(()),
                    false => Err(Verdict::fail(
                        "an answer went to the wrong caller",
                        "switch off caches and rewriting in what stands before the relay, or update the relay",
                    )),
                }
            }
            Ok(answer) if code(&answer.headers).is_some() => Err(site.unexpected_answer(&answer)),
            // One alone was answered.
            Ok(answer) => Err(Verdict::fail(told(answer.status), site.remedy(Cause::TooMany))),
            Err(error) => Err(Verdict::fail(error, site.remedy(Cause::TooMany))),
        }
    });
    let answers = join_all(asked).await;
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    let took = began.elapsed();
    match answers.into_iter().find_map(Result::err) {
        None => Verdict::pass(format!("all answered in {}", ms(took))),
        Some(first) => first.prefixed(&format!("{failed} of {CROWD} failed: ")),
    }
    .with("failed", failed)
    .with("allMs", figure(took))
}

/// A body in each direction, compared octet by octet.
async fn bulk(site: &Site, through: &Through, octets: u64) -> Verdict {
    let began = Instant::now();
    if let Err(verdict) = upload(site, through, octets).await {
        return verdict;
    }
    let up = began.elapsed();
    let began = Instant::now();
    if let Err(verdict) = download(site, through, octets).await {
        return verdict;
    }
    let down = began.elapsed();
    let rate = |took: Duration| {
        let rate = octets as f64 / 1e6 / took.as_secs_f64().max(1e-6);
        let digits = usize::from(rate < 10.0);
        format!("{rate:.digits$} MB/s")
    };
    Verdict::pass(format!("as sent; {} up, {} down", rate(up), rate(down)))
        .with("upMs", figure(up))
        .with("downMs", figure(down))
}

async fn upload(site: &Site, through: &Through, octets: u64) -> Result<(), Verdict> {
    let length = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(octets))]);
    let body = pattern::body(octets);
    let asked = through.caller.fetch(Method::POST, SINK, length, body, SMALL);
    let answer = match asked.await {
        Ok(answer) if answer.status == StatusCode::OK => answer,
        Ok(answer) if answer.status == StatusCode::PAYLOAD_TOO_LARGE && code(&answer.headers).is_none() => {
            return Err(Verdict::fail(
                format!("413: something before the relay takes no body of {} MiB", octets / MIB),
                site.remedy(Cause::BodyLimit),
            ));
        }
        Ok(answer) => return Err(site.unexpected_answer(&answer)),
        Err(error) => return Err(site.broken(&error)),
    };
    let seen: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    compared(
        "up",
        octets,
        seen["octets"].as_u64().unwrap_or_default(),
        seen["wrongAt"].as_u64(),
    )
}

async fn download(site: &Site, through: &Through, octets: u64) -> Result<(), Verdict> {
    let path = format!("{SOURCE}?octets={octets}");
    let asked = through.caller.send(Method::GET, &path, HeaderMap::new(), empty());
    let response = asked.await.map_err(|error| site.broken(&error))?;
    if response.status() != StatusCode::OK {
        let (head, body) = response.into_parts();
        let body = collect(body, SMALL).await.unwrap_or_default();
        return Err(site.unexpected(head.status, &head.headers, &body));
    }
    let status = response.status();
    let check = read(response.into_body()).await.map_err(|at| {
        Verdict::fail(
            format!("{} broke off after {at} of {octets} octets", told(status)),
            site.remedy(Cause::ReadTimeout),
        )
    })?;
    compared("down", octets, check.octets(), check.wrong_at())
}

/// Reads to the end; the error is where the body broke off.
async fn read(mut body: Incoming) -> Result<Check, u64> {
    let mut check = Check::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frame.data_ref().into_iter().for_each(|data| check.take(data)),
            Err(_) => return Err(check.octets()),
        }
    }
    Ok(check)
}

fn compared(way: &str, sent: u64, arrived: u64, wrong_at: Option<u64>) -> Result<(), Verdict> {
    let seen = match wrong_at {
        Some(at) => format!("on the way {way}, octet {at} is not the one that was sent"),
        None if arrived != sent => format!("on the way {way}, {arrived} of {sent} octets arrived"),
        None => return Ok(()),
    };
    Err(Verdict::fail(
        seen,
        "something between changes bodies: a filter of a proxy, or a virus scanner",
    ))
}
