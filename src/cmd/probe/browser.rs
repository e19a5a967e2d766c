//! What a web page of one origin may do: its preflight, and the permission on an answer.

use futures_util::future::join;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::remedy::Cause;
use super::report::{Group, Verdict};
use super::site::{Site, told};
use crate::transport::empty;

/// What every page has to send.
const NEEDED: &str = "authorization,content-type";

/// Asks as a page of this origin would.
pub(super) async fn run(site: &Site, origin: Option<&HeaderValue>) {
    let begin = |name| site.board.begin(Group::Browser, name, None);
    let (before, answer) = (begin("preflight"), begin("answer"));
    let Some(origin) = origin else {
        before.finish(Verdict::skipped("name a page with --origin https://app.example.com"));
        answer.finish(Verdict::skipped("name a page with --origin https://app.example.com"));
        return;
    };
    join(before.run(preflight(site, origin)), answer.run(answered(site, origin))).await;
}

async fn preflight(site: &Site, origin: &HeaderValue) -> Verdict {
    let mut headers = HeaderMap::new();
    headers.insert(ORIGIN, origin.clone());
    headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
    headers.insert(ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static(NEEDED));
    let asked = site.ask(&site.stranger, Method::OPTIONS, "/api/chat", headers, empty());
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(error) => return site.broken(&error),
    };
    if !answer.status.is_success() {
        return Verdict::fail(
            format!("the preflight is answered {}", told(answer.status)),
            "let OPTIONS requests through to the relay, without a login",
        );
    }
    if let Some(verdict) = permitted(site, &answer.headers, origin) {
        return verdict;
    }
    let allows = |name: &HeaderName, wanted: &str| {
        let listed: Vec<_> = values(&answer.headers, name)
            .join(",")
            .to_ascii_lowercase()
            .split(',')
            .map(|part| part.trim().to_owned())
            .collect();
        // A star does not stand for Authorization (Fetch standard).
        let star = wanted != "authorization";
        listed.iter().any(|part| part == wanted || (star && part == "*"))
    };
    for (name, wanted) in [
        (&ACCESS_CONTROL_ALLOW_METHODS, "post"),
        (&ACCESS_CONTROL_ALLOW_HEADERS, "authorization"),
        (&ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
    ] {
        if !allows(name, wanted) {
            return Verdict::fail(
                format!("{name} does not name {wanted}"),
                site.remedy(Cause::CorsDoubled),
            );
        }
    }
    Verdict::pass("POST with Authorization is allowed")
}

/// Errors must carry the permission too, or a page cannot read them; this one is an error.
async fn answered(site: &Site, origin: &HeaderValue) -> Verdict {
    let headers = HeaderMap::from_iter([(ORIGIN, origin.clone())]);
    match site
        .ask(&site.stranger, Method::GET, "/api/tags", headers, empty())
        .await
    {
        Ok(answer) => {
            permitted(site, &answer.headers, origin).unwrap_or_else(|| Verdict::pass("may be read, errors too"))
        }
        Err(error) => site.broken(&error),
    }
}

/// What is wrong with the permission; none if nothing.
fn permitted(site: &Site, headers: &HeaderMap, origin: &HeaderValue) -> Option<Verdict> {
    let allowed = values(headers, &ACCESS_CONTROL_ALLOW_ORIGIN);
    match allowed.as_slice() {
        [one] if *one == "*" || one.as_bytes() == origin.as_bytes() => None,
        [] => Some(Verdict::fail(
            "pages of this origin may not call",
            "start the relay with --cors-origin for this origin, or without that option",
        )),
        [one] => Some(Verdict::fail(
            format!("only {one} may call"),
            site.remedy(Cause::CorsDoubled),
        )),
        _ => Some(Verdict::fail(
            "Access-Control-Allow-Origin stands there more than once, which browsers refuse",
            site.remedy(Cause::CorsDoubled),
        )),
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let found = headers.get_all(name).into_iter();
    found.filter_map(|value| value.to_str().ok()).collect()
}
