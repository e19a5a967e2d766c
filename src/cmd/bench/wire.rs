//! The way between bridge and relay, where a measurement wants one of its own: passes every octet on, late if it must, counts
//! them, and can be cut. A delayed wire limits no throughput; what is on its way is bounded.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use crate::transport::socket;

/// What is read at once, octets.
const PIECE: usize = 64 * 1024;
/// Pieces on their way, each direction of each connection.
const PIECES: usize = 2048;

/// A wire that is laid; dropping it takes it away.
pub(super) struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    end: CancellationToken,
}

struct Shared {
    target: SocketAddr,
    /// In each direction.
    delay: Duration,
    clock: Clock,
    octets: AtomicU64,
    connections: Mutex<Connections>,
}

/// What one cut ends.
#[derive(Clone, Default)]
struct Connections {
    cut: CancellationToken,
    tracker: TaskTracker,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end.cancel();
        self.shared.connections().cut.cancel();
    }
}

impl Wire {
    /// Lays one to this address, `delay` late in each direction.
    pub(super) async fn lay(target: SocketAddr, delay: Duration, clock: Clock) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            delay,
            clock,
            octets: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let end = CancellationToken::new();
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(accept(listener, Arc::clone(&shared))),
        );
        Ok(Self { address, shared, end })
    }

    /// Where its near end is.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Octets that it passed on so far, both directions together.
    pub(super) fn octets(&self) -> u64 {
        self.shared.octets.load(Ordering::Relaxed)
    }

    /// Resets all its connections; new ones may be made. They are gone when this returns.
    pub(super) async fn cut(&self) {
        let old = std::mem::take(&mut *self.shared.lock());
        old.cut.cancel();
        old.tracker.close();
        old.tracker.wait().await;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> Connections {
        self.lock().clone()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Descriptors are used up, for one.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connections = shared.connections();
        let carried = carry(near, Arc::clone(&shared), connections.cut);
        connections.tracker.spawn(carried);
    }
}

async fn carry(mut near: TcpStream, shared: Arc<Shared>, cut: CancellationToken) {
    // The system has shaken hands at once; with the delay it would have taken a round trip.
    let opened = Instant::now() + shared.delay * 2;
    let Some(Ok(mut far)) = cut.run_until_cancelled(TcpStream::connect(shared.target)).await else {
        return;
    };
    socket::tune(&near);
    socket::tune(&far);
    let passed = async {
        let (near_reader, near_writer) = near.split();
        let (far_reader, far_writer) = far.split();
        tokio::join!(
            shared.pass(near_reader, far_writer, opened),
            shared.pass(far_reader, near_writer, opened)
        )
    };
    if cut.run_until_cancelled(passed).await.is_none() {
        socket::reset_on_close(&near);
        socket::reset_on_close(&far);
    }
}

impl Shared {
    async fn pass(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, opened: Instant) {
        // What goes wrong on one side ends this direction; the other side sees that.
        let _ = if self.delay.is_zero() {
            self.pass_now(&mut from, &mut to).await
        } else {
            self.pass_late(&mut from, &mut to, opened).await
        };
        let _ = to.shutdown().await;
    }

    async fn pass_now(&self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            self.octets.fetch_add(length as u64, Ordering::Relaxed);
            to.write_all(&buffer[..length]).await?;
        }
    }

    async fn pass_late(&self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, opened: Instant) -> std::io::Result<()> {
        let (sender, mut pieces) = mpsc::channel::<(Instant, Bytes)>(PIECES);
        let reading = async move {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE);
                let length = from.read_buf(&mut buffer).await?;
                if length == 0 {
                    return Ok(());
                }
                self.octets.fetch_add(length as u64, Ordering::Relaxed);
                let due = Instant::now().max(opened) + self.delay;
                if sender.send((due, buffer.split().freeze())).await.is_err() {
                    return Ok(());
                }
            }
        };
        let writing = async {
            while let Some((due, piece)) = pieces.recv().await {
                self.clock.sleep_until(due).await;
                to.write_all(&piece).await?;
            }
            Ok(())
        };
        tokio::try_join!(reading, writing).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::clock::Ticker;
    use crate::cmd::rig::pattern::{Check, piece};

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await.ok();
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn octets_pass_unchanged_late_and_counted() {
        let ticker = Ticker::start().unwrap();
        let delay = Duration::from_millis(15);
        let wire = Wire::lay(echo().await, delay, ticker.clock().clone()).await.unwrap();
        let (mut reader, mut writer) = TcpStream::connect(wire.address()).await.unwrap().into_split();
        let length = 5 * 1024 * 1024_u64;
        let sending = tokio::spawn(async move {
            for at in (0..length).step_by(32 * 1024) {
                writer.write_all(&piece(at, 32 * 1024)).await.unwrap();
            }
            writer
        });
        let began = Instant::now();
        let (mut check, mut buffer) = (Check::default(), vec![0; PIECE]);
        while check.octets() < length {
            let got = reader.read(&mut buffer).await.unwrap();
            assert!(
                began.elapsed() >= delay * 4,
                "the handshake and the echo take a round trip each"
            );
            check.take(&buffer[..got]);
        }
        assert_eq!((check.octets(), check.wrong_at()), (length, None));
        assert_eq!(wire.octets(), 2 * length);
        drop(sending.await.unwrap());
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_there_and_lets_others_come() {
        let ticker = Ticker::start().unwrap();
        let wire = Wire::lay(echo().await, Duration::ZERO, ticker.clock().clone())
            .await
            .unwrap();
        let mut first = TcpStream::connect(wire.address()).await.unwrap();
        first.write_all(b"a").await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'a');
        wire.cut().await;
        assert!(first.read_u8().await.is_err());
        let mut second = TcpStream::connect(wire.address()).await.unwrap();
        second.write_all(b"b").await.unwrap();
        assert_eq!(second.read_u8().await.unwrap(), b'b');
    }
}
