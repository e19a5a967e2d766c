//! Signing in at the relay's provider: the address and the code are shown, and drawn for a phone; who is signed in is shown to the
//! relay before anything is kept.

use std::io::IsTerminal;

use anyhow::Context;
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{ask, refused};
use crate::bridge::login::device::{Device, Provider};
use crate::bridge::login::{Login, LoginError};
use crate::cmd::rig::caller::Caller;
use crate::cmd::{Exit, Failure, qr, tell};
use crate::platform::browser;
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::empty;
use crate::transport::issuer::{Issuer, Place};

/// How a relay's people sign in (`GET /-/auth/config`).
#[derive(Default, Deserialize)]
struct Config {
    oidc: Option<Oidc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Oidc {
    issuer: String,
    device_client_id: Option<String>,
    audience: Option<String>,
}

/// The provider of a relay, if desktops can sign in there.
pub(super) async fn of(caller: &Caller, relay: &RelayUrl) -> Result<Option<Provider>, Failure> {
    let answer = ask(caller, relay, Method::GET, "/-/auth/config", HeaderMap::new(), empty()).await?;
    let config: Config = match answer.status {
        StatusCode::OK => serde_json::from_slice(&answer.body).unwrap_or_default(),
        _ => Config::default(),
    };
    let Some((oidc, client_id)) = config.oidc.and_then(|mut oidc| {
        let client_id = oidc.device_client_id.take()?;
        Some((oidc, client_id))
    }) else {
        return Ok(None);
    };
    let odd = || {
        let name = oidc.issuer.escape_debug();
        anyhow::anyhow!("{relay} has people sign in at {name}, which is no address that this can be done at")
    };
    let issuer: Issuer = oidc.issuer.parse().map_err(|_| odd())?;
    // A relay elsewhere has no say about what runs on this machine.
    if issuer.is_open() && !relay.origin().is_loopback() {
        return Err(odd().into());
    }
    Ok(Some(Provider {
        issuer,
        client_id,
        audience: oidc.audience,
    }))
}

/// Signs in, and has the relay say whether it takes who is signed in.
pub(super) async fn sign_in(
    caller: &Caller,
    relay: &RelayUrl,
    dialer: &Dialer,
    provider: Provider,
    opens_browser: bool,
) -> Result<Login, Failure> {
    let issuer = provider.issuer.as_str().to_owned();
    let device = Device::begin(dialer, provider).await.map_err(failure)?;
    show(&device, &issuer, opens_browser)?;
    let login = device.wait(dialer).await.map_err(failure)?;
    let shown = caller.with_token(&login.token());
    let answer = ask(&shown, relay, Method::GET, "/api/bridge", HeaderMap::new(), empty()).await?;
    if answer.status == StatusCode::OK {
        return Ok(login);
    }
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    Err(refused(relay, &answer, told.get("error").and_then(Value::as_str)))
}

/// Shows where to go and what to type there.
fn show(device: &Device, issuer: &str, opens_browser: bool) -> Result<(), Failure> {
    let (address, code) = (device.address.url(), device.user_code.escape_debug());
    let whole = device
        .whole_address
        .as_ref()
        .map_or_else(|| address.clone(), Place::url);
    tell(&format!(
        "To sign in at {issuer}, open this address, here or on any other device:\n\n  {whole}\n\n\
         and confirm this code there: {code}\n"
    ));
    if whole != address {
        tell(&format!("If the address is too long to type: {address}\n"));
    }
    if std::io::stderr().is_terminal() {
        tell(&qr::drawn(whole.clone()).context("cannot draw the address")?);
        if opens_browser && browser::has_display(|variable| std::env::var_os(variable).is_some()) {
            // Without one, the address is there to be read.
            if let Err(error) = browser::open(&whole) {
                tracing::debug!(%error, "no browser was opened");
            }
        }
    }
    tell("Waiting for it to be confirmed; Ctrl-C ends this.");
    Ok(())
}

/// What went wrong at the provider, with its exit code.
pub(in crate::cmd) fn failure(error: LoginError) -> Failure {
    let exit = match error {
        LoginError::Denied | LoginError::Refused(_) | LoginError::Over(_) => Exit::Refused,
        LoginError::Gone(_) | LoginError::Damaged(_) => Exit::Usage,
        LoginError::RanOut | LoginError::Provider(_) | LoginError::Later(_) | LoginError::File { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}
