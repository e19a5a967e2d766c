//! `/-/pair` and `/-/pair/claim`: a code that is good once, and for minutes, becomes the token of a bridge; so a desktop is let in
//! where nobody can carry a token to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::Relay;
use super::auth::Scopes;
use super::auth::tokens::{Tokens, now};
use super::error::{Code, Error};
use super::keys::{is_label, manager};
use super::own::{json_response, read_json, store, store_error};
use super::store::accounts::Token;
use super::store::keys::{self, Maker};
use super::store::{Store, StoreError};
use crate::random;
use crate::transport::Body;

/// How long a code can be claimed.
pub const CODE_LIFE: Duration = Duration::from_secs(600);
/// How long the token of a bridge lives, unless the one that lets it in lives shorter; it renews itself.
pub const TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
const LETTERS: usize = 8;
/// Wrong codes in a minute: from one address, and from all together.
const WRONG_OF_ADDRESS: usize = 5;
const WRONG_OF_ALL: usize = 6000;
const MINUTE: Duration = Duration::from_secs(60);

/// Makes a code and keeps it; the code as it is shown, and when it ends.
///
/// # Errors
/// The store's; `Away` also when the system gives no random numbers.
pub async fn make(tokens: &Tokens, store: &Store, user: String, maker: Maker) -> Result<(String, u64), StoreError> {
    let code = make_code().map_err(|error| StoreError::Away(format!("no random numbers to be had: {error}")))?;
    let expires = maker.expires.unwrap_or(u64::MAX).min(now() + CODE_LIFE.as_secs());
    // The first one is that of the secret that signs.
    let hash = tokens.code_hashes(&plain(&code)).swap_remove(0);
    store.add_code(&keys::Code { user, maker }, &hash, expires).await?;
    Ok((code, expires))
}

fn make_code() -> io::Result<String> {
    let letters = random::letters(LETTERS)?.to_uppercase();
    let (first, second) = letters.split_at(LETTERS / 2);
    Ok(format!("{first}-{second}"))
}

/// A code as it is compared, however it was typed.
fn plain(code: &str) -> String {
    let letters = code.chars().filter(char::is_ascii_alphanumeric);
    let plain = letters.map(|letter| match letter.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        letter => letter,
    });
    plain.collect()
}

/// `POST /-/pair`: a code for a bridge of the user.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `overloaded`.
pub async fn pair(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let (identity, _asking) = manager(relay, headers).await?;
    let user = identity.user.to_string();
    let made = make(&relay.tokens, store(relay)?, user, Maker::from(&identity)).await;
    let (code, expires) = made.map_err(|error| store_error(&error))?;
    Ok(json_response(
        StatusCode::CREATED,
        &json!({"code": code, "expires": expires}),
    ))
}

#[derive(Deserialize)]
struct Claim {
    code: String,
    /// What the desktop calls itself.
    name: Option<String>,
}

/// `POST /-/pair/claim`: a token for whoever knows the code, once.
///
/// # Errors
/// `unauthorized` for a code that is not good, `rate_limited` after too many of these, `bad_request`, `overloaded`.
pub async fn claim(relay: &Relay, address: IpAddr, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let claim: Claim = read_json(request).await?;
    relay.wrong_codes.begin(address)?;
    let answer = give(relay, &claim).await;
    let is_wrong = matches!(&answer, Err(error) if error.code == Code::Unauthorized);
    if !is_wrong {
        relay.wrong_codes.forgive(address);
    }
    answer
}

async fn give(relay: &Relay, claim: &Claim) -> Result<Response<Body>, Error> {
    let store = store(relay)?;
    let (hash, code) = find(relay, store, &claim.code).await?;
    let token = relay.tokens.issue(&code.user, Scopes::BRIDGE, Some(life(&code)?));
    let token = token.map_err(|error| Error::new(Code::Overloaded, error.to_string()))?;
    let name = claim.name.as_deref().filter(|name| is_label(name) && !name.is_empty());
    let label = name.map_or_else(|| "paired".to_owned(), |name| format!("paired {name}"));
    let kept = Token::of(&token, Some(label)).ok_or_else(wrong_code)?;
    store.claim(&hash, &code, &kept).await.map_err(|error| match error {
        StoreError::Absent | StoreError::ShutOut => wrong_code(),
        error => store_error(&error),
    })?;
    tracing::info!(user = code.user, id = kept.id, "a desktop was paired");
    Ok(json_response(
        StatusCode::OK,
        &json!({"token": token.expose(), "user": code.user}),
    ))
}

