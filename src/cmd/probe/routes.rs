//! The relay's paths: there, and closed to everybody without a token that is valid.

use std::time::Duration;

use futures_util::future::{join, join_all};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use super::remedy::Cause;
use super::report::{Check, Group, Verdict};
use super::site::{Site, code, detail, own_remedy, told};
use crate::cmd::rig::caller::{Answer, Caller};
use crate::random;
use crate::relay::auth::Scopes;
use crate::relay::auth::tokens::now;
use crate::token::{Claims, Secret, span};
use crate::transport::headers::{TUNNEL_BRIDGE, X_API_KEY};
use crate::transport::{empty, full, poll, ws};

/// What the tokens are good for; the errors say why something cannot be checked.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// A bridge may be attached.
    pub(super) bridge: Result<(), String>,
    /// Requests may be made.
    pub(super) api: Result<(), String>,
    /// The relay refuses a token.
    pub(super) refused: bool,
}

impl Access {
    fn none(why: &str) -> Self {
        Self {
            bridge: Err(why.to_owned()),
            api: Err(why.to_owned()),
            refused: false,
        }
    }
}

/// Looks at all of them; what the tokens are good for.
pub(super) async fn run(site: &Site) -> Access {
    let health = site.board.begin(Group::Routes, "health", None);
    let ready = site.board.begin(Group::Routes, "ready", None);
    let version = site.board.begin(Group::Routes, "version", None);
    let relay = async {
        health.run(healthy(site)).await;
        ready.run(is_ready(site)).await;
        version.run(same_version(site)).await
    };
    if !relay.await {
        return Access::none("this is no relay, or its paths do not get through");
    }
    let token = site.board.begin(Group::Routes, "token", None);
    let (access, ()) = join(tokens(site, token), closed(site)).await;
    access
}

async fn healthy(site: &Site) -> Verdict {
    match site.get(&site.stranger, "/healthz").await {
        Ok(answer) if answer.status == StatusCode::OK => Verdict::pass("alive"),
        Ok(answer) => site.unexpected_answer(&answer),
        Err(error) => site.broken(&error),
    }
}

async fn is_ready(site: &Site) -> Verdict {
    let began = Instant::now();
    let answer = site.get(&site.stranger, "/readyz").await;
    // The connection stands already, if the way keeps connections.
    let _ = site.trip.set(began.elapsed());
    match answer {
        Ok(answer) if answer.status == StatusCode::OK => Verdict::pass(format!("takes work ({})", status_of(&answer))),
        Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && json(&answer).is_some() => Verdict::warn(
            format!("takes no work: {}", status_of(&answer)),
            "if it is stopping, wait for its successor",
        ),
        Ok(answer) => site.unexpected_answer(&answer),
        Err(error) => site.broken(&error),
    }
}

async fn same_version(site: &Site) -> Verdict {
    let answer = match site.get(&site.stranger, "/-/version").await {
        Ok(answer) => answer,
        Err(error) => return site.broken(&error),
    };
    let told = json(&answer).filter(|value| value.get("name").and_then(Value::as_str) == Some("tunnel"));
    let Some(version) = told.as_ref().and_then(|value| value.get("version")?.as_str()) else {
        return Verdict::fail(
            format!("what answers is no relay of tunnel ({})", self::told(answer.status)),
            "check the address, and that the proxy there sends all paths to the relay",
        );
    };
    let ours = env!("CARGO_PKG_VERSION");
    let verdict = if version == ours {
        Verdict::pass(format!("{version}, as this program"))
    } else {
        Verdict::warn(
            format!("the relay is {version}, this program {ours}"),
            "update the older one",
        )
    };
    verdict.with("relay", version).with("probe", ours)
}

fn json(answer: &Answer) -> Option<Value> {
    serde_json::from_slice(&answer.body).ok()
}

