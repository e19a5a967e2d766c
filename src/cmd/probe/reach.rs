//! The way to the relay: name, connection, proxy, TLS, HTTP version, clocks.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::header::DATE;
use http::{HeaderMap, Method, Version};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::report::{Group, Verdict, figure, ms};
use super::site::Site;
use crate::cmd::rig::caller::CallError;
use crate::transport::dial::{DialError, Origin, Stream};
use crate::transport::empty;

/// A request line that no server takes.
const NONSENSE: &[u8] = b"GET /\x01 HTTP/1.1\r\nHost: probe.invalid\r\nConnection: close\r\n\r\n";
/// The most that is read of the answer to it, octets.
const ANSWER: u64 = 8 * 1024;
/// One address may take so long.
const CONNECT: Duration = Duration::from_secs(5);
/// A certificate that ends sooner should have been renewed.
const RENEWED: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 3600;
/// Clocks further apart than this will be noticed soon, and then refuse tokens.
const CLOCK_WARN: f64 = 30.0;
const CLOCK_FAIL: f64 = 120.0;

/// Looks at the way; whether requests can be made at all.
pub(super) async fn run(site: &Site) -> bool {
    let board = &site.board;
    let origin = site.relay.origin();
    let proxy = site.dialer.proxy_to(origin);
    let addresses = board.begin(Group::Reach, "name", None);
    let found = match &proxy {
        Some(_) => {
            addresses.finish(Verdict::skipped("the proxy looks it up"));
            None
        }
        None => {
            let found = resolve(origin).await;
            addresses.finish(name(origin, found.as_deref()));
            Some(found.unwrap_or_default())
        }
    };
    let check = board.begin(Group::Reach, "tcp", None);
    match found.as_deref() {
        None => drop(check.finish(Verdict::skipped("the proxy connects"))),
        Some([]) => {
            check.finish(Verdict::skipped("there is no address"));
            return false;
        }
        Some(found) => {
            if !check.run(tcp(found)).await {
                return false;
            }
        }
    }
    let check = board.begin(Group::Reach, "proxy", None);
    let tls_check = board.begin(Group::Reach, "tls", None);
    let dialed = site.dialer.dial_http(origin).await;
    check.finish(through_proxy(proxy.as_deref(), &dialed));
    if !tls_check.finish(tls(origin, proxy.is_some(), &dialed)) {
        return false;
    }
    let check = board.begin(Group::Reach, "front", None);
    let answers = http_and_clock(site).await;
    check.run(front(site)).await;
    answers
}

/// Who answers before the relay does: such servers answer nonsense by themselves, in words of their own.
async fn front(site: &Site) -> Verdict {
    let asked = async {
        let mut stream = site.dialer.dial(site.relay.origin()).await.ok()?;
        stream.write_all(NONSENSE).await.ok()?;
        let mut answer = Vec::new();
        // However it ends, what came so far counts.
        let _ = timeout(CONNECT, stream.take(ANSWER).read_to_end(&mut answer)).await;
        Some(String::from_utf8_lossy(&answer).into_owned())
    };
    if let Ok(Some(answer)) = timeout(CONNECT, asked).await {
        site.fronts.learn_raw(&answer);
    }
    match site.fronts.name() {
        Some(name) => Verdict::pass(format!("{name} stands before the relay")).with("front", name),
        None => Verdict::pass("nothing that tells its name stands before the relay"),
    }
}

async fn resolve(origin: &Origin) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(CONNECT, lookup_host((origin.bare_host(), origin.port()))).await;
    match found {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs())),
    }
}

fn name(origin: &Origin, found: Result<&[SocketAddr], &String>) -> Verdict {
    let host = origin.host();
    let found = match found {
        Ok(found) if !found.is_empty() => found,
        Ok(_) => return no_name(host, "it has no address"),
        Err(error) => return no_name(host, error),
    };
    if origin.bare_host().parse::<IpAddr>().is_ok() {
        return Verdict::pass("an address, no name");
    }
    let of = |v4| found.iter().filter(move |address| address.is_ipv4() == v4);
    let list = |v4| of(v4).map(|address| address.ip().to_string()).collect::<Vec<_>>();
    let (a, aaaa) = (list(true), list(false));
    let shown = |kind, list: &[String]| match list {
        [] => format!("no {kind}"),
        list => format!("{kind} {}", list.join(" ")),
    };
    Verdict::pass(format!("{}, {}", shown("A", &a), shown("AAAA", &aaaa)))
        .with("a", a)
        .with("aaaa", aaaa)
}

