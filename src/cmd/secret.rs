//! Where the relay keeps what must survive, and the secrets that it reads from there.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Failure;
use crate::relay::auth::keys::{BridgeKey, Keys};
use crate::relay::auth::tokens::Tokens;
use crate::{files, random};

/// Below this, a secret could be guessed (RFC 7518 §3.2).
const SHORTEST_SECRET: usize = 32;
/// Files of the data folder, and the folder of ACME in it.
const SECRET: &str = "jwt.secret";
const PREVIOUS_SECRET: &str = "jwt.secret.previous";
const BRIDGE_IDS: &str = "bridge-ids.key";
const SECRETS: [&str; 3] = [SECRET, PREVIOUS_SECRET, BRIDGE_IDS];
const ACME: &str = "acme";

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct SecretArgs {
    /// Where the relay keeps what must survive [default: the platform's folder for data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The secret that signs tokens, 32 characters at least; one in FILE.previous is accepted too [default: jwt.secret in the data
    /// folder, made at the first start]
    #[arg(long, global = true, value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,
}

/// What was read.
struct Secrets {
    current: Vec<u8>,
    previous: Option<Vec<u8>>,
}

impl Secrets {
    fn keys(&self) -> Keys {
        Keys::new(&self.current, self.previous.as_deref())
    }

    /// The key for the ids of bridges that belongs to the older secret: those ids are in use.
    fn bridge_key(&self) -> BridgeKey {
        BridgeKey::of(self.previous.as_deref().unwrap_or(&self.current))
    }
}

impl SecretArgs {
    /// The data folder.
    pub(super) fn folder(&self) -> Result<PathBuf, Failure> {
        match &self.data_dir {
            Some(folder) => Ok(folder.clone()),
            None => dirs::data_local_dir()
                .map(|data| data.join("tunnel"))
                .ok_or_else(|| Failure::usage("there is no home folder here: name one with --data-dir DIR")),
        }
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        match &self.jwt_secret_file {
            Some(path) => Ok(path.clone()),
            None => Ok(self.folder()?.join(SECRET)),
        }
    }

    /// The files that make a relay the same relay, by their names in a backup: secrets, the key of bridges' ids, and the accounts
    /// and certificates of `acme`. None where there is no secret.
    pub(super) fn kept_files(&self) -> Result<Vec<(String, PathBuf)>, Failure> {
        let mut kept = Vec::new();
        for name in SECRETS {
            let path = self.place_of(name)?;
            if path
                .try_exists()
                .with_context(|| format!("cannot look at {}", path.display()))?
            {
                kept.push((name.to_owned(), path));
            } else if name == SECRET {
                return Ok(Vec::new());
            }
        }
        let folder = self.folder()?.join(ACME);
        if folder.exists() {
            let listed = list(ACME, &folder, &mut kept);
            listed.with_context(|| format!("cannot read all of {}", folder.display()))?;
        }
        Ok(kept)
    }