fn status_of(answer: &Answer) -> String {
    let value = json(answer).unwrap_or_default();
    value
        .get("status")
        .and_then(Value::as_str)
        .unwrap_or("no word")
        .to_owned()
}

/// Whether the tokens are accepted, and what for.
async fn tokens(site: &Site, check: Check) -> Access {
    match accepted(site, &site.token).await {
        Err(verdict) => {
            let refused = verdict.1;
            check.finish(verdict.0);
            return Access {
                refused,
                ..Access::none("the token does not get through")
            };
        }
        Ok(()) => {
            check.finish(described(&site.token));
        }
    }
    let mut access = Access {
        bridge: may_attach(site).await,
        api: may_request(site.api_token.as_ref().unwrap_or(&site.token)),
        refused: false,
    };
    if let Some(token) = &site.api_token {
        let check = site.board.begin(Group::Routes, "api token", None);
        match accepted(site, token).await {
            Err((verdict, refused)) => {
                check.finish(verdict);
                access.api = Err("the token of --api-token-file does not get through".to_owned());
                access.refused = refused;
            }
            Ok(()) => drop(check.finish(described(token))),
        }
    }
    access
}

/// Shows a token where any is good enough; the error tells whether the relay itself refused it.
async fn accepted(site: &Site, token: &Secret) -> Result<(), (Verdict, bool)> {
    let caller = site.stranger.with_token(token);
    let (with, without) = join(
        site.get(&caller, "/api/bridge"),
        site.get(&site.stranger, "/api/bridge"),
    )
    .await;
    let answer = match with {
        Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
        Ok(answer) => answer,
        Err(error) => return Err((site.broken(&error), false)),
    };
    if code(&answer.headers).as_deref() != Some("unauthorized") {
        return Err((site.unexpected_answer(&answer), false));
    }
    let words = detail(&answer.body);
    let unseen = without.is_ok_and(|without| detail(&without.body) == words);
    if unseen || gets_in_otherwise(site, token).await {
        let seen = "the token was sent, and the relay saw none: something removes the Authorization header";
        return Err((Verdict::fail(seen, site.remedy(Cause::NoAuthorization)), false));
    }
    let refused = Verdict::fail(format!("refused: {words}"), own_remedy("unauthorized"));
    Err((refused, true))
}

/// Whether the token is good when it comes in another header.
async fn gets_in_otherwise(site: &Site, token: &Secret) -> bool {
    let Ok(mut key) = HeaderValue::from_str(token.expose()) else {
        return false;
    };
    key.set_sensitive(true);
    let headers = HeaderMap::from_iter([(X_API_KEY, key)]);
    let asked = site.ask(&site.stranger, Method::GET, "/api/bridge", headers, empty());
    asked.await.is_ok_and(|answer| answer.status == StatusCode::OK)
}

fn described(token: &Secret) -> Verdict {
    let Some(claims) = Claims::peek(token) else {
        return Verdict::pass("accepted");
    };
    let scopes = claims
        .scope
        .as_deref()
        .map_or(String::new(), |scope| format!(", for {scope}"));
    let left = claims.exp.map(|end| Duration::from_secs(end.saturating_sub(now())));
    let end = left.map_or("never ends".to_owned(), |left| format!("ends in {}", span(left)));
    let seen = format!("accepted: user {}{scopes}, {end}", claims.sub);
    let verdict = if left.is_some_and(|left| left < SOON) {
        Verdict::warn(seen, "get a new one before it ends: tunnel relay token --user NAME")
    } else {
        Verdict::pass(seen)
    };
    verdict
        .with("user", claims.sub)
        .with("secondsLeft", left.map(|left| left.as_secs()))
}