fn no_name(host: &str, why: &str) -> Verdict {
    Verdict::fail(
        format!("{host} cannot be found: {why}"),
        "check the spelling, and the A and AAAA records of the name",
    )
}

/// Connects to each address: a client picks one by itself, and not always the one that works.
async fn tcp(found: &[SocketAddr]) -> Verdict {
    let tried = found.iter().map(|address| async move {
        let began = Instant::now();
        let connected = timeout(CONNECT, TcpStream::connect(address)).await;
        let failed = match connected {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(io::Error::new(ErrorKind::TimedOut, "no answer")),
        };
        (address.ip(), began.elapsed(), failed)
    });
    let tried = join_all(tried).await;
    let unrouted = |(address, _, failed): &&(IpAddr, Duration, Option<io::Error>)| {
        let unreachable = [
            ErrorKind::NetworkUnreachable,
            ErrorKind::HostUnreachable,
            ErrorKind::AddrNotAvailable,
        ];
        address.is_ipv6() && failed.as_ref().is_some_and(|error| unreachable.contains(&error.kind()))
    };
    let no_ipv6 = tried.iter().any(|tried| unrouted(&tried));
    let times: Vec<_> = tried
        .iter()
        .map(|(address, took, failed)| json!({"address": address.to_string(), "ms": figure(*took), "error": failed.as_ref().map(ToString::to_string)}))
        .collect();
    let quickest = tried
        .iter()
        .filter(|(_, _, failed)| failed.is_none())
        .map(|(_, took, _)| *took);
    let dead = tried
        .iter()
        .filter(|tried| !unrouted(tried))
        .find_map(|(address, _, failed)| Some((address, failed.as_ref()?)));
    let verdict = match (quickest.min(), dead) {
        (None, Some((_, error))) => Verdict::fail(
            format!("no connection: {error}"),
            "check that the relay, or the proxy before it, runs and listens there, and that a firewall lets its port through",
        ),
        (Some(_), Some((address, error))) => Verdict::warn(
            format!("{address} cannot be connected to: {error}"),
            "remove that address from the name's records, or make the server listen there: clients wait for it",
        ),
        (Some(quickest), None) if no_ipv6 => {
            Verdict::pass(format!("connected in {}; this computer has no IPv6", ms(quickest)))
        }
        (Some(quickest), None) => Verdict::pass(format!("connected in {}", ms(quickest))),
        (None, None) => Verdict::fail(
            "the name has an IPv6 address only, and this computer has no IPv6",
            "give the name an A record, or this computer IPv6",
        ),
    };
    verdict.with("addresses", times)
}

fn through_proxy(proxy: Option<&str>, dialed: &Result<Stream, DialError>) -> Verdict {
    let Some(proxy) = proxy else {
        return Verdict::pass("none between here and there");
    };
    match dialed {
        // TLS begins behind the proxy: the proxy did its part.
        Ok(_) | Err(DialError::Tls { .. }) => Verdict::pass(format!("through {proxy}")).with("proxy", proxy),
        Err(error) => Verdict::fail(
            error,
            "set HTTPS_PROXY or --proxy-file as your network wants it, or NO_PROXY",
        ),
    }
}

fn tls(origin: &Origin, through_proxy: bool, dialed: &Result<Stream, DialError>) -> Verdict {
    let stream = match dialed {
        Ok(stream) => stream,
        Err(error @ DialError::Tls { .. }) => return Verdict::fail(error, certificate_remedy(&error.to_string())),
        Err(_) if through_proxy => return Verdict::skipped("the proxy does not lead there"),
        Err(error) => {
            return Verdict::fail(error, "check that the port is the right one, and what listens there");
        }
    };
    let Some(facts) = stream.tls() else {
        return if origin.is_loopback() {
            Verdict::pass("none, and none needed on this machine")
        } else {
            Verdict::warn(
                "none: tokens and conversations can be read on the way",
                "put the relay behind https://, with a proxy that ends TLS before it",
            )
        };
    };
    let left = facts.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let days = left.as_secs() / DAY;
    let (version, issuer, chain) = (facts.version, &facts.issuer, facts.chain);
    let seen = format!("{version}, certificate by {issuer}, chain of {chain}, ends in {days} days");
    let verdict = if left < RENEWED {
        Verdict::warn(
            seen,
            "renew the certificate, and look why that did not happen by itself",
        )
    } else {
        Verdict::pass(seen)
    };
    verdict
        .with("version", facts.version)
        .with("issuer", facts.issuer)
        .with("chain", facts.chain)
        .with("daysLeft", days)
}