    /// Where a file of a backup belongs. A backup may come from anywhere, and must not write elsewhere.
    pub(super) fn place_of(&self, name: &str) -> Result<PathBuf, Failure> {
        let is_plain = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
        };
        match name {
            SECRET => self.path(),
            PREVIOUS_SECRET => Ok(beside(&self.path()?)),
            BRIDGE_IDS => Ok(self.folder()?.join(name)),
            name if name.starts_with("acme/") && name.split('/').all(is_plain) => Ok(self.folder()?.join(name)),
            name => {
                let name = name.escape_debug();
                Err(Failure::usage(format!(
                    "the backup holds a file with a strange name: {name}"
                )))
            }
        }
    }

    /// The options again, for a command that must use the same secret.
    pub(super) fn repeated(&self) -> String {
        repeated("data-dir", self.data_dir.as_deref()) + &repeated("jwt-secret-file", self.jwt_secret_file.as_deref())
    }

    /// What issues tokens. Makes the secret first where there is none, unless its file was named, and says where.
    pub(super) fn issuer(&self) -> Result<(Tokens, Option<PathBuf>), Failure> {
        let (secrets, made) = self.load()?;
        Ok((Tokens::with(secrets.keys(), &secrets.bridge_key()), made))
    }

    /// The same for a relay, whose bridges keep their ids whatever becomes of the secret.
    pub(super) fn tokens(&self) -> Result<(Tokens, Option<PathBuf>), Failure> {
        let (secrets, made) = self.load()?;
        let bridge_key = self.kept_bridge_key(&secrets)?;
        Ok((Tokens::with(secrets.keys(), &bridge_key), made))
    }

    /// The secrets as they are now.
    pub(super) fn reload(&self) -> Result<Keys, Failure> {
        let path = self.path()?;
        let current = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        Ok(Secrets {
            current: checked(&path, &current)?,
            previous: previous(&path)?,
        }
        .keys())
    }

    fn load(&self) -> Result<(Secrets, Option<PathBuf>), Failure> {
        let path = self.path()?;
        let mut made = false;
        let content = if self.jwt_secret_file.is_some() {
            std::fs::read(&path)
                .map_err(|error| Failure::usage(format!("--jwt-secret-file {}: {error}", path.display())))?
        } else {
            files::read_or_create(&path, || {
                made = true;
                new_secret()
            })
            .with_context(|| {
                format!(
                    "cannot read or make the secret {} (another folder: --data-dir DIR)",
                    path.display()
                )
            })?
        };
        let secrets = Secrets {
            current: checked(&path, &content)?,
            previous: previous(&path)?,
        };
        Ok((secrets, made.then_some(path)))
    }

    /// The key for the ids of bridges that was kept; else the one of the secret, kept from now on.
    fn kept_bridge_key(&self, secrets: &Secrets) -> Result<BridgeKey, Failure> {
        let derived = secrets.bridge_key();
        let Ok(path) = self.folder().map(|folder| folder.join(BRIDGE_IDS)) else {
            return Ok(derived);
        };
        let kept = files::read_or_create(&path, || {
            Ok(format!("{}\n", URL_SAFE_NO_PAD.encode(derived.octets())).into_bytes())
        });
        match kept {
            Ok(text) => URL_SAFE_NO_PAD
                .decode(text.trim_ascii())
                .ok()
                .and_then(BridgeKey::from_octets)
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "{} is damaged; bring it back from a backup, or delete it: then bridges get other ids",
                        path.display()
                    ))
                }),
            Err(error) => {
                let path = path.display();
                tracing::info!(%path, %error, "not kept: bridges will get other ids when the secret changes");
                Ok(derived)
            }
        }
    }
}

/// An option again, as it would be typed; nothing where it was not given.
pub(super) fn repeated(name: &str, path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" --{name} '{}'", path.display()))
}

/// All files below a folder, by names that begin with its own; not those that are being written ([`files::replace_private`]).
fn list(name: &str, folder: &Path, into: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (name, path) = (format!("{name}/{}", entry.file_name().display()), entry.path());
        if entry.file_type()?.is_dir() {
            list(&name, &path, into)?;
        } else if !name.ends_with(".new") {
            into.push((name, path));
        }
    }
    Ok(())
}

/// Where the secret of before is.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".previous");
    path.with_file_name(name)
}

/// The secret of before, as long as it is there.
fn previous(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let path = beside(path);
    match std::fs::read(&path) {
        Ok(content) => checked(&path, &content).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&path, &error)),
    }
}

fn checked(path: &Path, content: &[u8]) -> Result<Vec<u8>, Failure> {
    let secret = content.trim_ascii();
    if secret.len() < SHORTEST_SECRET {
        return Err(Failure::usage(format!(
            "the secret in {} is shorter than {SHORTEST_SECRET} characters; make one with: openssl rand -hex 32",
            path.display()
        )));
    }
    Ok(secret.to_vec())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read the secret {}: {error}", path.display()))
}

fn new_secret() -> io::Result<Vec<u8>> {
    Ok(format!("{}{}\n", random::name()?, random::name()?).into_bytes())
}
