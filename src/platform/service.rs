//! A process and its service manager: sockets that the manager holds (`LISTEN_FDS`), what it is told (`NOTIFY_SOCKET`), the signal to
//! read settings again (SIGHUP). Without a manager there are no sockets, and telling does nothing.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

/// A socket that the manager holds.
#[derive(Debug)]
pub struct Passed {
    /// Its name there (`FileDescriptorName`, else the name of the socket unit), if it has one.
    pub name: Option<String>,
    /// The socket.
    pub listener: TcpListener,
}

/// What a manager may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Work is taken; or, after a reload, it is done.
    Ready,
    /// Settings are read again.
    Reloading,
    /// The process is leaving.
    Stopping,
    /// It still does what it should.
    Alive,
}

/// The sockets that the manager holds, in its order. To be called once, before there are threads.
///
/// # Errors
/// What was passed is no TCP socket, or the system's.
#[cfg(unix)]
pub fn passed_sockets() -> io::Result<Vec<Passed>> {
    let mut sockets = listenfd::ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = Vec::with_capacity(sockets.len());
    for index in 0..sockets.len() {
        let name = names.next().filter(|name| !name.is_empty()).map(str::to_owned);
        if let Some(listener) = sockets.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            passed.push(Passed { name, listener });
        }
    }
    Ok(passed)
}

/// The sockets that the manager holds: none on this platform.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn passed_sockets() -> io::Result<Vec<Passed>> {
    Ok(Vec::new())
}

/// Tells the manager, if there is one that listens.
///
/// # Errors
/// The system's.
#[cfg(target_os = "linux")]
pub fn tell(word: Word) -> io::Result<()> {
    use sd_notify::NotifyState;
    match word {
        Word::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Word::Reloading => sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]),
        Word::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Word::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}

/// Tells the manager: there is none on this platform that would listen.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn tell(_: Word) -> io::Result<()> {
    Ok(())
}

/// How often the manager wants to hear that the process is alive at least, if it does.
#[cfg(target_os = "linux")]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}

/// How often the manager wants to hear that the process is alive at least: not at all on this platform.
#[cfg(not(target_os = "linux"))]
pub fn watchdog() -> Option<Duration> {
    None
}

/// The signals to read settings again.
#[derive(Debug)]
pub struct Hangups {
    #[cfg(unix)]
    signals: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    /// Listens for them from now on. At a terminal the signal says that the terminal is closed, and ends the process as ever.
    #[cfg(unix)]
    pub fn listen() -> Self {
        use std::io::IsTerminal;
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (!io::stdin().is_terminal()).then(|| signal(SignalKind::hangup()));
        Self {
            signals: signals.and_then(Result::ok),
        }
    }

    /// Listens for none: there are none on this platform.
    #[cfg(not(unix))]
    pub fn listen() -> Self {
        Self {}
    }

    /// Resolves at the next.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signals) = &mut self.signals
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}