/// What the dialer says of a certificate is what is wrong with it; this is who mends it.
fn certificate_remedy(words: &str) -> &'static str {
    if words.contains("expired") {
        "renew the certificate and make the server load it (certbot renew, then reload nginx or haproxy)"
    } else if words.contains("valid only from") || words.contains("not valid yet") {
        "set this computer's clock"
    } else if words.contains("is for ") || words.contains("another name") {
        "get a certificate for this name, or use the name that the certificate is for"
    } else if words.contains("--ca-file") {
        "send the whole chain from the server (fullchain.pem), or give the CA that issued it with --ca-file FILE"
    } else if words.contains("does not speak TLS") {
        "use http:// if that port is meant for it, or the port that speaks TLS"
    } else {
        "look at the server's TLS settings"
    }
}

/// One request tells the version of HTTP and the clock.
async fn http_and_clock(site: &Site) -> bool {
    let version = site.board.begin(Group::Reach, "http", None);
    let clock = site.board.begin(Group::Reach, "clock", None);
    let began = Instant::now();
    let asked = site.stranger.send(Method::GET, "/healthz", HeaderMap::new(), empty());
    let limit = site.board.limit();
    match timeout(limit, asked).await.unwrap_or(Err(CallError::Silent(limit))) {
        Ok(response) => {
            let took = began.elapsed();
            site.fronts.learn(response.headers());
            let spoken = match response.version() {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            };
            let seen = format!("{spoken}, answered in {}", ms(took));
            version.finish(Verdict::pass(seen).with("version", spoken).with("ms", figure(took)));
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
            clock.finish(compare_clocks(date, took));
            true
        }
        Err(error) => {
            version.finish(Verdict::fail(error, "check that a web server answers at this address"));
            clock.finish(Verdict::skipped("there was no answer"));
            false
        }
    }
}

fn compare_clocks(date: Option<&str>, took: Duration) -> Verdict {
    let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
        return Verdict::skipped("the answer has no Date");
    };
    // A Date is whole seconds, cut off; it was written about when half of the time was over.
    let here = SystemTime::now() - took / 2;
    let ahead = match (theirs + Duration::from_millis(500)).duration_since(here) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    };
    let which = if ahead > 0.0 { "ahead of" } else { "behind" };
    let seen = format!("the relay's clock is {:.0} s {which} this one", ahead.abs());
    let remedy = "set both clocks by NTP (timedatectl set-ntp true): tokens end by the clock";
    let verdict = if ahead.abs() >= CLOCK_FAIL {
        Verdict::fail(seen, remedy)
    } else if ahead.abs() >= CLOCK_WARN {
        Verdict::warn(seen, remedy)
    } else if ahead.abs() < 2.0 {
        Verdict::pass("the same, to a second")
    } else {
        Verdict::pass(seen)
    };
    verdict.with("secondsAhead", (ahead * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_differs_is_told_by_how_much() {
        let date = |offset: i64| {
            let now = SystemTime::now();
            let then = match u64::try_from(offset) {
                Ok(ahead) => now + Duration::from_secs(ahead),
                Err(_) => now - Duration::from_secs(offset.unsigned_abs()),
            };
            httpdate::fmt_http_date(then)
        };
        let verdict = |offset| compare_clocks(Some(&date(offset)), Duration::from_millis(20));
        assert!(verdict(0).is_well());
        assert!(verdict(-60).is_well());
        assert!(!verdict(600).is_well());
        assert!(!verdict(-600).is_well());
        let seen = format!("{:?} {:?}", verdict(-60), verdict(600));
        assert!(
            seen.contains("s behind this one") && seen.contains("s ahead of this one"),
            "{seen}"
        );
        assert!(!compare_clocks(Some("yesterday"), Duration::ZERO).is_well());
    }

    #[test]
    fn each_fault_of_a_certificate_has_its_own_remedy() {
        for (words, remedy) in [
            (
                "its certificate expired on 2026-01-01; if it is valid, this computer's clock is wrong",
                "renew",
            ),
            ("its certificate is valid only from 2027-01-01 on", "clock"),
            ("its certificate is for a.example, not for b.example", "name"),
            (
                "its certificate was issued by 'x', which … give its CA with --ca-file FILE",
                "chain",
            ),
            ("it does not speak TLS at that port; is the address http://?", "http://"),
        ] {
            assert!(certificate_remedy(words).contains(remedy), "{words}");
        }
    }
}
