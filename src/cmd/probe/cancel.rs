//! A caller that leaves stops the work: how long the upstream goes on without knowing.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::remedy::Cause;
use super::report::{Group, Verdict, figure, ms};
use super::site::Site;
use super::through::Through;
use crate::cmd::rig::caller::CallError;
use crate::cmd::rig::now;
use crate::cmd::rig::upstream::{HANG, Upstream};
use crate::transport::empty;

/// A request has arrived by then, and an answer that comes piece by piece has begun.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
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

/// An answer under way, or a request that waits for one.
type Held = Result<Response<Incoming>, BoxFuture<'static, Result<Response<Incoming>, CallError>>>;

async fn left(site: &Site, through: &Through, upstream: &Upstream, head: bool) -> Verdict {
    let id = format!("{}-{head}", through.bridge.name());
    let hanging = upstream.watch(&id);
    let path = format!("{HANG}?id={id}&head={}", u8::from(head));
    let held = match begun(site, through, &path, head, hanging.came).await {
        Ok(held) => held,
        Err(verdict) => return verdict,
    };
    let gone = now();
    drop(held);
    let Ok(Ok(at)) = timeout(KNOWN_WITHIN, hanging.left).await else {
        let seen = format!(
            "the upstream does not know after {} s: it would go on computing",
            KNOWN_WITHIN.as_secs()
        );
        return Verdict::fail(seen, site.remedy(Cause::CancelLate));
    };
    let took = at.saturating_sub(gone);
    let seen = format!("the upstream knows after {}", ms(took));
    let verdict = if took <= QUICK + 2 * site.trip() {
        Verdict::pass(seen)
    } else {
        Verdict::warn(seen, site.remedy(Cause::CancelLate))
    };
    verdict.with("knownMs", figure(took))
}

/// Asks, and waits until the first piece has come back, or until the request has come to the upstream.
async fn begun(
    site: &Site,
    through: &Through,
    path: &str,
    head: bool,
    came: oneshot::Receiver<Duration>,
) -> Result<Held, Verdict> {
    let (caller, path) = (through.caller.clone(), path.to_owned());
    let mut asked = async move { caller.send(Method::GET, &path, HeaderMap::new(), empty()).await }.boxed();
    let waited = timeout(BEGUN_WITHIN, async {
        if !head {
            tokio::select! {
                answered = &mut asked => return answered.map(Some),
                _ = came => return Ok(None),
            }
        }
        let mut response = (&mut asked).await?;
        response.body_mut().frame().await;
        Ok(Some(response))
    });
    match waited.await {
        Ok(Ok(Some(response))) if head && response.status().is_success() => Ok(Ok(response)),
        Ok(Ok(Some(response))) => Err(site.unexpected(response.status(), response.headers(), &[])),
        Ok(Ok(None)) => Ok(Err(asked)),
        Ok(Err(error)) => Err(site.broken(&error)),
        Err(_) if head => Err(Verdict::skipped("answers do not come piece by piece: see streaming")),
        Err(_) => Err(Verdict::skipped("the request did not come to the upstream in time")),
    }
}
