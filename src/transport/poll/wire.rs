//! The JSON messages of the `poll` transport (protocol.md section 3). Pure.

use serde::{Deserialize, Serialize};

use crate::transport::json::{Encoding, Fields};

/// `POST /api/bridge/register`. What must be there is checked by [`Register::missing`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Register {
    /// The installation's random name.
    pub client_id: Option<String>,
    /// The operating system.
    pub platform: Option<String>,
    /// The bridge's version.
    pub version: Option<String>,
    /// What it can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// The name it wishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The higher, the sooner it gets work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// By name only, and in no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Why it polls, in a sentence for its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Register {
    /// The names of required fields that are not there.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("clientId", &self.client_id),
            ("platform", &self.platform),
            ("version", &self.version),
        ]
        .into_iter()
        .filter(|(_, value)| value.as_ref().is_none_or(String::is_empty))
        .map(|(name, _)| name)
        .collect()
    }
}

/// What a bridge can do beyond what shipped apps do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// It acknowledges batches (`ack`).
    pub ack: bool,
    /// It answers in parts, and knows repeated headers (`parts`).
    pub parts: bool,
    /// It fetches request bodies (`body-parts`).
    pub body_parts: bool,
}

impl Capabilities {
    /// Our bridge's, as they are registered.
    pub const OURS: [&'static str; 3] = ["ack", "parts", "body-parts"];

    /// Reads the names; those not known are of no concern here.
    pub fn of(names: &[String]) -> Self {
        let has = |name: &str| names.iter().any(|n| n == name);
        Self {
            ack: has("ack"),
            parts: has("parts"),
            body_parts: has("body-parts"),
        }
    }
}

/// What our bridge reads of the answer to [`Register`].
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// The id for all further paths.
    pub bridge_id: String,
    /// The name it got.
    #[serde(default)]
    pub name: Option<String>,
    /// Names the link; polls repeat it.
    #[serde(default)]
    pub link: Option<String>,
    /// The transports that the relay offers, the one it prefers first.
    #[serde(default)]
    pub transports: Vec<String>,
}

/// The answer to a poll.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Batch {
    /// Always true.
    pub success: bool,
    /// To be acknowledged by the next poll.
    pub batch: u64,
    /// Requests, some perhaps for the second time.
    pub requests: Vec<PolledRequest>,
    /// Exchanges whose caller has left.
    pub cancelled: Vec<String>,
    /// Register anew; what is in flight finishes here.
    pub drain: bool,
    /// Make no further connection while one stands: it would lead to the next relay.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub settle: bool,
    /// More is waiting already.
    pub has_more: bool,
}

impl Batch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.cancelled.is_empty()
    }
}

/// One request in a [`Batch`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolledRequest {
    /// Names the exchange.
    pub id: String,
    /// When the caller sent it (RFC 3339).
    #[serde(default)]
    pub timestamp: String,
    /// Milliseconds that an answer in one piece may take.
    #[serde(default)]
    pub timeout: u64,
    /// The request.
    pub data: RequestData,
}

/// The request itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestData {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header fields.
    pub headers: Fields,
    /// The body, if it goes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_encoding: Option<Encoding>,
    /// The body is to be fetched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub body_parts: bool,
}

/// An answer, whole or its first part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// Which exchange, where the path does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The status code.
    pub status: Option<u16>,
    /// The header fields.
    pub headers: Fields,
    /// The body, or its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// How.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_encoding: Option<Encoding>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Further parts follow.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in ".{0,200}") {
            let _ = serde_json::from_str::<Answer>(&text);
            let _ = serde_json::from_str::<Register>(&text);
            let _ = serde_json::from_str::<Batch>(&text);
        }
    }

    #[test]
    fn missing_fields_are_named() {
        let register: Register = serde_json::from_str(r#"{"clientId":"x","version":""}"#).unwrap();
        assert_eq!(register.missing(), ["platform", "version"]);
    }
}
