//! The part of the credential for a sign-in at a provider: refreshed in time, read again where it cannot be, and kept.

use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Credential, PAUSE};
use crate::bridge::config::TokenSource;
use crate::bridge::login::{Login, LoginError, Refreshing};
use crate::token::Secret;
use crate::transport::dial::Dialer;

/// Between two refreshes, and the longest after one that failed: tokens may live for minutes.
const LOGIN_PAUSE: Duration = Duration::from_secs(1);
const LOGIN_RETRY: Duration = Duration::from_secs(30);

impl Credential {
    pub(super) fn read_login(&mut self, path: &Path) -> Result<Secret, LoginError> {
        // What came of a refresh that was left is in the file, unless it could not be written.
        if let Some(mut ended) = self.refreshing.take_if(|refreshing| refreshing.is_finished())
            && let Some(Ok(login)) = ended.outcome().now_or_never()
            && login.is_unwritten()
        {
            self.login = Some(login);
        }
        if let Some(login) = &mut self.login
            && login.write_again(path).is_err()
        {
            return Ok(login.token());
        }
        let mut fresh = Login::read(path)?;
        let given_up = |login: &Login| !login.is_renewable() && login.token() == fresh.token();
        if self.login.as_ref().is_some_and(given_up) {
            fresh.give_up();
        }
        Ok(self.login.insert(fresh).token())
    }

    pub(super) async fn renew_login(&mut self, path: &Path, dialer: &Dialer) -> Option<Secret> {
        if self.is_looked_after() {
            return self.look_again();
        }
        let is_first = self.next_try.is_none();
        match self.refresh(path, dialer).await {
            Ok(token) => Some(token),
            Err(error) => {
                if error.is_lasting() {
                    tracing::warn!("{error}");
                } else if is_first {
                    tracing::warn!("{error}; the token is good for now, and it is tried again and again");
                }
                None
            }
        }
    }

    /// Whether there is nothing to refresh, but the file may get another sign-in, or has yet to get this one.
    pub(super) fn is_looked_after(&self) -> bool {
        let login = self.login.as_ref();
        login.is_some_and(|login| !login.is_renewable() || login.is_unwritten())
    }

    /// Looks into the file; another token, if there is one.
    fn look_again(&mut self) -> Option<Secret> {
        let before = self.current().cloned();
        self.not_before = Some(Instant::now() + self.pause(PAUSE));
        let now = self.read().ok().filter(|now| before.as_ref() != Some(now))?;
        tracing::info!("another sign-in is used from now on");
        Some(now)
    }

    /// A tenth of the life of the sign-in's token, and no more than this.
    fn pause(&self, longest: Duration) -> Duration {
        let (issued, end) = self.login.as_ref().map_or((0, 0), Login::life);
        Duration::from_secs(end.saturating_sub(issued) / 10).clamp(LOGIN_PAUSE, longest)
    }

    /// Refreshes the sign-in, or goes on with a refresh that was left.
    pub(super) async fn refresh(&mut self, path: &Path, dialer: &Dialer) -> Result<Secret, LoginError> {
        self.not_before = Some(Instant::now() + LOGIN_PAUSE);
        let begin = || Refreshing::begin(path.to_owned(), dialer.clone(), self.refused.clone());
        let refreshed = self.refreshing.get_or_insert_with(begin).outcome().await;
        self.refreshing = None;
        match refreshed.or_else(|error| self.another(path).ok_or(error)) {
            Ok(login) => {
                // Somebody may have signed in anew since: the file counts.
                let login = match Login::read(path) {
                    Ok(there) if !login.is_unwritten() => there,
                    _ => login,
                };
                let token = login.token();
                tracing::info!("the sign-in was refreshed");
                (self.next_try, self.announced) = (None, None);
                self.read = Some(token.clone());
                self.login = Some(login);
                Ok(token)
            }
            Err(error) => {
                self.next_try = Some(SystemTime::now() + self.pause(LOGIN_RETRY));
                if let Some(login) = self.login.as_mut().filter(|_| error.is_lasting()) {
                    login.give_up();
                }
                Err(error)
            }
        }
    }

    /// The sign-in in the file, if it is another one than the one held, and good.
    fn another(&self, path: &Path) -> Option<Login> {
        let held = self.login.as_ref().map(Login::token);
        let there = Login::read(path).ok()?;
        (held.as_ref() != Some(&there.token()) && !there.has_ended()).then_some(there)
    }

    /// Waits for what must not be left halfway.
    pub async fn settle(&mut self) {
        if let Some(refreshing) = self.refreshing.take()
            && let Ok(login) = refreshing.settle().await
            && login.is_unwritten()
        {
            self.login = Some(login);
        }
        if let (Some(login), TokenSource::Login(path)) = (&mut self.login, &self.source)
            && let Err(error) = login.write_again(path)
        {
            tracing::warn!("the sign-in is lost: {error}; sign in again with: tunnel bridge login");
        }
    }
}
