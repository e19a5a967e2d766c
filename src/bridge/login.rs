//! A sign-in at the relay's provider, kept in a file: it is made by [`device`], and refreshed by whoever uses it ([`Refreshing`]), one at
//! a time. A provider that gives another refresh token each time takes an old one for stolen, and ends the sign-in.

pub mod device;
mod grant;
mod refreshing;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use self::grant::Grant;
pub use self::refreshing::Refreshing;
use crate::files;
use crate::token::Secret;
use crate::transport::dial::Dialer;
use crate::transport::issuer::{FetchError, Issuer, Place, post};

/// How long another program may take to refresh the same sign-in.
const LOCKED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// A token that ends sooner than this has ended, seconds.
const LAST: u64 = 5;

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The provider gave no answer that counts; it may later.
    #[error("the sign-in provider cannot be asked: {0}")]
    Provider(#[from] FetchError),
    /// It said no, in these words.
    #[error("the sign-in provider refused: {0}")]
    Refused(String),
    /// It said not now, in these words.
    #[error("the sign-in provider cannot do it now: {0}")]
    Later(String),
    /// Somebody said no.
    #[error("the sign-in was refused where it was to be confirmed; begin anew with: tunnel bridge login")]
    Denied,
    /// Nobody came.
    #[error("nobody signed in while the code was good; get another one with: tunnel bridge login")]
    RanOut,
    /// It is not renewed any more.
    #[error("the sign-in at {0} is over: sign in again with: tunnel bridge login")]
    Over(String),
    /// There is none.
    #[error("there is no sign-in in {0}: sign in with: tunnel bridge login")]
    Gone(String),
    /// The file cannot be read or written.
    #[error("cannot read or write {path}: {detail}")]
    File {
        /// The file.
        path: String,
        /// The system's words.
        detail: String,
    },
    /// What stands in it is none.
    #[error("{0} is damaged: sign in again with: tunnel bridge login")]
    Damaged(String),
}

impl LoginError {
    fn file(path: &Path, error: &std::io::Error) -> Self {
        let path = path.display().to_string();
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::Gone(path),
            _ => Self::File {
                path,
                detail: error.to_string(),
            },
        }
    }

    /// Whether it may be otherwise in a moment, with nobody doing anything.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Provider(_) | Self::Later(_))
    }

    /// Whether it stays so until somebody signs in again.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Over(_) | Self::Gone(_) | Self::Damaged(_) | Self::Refused(_)
        )
    }
}

/// What became of a sign-in at its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It is over.
    Done,
    /// There was nothing to refresh it with.
    Nothing,
    /// The provider has no way to.
    NoWay,
}

/// A sign-in that is not kept any more.
#[derive(Debug)]
pub struct Forgotten {
    /// Where it was.
    pub issuer: String,
    /// What became of it there.
    pub taken_back: Result<TakenBack, LoginError>,
}

/// Somebody is signed in.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    issuer: String,
    client_id: String,
    token_endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation_endpoint: Option<String>,
    /// For whom tokens are, if it is asked for like this (RFC 8707).
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    access_token: String,
    /// None where there was none, or it is of no use any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// When the access token came and when it ends, by this machine's clock, seconds since 1970.
    issued: u64,
    expires: u64,
    /// The lock, while the file lacks this: nobody may use the refresh token that is in it, for it was used.
    #[serde(skip)]
    unwritten: Option<Arc<File>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Login").field(&self.issuer).finish()
    }
}

impl Login {
    fn new(
        issuer: &str,
        client_id: String,
        token_endpoint: String,
        revocation_endpoint: Option<String>,
        resource: Option<String>,
        granted: Grant,
    ) -> Self {
        let mut login = Self {
            issuer: issuer.to_owned(),
            client_id,
            token_endpoint,
            revocation_endpoint,
            resource,
            access_token: String::new(),
            refresh_token: None,
            issued: 0,
            expires: 0,
            unwritten: None,
        };
        login.take(granted);
        login
    }

    /// What is kept in a file.
    ///
    /// # Errors
    /// [`LoginError`].
    pub fn read(path: &Path) -> Result<Self, LoginError> {
        let text = std::fs::read(path).map_err(|error| LoginError::file(path, &error))?;
        serde_json::from_slice(&text).map_err(|_| LoginError::Damaged(path.display().to_string()))
    }

    /// Keeps it there, for its owner alone, in place of another one that may just be refreshed.
    ///
    /// # Errors
    /// [`LoginError::File`].
    pub async fn keep(&self, path: &Path) -> Result<(), LoginError> {
        let _lock = lock(path).await?;
        self.write(path)
    }

    /// Writes what was just granted; where that fails it is kept here, and the lock with it.
    fn write_or_hold(&mut self, path: &Path, lock: File) {
        if let Err(error) = self.write(path) {
            tracing::warn!("the sign-in was refreshed, and this cannot be kept: {error}");
            self.unwritten = Some(Arc::new(lock));
        }
    }

    /// Whether it is in no file yet.
    pub fn is_unwritten(&self) -> bool {
        self.unwritten.is_some()
    }

