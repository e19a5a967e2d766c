//! The bridge's token: read at each connect, renewed in time, its end announced. The relay renews its own tokens; one of a provider
//! is refreshed there: [`sign_in`].

mod sign_in;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, HOST};
use http::{Request, StatusCode};
use tokio::time::Instant;

use super::config::TokenSource;
use super::login::{Login, LoginError, Refreshing};
use crate::files;
use crate::token::{Claims, Secret, span};
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::http1::{self, Connection};
use crate::transport::{collect, empty};

/// Before its end, a token that could not be renewed is announced.
const ANNOUNCED: Duration = Duration::from_secs(14 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Between two renewals at the relay, or two looks into a file, and after a renewal that failed.
const PAUSE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(600);
/// How long the relay may take to renew.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {detail}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        detail: String,
    },
    /// There is nothing in it.
    #[error("the token file {0} is empty")]
    Empty(String),
    /// Nobody is signed in.
    #[error(transparent)]
    Login(#[from] LoginError),
}

impl TokenError {
    /// Whether it may be otherwise in a moment, with nobody doing anything.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Login(error) if error.may_pass())
    }
}

/// Keeps the token that is in use.
#[derive(Debug)]
pub struct Credential {
    source: TokenSource,
    /// What the source said when it was last read.
    read: Option<Secret>,
    /// The sign-in that it came of.
    login: Option<Login>,
    /// A refresh under way. It is not left halfway, whatever else happens: its answer must be kept.
    refreshing: Option<Refreshing>,
    /// What the relay gave since, where the source could not keep it.
    renewed: Option<Secret>,
    /// The token that the relay did not take.
    refused: Option<Secret>,
    /// Another one was asked for since the relay last took one: once is enough.
    refreshed_refused: bool,
    /// After a failure.
    next_try: Option<SystemTime>,
    /// Not before this, whatever the clock says: a desktop's clock may be hours off.
    not_before: Option<Instant>,
    announced: Option<SystemTime>,
}

impl Credential {
    /// Nothing is read yet.
    pub fn new(source: TokenSource) -> Self {
        Self {
            source,
            read: None,
            login: None,
            refreshing: None,
            renewed: None,
            refused: None,
            refreshed_refused: false,
            next_try: None,
            not_before: None,
            announced: None,
        }
    }

