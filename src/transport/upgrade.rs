//! Exchanges that turn into a plain byte stream (`101 Switching Protocols`): both upgraded connections are joined.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::headers::{self, is_upgrade};
use super::idle::{Activity, IdleLimit};

/// The connection of a request that asks for an upgrade, to be had once it is answered with 101.
pub fn of_request<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    is_upgrade(request.headers()).then(|| hyper::upgrade::on(request))
}

/// Makes a 101 response ready to be passed on, and gives both connections to [`join`]; none if nobody asked for an upgrade.
pub fn switch<B>(near: Option<OnUpgrade>, response: &mut Response<B>) -> Option<(OnUpgrade, OnUpgrade)> {
    let near = near.filter(|_| is_upgrade(response.headers()));
    let far = hyper::upgrade::on(&mut *response);
    headers::remove_hop_by_hop(response.headers_mut(), true);
    headers::remove_tunnel(response.headers_mut());
    near.map(|near| (near, far))
}

/// Carries bytes both ways until both sides are done, one breaks, or nothing moves for `idle`, if that is limited.
///
/// # Errors
/// The error of the side that broke; `TimedOut` past the idle limit.
pub async fn join(near: OnUpgrade, far: OnUpgrade, idle: Option<Duration>) -> io::Result<()> {
    let (near, far) = futures_util::future::try_join(near, far)
        .await
        .map_err(io::Error::other)?;
    let activity = Activity::begin();
    let mut near = Watched::new(near, activity.clone());
    let mut far = Watched::new(far, activity.clone());
    let limit = async {
        match idle {
            Some(idle) => IdleLimit::new(activity, idle).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        copied = copy_bidirectional(&mut near, &mut far) => copied.map(|_| ()),
        () = limit => Err(io::ErrorKind::TimedOut.into()),
    }
}

struct Watched {
    inner: TokioIo<Upgraded>,
    activity: Activity,
}

impl Watched {
    fn new(upgraded: Upgraded, activity: Activity) -> Self {
        Self {
            inner: TokioIo::new(upgraded),
            activity,
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.activity.touch();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if written.is_ready() {
            self.activity.touch();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
