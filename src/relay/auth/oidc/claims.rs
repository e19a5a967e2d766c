//! What a token of the provider says, and what the provider says of its user. [`super::rules`] decide by it.

use serde_json::{Map, Value};

use crate::relay::auth::Scopes;
use crate::relay::auth::refusal::Denied;
use crate::relay::auth::tokens::is_user;

/// What says whether an address is the user's own.
const VERIFIED: &str = "email_verified";

/// The claims of a token whose signature was verified.
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    pub(super) fn new(claims: Map<String, Value>) -> Self {
        Self(claims)
    }

    /// Whether there is such a claim; an address counts together with the word that it was verified.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name) && (name != "email" || self.0.contains_key(VERIFIED))
    }

    /// A claim that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A claim that is a time, seconds since 1970.
    pub(super) fn seconds(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        // A fraction of a second is cut.
        value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64))
    }

    /// Who it is to the provider.
    pub(super) fn subject(&self) -> Result<&str, Denied> {
        self.text("sub").filter(|sub| is_user(sub)).ok_or(Denied::NoUser)
    }

    /// The program that the token was given to, if the token tells.
    pub(super) fn client(&self) -> &str {
        let names = ["azp", "client_id", "cid"];
        names.iter().find_map(|name| self.text(name)).unwrap_or_default()
    }

    /// The user's name to the relay, by this claim. Addresses are the user's own, and written small: nobody is two.
    pub(super) fn user(&self, claim: &str) -> Option<String> {
        let user = match claim {
            "email" => self.verified_email()?.to_ascii_lowercase(),
            claim => self.text(claim)?.to_owned(),
        };
        is_user(&user).then_some(user)
    }

    /// The user's address, if the provider made sure that it is the user's.
    pub(super) fn verified_email(&self) -> Option<&str> {
        let verified = self.0.get(VERIFIED)?;
        // Some say it as a text.
        (verified == &Value::Bool(true) || verified == "true").then_some(())?;
        self.text("email")
    }

    /// The user's groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        words(self.0.get("groups"))
    }

    /// What the token is good for. One that names none of our scopes is good for desktops and requests; one that the page's program
    /// got to ask with makes keys and codes as well: its holder is a person who signed in there. `is_access`: by its type it can be
    /// no ID token (RFC 9068).
    pub(super) fn scopes(&self, page: &str, is_access: bool) -> Scopes {
        let named: Vec<_> = ["scope", "scp"]
            .iter()
            .flat_map(|name| words(self.0.get(*name)))
            .collect();
        let of_page = self.client() == page && !self.is_identity(is_access);
        let otherwise = if of_page { Scopes::ALL } else { Scopes::BOTH };
        Scopes::named(&named.join(" ")).unwrap_or(otherwise)
    }

    /// Whether it is an ID token (OpenID Connect Core §2, §3.1.3.6, §3.3.2.11): it says who signed in, and other places get it too.
    fn is_identity(&self, is_access: bool) -> bool {
        self.has("at_hash") || self.has("c_hash") || (self.has("nonce") && !is_access)
    }

    /// Whether it tells of something that happened (RFC 8417), as of somebody who signed out, and lets nobody in.
    pub(super) fn is_event(&self) -> bool {
        self.has("events")
    }

    /// Takes from what the provider says of the user what decides on who it is and the token does not say, if it is of the same user.
    pub(super) fn complete(&mut self, mut told: Map<String, Value>, user_claim: &str) {
        if told.get("sub") != self.0.get("sub") {
            return;
        }
        // An address is worth nothing without the word that it was verified, and both must be of the same source.
        let address = ["email", VERIFIED].into_iter().filter(|_| !self.has("email"));
        let others = ["groups", user_claim]
            .into_iter()
            .filter(|name| !matches!(*name, "email" | VERIFIED) && !self.has(name));
        let (address, others): (Vec<_>, Vec<_>) = (address.collect(), others.collect());
        for name in address.into_iter().chain(others) {
            self.0.remove(name);
            if let Some(value) = told.remove(name) {
                self.0.insert(name.to_owned(), value);
            }
        }
    }
}

/// A text, or the texts of a list.
fn words(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.chain(value).filter_map(Value::as_str)
}