    /// The token to connect with; that of a sign-in is refreshed first if it has ended, or was refused.
    ///
    /// # Errors
    /// [`TokenError`] when there is none.
    pub async fn ready(&mut self, dialer: &Dialer) -> Result<Secret, TokenError> {
        let token = self.read()?;
        let TokenSource::Login(path) = self.source.clone() else {
            return Ok(token);
        };
        let is_good = self.login.as_ref().is_some_and(|login| !login.has_ended());
        let is_refused = self.refused.as_ref() == Some(&token) && !self.refreshed_refused;
        if is_good && !is_refused {
            return Ok(token);
        }
        let refreshed = self.refresh(&path, dialer).await;
        self.refreshed_refused |= is_refused;
        match refreshed {
            Ok(fresh) => Ok(fresh),
            // Refused once, it may have been the relay that was not ready.
            Err(error) if is_good => {
                tracing::warn!("{error}; the token that the relay refused is shown again");
                Ok(token)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The token as it is now. One that was put into the file meanwhile goes before one that was renewed.
    ///
    /// # Errors
    /// [`TokenError`] when the file has none.
    pub fn read(&mut self) -> Result<Secret, TokenError> {
        let fresh = match &self.source {
            TokenSource::Given(token) => token.clone(),
            TokenSource::File(path) => read_file(path)?,
            TokenSource::Login(path) => {
                let path = path.clone();
                self.read_login(&path)?
            }
        };
        if self.read.as_ref() != Some(&fresh) {
            self.renewed = None;
            self.next_try = None;
            self.read = Some(fresh.clone());
        }
        Ok(self.renewed.clone().unwrap_or(fresh))
    }

    /// The relay did not take the token that it was shown. Whether there may be another one, of the same sign-in: if a fresh one
    /// was refused as well, it is not the token that is wrong.
    pub fn note_refused(&mut self) -> bool {
        let is_first = self.refused.is_none();
        self.refused = self.current().cloned();
        is_first && self.login.as_ref().is_some_and(Login::is_renewable)
    }

    /// The relay took the token.
    pub fn note_accepted(&mut self) {
        (self.refused, self.refreshed_refused) = (None, false);
    }

    fn current(&self) -> Option<&Secret> {
        self.renewed.as_ref().or(self.read.as_ref())
    }

    /// Resolves when something is to be done about the token: announce its end, or renew it.
    pub async fn due(&mut self) {
        loop {
            let now = SystemTime::now();
            self.announce(now);
            if self.is_looked_after() {
                return tokio::time::sleep_until(self.not_before.unwrap_or_else(Instant::now)).await;
            }
            let Some(renewal) = self.renewal_time() else {
                return std::future::pending().await;
            };
            let wait = renewal.max(self.next_try.unwrap_or(renewal)).duration_since(now);
            match wait {
                // The wall clock may be set meanwhile: look again every minute.
                Ok(wait) if !wait.is_zero() => tokio::time::sleep(wait.min(Duration::from_secs(60))).await,
                _ => match self.not_before.filter(|at| *at > Instant::now()) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => return,
                },
            }
        }
    }

    /// When the token came and when it ends, seconds since 1970.
    fn life(&self) -> Option<(Option<u64>, u64)> {
        match &self.login {
            Some(login) => {
                let (issued, end) = login.life();
                Some((Some(issued), end))
            }
            None => {
                let claims = Claims::peek(self.current()?)?;
                Some((claims.iat, claims.exp?))
            }
        }
    }

    /// Whether there is somebody who renews it: a provider does so for a sign-in, the relay for a token of its own.
    fn is_renewable(&self) -> bool {
        match &self.login {
            Some(login) => login.is_renewable(),
            None => self
                .current()
                .and_then(Claims::peek)
                .is_some_and(|claims| claims.iss.is_none()),
        }
    }

    /// When a third of its life is left.
    fn renewal_time(&self) -> Option<SystemTime> {
        let (issued, end) = self.life().filter(|_| self.is_renewable())?;
        let third = end.checked_sub(issued?)? / 3;
        UNIX_EPOCH.checked_add(Duration::from_secs(end - third))
    }

    fn announce(&mut self, now: SystemTime) {
        let end = self
            .life()
            .and_then(|(_, end)| UNIX_EPOCH.checked_add(Duration::from_secs(end)));
        let left = end.and_then(|end| end.duration_since(now).ok());
        // One that will be renewed when its time has come, and did not fail to be, is nothing to worry about.
        let renewable = self.renewal_time().is_some() && self.next_try.is_none();
        let told = renewable
            || self
                .announced
                .is_some_and(|at| now.duration_since(at).is_ok_and(|ago| ago < DAY));
        if let Some(left) = left.filter(|left| *left < ANNOUNCED)
            && !told
        {
            self.announced = Some(now);
            let what_then = if self.is_renewable() {
                "it is renewed by itself while it can be"
            } else {
                "it is not renewed: before that, sign in again with tunnel bridge login, or give another one"
            };
            tracing::warn!("the token ends in {}; {what_then}", span(left));
        }
    }

    /// Has the token renewed and keeps it. Returns the fresh one if there is one.
    pub async fn renew(&mut self, dialer: &Dialer, relay: &RelayUrl) -> Option<Secret> {
        if let TokenSource::Login(path) = self.source.clone() {
            return self.renew_login(&path, dialer).await;
        }
        let current = self.current()?.clone();
        self.not_before = Some(Instant::now() + PAUSE);
        match tokio::time::timeout(TIMEOUT, request(dialer, relay, &current)).await {
            Ok(Ok(fresh)) => {
                self.keep(fresh.clone());
                Some(fresh)
            }
            Ok(Err(why)) => self.failed(&why),
            Err(_) => self.failed("no answer"),
        }
    }

    fn failed(&mut self, why: &str) -> Option<Secret> {
        tracing::warn!("the token could not be renewed: {why}; trying again in ten minutes");
        self.next_try = Some(SystemTime::now() + RETRY);
        None
    }

    fn keep(&mut self, fresh: Secret) {
        self.next_try = None;
        self.announced = None;
        if let TokenSource::File(path) = &self.source {
            if read_file(path).ok() != self.read {
                // Somebody put another one there meanwhile, or took it away: that counts at the next connect, and not before.
                self.renewed = Some(fresh);
                return;
            }
            match files::replace_private(path, format!("{}\n", fresh.expose()).as_bytes()) {
                Ok(()) => {
                    self.read = Some(fresh);
                    self.renewed = None;
                    tracing::info!(file = %path.display(), "the token was renewed");
                    return;
                }
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "the renewed token could not be written; it is kept in memory");
                }
            }
        }
        self.renewed = Some(fresh);
    }
}