/// A code that can be claimed, and the hash by which it is kept.
async fn find(relay: &Relay, store: &Store, code: &str) -> Result<(String, keys::Code), Error> {
    for hash in relay.tokens.code_hashes(&plain(code)) {
        let found = store.code(&hash).await.map_err(|error| store_error(&error))?;
        if let Some(code) = found {
            return Ok((hash, code));
        }
    }
    Err(wrong_code())
}

/// How long the token lives that a code is given up for: no longer than the one that made the code.
fn life(code: &keys::Code) -> Result<Duration, Error> {
    match code.maker.expires.map(|end| end.saturating_sub(now())) {
        None => Ok(TOKEN_LIFE),
        Some(0) => Err(wrong_code()),
        Some(left) => Ok(TOKEN_LIFE.min(Duration::from_secs(left))),
    }
}

pub(super) fn wrong_code() -> Error {
    let detail = "this code is not known, was used, or has run out; get a new one";
    Error::new(Code::Unauthorized, detail).because("pairing code not good")
}

/// The wrong codes of this minute, and from where. A code is counted before it is looked at: many at once are as few as one after
/// the other.
#[derive(Debug, Default)]
pub struct WrongCodes(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// When the first of them came.
    since: Option<Instant>,
    all: usize,
    /// No more than there may be of all.
    of: HashMap<IpAddr, usize>,
}

impl WrongCodes {
    /// Counts one.
    ///
    /// # Errors
    /// `rate_limited`, with the time after which there is room for one more.
    pub(super) fn begin(&self, address: IpAddr) -> Result<(), Error> {
        let mut counted = self.lock();
        let now = Instant::now();
        let age = counted.since.map_or(MINUTE, |since| now.duration_since(since));
        if age >= MINUTE {
            *counted = Counted {
                since: Some(now),
                ..Counted::default()
            };
        }
        let network = network(address);
        let of_network = counted.of.get(&network).copied().unwrap_or_default();
        if of_network >= WRONG_OF_ADDRESS || counted.all >= WRONG_OF_ALL {
            let detail = "too many wrong codes; try again in a minute";
            return Err(Error::new(Code::RateLimited, detail).retry_after(MINUTE.saturating_sub(age)));
        }
        counted.all += 1;
        counted.of.insert(network, of_network + 1);
        Ok(())
    }

    /// It was not wrong.
    pub(super) fn forgive(&self, address: IpAddr) {
        let mut counted = self.lock();
        if let Some(of_network) = counted.of.get_mut(&network(address)).filter(|count| **count > 0) {
            *of_network -= 1;
            counted.all = counted.all.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever is given IPv6 addresses is given up to a /48 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 80 << 80).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_however_it_is_typed() {
        let code = make_code().unwrap();
        assert_eq!((code.len(), code.find('-')), (9, Some(4)));
        assert_eq!(
            plain(&code),
            plain(&format!(" {}", code.to_lowercase().replace('-', " ")))
        );
        assert_eq!(plain("0110-ABCD"), plain("oilo-abcd"));
        assert_ne!(plain("0110-ABCD"), plain("0110-ABCE"));
    }

    #[test]
    fn a_token_lives_no_longer_than_the_one_that_made_the_code() {
        let of = |expires| {
            let maker = Maker {
                expires,
                ..Maker::operator()
            };
            life(&keys::Code {
                user: "ann".into(),
                maker,
            })
        };
        assert_eq!(of(None).ok(), Some(TOKEN_LIFE));
        assert_eq!(of(Some(u64::MAX)).ok(), Some(TOKEN_LIFE));
        assert!(of(Some(now() + 60)).unwrap() <= Duration::from_secs(60));
        assert!(of(Some(now())).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_codes_are_few_from_one_address_and_from_all() {
        let wrong = WrongCodes::default();
        let of = |n: u32| wrong.begin(std::net::Ipv4Addr::from_bits(n).into()).is_ok();
        assert_eq!((0..100).filter(|_| of(1)).count(), WRONG_OF_ADDRESS);
        assert_eq!(
            (0..10_000).filter(|n| of(2 + n)).count(),
            WRONG_OF_ALL - WRONG_OF_ADDRESS
        );
        wrong.forgive(std::net::Ipv4Addr::from_bits(1).into());
        assert!(of(1) && !of(1));
        tokio::time::advance(MINUTE).await;
        assert!(of(1));
        let of_network = |net: u16| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, net);
            wrong.begin(address.into()).is_ok()
        };
        assert_eq!((0..100).filter(|net| of_network(*net)).count(), WRONG_OF_ADDRESS);
        assert!(wrong.lock().of.len() <= WRONG_OF_ALL);
    }
}
