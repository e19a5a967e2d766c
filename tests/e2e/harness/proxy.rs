//! A TCP proxy that does to connections what networks do: delay, silence, cuts, refusal.

use std::net::SocketAddr;
use std::sync::Arc;
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
}

pub(crate) struct ChaosProxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cut: Arc<watch::Sender<u64>>,
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
        let task = {
            let (mode, cut) = (Arc::clone(&mode), Arc::clone(&cut));
            tokio::spawn(async move {
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    let (mode, cut) = (mode.subscribe(), cut.subscribe());
                    tokio::spawn(carry(near, target, mode, cut, delay));
                }
            })
        };
        Self {
            address,
            mode,
            cut,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

async fn carry(
    near: TcpStream,
    target: SocketAddr,
    mode: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
    delay: Duration,
) {
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::join!(
            pass(near_read, far_write, mode.clone(), delay),
            pass(far_read, near_write, mode, delay),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = cut.changed() => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>, delay: Duration) {
    // As long a pipe as the delay needs at a few hundred MB/s.
    let (sender, mut pipe) = mpsc::channel::<(Instant, BytesMut)>(4096);
    let read = async move {
        loop {
            let mut piece = BytesMut::with_capacity(16 * 1024);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send((Instant::now() + delay, piece)).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pipe.recv().await {
            if !delay.is_zero() {
                sleep_until(due).await;
            }
            if mode.wait_for(|mode| *mode == Mode::Pass).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(read, write);
}
