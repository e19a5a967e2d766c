//! The upgrade to a WebSocket, and what stands in its way where it does not come about.

use std::time::Duration;

use bytes::Bytes;
use http::header::ORIGIN;
use http::{HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::site::{SMALL, Site, code, own_remedy, told};
use crate::cmd::rig::caller::Answer;
use crate::random;
use crate::transport::attach::{ConnectError, Hello, Welcome};
use crate::transport::collect;
use crate::transport::dial::Stream;
use crate::transport::ws::bridge::{connect, upgrade_request};
use crate::transport::ws::mux::{Driver, Event, Mux};
use crate::transport::ws::{SUBPROTOCOL, close};

/// Longer than any answer to an upgrade takes that comes at all.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);
/// A pong that takes longer never comes.
const PONG_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks whether it came.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const NOT_OFFERED: &str = "the relay offers no WebSocket (its option --transports)";
/// A page that is nobody's.
const FOREIGN: HeaderValue = HeaderValue::from_static("https://probe.invalid");
/// Nobody looks at what is made of it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Looks; the error is why no bridge can connect by WebSocket.
pub(super) async fn run(site: &Site, allowed: &Result<(), String>) -> Result<(), String> {
    let begin = |name| site.board.begin(Group::Websocket, name, None);
    let (upgrade, ping, origin) = (begin("upgrade"), begin("ping"), begin("origin"));
    if let Err(why) = allowed {
        for check in [upgrade, ping, origin] {
            check.finish(Verdict::skipped(why));
        }
        return Err(why.clone());
    }
    match timeout(UPGRADE_WITHIN, connected(site)).await {
        Ok(Ok((mux, driver, _))) => {
            upgrade.finish(Verdict::pass(format!("101, {SUBPROTOCOL}")));
            let answered = ping.finish(match pinged(&mux, driver).await {
                Some(time) => Verdict::pass(format!("round trip {}", ms(time))).with("roundTripMs", figure(time)),
                None => Verdict::fail("no answer to a ping", site.remedy(Cause::UpgradeSilent)),
            });
            origin.run(foreign(site)).await;
            if answered {
                Ok(())
            } else {
                Err("nothing passes over WebSocket".to_owned())
            }
        }
        failed => {
            let verdict = match failed {
                Ok(Err(error)) => in_the_way(site, &error),
                _ => Verdict::fail(
                    format!("no answer to the upgrade within {} s", UPGRADE_WITHIN.as_secs()),
                    site.remedy(Cause::UpgradeSilent),
                ),
            };
            let why = if verdict.is_skipped() {
                NOT_OFFERED
            } else {
                "WebSocket does not get through"
            };
            upgrade.finish(verdict);
            for check in [ping, origin] {
                check.finish(Verdict::skipped(why));
            }
            Err(why.to_owned())
        }
    }
}

fn hello(site: &Site) -> Result<Hello, ConnectError> {
    let name = || random::name().map_err(|error| ConnectError::Lost(error.to_string()));
    let client_id = name()?;
    Ok(Hello {
        token: site.token.clone(),
        name: format!("probe-{}", &client_id[..12]),
        client_id,
        instance: name()?,
        priority: 0,
        ephemeral: true,
    })
}

/// Connects as a bridge does.
async fn connected(site: &Site) -> Result<(Mux, Driver<Stream>, Welcome), ConnectError> {
    connect(&site.dialer, &site.relay, &hello(site)?, || ()).await
}

/// The round trip, and goodbye; none if no pong came. A link pings as soon as it is there.
async fn pinged(mux: &Mux, mut driver: Driver<Stream>) -> Option<Duration> {
    let measured = async {
        while mux.pulse().round_trip().is_none() {
            sleep(LOOK_EVERY).await;
        }
        mux.pulse().round_trip()
    };
    // The relay's own request waits for its answer while this link lives.
    let mut streams = Vec::new();
    let driven = async {
        loop {
            match driver.next().await {
                Event::Ended(_) => return,
                Event::Stream(stream) => streams.push(stream),
                Event::Text(_) => {}
            }
        }
    };
    let measured = tokio::select! {
        () = driven => None,
        measured = timeout(PONG_WITHIN, measured) => measured.unwrap_or_default(),
    };
    mux.close(close::NORMAL, "done");
    let goodbye = async { while !matches!(driver.next().await, Event::Ended(_)) {} };
    // A relay that is not told finds out by itself.
    let _ = timeout(PONG_WITHIN, goodbye).await;
    measured
}

/// What kept the upgrade from coming about.
fn in_the_way(site: &Site, error: &ConnectError) -> Verdict {
    match error {
        ConnectError::Refused { code, .. } if code == "upgrade_required" => Verdict::fail(
            "426: the request arrived without its Upgrade header, which a proxy removed",
            site.remedy(Cause::NoUpgrade),
        ),
        ConnectError::Refused { code, .. } if code == "not_found" => Verdict::skipped(NOT_OFFERED),
        ConnectError::NotUpgraded { status, .. } => not_upgraded(site, *status),
        ConnectError::Refused { code, detail, .. } if code == "bad_request" => {
            Verdict::fail(detail, site.remedy(Cause::HeadersChanged))
        }
        ConnectError::Refused { code, .. } => Verdict::fail(error, own_remedy(code)),
        ConnectError::Handshake(_) | ConnectError::Broken(_) => {
            Verdict::fail(error, site.remedy(Cause::UpgradeRefused))
        }
        ConnectError::Dial(error) => site.broken(&error.clone().into()),
        ConnectError::Lost(_) | ConnectError::NoRelay(_) => Verdict::fail(
            error,
            "look into the relay's log, and into that of what stands before it",
        ),
    }
}

fn not_upgraded(site: &Site, status: StatusCode) -> Verdict {
    let (means, cause) = match status.as_u16() {
        200..=299 => ("something answered it as a plain request", Cause::NoUpgrade),
        301..=308 => ("something sends it elsewhere", Cause::NotRouted),
        400 | 426 => ("a proxy removed or refused the Upgrade header", Cause::NoUpgrade),
        401 | 403 => ("a rule before the relay refuses it", Cause::UpgradeRefused),
        404 | 405 => ("the path does not reach the relay", Cause::NotRouted),
        502 | 503 => ("a proxy cannot bring it to the relay", Cause::BadGateway),
        504 | 524 => (
            "a proxy waits for an answer as to a plain request",
            Cause::UpgradeSilent,
        ),
        _ => ("a proxy does not pass it on", Cause::NoUpgrade),
    };
    Verdict::fail(format!("{} instead of 101: {means}", told(status)), site.remedy(cause))
        .with("status", status.as_u16())
}

/// A page of another origin must not connect as a bridge.
async fn foreign(site: &Site) -> Verdict {
    let answered = timeout(UPGRADE_WITHIN, asked(site)).await;
    match answered.unwrap_or_else(|_| Err(ConnectError::Broken("no answer".to_owned()))) {
        Ok(answer) => match (answer.status, code(&answer.headers).as_deref()) {
            (StatusCode::FORBIDDEN, Some("forbidden")) => Verdict::pass("a foreign page is refused with 403"),
            (StatusCode::SWITCHING_PROTOCOLS, _) => Verdict::warn(
                "a foreign page could connect as a bridge, if it had a token",
                "let the Origin header through to the relay, which refuses such pages",
            ),
            // Somebody before the relay refuses it: that keeps the page out as well.
            (status, None) if status.is_client_error() => {
                Verdict::pass(format!("a foreign page is refused with {}", status.as_u16()))
            }
            _ => site.unexpected_answer(&answer),
        },
        Err(error) => Verdict::fail(error, site.remedy(Cause::UpgradeRefused)),
    }
}

/// Asks for the upgrade and gives what is answered, whatever it is.
async fn asked(site: &Site) -> Result<Answer, ConnectError> {
    let broken = |error: hyper::Error| ConnectError::Broken(error.to_string());
    let stream = site.dialer.dial(site.relay.origin()).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    // Ends with the sender.
    tokio::spawn(connection);
    let mut request = upgrade_request(&site.relay, &hello(site)?, KEY)?;
    request.headers_mut().insert(ORIGIN, FOREIGN);
    let response = sender.send_request(request).await.map_err(broken)?;
    let (head, body) = response.into_parts();
    let body = if head.status == StatusCode::SWITCHING_PROTOCOLS {
        Bytes::new()
    } else {
        collect(body, SMALL).await.unwrap_or_default()
    };
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
    })
}
