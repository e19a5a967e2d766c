//! What a token says. Whoever issued it checks it (`relay::auth`); its holder may read it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// A text that never shows itself in a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides the text; space around it, as files have, is cut.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The text as the value of an `Authorization` header.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The claims of our tokens (RFC 7519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: String,
    /// Issued, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Not valid before, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Ends, seconds since 1970; never, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// The token's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Scopes, separated by spaces (RFC 8693 §4.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The provider that issued it; the relay's own tokens name nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

impl Claims {
    /// Reads the claims without checking the signature: for the holder, who trusts the token anyway. None if it is no JWT.
    pub fn peek(token: &Secret) -> Option<Self> {
        let payload = token.expose().split('.').nth(1)?;
        let json = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&json).ok()
    }
}

/// What is left of a token's life in words, in its largest unit.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new(" s3cret\n");
        assert_eq!(secret.expose(), "s3cret");
        assert_eq!(format!("{secret:?}"), "(secret)");
    }

    #[test]
    fn claims_are_read_from_a_token_and_from_nothing_else() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"sub":"ann","exp":5}"#);
        let claims = Claims::peek(&Secret::new(&format!("e30.{payload}.x"))).unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp), ("ann", Some(5)));
        for text in ["", "abc", "a.b.c", "..", "a.e30.c"] {
            assert_eq!(Claims::peek(&Secret::new(text)), None, "{text}");
        }
    }
}