fn read_file(path: &Path) -> Result<Secret, TokenError> {
    let text = std::fs::read_to_string(path).map_err(|error| TokenError::Unreadable {
        path: path.display().to_string(),
        detail: error.to_string(),
    })?;
    let token = Secret::new(&text);
    if token.expose().is_empty() {
        return Err(TokenError::Empty(path.display().to_string()));
    }
    Ok(token)
}

async fn request(dialer: &Dialer, relay: &RelayUrl, token: &Secret) -> Result<Secret, String> {
    let stream = dialer.dial(relay.origin()).await.map_err(|e| e.to_string())?;
    let connection = Connection::begin(stream).await.map_err(|e| e.to_string())?;
    let request = Request::post(relay.path("/-/token/renew"))
        .header(HOST, relay.origin().authority())
        .header(AUTHORIZATION, token.bearer())
        .body(empty())
        .map_err(|e| e.to_string())?;
    let response = http1::exchange(connection, std::sync::Weak::new(), request)
        .await
        .map_err(|e| e.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("the answer was {}", response.status()));
    }
    let body = collect(response.into_body(), 64 * 1024).await.unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    answer
        .get("token")
        .and_then(|token| token.as_str())
        .map(Secret::new)
        .ok_or_else(|| "the answer holds no token".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_again_and_goes_before_what_was_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut credential = Credential::new(TokenSource::File(path.clone()));
        assert!(matches!(credential.read(), Err(TokenError::Unreadable { .. })));
        std::fs::write(&path, " \n").unwrap();
        assert!(matches!(credential.read(), Err(TokenError::Empty(_))));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(credential.read().unwrap().expose(), "one");
        credential.keep(Secret::new("two"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(credential.read().unwrap().expose(), "two");
        std::fs::write(&path, "three").unwrap();
        assert_eq!(credential.read().unwrap().expose(), "three");
    }

    #[test]
    fn a_file_that_was_replaced_or_removed_is_left_alone_and_what_is_in_use_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "one").unwrap();
        let mut credential = Credential::new(TokenSource::File(path.clone()));
        credential.read().unwrap();
        std::fs::remove_file(&path).unwrap();
        credential.keep(Secret::new("two"));
        assert_eq!(credential.current().unwrap().expose(), "two");
        assert!(!path.exists());
        std::fs::write(&path, "another").unwrap();
        credential.keep(Secret::new("three"));
        assert_eq!(credential.current().unwrap().expose(), "three");
        assert_eq!(credential.read().unwrap().expose(), "another");
    }

    #[test]
    fn the_relay_is_not_asked_to_renew_a_token_of_a_provider() {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let renewal = |claims: &str| {
            let token = Secret::new(&format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims)));
            let mut credential = Credential::new(TokenSource::Given(token));
            credential.read().unwrap();
            credential.renewal_time()
        };
        assert!(renewal(r#"{"sub":"ann","iat":1000,"exp":1300}"#).is_some());
        assert_eq!(
            renewal(r#"{"sub":"ann","iat":1000,"exp":1300,"iss":"https://login.example.com"}"#),
            None
        );
    }

    #[test]
    fn a_renewed_token_of_the_environment_is_kept_in_memory() {
        let mut credential = Credential::new(TokenSource::Given(Secret::new("one")));
        assert_eq!(credential.read().unwrap().expose(), "one");
        credential.keep(Secret::new("two"));
        assert_eq!(credential.read().unwrap().expose(), "two");
    }
}
