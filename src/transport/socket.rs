//! Options of TCP sockets; those that only one platform knows are left out on the others.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// Sends small writes at once. A socket that does not take an option works all the same.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
}

/// For a link, that carries many streams: besides, keeps what the kernel holds unsent small, so that a small write does not
/// wait behind megabytes of bulk.
pub fn tune_link(stream: &TcpStream) {
    tune(stream);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(128 * 1024);
}

/// Makes closing the socket reset the connection, so that the other side cannot take a cut answer for a whole one.
pub fn reset_on_close(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// For a connection that was accepted: besides, notices a peer that is gone without a word, within a minute or two; one that
/// answers, and takes nothing, only after `idle`.
pub fn tune_server(stream: &TcpStream, idle: Duration) {
    tune(stream);
    let socket = socket2::SockRef::from(stream);
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    let _ = socket.set_tcp_keepalive(&keep_alive);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(Some(idle));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = idle;
}

/// Tells the peer that no more will be written.
///
/// # Errors
/// The system's, as when the peer is gone.
pub fn close_writing(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Resolves when the peer closed its side or is gone, even while what it sent before is not read yet; where the platform cannot
/// tell, never.
pub async fn closed_by_peer(stream: &TcpStream) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Readiness for urgent data, which nobody sends, comes together with the end of the stream.
        while let Ok(ready) = stream.ready(tokio::io::Interest::PRIORITY).await {
            if ready.is_read_closed() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = stream;
    std::future::pending::<()>().await;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_peer_that_closes_is_seen_before_what_it_sent_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        peer.write_all(b"unread").await.unwrap();
        stream.readable().await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(closed_by_peer(&stream))).is_pending());
        drop(peer);
        closed_by_peer(&stream).await;
    }
}
