//! `tunnel bridge login` and `logout`: a desktop is let in by its user's sign-in at the relay's [`provider`], or by a code. What is
//! [`kept`] of it `access` hands to bridge, probe and bench.

pub(super) mod kept;
pub(super) mod provider;

use std::cell::RefCell;
use std::time::Duration;

use anyhow::Context;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::access::NetworkArgs;
use super::rig::caller::{Answer, Caller};
use super::{Exit, Failure, tell};
use crate::bridge::config::TokenSource;
use crate::bridge::login::{self, Forgotten, Login, TakenBack};
use crate::files;
use crate::shutdown::Shutdown;
use crate::token::{Claims, Secret};
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::{Body, full};

/// How long the relay may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const LARGEST: usize = 64 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(super) enum LoginCommand {
    /// Let this desktop in, by signing in or with a code: bridge, probe and bench need no token from then on
    Login(LoginArgs),
    /// Forget what login kept, and sign out
    Logout(LogoutArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    /// The relay's address, as in https://relay.example.com [default: the only one that is known]
    #[arg(long, value_name = "URL")]
    relay: Option<String>,
    /// The code that the relay's operator made with: tunnel relay pair [default: sign in at the relay's provider; the code is
    /// asked for where there is none]
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Sign in for this audience, though it is the address of another host than the relay's [default: asked for]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
    /// Open no browser
    #[arg(long)]
    no_browser: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogoutArgs {
    /// The relay's address [default: the only one that is known]
    #[arg(long, value_name = "URL")]
    relay: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Runs one of them.
pub(super) fn main(command: &LoginCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        match command {
            LoginCommand::Login(args) => log_in(args).await,
            LoginCommand::Logout(args) => log_out(args).await,
        }
    });
    // Whoever was to type something is not waited for.
    runtime.shutdown_background();
    done
}

async fn log_in(args: &LoginArgs) -> Result<(), Failure> {
    let shutdown = Shutdown::new();
    tokio::spawn(shutdown.clone().on_signals("stopping"));
    let dialer = args.network.dialer()?;
    let granted = RefCell::new(None);
    let done = tokio::select! {
        done = let_in(args, &dialer, &granted) => done,
        () = shutdown.draining() => Err(anyhow::anyhow!("stopped; nothing was kept").into()),
    };
    if let Some(login) = granted.take() {
        provider::take_back(&login, &dialer).await;
    }
    done
}

/// What a provider `granted` is there until it is kept.
async fn let_in(args: &LoginArgs, dialer: &Dialer, granted: &RefCell<Option<Login>>) -> Result<(), Failure> {
    let relay = match &args.relay {
        Some(text) => args.network.relay(text)?,
        None => {
            let known = kept::only()?;
            known.ok_or_else(|| Failure::usage("say which relay it is for: --relay https://relay.example.com"))?
        }
    };
    let caller = Caller::new(dialer, &relay);
    if let Some(code) = &args.code {
        return pair(&caller, &relay, dialer, Some(code)).await;
    }
    let Some(provider) = provider::of(&caller, &relay).await? else {
        return pair(&caller, &relay, dialer, None).await;
    };
    provider::agree(&provider, &relay, args.audience.as_deref()).await?;
    let path = kept::login(&relay)?;
    // Nobody is to sign in for nothing.
    kept::prepare(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let login = provider::sign_in(dialer, provider, !args.no_browser).await?;
    // Some providers end all sign-ins of a program together: one that is kept here goes on.
    if !path.exists() {
        granted.replace(Some(login.clone()));
    }
    let user = provider::user(&caller, &relay, &login).await?;
    login.keep(&path).await.map_err(provider::failure)?;
    granted.take();
    // The newest login counts.
    let _ = std::fs::remove_file(kept::token(&relay)?);
    tell(&format!(
        "You are signed in as {}, and this desktop may connect to {relay}. Next: tunnel bridge",
        user.escape_debug()
    ));
    if !login.is_renewable() {
        tell(
            "It lasts as long as this one token: the provider gave none to refresh it with. Its operator can allow \
             that (offline_access, refresh tokens).",
        );
    }
    Ok(())
}

/// Lets the desktop in with a code, which is asked for if there is none.
async fn pair(caller: &Caller, relay: &RelayUrl, dialer: &Dialer, code: Option<&str>) -> Result<(), Failure> {
    let path = kept::token(relay)?;
    // A code is good once: what can go wrong does so before it is given up.
    kept::prepare(&path).with_context(|| format!("cannot write {}; the code is still good", path.display()))?;
    let code = match code {
        Some(code) => code.to_owned(),
        None => ask_for_code(relay).await?,
    };
    let (token, user) = claim(caller, relay, &code).await?;
    files::replace_private(&path, format!("{}\n", token.expose()).as_bytes()).with_context(|| {
        format!(
            "cannot write {}, and the code is used up: make another one. The operator takes the token that is lost back with:\n  \
             tunnel relay token revoke {}",
            path.display(),
            id_of(&token)
        )
    })?;
    // The newest login counts.
    if let Some(TokenSource::Login(older)) = kept::source(relay) {
        login::forget(&older, dialer).await.map_err(provider::failure)?;
    }
    tell(&format!(
        "This desktop may now connect to {relay} as {}. Next: tunnel bridge",
        user.escape_debug()
    ));
    Ok(())
}

async fn ask_for_code(relay: &RelayUrl) -> Result<String, Failure> {
    tell(&format!(
        "Nobody signs in at {relay} with a desktop: it takes a code, which its operator makes with\n  tunnel relay pair --user NAME\n\
         Code:"
    ));
    let line = typed().await?;
    if line.trim().is_empty() {
        return Err(Failure::usage("a code is needed: --code CODE"));
    }
    Ok(line)
}

/// The next line that somebody types.
async fn typed() -> Result<String, Failure> {
    let read = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose()).await;
    let line = read.context("cannot read what is typed")?;
    Ok(line.context("cannot read what is typed")?.unwrap_or_default())
}

