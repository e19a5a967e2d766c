//! Why a token is not accepted: in the log's words, and in those for its holder.

use std::time::Duration;

use super::denials::Denial;
use crate::relay::error::{Code, Error};

/// When it makes sense to try again what cannot be decided yet.
pub const AGAIN: Duration = Duration::from_secs(5);

/// Why a token is not accepted; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// There is none.
    Missing,
    /// It is longer than any token that is looked at.
    TooLong,
    /// It is no JWT with the claims it needs.
    Malformed,
    /// It is a JWT for something else.
    Type,
    /// Its issuer does not sign so.
    Algorithm,
    /// Somebody else signed it.
    Signature,
    /// Its issuer is none of those that are trusted.
    Issuer,
    /// It is for another audience.
    Audience,
    /// Its issuer has no key that may have signed it.
    UnknownSigner,
    /// Its issuer may have the key that signed it, and is asked as soon as it may be.
    SignerNotYetKnown,
    /// It is a key for callers, and none that is valid reads so.
    UnknownKey,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It would never end, and its issuer's must.
    Endless,
    /// It names no user, or none that could be one.
    NoUser,
    /// Its user signed in and is none of those who may come in.
    NotAllowed,
    /// Something is held against it or its user.
    Held(Denial),
    /// What is held against whom is not known yet.
    NotKnownYet,
    /// Its issuer cannot be asked what must be known for it.
    ProviderAway,
}

impl Denied {
    /// Whether it may be decided otherwise in a moment.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::NotKnownYet | Self::ProviderAway | Self::SignerNotYetKnown)
    }

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "no token",
            Self::TooLong => "token too long",
            Self::Malformed => "token malformed",
            Self::Type => "token of a wrong type",
            Self::Algorithm => "token with a wrong algorithm",
            Self::Signature => "token with a wrong signature",
            Self::Issuer => "token of another issuer",
            Self::Audience => "token for another audience",
            Self::UnknownSigner => "token with an unknown key",
            Self::SignerNotYetKnown => "token with a key not known yet",
            Self::UnknownKey => "key unknown or revoked",
            Self::Expired => "token expired",
            Self::NotYetValid => "token not yet valid",
            Self::Endless => "token without an end",
            Self::NoUser => "token without a proper user",
            Self::NotAllowed => "user not allowed in",
            Self::Held(Denial::Revoked) => "token revoked",
            Self::Held(Denial::Disabled) => "user disabled",
            Self::Held(Denial::Deleted) => "user deleted",
            Self::NotKnownYet => "the store is not there yet",
            Self::ProviderAway => "the sign-in provider cannot be asked",
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        let (code, detail) = match denied {
            Denied::Held(Denial::Disabled) => (
                Code::Forbidden,
                "this user is not let in for now; ask the operator of the relay",
            ),
            Denied::NotAllowed => (
                Code::Forbidden,
                "you are signed in, but not one of those whom this relay lets in; ask its operator",
            ),
            Denied::NotKnownYet => (
                Code::Overloaded,
                "the relay has just started and cannot reach its database yet; try again in a moment",
            ),
            Denied::ProviderAway => (
                Code::Overloaded,
                "the relay cannot reach the provider of sign-in; try again in a moment",
            ),
            Denied::SignerNotYetKnown => (
                Code::Overloaded,
                "the relay does not know yet whether the provider of sign-in has the key of this token; try again in a moment",
            ),
            Denied::Missing => (
                Code::Unauthorized,
                "a token is needed: send it as 'Authorization: Bearer TOKEN'",
            ),
            Denied::Expired => (
                Code::Unauthorized,
                "this token has expired; sign in again, or ask the operator of the relay for a new one if you got it there",
            ),
            // Only tokens of somebody who signed in have these.
            Denied::Type | Denied::Issuer | Denied::Audience | Denied::UnknownSigner | Denied::Endless => (
                Code::Unauthorized,
                "this token is not accepted; sign in again, and tell the operator of the relay if that does not help",
            ),
            _ => (
                Code::Unauthorized,
                "this token is not accepted; sign in again, or ask the operator of the relay for a new one if you got it there",
            ),
        };
        let error = Self::new(code, detail).because(denied.as_str());
        match denied {
            Denied::ProviderAway | Denied::SignerNotYetKnown => error.retry_after(AGAIN),
            _ => error,
        }
    }
}
