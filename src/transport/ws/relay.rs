//! The relay's end of a `ws` link: exchanges over streams of one WebSocket, each stream an HTTP/1.1 connection that is kept for
//! the next exchange.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::control::Control;
use super::length;
use super::mux::{self, Driver, Mux};
use super::socket::Socket;
use super::streams::Side;
use super::{READY_PATH, TUNING};
use crate::transport::http1::{Connection, Pool};
use crate::transport::told::Told;
use crate::transport::{Body, Ending, Exchange, ExchangeError, Link, accept, empty, expect, usage};

/// The relay's handle to one bridge that is connected over WebSocket.
pub struct WsLink {
    mux: Mux,
    pool: Arc<Pool>,
}

impl WsLink {
    /// Makes a link of a WebSocket; `kept` is for the streams, of all links, that are kept for their next exchange. Somebody must
    /// drive the [`Driver`], and [`WsLink::expire_idle`] beside it.
    pub fn new<S: AsyncRead + AsyncWrite + Unpin>(
        socket: Socket<S>,
        max_in_flight: usize,
        kept: Arc<Semaphore>,
    ) -> (Self, Driver<S>) {
        let (mux, driver) = mux::start(socket, Side::Opener, max_in_flight);
        let pool = Pool::new(kept, TUNING.idle_stream);
        (Self { mux, pool }, driver)
    }

    /// Sends the bridge a control message.
    pub fn send(&self, control: &Control) {
        self.mux.send_text(control.to_text());
    }

    /// Closes streams that have not been used for a while; never ends.
    pub async fn expire_idle(&self) -> Infallible {
        self.pool.expire().await
    }

    /// Whether a request crosses the link and is answered by the bridge itself.
    pub async fn is_ready(&self) -> bool {
        let request = Request::get(READY_PATH)
            .header(http::header::HOST, "bridge")
            .body(empty());
        match request {
            Ok(request) => matches!(self.exchange(request).await, Ok(response) if response.status().is_success()),
            Err(_) => false,
        }
    }

    async fn exchange(&self, mut request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        self.mux.check_life();
        let asked = usage::ask(&mut request);
        let request = expect::hold_body(request);
        let response = accept(self.pool.exchange(request, || self.open()).await?)?;
        Ok(if asked { length::put_back(response) } else { response })
    }

    async fn open(&self) -> Result<Connection, ExchangeError> {
        let stream = self.mux.open().ok_or_else(|| {
            if self.mux.is_ended() {
                ExchangeError::Gone("the bridge is gone".into())
            } else {
                ExchangeError::Overloaded
            }
        })?;
        Connection::begin(stream)
            .await
            .map_err(|error| ExchangeError::Gone(error.to_string()))
    }
}

impl Exchange for WsLink {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, ExchangeError>> {
        self.exchange(request).boxed()
    }
}

impl Link for WsLink {
    fn is_alive(&self) -> bool {
        !self.mux.is_ended()
    }

    fn silence(&self) -> Duration {
        self.mux.pulse().silence()
    }

    fn round_trip(&self) -> Option<Duration> {
        self.mux.pulse().round_trip()
    }

    fn doubt(&self) {
        self.mux.doubt();
    }

    fn when_told(&self, told: Told) {
        self.mux.when_told(told);
    }

    fn end(&self, ending: Ending) {
        let (code, reason) = super::farewell(ending);
        self.mux.close(code, reason);
        self.pool.clear();
    }
}
