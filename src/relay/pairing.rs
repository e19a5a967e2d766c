//! `/-/pair` and `/-/pair/claim`: a code that is good once, and for minutes, becomes the token of a bridge; so a desktop is let in
//! where nobody can carry a token to it.

use std::collections::VecDeque;
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
use super::auth::caller_keys::hash;
use super::auth::tokens::now;
use super::error::{Code, Error};
use super::keys::{is_label, manager};
use super::own::{json_response, read_json, store, store_error};
use super::store::StoreError;
use super::store::accounts::Token;
use super::store::keys;
use crate::random;
use crate::token::{Claims, Secret};
use crate::transport::Body;

/// How long a code can be claimed.
pub const CODE_LIFE: Duration = Duration::from_secs(600);
/// How long the token of a bridge lives, unless the one that lets it in lives shorter; it renews itself.
pub const TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
const LETTERS: usize = 8;
/// Wrong codes in a minute: from one address, and from all together.
const WRONG_OF_ADDRESS: usize = 5;
const WRONG_OF_ALL: usize = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// A fresh code, as it is shown.
///
/// # Errors
/// When the system gives no random numbers.
pub fn make_code() -> io::Result<String> {
    let letters = random::letters(LETTERS)?.to_uppercase();
    let (first, second) = letters.split_at(LETTERS / 2);
    Ok(format!("{first}-{second}"))
}

/// What is kept of a code, however it was typed.
pub fn code_hash(code: &str) -> String {
    let letters = code.chars().filter(char::is_ascii_alphanumeric);
    let plain = letters.map(|letter| match letter.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        letter => letter,
    });
    // A prefix, so that it is the hash of nothing else.
    hash(&format!("pair {}", plain.collect::<String>()))
}

/// `POST /-/pair`: a code for a bridge of the user.
///
/// # Errors
/// `unauthorized`, `forbidden`, `rate_limited`, `overloaded`.
pub async fn pair(relay: &Relay, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let (maker, _asking) = manager(relay, headers)?;
    let code = make_code().map_err(|_| Error::new(Code::Overloaded, "no random numbers to be had"))?;
    let expires = now() + CODE_LIFE.as_secs();
    let left = maker.expires.map_or(u64::MAX, |end| end.saturating_sub(now()).max(1));
    let kept = keys::Code {
        user: maker.user.to_string(),
        life: left.min(TOKEN_LIFE.as_secs()),
    };
    let added = store(relay)?.add_code(&kept, &code_hash(&code), expires).await;
    added.map_err(|error| store_error(&error))?;
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
    let hash = code_hash(&claim.code);
    let code = store.code(&hash).await.map_err(|error| store_error(&error))?;
    let code = code.ok_or_else(wrong_code)?;
    let life = Duration::from_secs(code.life);
    let token = relay.tokens.issue(&code.user, Scopes::BRIDGE, Some(life));
    let token = token.map_err(|error| Error::new(Code::Overloaded, error.to_string()))?;
    let kept = described(&token, claim.name.as_deref());
    store.claim(&hash, &kept).await.map_err(|error| match error {
        StoreError::Absent => wrong_code(),
        error => store_error(&error),
    })?;
    tracing::info!(user = code.user, id = kept.id, "a desktop was paired");
    Ok(json_response(
        StatusCode::OK,
        &json!({"token": token.expose(), "user": code.user}),
    ))
}

/// What the store is to remember of a token that was just signed here.
fn described(token: &Secret, name: Option<&str>) -> Token {
    let claims = Claims::peek(token);
    let name = name.filter(|name| is_label(name) && !name.is_empty());
    Token {
        id: claims
            .as_ref()
            .and_then(|claims| claims.jti.clone())
            .unwrap_or_default(),
        user: claims.as_ref().map(|claims| claims.sub.clone()).unwrap_or_default(),
        label: Some(name.map_or_else(|| "paired".to_owned(), |name| format!("paired {name}"))),
        scopes: Scopes::BRIDGE.to_string(),
        issued: claims.as_ref().and_then(|claims| claims.iat),
        expires: claims.and_then(|claims| claims.exp),
        last_used: None,
        revoked: None,
    }
}

fn wrong_code() -> Error {
    let detail = "this code is not known, was used, or has run out; get a new one";
    Error::new(Code::Unauthorized, detail).because("pairing code not good")
}

/// The wrong codes of the last minute, and from where. A code is counted before it is looked at: many at once are as few as one
/// after the other.
#[derive(Debug, Default)]
pub struct WrongCodes(Mutex<VecDeque<(Instant, IpAddr)>>);

impl WrongCodes {
    /// Counts one.
    ///
    /// # Errors
    /// `rate_limited`, with the time after which there is room for one more.
    fn begin(&self, address: IpAddr) -> Result<(), Error> {
        let (now, address) = (Instant::now(), network(address));
        let mut wrong = self.lock();
        while wrong
            .front()
            .is_some_and(|(when, _)| now.duration_since(*when) >= MINUTE)
        {
            wrong.pop_front();
        }
        let of_address: Vec<_> = wrong.iter().filter(|(_, other)| *other == address).collect();
        let oldest = if of_address.len() >= WRONG_OF_ADDRESS {
            of_address.first().map(|(when, _)| *when)
        } else if wrong.len() >= WRONG_OF_ALL {
            wrong.front().map(|(when, _)| *when)
        } else {
            None
        };
        if let Some(oldest) = oldest {
            let wait = MINUTE.saturating_sub(now.duration_since(oldest));
            let detail = "too many wrong codes; try again in a minute";
            return Err(Error::new(Code::RateLimited, detail).retry_after(wait));
        }
        wrong.push_back((now, address));
        Ok(())
    }

    /// It was not wrong.
    fn forgive(&self, address: IpAddr) {
        let address = network(address);
        let mut wrong = self.lock();
        if let Some(last) = wrong.iter().rposition(|(_, other)| *other == address) {
            wrong.remove(last);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, IpAddr)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
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
            code_hash(&code),
            code_hash(&format!(" {}", code.to_lowercase().replace('-', " ")))
        );
        assert_eq!(code_hash("0110-ABCD"), code_hash("oilo-abcd"));
        assert_ne!(code_hash("0110-ABCD"), code_hash("0110-ABCE"));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_codes_are_few_from_one_address_and_from_all() {
        let wrong = WrongCodes::default();
        let of = |n: usize| wrong.begin(IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])).is_ok();
        assert_eq!((0..100).filter(|_| of(1)).count(), WRONG_OF_ADDRESS);
        assert_eq!(
            (0..100).filter(|n| of(2 + n % 50)).count(),
            WRONG_OF_ALL - WRONG_OF_ADDRESS
        );
        wrong.forgive([10, 0, 0, 1].into());
        assert!(of(1) && !of(1));
        tokio::time::advance(MINUTE).await;
        assert!(of(1));
        let of_network = |host: u16| {
            wrong
                .begin(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into())
                .is_ok()
        };
        assert_eq!((0..100).filter(|host| of_network(*host)).count(), WRONG_OF_ADDRESS);
        assert!(wrong.lock().len() <= WRONG_OF_ALL);
    }
}
