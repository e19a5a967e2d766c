//! How a bridge of somebody is written: `OWNER/NAME`.

use std::fmt;

use super::auth::tokens::is_user;
use crate::transport::is_bridge_name;

/// A bridge of somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whose it is.
    pub owner: String,
    /// What it is called.
    pub name: String,
}

impl Address {
    /// Reads `OWNER/NAME`; of the owner, all but unreserved characters may be percent-encoded.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, name) = text.rsplit_once('/')?;
        let owner = decoded(owner).filter(|owner| is_user(owner))?;
        let name = Some(name).filter(|name| is_bridge_name(name))?;
        Some(Self {
            owner,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.owner.as_bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        write!(f, "/{}", self.name)
    }
}

/// A text whose escapes are undone.
fn decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&octet, after)) = rest.split_first() {
        if octet != b'%' {
            octets.push(octet);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        octets.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
        rest = &after[2..];
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for (owner, written) in [("auth0|1", "auth0%7C1/box"), ("a/b", "a%2Fb/box"), ("é", "%C3%A9/box")] {
            let address = Address {
                owner: owner.to_owned(),
                name: "box".to_owned(),
            };
            assert_eq!(address.to_string(), written);
            assert_eq!(Address::parse(written), Some(address));
        }
    }
}
