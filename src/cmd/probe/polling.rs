//! The requests of a bridge that polls, one by one: what each is answered, and how long the waiting poll is held.

use std::time::Duration;

use futures_util::future::try_join;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::routes::Access;
use super::site::{SMALL, Site, code};
use crate::cmd::rig::caller::{Answer, CallError};
use crate::random;
use crate::transport::full;
use crate::transport::headers::TUNNEL_INSTANCE;
use crate::transport::json::Fields;
use crate::transport::poll::wire::{Batch, Capabilities, Register, Registered};
use crate::transport::poll::{HEARTBEAT, POLL, REGISTER, RESPOND};

/// The poll waits before the request comes.
const BEFORE: Duration = Duration::from_millis(1000);
/// How long the poll may be held; longer than the whole check.
const HELD: Duration = Duration::from_secs(10);
/// A poll that is answered at once takes no longer than this beyond the way.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What went wrong on the way through the requests.
struct Trouble(Verdict);

/// A bridge that polls by hand.
struct Poller<'a> {
    site: &'a Site,
    instance: String,
    id: String,
    name: String,
}

/// Looks; the error is why no bridge can poll.
pub(super) async fn run(site: &Site, access: &Access) -> Result<(), String> {
    let begin = |name| site.board.begin(Group::Polling, name, None);
    let (round, long_poll) = (begin("requests"), begin("long poll"));
    if let Err(why) = access.bridge.as_ref().and(access.api.as_ref()) {
        round.finish(Verdict::skipped(why));
        long_poll.finish(Verdict::skipped(why));
        return access.bridge.clone();
    }
    let mut waited = None;
    let mut offered = true;
    let asked = async {
        match walk(site).await {
            Ok(times) => {
                waited = Some(times.answered);
                Verdict::pass("register, poll, respond: the caller has its answer")
                    .with("answeredMs", figure(times.whole))
            }
            Err(Trouble(verdict)) => {
                offered = !verdict.is_skipped();
                verdict
            }
        }
    };
    let well = round.run(asked).await;
    long_poll.finish(match waited {
        None => Verdict::skipped("the requests do not get through"),
        Some(time) if time <= AT_ONCE + 2 * site.trip() => {
            Verdict::pass(format!("answered {} after the request came", ms(time))).with("answeredMs", figure(time))
        }
        Some(time) => Verdict::fail(
            format!("answered only {} after the request came", ms(time)),
            site.remedy(Cause::ResponseBuffered),
        )
        .with("answeredMs", figure(time)),
    });
    match (well, offered) {
        (true, _) => Ok(()),
        (false, true) => Err("HTTP polling does not get through".to_owned()),
        (false, false) => Err(NOT_OFFERED.to_owned()),
    }
}

struct Times {
    /// From the caller's request to the poll's answer.
    answered: Duration,
    /// From the caller's request to its answer.
    whole: Duration,
}

async fn walk(site: &Site) -> Result<Times, Trouble> {
    let poller = Poller::register(site).await?;
    let called = async {
        sleep(BEFORE).await;
        let sent = Instant::now();
        let caller = site.caller().to_bridge(&poller.name);
        let answer = site
            .ask(&caller, Method::POST, "/api/generate", HeaderMap::new(), full("{}"))
            .await;
        match answer {
            Ok(answer) if answer.status == StatusCode::OK && &answer.body[..] == WORDS.as_bytes() => {
                Ok((sent, sent.elapsed()))
            }
            Ok(answer) => Err(Trouble(site.unexpected_answer(&answer))),
            Err(error) => Err(Trouble(Verdict::fail(error, site.remedy(Cause::ReadTimeout)))),
        }
    };
    let polled = async {
        let batch = poller.poll().await?;
        let at = Instant::now();
        let Some(request) = batch.requests.first() else {
            let seen = "the poll came back empty while a request was waiting";
            return Err(Trouble(Verdict::fail(seen, site.remedy(Cause::ReadTimeout))));
        };
        poller.respond(&request.id).await?;
        Ok(at)
    };
    // The first trouble is the cause of what follows.
    let ((sent, whole), at) = try_join(called, polled).await?;
    Ok(Times {
        answered: at.saturating_duration_since(sent),
        whole,
    })
}

