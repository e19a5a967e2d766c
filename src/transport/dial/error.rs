//! Why there is no connection, in words for the person who has to do something about it.

use std::time::Duration;

/// Why a server could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The name has no address now; of the server or of the proxy, whichever has to be found here.
    #[error("cannot find {host}: {detail}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// No TCP connection.
    #[error("cannot connect to {authority}: {detail}")]
    Connect {
        /// Host and port, or the proxy.
        authority: String,
        /// The system's words.
        detail: String,
    },
    /// TCP, but no TLS.
    #[error("cannot trust {authority}: {detail}")]
    Tls {
        /// Host and port, or the proxy.
        authority: String,
        /// What the certificate or the handshake lacks.
        detail: String,
    },
    /// Neither yes nor no in time.
    #[error("no answer from {authority} within {} s", .after.as_secs())]
    Timeout {
        /// Host and port, or the proxy.
        authority: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The proxy wants a password: there was none, or a wrong one.
    #[error("{proxy} {}: set it in {setting} as {url}", if *.given { "refused the password" } else { "wants a password" })]
    ProxyPassword {
        /// The proxy.
        proxy: String,
        /// Whether there was one.
        given: bool,
        /// Where one can be set.
        setting: String,
        /// How it is written.
        url: String,
    },
    /// The proxy knows no way to log in that we know.
    #[error(
        "{proxy} lets only those in who log in by {schemes}, and tunnel knows only Basic: a proxy on this computer, \
         such as cntlm or px, can stand between"
    )]
    ProxyLogin {
        /// The proxy.
        proxy: String,
        /// What it asks for.
        schemes: String,
    },
    /// The proxy said no.
    #[error("{proxy} does not let through to {target}: it answered {answer}; its operator can allow that")]
    ProxyRefused {
        /// The proxy.
        proxy: String,
        /// Host and port of the server.
        target: String,
        /// The proxy's words.
        answer: String,
    },
    /// The proxy tried, in vain.
    #[error("{proxy} could not reach {target}: it answered {answer}")]
    ProxyFailed {
        /// The proxy.
        proxy: String,
        /// Host and port of the server.
        target: String,
        /// The proxy's words.
        answer: String,
    },
    /// What is there does not behave like a proxy.
    #[error("{proxy} broke off instead of connecting to {target}: {detail}; is that the proxy's address?")]
    ProxyBroken {
        /// The proxy.
        proxy: String,
        /// Host and port of the server.
        target: String,
        /// What went wrong.
        detail: String,
    },
}

/// Why there is no dialer.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of extra certificates is of no use.
    #[error("cannot read certificates from {path}: {detail}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// TLS cannot be set up on this machine.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}
