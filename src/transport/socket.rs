//! Options of TCP sockets; those that only one platform knows are left out on the others.

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

/// For a connection that was accepted: besides, notices a peer that is gone without a word, within a minute or two.
pub fn tune_server(stream: &TcpStream) {
    tune(stream);
    let socket = socket2::SockRef::from(stream);
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    let _ = socket.set_tcp_keepalive(&keep_alive);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(90)));
}