    /// Tries again to write what could not be written.
    ///
    /// # Errors
    /// [`LoginError::File`].
    pub fn write_again(&mut self, path: &Path) -> Result<(), LoginError> {
        if self.is_unwritten() {
            self.write(path)?;
            self.unwritten = None;
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> Result<(), LoginError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        files::replace_private(path, text.as_bytes()).map_err(|error| LoginError::file(path, &error))
    }

    /// The provider.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The token to show.
    pub fn token(&self) -> Secret {
        Secret::new(&self.access_token)
    }

    /// Whether it can be refreshed.
    pub fn is_renewable(&self) -> bool {
        self.refresh_token.is_some()
    }

    /// It is not refreshed any more, whatever the file has.
    pub fn give_up(&mut self) {
        self.refresh_token = None;
    }

    /// When the token came and when it ends.
    pub fn life(&self) -> (u64, u64) {
        (self.issued, self.expires)
    }

    /// Whether the token is of no use any more, or will not be in a moment.
    pub fn has_ended(&self) -> bool {
        let life = self.expires.saturating_sub(self.issued);
        self.expires <= now() + LAST.min(life / 10)
    }

    /// Whether it is time for another token: when a third of its life is left, or this very token was refused.
    fn is_due(&self, refused: Option<&Secret>) -> bool {
        let life = self.expires.saturating_sub(self.issued);
        let now = now();
        // One that came later than now came when the clock was wrong.
        let is_old = now + life / 3 >= self.expires || now < self.issued;
        is_old || refused.is_some_and(|refused| *refused == self.token())
    }

    fn take(&mut self, granted: Grant) {
        self.issued = now();
        self.expires = self.issued.saturating_add(granted.life);
        self.access_token = granted.access.expose().to_owned();
        // Without another one, the one of before goes on (RFC 6749 §6).
        let refresh = granted.refresh.map(|token| token.expose().to_owned());
        self.refresh_token = refresh.or_else(|| self.refresh_token.take());
    }

    fn place(&self, url: &str) -> Result<Place, LoginError> {
        let issuer: Option<Issuer> = self.issuer.parse().ok();
        let issuer = issuer.ok_or_else(|| FetchError::Place(self.issuer.clone()))?;
        Ok(issuer.place(url)?)
    }

    /// Takes the refresh token back at the provider (RFC 7009).
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn revoke(&self, dialer: &Dialer) -> Result<TakenBack, LoginError> {
        let Some(token) = &self.refresh_token else {
            return Ok(TakenBack::Nothing);
        };
        let Some(url) = &self.revocation_endpoint else {
            return Ok(TakenBack::NoWay);
        };
        let place = self.place(url)?;
        let fields = [
            ("token", token.as_str()),
            ("token_type_hint", "refresh_token"),
            ("client_id", &self.client_id),
        ];
        let (status, body) = post(dialer, &place, &fields).await?;
        if status.is_success() {
            return Ok(TakenBack::Done);
        }
        Err(LoginError::Refused(grant::refusal(&place, status, &body)?.to_string()))
    }
}

/// The sign-in in a file for use at once, refreshed if it is time for it; a token that still is good does, where there is no other to
/// be had. After `stop` only a refresh that must not be left halfway is waited for.
///
/// # Errors
/// [`LoginError`].
pub async fn usable(path: PathBuf, dialer: Dialer, stop: impl Future<Output = ()>) -> Result<Login, LoginError> {
    let mut refreshing = Refreshing::begin(path.clone(), dialer, None);
    let refreshed = tokio::select! {
        refreshed = refreshing.outcome() => refreshed,
        () = stop => refreshing.settle().await,
    };
    let kept = || Login::read(&path).ok().filter(|login| !login.has_ended());
    refreshed.or_else(|error| kept().ok_or(error))
}

/// Takes back what is kept in a file, and forgets it, while nobody refreshes it. None if it was no sign-in.
///
/// # Errors
/// [`LoginError`], where it could not be forgotten.
pub async fn forget(path: &Path, dialer: &Dialer) -> Result<Option<Forgotten>, LoginError> {
    // It stays: who waits for it has it open, and another one beside it would lock nobody out.
    let _lock = lock(path).await?;
    let forgotten = match Login::read(path) {
        Ok(login) => Some(Forgotten {
            taken_back: login.revoke(dialer).await,
            issuer: login.issuer,
        }),
        Err(LoginError::Damaged(_)) => None,
        Err(error) => return Err(error),
    };
    std::fs::remove_file(path).map_err(|error| LoginError::file(path, &error))?;
    Ok(forgotten)
}

async fn lock(path: &Path) -> Result<File, LoginError> {
    let (name, since) = (lock_of(path), Instant::now());
    loop {
        let taken = files::try_lock(&name).map_err(|error| LoginError::file(&name, &error))?;
        if let Some(lock) = taken {
            return Ok(lock);
        }
        if since.elapsed() >= LOCKED {
            return Err(held(path));
        }
        sleep(LOOK).await;
    }
}

fn held(path: &Path) -> LoginError {
    LoginError::File {
        path: lock_of(path).display().to_string(),
        detail: "another program has it and does not finish".to_owned(),
    }
}

fn lock_of(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
