//! A reverse proxy in front of a relay that does one thing wrong, for what the usual proxies cannot be made to do.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, stream};
use http::header::{AUTHORIZATION, DATE, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval, sleep_until};
use tunnel::transport::{Body, BoxError, full};

use super::upstream::channel_body;

/// What the proxy does wrong.
#[derive(Debug, Clone, Default)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Holds every answer until it is whole.
    HoldsAnswers,
    /// Passes pieces of streamed answers on only when a multiple of this time is over, all that came meanwhile at once.
    BunchesAnswers(Duration),
    /// Answers every upgrade so.
    AnswersUpgrades(u16),
    /// Never answers an upgrade.
    IgnoresUpgrades,
    /// Lets upgrades pass, and nothing after them.
    MutesUpgrades,
    /// Answers this path by itself.
    Answers(&'static str, u16, &'static str),
    /// Refuses callers for whom there is no permit.
    Admits(Arc<Semaphore>),
    /// Breaks answers off after so many pieces.
    CutsAnswers(usize),
    /// Goes on reading an answer when its caller left.
    ReadsOn,
    /// Its clock, and so every date, is so many seconds ahead, or behind.
    ShiftsDates(i64),
    /// Answers a poll only when a multiple of this time is over since it came.
    AnswersPollsEvery(Duration),
    /// Decodes what is escaped in paths and queries.
    DecodesPaths,
    /// Takes a header out of requests.
    DropsHeader(&'static str),
    /// Takes a header out of answers.
    DropsAnswerHeader(&'static str),
    /// Adds a header to answers that are no errors.
    AddsAnswerHeader(&'static str, &'static str),
    /// Changes an octet of what callers send in bulk.
    ChangesUploads,
    /// Changes an octet of what callers are sent in bulk.
    ChangesDownloads,
    /// Shows this token for everybody.
    ShowsToken(String),
}

/// Listens until it is dropped.
pub(crate) struct Misbehaving {
    pub(crate) address: SocketAddr,
    state: State,
    task: AbortHandle,
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct State {
    target: SocketAddr,
    fault: Arc<Mutex<Fault>>,
    bridges: Arc<Mutex<BTreeSet<String>>>,
}

impl Misbehaving {
    pub(crate) async fn before(target: SocketAddr, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            target,
            fault: Arc::new(Mutex::new(fault)),
            bridges: Arc::default(),
        };
        let task = tokio::spawn(serve(listener, state.clone())).abort_handle();
        Self { address, state, task }
    }

    /// From now on it does this wrong.
    pub(crate) fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    /// The bridges that callers asked for by name so far.
    pub(crate) fn bridges(&self) -> BTreeSet<String> {
        self.state.bridges.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, state: State) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        near.set_nodelay(true).unwrap();
        let state = state.clone();
        let service = service_fn(move |request| state.clone().answer(request));
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(near), service)
            .with_upgrades();
        tokio::spawn(async move { drop(connection.await) });
    }
}

impl State {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let fault = self.fault.lock().unwrap().clone();
        if let Some(name) = request.headers().get("tunnel-bridge") {
            let name = name.to_str()?.to_owned();
            self.bridges.lock().unwrap().insert(name);
        }
        let came = Instant::now();
        let path = request.uri().path().to_owned();
        let upgrades = request.headers().contains_key(UPGRADE);
        match fault {
            Fault::AnswersUpgrades(status) if upgrades => return own(status, "no"),
            Fault::IgnoresUpgrades if upgrades => return pending().await,
            Fault::Answers(known, status, words) if known == path => return own(status, words),
            _ => {}
        }
        let _admitted = match &fault {
            Fault::Admits(permits) if path.starts_with("/rig/") => match permits.try_acquire() {
                Ok(permit) => Some(permit),
                Err(_) => return own(429, "no"),
            },
            _ => None,
        };
        let mutes = matches!(fault, Fault::MutesUpgrades);
        let response = self.pass(changed(request, &fault)?, mutes).await?;
        if let Fault::AnswersPollsEvery(interval) = fault
            && path.starts_with("/api/bridge/poll")
        {
            let times = came.elapsed().as_nanos() / interval.as_nanos() + 1;
            sleep_until(came + interval * u32::try_from(times)?).await;
        }
        changed_answer(response, &path, &fault).await
    }

    /// To the relay, and what becomes a tunnel is one from then on.
    async fn pass(&self, mut request: Request<Body>, mutes: bool) -> Result<Response<Incoming>, BoxError> {
        let near = hyper::upgrade::on(&mut request);
        let far = TcpStream::connect(self.target).await?;
        far.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(far)).await?;
        tokio::spawn(connection.with_upgrades());
        let mut response = sender.send_request(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let far = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                let (near, far) = (near.await?, far.await?);
                if mutes {
                    pending::<()>().await;
                }
                tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await?;
                Ok::<_, BoxError>(())
            });
        }
        Ok(response)
    }
}

