//! `tunnel bridge login` and `logout`, and what they keep: in the user's configuration folder a file for each relay, with the token
//! for it, which `access` hands to bridge, probe and bench.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::access::NetworkArgs;
use super::rig::caller::{Answer, Caller};
use super::{Exit, Failure, tell};
use crate::files;
use crate::token::{Claims, Secret};
use crate::transport::dial::RelayUrl;
use crate::transport::full;

/// How long the relay may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const LARGEST: usize = 64 * 1024;
const ENDING: &str = ".token";

#[derive(Debug, clap::Subcommand)]
pub(super) enum LoginCommand {
    /// Let this desktop in with a code, and keep its token: bridge, probe and bench need none from then on
    Login(LoginArgs),
    /// Forget what login kept
    Logout(LogoutArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    /// The relay's address, as in https://relay.example.com
    #[arg(long, value_name = "URL")]
    relay: String,
    /// The code that the relay's operator made with: tunnel relay pair [default: it is asked for]
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogoutArgs {
    /// The relay's address [default: the only one that is known]
    #[arg(long, value_name = "URL")]
    relay: Option<String>,
}

/// Runs one of them.
pub(super) fn main(command: &LoginCommand) -> Result<(), Failure> {
    match command {
        LoginCommand::Login(args) => login(args),
        LoginCommand::Logout(args) => logout(args),
    }
}

fn login(args: &LoginArgs) -> Result<(), Failure> {
    let relay = args.network.relay(&args.relay)?;
    let path = path(&relay).ok_or_else(no_folder)?;
    // A code is good once: what can go wrong does so before it is given up.
    prepare(&path).with_context(|| format!("cannot write {}; the code is still good", path.display()))?;
    let code = match &args.code {
        Some(code) => code.clone(),
        None => ask()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (token, user) = runtime
        .context("cannot start the runtime")?
        .block_on(claim(args, &relay, &code))?;
    files::replace_private(&path, format!("{}\n", token.expose()).as_bytes()).with_context(|| {
        format!(
            "cannot write {}, and the code is used up: make another one. The operator takes the token that is lost back with:\n  \
             tunnel relay token revoke {}",
            path.display(),
            id_of(&token)
        )
    })?;
    tell(&format!(
        "This desktop may now connect to {relay} as {}. Next: tunnel bridge",
        user.escape_debug()
    ));
    Ok(())
}

fn ask() -> Result<String, Failure> {
    tell("Code:");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the code")?;
    if line.trim().is_empty() {
        return Err(Failure::usage("a code is needed: --code CODE"));
    }
    Ok(line)
}

async fn claim(args: &LoginArgs, relay: &RelayUrl, code: &str) -> Result<(Secret, String), Failure> {
    let caller = Caller::new(&args.network.dialer()?, relay);
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    let body = json!({"code": code.trim(), "name": name}).to_string();
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let headers: HeaderMap = [kind].into_iter().collect();
    let asked = caller.fetch(Method::POST, "/-/pair/claim", headers, full(body), LARGEST);
    let answer = match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| Failure::new(Exit::Failed, error))?,
        Err(_) => return Err(anyhow::anyhow!("{relay} gave no answer within {} s", TIMEOUT.as_secs()).into()),
    };
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |field: &str| told.get(field).and_then(Value::as_str);
    match (answer.status, text("token"), text("user")) {
        (StatusCode::OK, Some(token), Some(user)) => Ok((Secret::new(token), user.to_owned())),
        _ => Err(refused(relay, &answer, text("error"))),
    }
}

fn refused(relay: &RelayUrl, answer: &Answer, error: Option<&str>) -> Failure {
    let exit = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => Exit::Refused,
        _ => Exit::Failed,
    };
    let words = match error {
        Some(error) => error.escape_debug().to_string(),
        None => format!("it is no relay that can be paired with ({})", answer.status),
    };
    Failure::new(exit, anyhow::anyhow!("{relay}: {words}"))
}

