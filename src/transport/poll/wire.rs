//! The JSON messages of the `poll` transport (protocol.md section 3): their fields, and how heads and bodies stand in them. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

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

/// How a body stands in a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As it is.
    Utf8,
    /// RFC 4648 section 4.
    Base64,
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

/// Header fields in JSON: a string each, or an array of strings for one that is repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(BTreeMap<String, Values>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The name of a header field is none.
    #[error("'{}' is no name of a header field", .0.escape_debug())]
    Name(String),
    /// A value holds what may not stand in one, a line break for instance.
    #[error("the value of the header field '{0}' holds characters that cannot stand there")]
    Value(String),
    /// The body is not what `bodyEncoding` says.
    #[error("the body is no base64")]
    Base64,
}

impl Fields {
    /// Writes header fields. `arrays`: repeated ones as arrays, else joined by commas (RFC 9110 §5.3).
    pub fn of(headers: &HeaderMap, arrays: bool) -> Self {
        let mut fields = BTreeMap::new();
        for name in headers.keys() {
            let mut values: Vec<String> = headers.get_all(name).iter().map(to_text).collect();
            let values = match (values.len(), arrays) {
                (1, _) => Values::One(values.swap_remove(0)),
                (_, true) => Values::Many(values),
                (_, false) => Values::One(values.join(", ")),
            };
            fields.insert(name.as_str().to_owned(), values);
        }
        Self(fields)
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`Malformed`] for what no header field can be.
    pub fn to_headers(&self) -> Result<HeaderMap, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, values) in &self.0 {
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Malformed::Name(name.clone()))?;
            let values = match values {
                Values::One(value) => std::slice::from_ref(value),
                Values::Many(values) => values,
            };
            for value in values {
                let value = to_value(value).ok_or_else(|| Malformed::Value(name.clone()))?;
                headers.append(header.clone(), value);
            }
        }
        Ok(headers)
    }
}

/// Octets beyond ASCII become the characters of the same number, as in browsers; so every value survives.
fn to_text(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

fn to_value(text: &str) -> Option<HeaderValue> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    HeaderValue::from_bytes(&bytes?).ok()
}

/// Writes a body: as it is where it is text, else in base64; nothing for an empty one.
pub fn encode_body(body: &[u8]) -> (Option<String>, Option<Encoding>) {
    match std::str::from_utf8(body) {
        Ok("") => (None, None),
        Ok(text) => (Some(text.to_owned()), Some(Encoding::Utf8)),
        Err(_) => (Some(BASE64.encode(body)), Some(Encoding::Base64)),
    }
}

/// Reads a body.
///
/// # Errors
/// [`Malformed::Base64`].
pub fn decode_body(body: Option<String>, encoding: Option<Encoding>) -> Result<Bytes, Malformed> {
    match (body, encoding) {
        (None, _) => Ok(Bytes::new()),
        (Some(body), Some(Encoding::Base64)) => BASE64.decode(body).map(Bytes::from).map_err(|_| Malformed::Base64),
        (Some(body), _) => Ok(Bytes::from(body)),
    }
}

/// The time now, as it stands in messages (RFC 3339, milliseconds).
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_body_survives(body: Vec<u8>) {
            let (text, encoding) = encode_body(&body);
            prop_assert_eq!(decode_body(text, encoding).unwrap(), body);
        }

        #[test]
        fn every_header_survives(values in prop::collection::vec(prop::collection::vec(0x20u8..=0xff, 0..40), 0..6)) {
            let mut headers = HeaderMap::new();
            for (number, value) in values.iter().enumerate() {
                let value: Vec<u8> = value.iter().copied().filter(|byte| *byte != 0x7f).collect();
                let name = HeaderName::from_bytes(format!("x-{}", number % 3).as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_bytes(&value).unwrap());
            }
            let json = serde_json::to_string(&Fields::of(&headers, true)).unwrap();
            let read: Fields = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read.to_headers().unwrap(), headers);
        }

        #[test]
        fn no_text_makes_reading_panic(text in ".{0,200}") {
            let _ = serde_json::from_str::<Answer>(&text);
            let _ = serde_json::from_str::<Register>(&text);
            let _ = serde_json::from_str::<Batch>(&text);
        }
    }

    #[test]
    fn what_no_header_can_be_is_named() {
        for (json, error) in [
            (r#"{"x":"a\r\nb: c"}"#, Malformed::Value("x".into())),
            (r#"{"x":["a","\u0000"]}"#, Malformed::Value("x".into())),
            (r#"{"x":"\u4e2d"}"#, Malformed::Value("x".into())),
            (r#"{"a b":"c"}"#, Malformed::Name("a b".into())),
        ] {
            let fields: Fields = serde_json::from_str(json).unwrap();
            assert_eq!(fields.to_headers(), Err(error), "{json}");
        }
    }

    #[test]
    fn repeated_headers_are_joined_for_those_who_know_no_arrays() {
        let mut headers = HeaderMap::new();
        headers.append("accept", HeaderValue::from_static("a"));
        headers.append("accept", HeaderValue::from_static("b"));
        let joined = serde_json::to_string(&Fields::of(&headers, false)).unwrap();
        assert_eq!(joined, r#"{"accept":"a, b"}"#);
        let array = serde_json::to_string(&Fields::of(&headers, true)).unwrap();
        assert_eq!(array, r#"{"accept":["a","b"]}"#);
    }

    #[test]
    fn missing_fields_are_named() {
        let register: Register = serde_json::from_str(r#"{"clientId":"x","version":""}"#).unwrap();
        assert_eq!(register.missing(), ["platform", "version"]);
    }
}