fn own(status: u16, words: &'static str) -> Result<Response<Body>, BoxError> {
    let mut response = Response::new(full(words));
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

fn changed(request: Request<Incoming>, fault: &Fault) -> Result<Request<Body>, BoxError> {
    let changes = matches!(fault, Fault::ChangesUploads) && request.uri().path() == "/rig/sink";
    let mut request = request.map(|body| passed(body, changes));
    match fault {
        Fault::DecodesPaths => {
            let target = request.uri().to_string().replace("%2B", "+").replace("%2F", "/");
            *request.uri_mut() = target.parse()?;
        }
        Fault::DropsHeader(name) => drop(request.headers_mut().remove(*name)),
        Fault::ShowsToken(token) => {
            let value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        _ => {}
    }
    Ok(request)
}

fn bunched(body: Incoming, every: Duration) -> Body {
    let (passed, whole) = channel_body();
    tokio::spawn(async move {
        let mut pieces = BodyStream::new(body);
        let mut ticks = interval(every);
        loop {
            ticks.tick().await;
            while let Some(piece) = pieces.next().now_or_never() {
                let Some(Ok(piece)) = piece else { return };
                if !passed.try_send(piece.into_data().unwrap_or_default()).await {
                    return;
                }
            }
        }
    });
    whole
}

async fn changed_answer(response: Response<Incoming>, path: &str, fault: &Fault) -> Result<Response<Body>, BoxError> {
    let (mut head, body) = response.into_parts();
    match fault {
        Fault::ShiftsDates(seconds) => {
            let shift = Duration::from_secs(seconds.unsigned_abs());
            let now = SystemTime::now();
            let date = if *seconds > 0 { now + shift } else { now - shift };
            head.headers.insert(DATE, httpdate::fmt_http_date(date).parse()?);
        }
        Fault::DropsAnswerHeader(name) => drop(head.headers.remove(*name)),
        Fault::AddsAnswerHeader(name, value) if head.status.is_success() => {
            head.headers.append(*name, HeaderValue::from_static(value));
        }
        Fault::HoldsAnswers if head.status != StatusCode::SWITCHING_PROTOCOLS => {
            let body = full(body.collect().await?.to_bytes());
            return Ok(Response::from_parts(head, body));
        }
        _ => {}
    }
    if matches!(fault, Fault::ReadsOn) {
        return Ok(Response::from_parts(head, read_on(body)));
    }
    if let Fault::BunchesAnswers(every) = fault
        && path.starts_with("/rig/stream")
    {
        return Ok(Response::from_parts(head, bunched(body, *every)));
    }
    if let Fault::CutsAnswers(pieces) = fault
        && path.starts_with("/rig/stream")
    {
        let mut left = *pieces;
        let pieces = BodyStream::new(body).map(move |piece| {
            left = left.checked_sub(1).ok_or("enough")?;
            Ok(piece?)
        });
        return Ok(Response::from_parts(head, StreamBody::new(pieces).boxed_unsync()));
    }
    let changes = matches!(fault, Fault::ChangesDownloads) && path == "/rig/source";
    Ok(Response::from_parts(head, passed(body, changes)))
}

/// A body on its way; its first octet is another one if it `changes`.
fn passed(body: Incoming, mut changes: bool) -> Body {
    let body = body.map_frame(move |frame| {
        frame.map_data(|data| {
            if data.is_empty() || !std::mem::take(&mut changes) {
                return data;
            }
            let mut data = BytesMut::from(data);
            data[0] ^= 1;
            Bytes::from(data)
        })
    });
    body.map_err(Into::into).boxed_unsync()
}

/// A body that is read to its end even if nobody wants it any more.
fn read_on(mut body: Incoming) -> Body {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(piece) = body.frame().await {
            sender.send(piece.map_err(Into::into)).ok();
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    StreamBody::new(pieces).boxed_unsync()
}
