//! A caller that leaves stops the work: how long the upstream goes on without knowing.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::site::Site;
use super::through::Through;
use crate::cmd::rig::caller::CallError;
use crate::cmd::rig::now;
use crate::cmd::rig::upstream::{HANG, Upstream};
use crate::transport::empty;

/// Time for a request to arrive that gives no sign of it.
const ON_ITS_WAY: Duration = Duration::from_millis(800);
/// An answer that comes piece by piece has begun by then.
const BEGUN_WITHIN: Duration = Duration::from_secs(4);
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
    let waited = timeout(if head { BEGUN_WITHIN } else { ON_ITS_WAY }, async {
        let mut response = through.caller.send(request).await?;
        let first = response.body_mut().frame().await;
        Ok::<_, CallError>((response, first.is_some()))
    });
    // Held while the time of leaving is noted, then dropped.
    let held = match waited.await {
        Ok(Ok((response, true))) if head && response.status().is_success() => Some(response),
        Ok(Ok((response, _))) => return site.unexpected(response.status(), response.headers(), &[]),
        Ok(Err(error)) => return Verdict::fail(error, site.remedy(Cause::BadGateway)),
        Err(_) if head => return Verdict::skipped("answers do not come piece by piece: see streaming"),
        Err(_) => None,
    };
    let gone = now();
    drop(held);
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
