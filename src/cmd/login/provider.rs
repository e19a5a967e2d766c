//! Signing in at the relay's provider: the address and the code are shown, and drawn for a phone; the relay says who is
//! signed in before anything is kept.

use std::io::IsTerminal;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{ask, refused, typed};
use crate::bridge::login::device::{Device, Provider};
use crate::bridge::login::{Login, LoginError};
use crate::cmd::rig::caller::Caller;
use crate::cmd::{Exit, Failure, print, qr, tell};
use crate::platform::browser;
use crate::telemetry;
use crate::transport::attach::retry_after;
use crate::transport::dial::{Dialer, Origin, RelayUrl};
use crate::transport::empty;
use crate::transport::issuer::{Issuer, Place};

/// How long the relay is asked whether it lets somebody in who just signed in, while it cannot tell.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two such questions, unless the relay says otherwise.
const PAUSE: Duration = Duration::from_secs(3);

/// How a relay's people sign in (`GET /-/auth/config`).
#[derive(Deserialize)]
struct Config {
    // What does not say that there is no provider is no answer.
    #[serde(deserialize_with = "Option::deserialize")]
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
    let config: Option<Config> = match answer.status {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => serde_json::from_slice(&answer.body).ok(),
        _ => None,
    };
    let silent = || {
        let status = answer.status;
        anyhow::anyhow!(
            "{relay} does not tell how to sign in there (it answered {status}): is it a relay? Try again later"
        )
    };
    let Some((oidc, client_id)) = config.ok_or_else(silent)?.oidc.and_then(|mut oidc| {
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
    if issuer.is_near() && !relay.origin().is_loopback() {
        return Err(odd().into());
    }
    Ok(Some(Provider {
        issuer,
        client_id,
        audience: oidc.audience,
    }))
}

/// Tells what the relay wants to be signed in for. The token is shown to this relay: where it would be good on another host, its owner
/// has to say so, by `agreed` or in the terminal.
pub(super) async fn agree(provider: &Provider, relay: &RelayUrl, agreed: Option<&str>) -> Result<(), Failure> {
    let (issuer, client) = (provider.issuer.as_str(), provider.client_id.escape_debug());
    let audience = provider.audience.as_deref().unwrap_or_default();
    let shown = audience.escape_debug();
    let whom = if audience.is_empty() {
        String::new()
    } else {
        format!(", for the audience {shown}")
    };
    tell(&format!(
        "{relay} has people sign in at {issuer}, with the program {client}{whom}."
    ));
    if agreed.is_some_and(|agreed| agreed != audience) {
        return Err(Failure::usage(format!("--audience: {relay} has another one, {shown}")));
    }
    if agreed.is_some() || !is_elsewhere(audience, relay) {
        return Ok(());
    }
    let elsewhere =
        format!("{shown} is another host than {relay}, which would get a token that may be good there, too");
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::usage(format!(
            "{elsewhere}. If the relay's operator says that it is right: --audience {shown}"
        )));
    }
    tell(&format!("{elsewhere}. Sign in all the same? [y/N]"));
    match typed().await?.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow::anyhow!("stopped; nothing was kept").into()),
    }
}

fn is_elsewhere(audience: &str, relay: &RelayUrl) -> bool {
    let uri = audience.parse().ok();
    let origin = uri.and_then(|uri| Origin::of(&uri));
    origin.is_some_and(|origin| !origin.host().eq_ignore_ascii_case(relay.origin().host()))
}

/// Signs in.
pub(super) async fn sign_in(dialer: &Dialer, provider: Provider, opens_browser: bool) -> Result<Login, Failure> {
    let issuer = provider.issuer.as_str().to_owned();
    let device = Device::begin(dialer, provider).await.map_err(failure)?;
    show(&device, &issuer, opens_browser);
    device.wait(dialer).await.map_err(failure)
}

/// Has the relay say whether it lets in who is signed in, and who that is to it. A relay that cannot tell at the moment is asked again.
pub(super) async fn user(caller: &Caller, relay: &RelayUrl, login: &Login) -> Result<String, Failure> {
    let shown = caller.with_token(&login.token());
    let since = Instant::now();
    loop {
        let asked = ask(&shown, relay, Method::GET, "/-/me", HeaderMap::new(), empty()).await;
        let (wait, failure) = match asked {
            Ok(answer) => {
                let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let text = |field: &str| told.get(field).and_then(Value::as_str);
                if let (StatusCode::OK, Some(user)) = (answer.status, text("user")) {
                    return Ok(user.to_owned());
                }
                let failure = refused(relay, &answer, text("error"));
                if !answer.status.is_server_error() && answer.status != StatusCode::TOO_MANY_REQUESTS {
                    return Err(failure);
                }
                (retry_after(&answer.headers).unwrap_or(PAUSE), failure)
            }
            Err(failure) => (PAUSE, failure),
        };
        if since.elapsed().saturating_add(wait) > PATIENCE {
            return Err(failure);
        }
        tracing::debug!("the relay cannot tell yet who is signed in; asking again");
        sleep(wait).await;
    }
}

/// Takes back what is not kept, if the provider lets itself be asked.
pub(super) async fn take_back(login: &Login, dialer: &Dialer) {
    if let Err(error) = login.revoke(dialer).await {
        let issuer = login.issuer();
        tell(&format!(
            "What {issuer} gave could not be taken back ({error}): end the sign-in there"
        ));
    }
}

/// Shows where to go and what to type there.
fn show(device: &Device, issuer: &str, opens_browser: bool) {
    let (address, code) = (device.address.url(), device.user_code.escape_debug());
    let whole = device
        .whole_address
        .as_ref()
        .map_or_else(|| address.clone(), Place::url);
    if !telemetry::is_for_people() {
        // Somebody has to see it all the same.
        let shown = json!({"issuer": issuer, "address": whole, "code": device.user_code});
        print(&shown.to_string());
        return;
    }
    tell(&format!(
        "To sign in at {issuer}, open this address, here or on any other device:\n\n  {whole}\n\n\
         and confirm this code there: {code}\n"
    ));
    if whole != address {
        tell(&format!("If the address is too long to type: {address}\n"));
    }
    if std::io::stderr().is_terminal() {
        // One that is too long to draw is there to be read.
        if let Ok(drawn) = qr::drawn(whole.clone()) {
            tell(&drawn);
        }
        if opens_browser && browser::has_display(|variable| std::env::var_os(variable).is_some()) {
            // Without one, the address is there to be read.
            if let Err(error) = browser::open(&whole) {
                tracing::debug!(%error, "no browser was opened");
            }
        }
    }
    tell("Waiting for it to be confirmed; Ctrl-C ends this.");
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