const NOT_OFFERED: &str = "the relay offers no polling (its option --transports)";
/// What the caller is answered.
const WORDS: &str = "answered by hand";

impl Drop for Poller<'_> {
    /// The relay need not wait for this bridge any more.
    fn drop(&mut self) {
        let path = format!("{HEARTBEAT}/{}", self.id);
        let (owner, headers, registered) = (self.site.owner(), self.headers(), !self.id.is_empty());
        let goodbye = async move {
            let drain = full(r#"{"drain":true}"#);
            // If it does not hear this, it finds out by itself.
            let _ = owner.fetch(Method::POST, &path, headers, drain, SMALL).await;
        };
        if registered {
            self.site.goodbyes.spawn(goodbye);
        }
    }
}

impl<'a> Poller<'a> {
    async fn register(site: &'a Site) -> Result<Self, Trouble> {
        let random = || random::name().map_err(|error| Trouble(Verdict::skipped(error)));
        let client_id = random()?;
        let mut poller = Self {
            site,
            instance: random()?,
            id: String::new(),
            name: format!("probe-{}", &client_id[..12]),
        };
        let register = Register {
            platform: Some(std::env::consts::OS.to_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            capabilities: Some(Capabilities::OURS.map(str::to_owned).to_vec()),
            name: Some(poller.name.clone()),
            instance: Some(poller.instance.clone()),
            priority: Some(i32::MIN),
            ephemeral: Some(true),
            client_id: Some(client_id),
            reason: None,
        };
        let answer = poller.post(REGISTER, &register).await?;
        let registered: Registered = serde_json::from_slice(&answer.body).map_err(|error| {
            let seen = format!("register was answered with something else: {error}");
            Trouble(Verdict::fail(seen, site.remedy(Cause::NotRouted)))
        })?;
        poller.id = registered.bridge_id;
        if let Some(name) = registered.name {
            poller.name = name;
        }
        Ok(poller)
    }

    async fn poll(&self) -> Result<Batch, Trouble> {
        let path = format!("{POLL}/{}?timeout={}", self.id, HELD.as_millis());
        let owner = self.site.owner();
        let asked = self.site.ask(&owner, Method::GET, &path, self.headers(), full(""));
        let answer = self.judge(asked.await, "the poll")?;
        serde_json::from_slice(&answer.body).map_err(|error| {
            let seen = format!("the poll was answered with something else: {error}");
            Trouble(Verdict::fail(seen, self.site.remedy(Cause::NotRouted)))
        })
    }

    async fn respond(&self, request: &str) -> Result<(), Trouble> {
        let path = format!("{RESPOND}/{}/{request}", self.id);
        let answer = crate::transport::poll::wire::Answer {
            status: Some(200),
            headers: Fields::default(),
            body: Some(WORDS.to_owned()),
            ..Default::default()
        };
        self.post(&path, &answer).await.map(drop)
    }

    async fn post(&self, path: &str, message: &impl Serialize) -> Result<Answer, Trouble> {
        let body = serde_json::to_vec(message).map_err(|error| Trouble(Verdict::skipped(error)))?;
        let owner = self.site.owner();
        let asked = self.site.ask(&owner, Method::POST, path, self.headers(), full(body));
        self.judge(asked.await, path)
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(instance) = HeaderValue::from_str(&self.instance) {
            headers.insert(TUNNEL_INSTANCE, instance);
        }
        headers
    }

    fn judge(&self, answer: Result<Answer, CallError>, what: &str) -> Result<Answer, Trouble> {
        match answer {
            Ok(answer) if answer.status.is_success() => Ok(answer),
            Ok(answer) if code(&answer.headers).as_deref() == Some("not_found") && self.id.is_empty() => {
                Err(Trouble(Verdict::skipped(NOT_OFFERED)))
            }
            Ok(answer) => Err(Trouble(self.site.unexpected_answer(&answer))),
            Err(error) => Err(Trouble(Verdict::fail(
                format!("{what}: {error}"),
                self.site.remedy(Cause::ReadTimeout),
            ))),
        }
    }
}
