//! What logins keep in the user's configuration folder: a file for each relay, with a token of the relay's own (from pairing) or a
//! sign-in at its provider.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::bridge::config::TokenSource;
use crate::cmd::Failure;
use crate::files;
use crate::transport::dial::RelayUrl;
use crate::transport::path::escaped;

/// A token in a file, and a sign-in.
const TOKEN: &str = ".token";
const LOGIN: &str = ".login";

/// Where a token of this relay is kept.
pub(super) fn token(relay: &RelayUrl) -> Result<PathBuf, Failure> {
    path(relay, TOKEN).ok_or_else(no_folder)
}

/// Where a sign-in for this relay is kept.
pub(super) fn login(relay: &RelayUrl) -> Result<PathBuf, Failure> {
    path(relay, LOGIN).ok_or_else(no_folder)
}

/// What the last login for this relay kept, if there was one.
pub(in crate::cmd) fn source(relay: &RelayUrl) -> Option<TokenSource> {
    let there = |ending| path(relay, ending).filter(|path| path.exists());
    let login = there(LOGIN).map(TokenSource::Login);
    login.or_else(|| there(TOKEN).map(TokenSource::File))
}

/// Makes the folder of the file, and tries whether something can be written there.
pub(super) fn prepare(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        files::make_private_folder(folder)?;
    }
    let trial = path.with_extension("trial");
    files::replace_private(&trial, b"")?;
    std::fs::remove_file(trial)
}

/// The only relay with a login, if there is one.
///
/// # Errors
/// When there are several.
pub(in crate::cmd) fn only() -> Result<Option<RelayUrl>, Failure> {
    let files = folder().and_then(|folder| std::fs::read_dir(folder).ok());
    let names = files.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let relays = names.filter_map(|name| relay_of(name.to_str()?));
    let relays: BTreeSet<String> = relays.map(|relay| relay.to_string()).collect();
    match relays.len() {
        0 | 1 => Ok(relays.first().and_then(|relay| relay.parse().ok())),
        _ => Err(Failure::usage(format!(
            "there are logins for several relays; say which one with --relay: {}",
            relays.into_iter().collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn folder() -> Option<PathBuf> {
    dirs::config_dir().map(|folder| folder.join("tunnel").join("relays"))
}

fn path(relay: &RelayUrl, ending: &str) -> Option<PathBuf> {
    folder().map(|folder| folder.join(name_of(relay, ending)))
}

fn no_folder() -> Failure {
    Failure::usage("there is no home folder here: use --token-file FILE with tunnel bridge")
}

/// The relay's URL as every file system takes it.
fn name_of(relay: &RelayUrl, ending: &str) -> String {
    escaped(&relay.to_string()) + ending
}

fn relay_of(name: &str) -> Option<RelayUrl> {
    let stem = name.strip_suffix(TOKEN).or_else(|| name.strip_suffix(LOGIN))?;
    let mut parts = stem.split('%');
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
            for ending in [TOKEN, LOGIN] {
                let name = name_of(&relay, ending);
                assert!(!name.contains(['/', ':', '\\', ' ']), "{name}");
                assert_eq!(relay_of(&name).as_ref(), Some(&relay));
            }
        }
        for name in [
            "",
            ".token",
            "https%3",
            "x.token",
            "%zz.token",
            "https%3A%2F%2Fx.lock",
            ".https%3A%2F%2Fx.token.1.new",
        ] {
            assert_eq!(relay_of(name), None, "{name}");
        }
    }
}
