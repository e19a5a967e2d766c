//! How heads and bodies stand in JSON messages, whichever transport carries those; and the bodies of apps that know only whole
//! texts. Pure, but for the collecting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Body, ExchangeError, collect};

/// The largest request body that an app gets in one piece, octets.
const MOST: usize = 8 * 1024 * 1024;
/// A body up to this size is not counted against what may be held, octets.
pub const SMALL: usize = 64 * 1024;

/// How a body stands in a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As it is.
    Utf8,
    /// RFC 4648 section 4.
    Base64,
}

/// Header fields in JSON: a string each, or an array of strings for one that is repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Fields(BTreeMap<String, Values>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// More fields, or values of one, are not read: none of them is worth its memory.
const MOST_FIELDS: usize = 512;

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValuesVisitor)
    }
}

struct ValuesVisitor;

impl<'de> Visitor<'de> for ValuesVisitor {
    type Value = Values;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Values, E> {
        Ok(Values::One(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Values, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
            if values.len() > MOST_FIELDS {
                return Err(de::Error::custom("too many values of one header field"));
            }
        }
        Ok(Values::Many(values))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of header fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some((name, values)) = map.next_entry()? {
            fields.insert(name, values);
            if fields.len() > MOST_FIELDS {
                return Err(de::Error::custom("too many header fields"));
            }
        }
        Ok(Fields(fields))
    }
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
    /// More fields than a message may have.
    #[error("there are more header fields than a message may have")]
    TooMany,
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
                headers
                    .try_append(header.clone(), value)
                    .map_err(|_| Malformed::TooMany)?;
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

/// The same, but text that is mostly escapes in base64 too: the shorter of both.
pub fn encode_body_short(body: &[u8]) -> (Option<String>, Option<Encoding>) {
    let escaped: usize = body
        .iter()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum();
    if escaped > body.len() / 3 * 4 + 4 {
        return (Some(BASE64.encode(body)), Some(Encoding::Base64));
    }
    encode_body(body)
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

/// A time as it stands in messages (RFC 3339, milliseconds).
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Room for so many octets within a budget, if they are more than what is always taken; none if there is none now.
pub fn room(budget: &Arc<Semaphore>, octets: usize) -> Option<Option<OwnedSemaphorePermit>> {
    if octets <= SMALL {
        return Some(None);
    }
    let permits = u32::try_from(octets).ok()?;
    Arc::clone(budget).try_acquire_many_owned(permits).ok().map(Some)
}

/// All of a request's body, for an app that takes it in one piece and as text only.
///
/// # Errors
/// `too_large`, not text, or no room for it now.
pub async fn whole_text(
    body: Body,
    budget: &Arc<Semaphore>,
) -> Result<(String, Option<OwnedSemaphorePermit>), ExchangeError> {
    let refused = |code: &str, detail: &str| ExchangeError::Refused {
        code: code.to_owned(),
        detail: detail.to_owned(),
    };
    let too_large = || {
        refused(
            "too_large",
            "this desktop app takes request bodies of 8 MiB at the most",
        )
    };
    let length = http_body::Body::size_hint(&body).exact();
    let length = length.map_or(MOST, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if length > MOST {
        return Err(too_large());
    }
    let permit = room(budget, length).ok_or(ExchangeError::Overloaded)?;
    let body = collect(body, MOST).await.ok_or_else(too_large)?;
    match String::from_utf8(body.to_vec()) {
        Ok(text) => Ok((text, permit)),
        Err(_) => Err(refused(
            "bridge_gone",
            "this desktop app takes only text as a request body",
        )),
    }
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
    fn more_fields_than_a_map_of_them_takes_are_refused() {
        let values = (0..40_000).map(|n| (format!("x-{n}"), Values::One(String::new())));
        assert_eq!(Fields(values.collect()).to_headers(), Err(Malformed::TooMany));
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
}
