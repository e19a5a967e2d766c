//! A refresh under way, as a task of its own: whoever began it may go, and what the provider gave is kept all the same.

use std::path::PathBuf;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Login, LoginError, grant, held, lock};
use crate::token::Secret;
use crate::transport::dial::Dialer;
use crate::transport::issuer::FetchError;

/// A refresh that was begun.
#[derive(Debug)]
pub struct Refreshing {
    task: JoinHandle<Result<Login, LoginError>>,
    /// Another program that refreshes is not waited for any more.
    stop: CancellationToken,
}

impl Refreshing {
    /// Begins to get the sign-in in a file, with a fresh token if it is time for one, or the one that is there was `refused`.
    pub fn begin(path: PathBuf, dialer: Dialer, refused: Option<Secret>) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(refresh(path, dialer, refused, stop.clone()));
        Self { task, stop }
    }

    /// Whether there is an outcome.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// What came of it, once. Whoever stops waiting before may ask again.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn outcome(&mut self) -> Result<Login, LoginError> {
        let broken = || LoginError::Provider(FetchError::Broken("the provider".to_owned()));
        (&mut self.task).await.unwrap_or_else(|_| Err(broken()))
    }

    /// Waits for nothing but what must not be left halfway: a refresh token that was used and not kept ends the sign-in.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn settle(mut self) -> Result<Login, LoginError> {
        self.stop.cancel();
        self.outcome().await
    }
}

async fn refresh(
    path: PathBuf,
    dialer: Dialer,
    refused: Option<Secret>,
    stop: CancellationToken,
) -> Result<Login, LoginError> {
    if let Some(login) = Some(Login::read(&path)?).filter(|login| !login.is_due(refused.as_ref())) {
        return Ok(login);
    }
    let lock = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(held(&path)),
        lock = lock(&path) => lock?,
    };
    // Whoever had the lock may have done it.
    let mut login = Login::read(&path)?;
    if !login.is_due(refused.as_ref()) {
        return Ok(login);
    }
    let Some(refresh_token) = login.refresh_token.clone() else {
        return Err(LoginError::Over(login.issuer));
    };
    // What cannot be kept is not asked for.
    login.write(&path)?;
    let place = login.place(&login.token_endpoint)?;
    let mut fields = vec![
        ("grant_type", "refresh_token"),
        ("client_id", login.client_id.as_str()),
        ("refresh_token", &refresh_token),
    ];
    fields.extend(login.resource.as_deref().map(|resource| ("resource", resource)));
    match grant::ask(&dialer, &place, &fields).await? {
        Ok(granted) => {
            login.take(granted);
            login.write_or_hold(&path, lock);
            Ok(login)
        }
        Err(refusal) if refusal.code == "invalid_grant" => {
            // It is not asked for again.
            login.refresh_token = None;
            login.write(&path)?;
            Err(LoginError::Over(login.issuer))
        }
        Err(refusal) if refusal.may_pass() => Err(LoginError::Later(refusal.to_string())),
        Err(refusal) => Err(LoginError::Refused(refusal.to_string())),
    }
}