fn logout(args: &LogoutArgs) -> Result<(), Failure> {
    let relay = match &args.relay {
        Some(text) => text
            .parse()
            .map_err(|error| Failure::usage(format!("--relay: {error}")))?,
        None => only()?.ok_or_else(|| Failure::usage("there is nothing to forget: no login was made"))?,
    };
    let path = path(&relay).ok_or_else(no_folder)?;
    let token = std::fs::read_to_string(&path);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::usage(format!("there is no login for {relay}")));
        }
        removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
    }
    let id = token.map_or_else(|_| "ID".to_owned(), |token| id_of(&Secret::new(&token)));
    tell(&format!(
        "The token for {relay} is forgotten here. A bridge that runs with it goes on until it is stopped.\n\
         Should somebody else have it, the relay's operator takes it back with:\n  tunnel relay token revoke {id}"
    ));
    Ok(())
}

/// The id by which the operator knows a token.
fn id_of(token: &Secret) -> String {
    let id = Claims::peek(token).and_then(|claims| claims.jti);
    id.map_or_else(|| "ID".to_owned(), |id| id.escape_debug().to_string())
}

/// Makes the folder of the file, and tries whether something can be written there.
fn prepare(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        files::make_private_folder(folder)?;
    }
    let trial = path.with_extension("trial");
    files::replace_private(&trial, b"")?;
    std::fs::remove_file(trial)
}

/// The file with the token for a relay, if there was a login.
pub(super) fn token_file(relay: &RelayUrl) -> Option<PathBuf> {
    path(relay).filter(|path| path.exists())
}

/// The only relay with a login, if there is one.
///
/// # Errors
/// When there are several.
pub(super) fn only() -> Result<Option<RelayUrl>, Failure> {
    let files = folder().and_then(|folder| std::fs::read_dir(folder).ok());
    let names = files.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut relays: Vec<RelayUrl> = names.filter_map(|name| relay_of(name.to_str()?)).collect();
    let relay = relays.pop();
    if relays.is_empty() {
        return Ok(relay);
    }
    let all: Vec<_> = relays.iter().chain(&relay).map(ToString::to_string).collect();
    Err(Failure::usage(format!(
        "there are logins for several relays; say which one with --relay: {}",
        all.join(", ")
    )))
}

fn folder() -> Option<PathBuf> {
    dirs::config_dir().map(|folder| folder.join("tunnel").join("relays"))
}

fn path(relay: &RelayUrl) -> Option<PathBuf> {
    folder().map(|folder| folder.join(name_of(relay)))
}

fn no_folder() -> Failure {
    Failure::usage("there is no home folder here: use --token-file FILE with tunnel bridge")
}

/// The relay's URL as every file system takes it (RFC 3986 §2.1).
fn name_of(relay: &RelayUrl) -> String {
    let escape = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    relay.to_string().bytes().map(escape).collect::<String>() + ENDING
}

fn relay_of(name: &str) -> Option<RelayUrl> {
    let mut parts = name.strip_suffix(ENDING)?.split('%');
    let mut url = parts.next()?.as_bytes().to_vec();
    for part in parts {
        url.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        url.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(url).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_found_by_the_name_of_its_file() {
        for url in [
            "https://relay.example.com",
            "http://[::1]:8080",
            "https://example.com:8443/under/a path%20or-two",
        ] {
            let Ok(relay) = url.parse::<RelayUrl>() else {
                continue;
            };
            let name = name_of(&relay);
            assert!(!name.contains(['/', ':', '\\', ' ']), "{name}");
            assert_eq!(relay_of(&name), Some(relay));
        }
        for name in [
            "",
            ".token",
            "https%3",
            "x.token",
            "%zz.token",
            ".https%3A%2F%2Fx.token.1.new",
        ] {
            assert_eq!(relay_of(name), None, "{name}");
        }
    }
}
