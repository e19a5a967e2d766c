//! A TCP proxy that does to connections what networks do: delay, silence, cuts, refusal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bytes pass.
    Pass,
    /// Connections stand, and nothing passes in either direction.
    BlackHole,
    /// Bytes pass, but a fresh connection that asks for a WebSocket is answered with 403.
    NoUpgrade,
    /// Bytes pass, but a fresh connection that asks for a WebSocket gets no answer.
    DeafToUpgrade,
}

/// What was counted.
#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cut: Arc<watch::Sender<u64>>,
    /// Connections with a lower number carry nothing any more.
    stranded: Arc<watch::Sender<usize>>,
    counts: Arc<Counts>,
    task: AbortHandle,
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl ChaosProxy {
    /// Passes everything on to `target`, each direction `delay` late.
    pub(crate) async fn to(target: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let cut = Arc::new(watch::Sender::new(0));
        let stranded = Arc::new(watch::Sender::new(0));
        let counts = Arc::new(Counts::default());
        let task = {
            let (mode, cut, stranded) = (Arc::clone(&mode), Arc::clone(&cut), Arc::clone(&stranded));
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    let line = Line {
                        number: counts.connections.fetch_add(1, Ordering::Relaxed),
                        delay,
                        mode: mode.subscribe(),
                        stranded: stranded.subscribe(),
                        counts: Arc::clone(&counts),
                    };
                    tokio::spawn(carry(near, target, line, cut.subscribe()));
                }
            })
        };
        Self {
            address,
            mode,
            cut,
            stranded,
            counts,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Connections made so far.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Requests seen so far on the way to the target.
    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Nothing passes any more on the connections there are, as when the computer has another address; new ones work.
    pub(crate) fn strand(&self) {
        self.stranded.send_replace(self.connections());
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

/// One connection.
#[derive(Clone)]
struct Line {
    number: usize,
    delay: Duration,
    mode: watch::Receiver<Mode>,
    stranded: watch::Receiver<usize>,
    counts: Arc<Counts>,
}

impl Line {
    /// Resolves when bytes may pass.
    async fn open(&mut self) -> bool {
        if *self.stranded.borrow() > self.number {
            return std::future::pending().await;
        }
        self.mode.wait_for(|mode| *mode != Mode::BlackHole).await.is_ok()
    }
}

async fn carry(near: TcpStream, target: SocketAddr, line: Line, mut cut: watch::Receiver<u64>) {
    let mode = *line.mode.borrow();
    if matches!(mode, Mode::NoUpgrade | Mode::DeafToUpgrade) && asks_for_websocket(&near).await {
        if mode == Mode::DeafToUpgrade {
            cut.changed().await.ok();
        } else {
            refuse(near).await;
        }
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::join!(
            pass(near_read, far_write, line.clone(), true),
            pass(far_read, near_write, line, false),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = cut.changed() => {}
    }
}

async fn asks_for_websocket(near: &TcpStream) -> bool {
    let mut first = [0; 14];
    let peeked = near.peek(&mut first).await;
    peeked.is_ok_and(|length| first[..length].starts_with(b"GET /ws/tunnel"))
}

async fn refuse(mut near: TcpStream) {
    let mut head = BytesMut::with_capacity(8192);
    near.read_buf(&mut head).await.ok();
    let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    near.write_all(answer).await.ok();
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line, up: bool) {
    // As long a pipe as the delay needs at a few hundred MB/s.
    let (sender, mut pipe) = mpsc::channel::<(Instant, BytesMut)>(4096);
    let (delay, counts) = (line.delay, Arc::clone(&line.counts));
    let read = async move {
        loop {
            let mut piece = BytesMut::with_capacity(16 * 1024);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if up && (piece.starts_with(b"GET /") || piece.starts_with(b"POST /")) {
                counts.requests.fetch_add(1, Ordering::Relaxed);
            }
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pipe.recv().await {
            if !delay.is_zero() {
                sleep_until(due).await;
            }
            if !line.open().await || to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(read, write);
}