/// Whether the token is for bridges: a registration without content is refused for that reason, or for another.
async fn may_attach(site: &Site) -> Result<(), String> {
    let owner = site.owner();
    let asked = site.ask(&owner, Method::POST, poll::REGISTER, HeaderMap::new(), full("{}"));
    match asked.await {
        Ok(answer) if code(&answer.headers).as_deref() == Some("forbidden") => {
            Err("the token is not for bridges (scope bridge)".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether the token is for requests, as far as it says itself: to ask could keep a request waiting for a bridge.
fn may_request(token: &Secret) -> Result<(), String> {
    let scope = Claims::peek(token).and_then(|claims| claims.scope);
    if Scopes::parse(scope.as_deref()).api {
        return Ok(());
    }
    Err("the token is not for requests (scope api); give one that is with --api-token-file FILE".to_owned())
}

/// A token that ends so soon may end while it is used here.
const SOON: Duration = Duration::from_secs(5 * 60);
/// A path that belongs to an upstream.
const FORWARDED: &str = "/api/tags";

/// Names a bridge that does not exist, so that no desktop hears of it.
fn nowhere() -> HeaderMap {
    let name = random::name().unwrap_or_else(|_| "nowhere".to_owned());
    let value = HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("nowhere"));
    HeaderMap::from_iter([(TUNNEL_BRIDGE, value)])
}

/// Every route that needs a token.
async fn closed(site: &Site) {
    let routes = [
        ("register", Method::POST, poll::REGISTER.to_owned()),
        ("poll", Method::GET, format!("{}/probe?timeout=1", poll::POLL)),
        ("respond", Method::POST, format!("{}/probe/probe", poll::RESPOND)),
        ("heartbeat", Method::POST, format!("{}/probe", poll::HEARTBEAT)),
        ("ws", Method::GET, ws::PATH.to_owned()),
        ("forwarded", Method::GET, FORWARDED.to_owned()),
    ];
    let checks = routes.map(|(name, method, path)| {
        let check = site.board.begin(Group::Routes, name, None);
        check.run(is_closed(site, method, path))
    });
    join_all(checks).await;
}

const EXPIRED: &str = "with an expired token";

/// Who is refused.
struct Stranger {
    what: &'static str,
    caller: Caller,
}

async fn is_closed(site: &Site, method: Method, path: String) -> Verdict {
    let garbage = Secret::new("garbage");
    let mut strangers = vec![
        Stranger {
            what: "without a token",
            caller: site.stranger.clone(),
        },
        Stranger {
            what: "with garbage",
            caller: site.stranger.with_token(&garbage),
        },
    ];
    if let Some(expired) = &site.expired_token {
        strangers.push(Stranger {
            what: EXPIRED,
            caller: site.stranger.with_token(expired),
        });
    }
    let asked = strangers.iter().map(|stranger| {
        let body = if method == Method::POST { full("{}") } else { empty() };
        site.ask(&stranger.caller, method.clone(), &path, nowhere(), body)
    });
    let answers = join_all(asked).await;
    for (stranger, answer) in strangers.iter().zip(answers) {
        match answer {
            Ok(answer) if code(&answer.headers).as_deref() == Some("unauthorized") => {}
            Ok(answer) => return not_closed(site, stranger.what, &answer),
            Err(error) => return site.broken(&error),
        }
    }
    let kinds: Vec<_> = strangers.iter().map(|stranger| stranger.what).collect();
    Verdict::pass(format!("there, and closed {}", kinds.join(", ")))
}

fn not_closed(site: &Site, what: &str, answer: &Answer) -> Verdict {
    if code(&answer.headers).is_some() {
        let remedy = if what == EXPIRED {
            "set the relay's clock by NTP, and see that this token has expired"
        } else {
            "remove the rule that sets Authorization in the proxy before the relay; if there is none, update the relay"
        };
        let seen = format!("{what} the relay answered {}, not 401", told(answer.status));
        return Verdict::fail(seen, remedy);
    }
    if answer.status.is_success() {
        return Verdict::fail(
            format!("{what} something answered {}", told(answer.status)),
            site.remedy(Cause::NotRouted),
        );
    }
    site.unexpected_answer(answer)
}
