//! A caller that leaves stops the work: how long the upstream goes on without knowing.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::site::Site;
use super::through::Through;
use crate::cmd::rig::now;
use crate::cmd::rig::upstream::{HANG, Upstream};
use crate::transport::empty;

/// Time for a request to arrive that gives no sign of it.
const ON_ITS_WAY: Duration = Duration::from_millis(800);
/// Quick enough that nobody's work is lost.
const QUICK: Duration = Duration::from_secs(1);
/// Who does not know by then will not for long.
const KNOWN_WITHIN: Duration = Duration::from_secs(8);

/// Leaves once in mid-stream and once before the first byte.
pub(super) async fn run(site: &Site, through: &Through, upstream: &Upstream) {
    let begin = |name| site.board.begin(Group::Cancel, name, Some(through.transport));
    let (streaming, waiting) = (begin("mid-stream"), begin("waiting"));
    tokio::join!(
        streaming.run(left(site, through, upstream, true)),
        waiting.run(left(site, through, upstream, false)),
    );
}

async fn left(site: &Site, through: &Through, upstream: &Upstream, head: bool) -> Verdict {
    let id = format!("{}-{head}", through.bridge.name());
    let told = upstream.left(&id);
    let path = format!("{HANG}?id={id}&head={}", u8::from(head));
    let request = match through.caller.request(Method::GET, &path, empty()) {
        Ok(request) => request,
        Err(error) => return Verdict::skipped(error),
    };
    if head {
        match through.caller.send(request).await {
            Ok(mut response) if response.status().is_success() => {
                // The first piece, then the caller is gone with the response.
                let _ = timeout(KNOWN_WITHIN, response.body_mut().frame()).await;
            }
            Ok(response) => return site.unexpected(response.status(), response.headers(), &[]),
            Err(error) => return Verdict::fail(error, site.remedy(Cause::BadGateway)),
        }
    } else {
        let waiting = timeout(ON_ITS_WAY, through.caller.send(request)).await;
        if let Ok(Ok(response)) = waiting {
            return site.unexpected(response.status(), response.headers(), &[]);
        }
    }
    let gone = now();
    match timeout(KNOWN_WITHIN, told).await {
        Ok(Ok(at)) => {
            let took = at.saturating_sub(gone);
            let seen = format!("the upstream knows after {}", ms(took));
            if took <= QUICK {
                Verdict::pass(seen)
            } else {
                Verdict::warn(seen, site.remedy(Cause::CancelLate))
            }
            .with("knownMs", figure(took))
        }
        _ => Verdict::fail(
            format!(
                "the upstream does not know after {} s: it would go on computing",
                KNOWN_WITHIN.as_secs()
            ),
            site.remedy(Cause::CancelLate),
        ),
    }
}