/// Asks the relay, and waits as long as it may take.
async fn ask(
    caller: &Caller,
    relay: &RelayUrl,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer, Failure> {
    match tokio::time::timeout(TIMEOUT, caller.fetch(method, path, headers, body, LARGEST)).await {
        Ok(answer) => answer.map_err(|error| Failure::new(Exit::Failed, error)),
        Err(_) => Err(anyhow::anyhow!("{relay} gave no answer within {} s", TIMEOUT.as_secs()).into()),
    }
}

async fn claim(caller: &Caller, relay: &RelayUrl, code: &str) -> Result<(Secret, String), Failure> {
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    let body = json!({"code": code.trim(), "name": name}).to_string();
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let headers = [kind].into_iter().collect();
    let answer = ask(caller, relay, Method::POST, "/-/pair/claim", headers, full(body)).await?;
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |field: &str| told.get(field).and_then(Value::as_str);
    match (answer.status, text("token"), text("user")) {
        (StatusCode::OK, Some(token), Some(user)) => Ok((Secret::new(token), user.to_owned())),
        _ => Err(refused(relay, &answer, text("error"))),
    }
}

fn refused(relay: &RelayUrl, answer: &Answer, error: Option<&str>) -> Failure {
    let exit = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Exit::Refused,
        _ => Exit::Failed,
    };
    let words = match error {
        Some(error) => error.escape_debug().to_string(),
        None => format!("it is no relay that can be paired with ({})", answer.status),
    };
    Failure::new(exit, anyhow::anyhow!("{relay}: {words}"))
}

async fn log_out(args: &LogoutArgs) -> Result<(), Failure> {
    let relay = match &args.relay {
        Some(text) => text
            .parse()
            .map_err(|error| Failure::usage(format!("--relay: {error}")))?,
        None => kept::only()?.ok_or_else(|| Failure::usage("there is nothing to forget: no login was made"))?,
    };
    match kept::source(&relay) {
        Some(TokenSource::Login(path)) => {
            let forgotten = login::forget(&path, &args.network.dialer()?).await;
            match forgotten.map_err(provider::failure)? {
                Some(forgotten) => signed_out(forgotten, &relay),
                None => {
                    tell(&format!(
                        "What was kept for {relay} was damaged, and is removed: end the sign-in at its provider if somebody else \
                         may have it"
                    ));
                    Ok(())
                }
            }
        }
        Some(TokenSource::File(path)) => {
            let token = std::fs::read_to_string(&path);
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            let id = token.map_or_else(|_| "ID".to_owned(), |token| id_of(&Secret::new(&token)));
            tell(&format!(
                "The token for {relay} is forgotten here. A bridge that runs with it goes on until it is stopped.\n\
                 Should somebody else have it, the relay's operator takes it back with:\n  tunnel relay token revoke {id}"
            ));
            Ok(())
        }
        Some(TokenSource::Given(_)) | None => Err(Failure::usage(format!("there is no login for {relay}"))),
    }
}

/// Tells what became of a sign-in.
fn signed_out(forgotten: Forgotten, relay: &RelayUrl) -> Result<(), Failure> {
    let Forgotten { issuer, taken_back } = forgotten;
    let ended = match taken_back {
        Ok(TakenBack::Done) => format!("and taken back at {issuer}"),
        Ok(TakenBack::Nothing) => format!("and there was nothing to take back at {issuer}"),
        Ok(TakenBack::NoWay) => {
            format!("but not taken back, for {issuer} offers no way to: end it there if somebody else may have it")
        }
        Err(error) => {
            return Err(anyhow::anyhow!(
                "the sign-in for {relay} is forgotten here, but not taken back ({error}): end it at {issuer} if somebody else \
                 may have it"
            )
            .into());
        }
    };
    tell(&format!(
        "The sign-in for {relay} is forgotten here, {ended}.\n\
         A bridge that runs with it goes on until its token ends, or it is stopped."
    ));
    Ok(())
}

/// The id by which the operator knows a token.
fn id_of(token: &Secret) -> String {
    let id = Claims::peek(token).and_then(|claims| claims.jti);
    id.map_or_else(|| "ID".to_owned(), |id| id.escape_debug().to_string())
}
