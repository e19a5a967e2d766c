//! How many tokens an exchange took: counted by the bridge, told the relay behind the answer as `Tunnel-Usage`, told no caller
//! (protocol.md sections 2 and 3). Here is what both ends say of it in header fields and trailers.

use http::header::{HeaderMap, HeaderValue, TE, TRAILER};
use http::{Method, Request};
use serde::Serialize;
use serde_json::Value;

use super::headers::{TUNNEL_TE, TUNNEL_USAGE, has_token, remove_tunnel};

/// The longest name of a model, characters. A longer one is left out: part of a name is another name.
pub const LONGEST_MODEL: usize = 128;
/// More tokens than this no exchange takes: sums of such numbers stay numbers.
pub const MOST_TOKENS: u64 = u32::MAX as u64;
/// The longest report that is read, octets: longer than any with such a name.
const LONGEST: usize = 4096;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// What is known of an exchange's tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// The model that answered.
    pub model: Option<Box<str>>,
    /// Tokens of the prompt.
    pub prompt: Option<u64>,
    /// Tokens of the answer.
    pub completion: Option<u64>,
}

impl Usage {
    /// As it stands in a header field.
    pub fn to_header(&self) -> HeaderValue {
        let known = Report {
            model: self.model.as_deref().filter(|model| is_model(model)),
            prompt: self.prompt,
            completion: self.completion,
        };
        let json = serde_json::to_string(&known).unwrap_or_default();
        let json = if json.is_ascii() { json } else { escaped(&json) };
        HeaderValue::from_str(&json).unwrap_or_else(|_| HeaderValue::from_static("{}"))
    }

    /// Reads a header field; none if it tells nothing. What is not as it should be counts as unknown.
    pub fn parse(value: &HeaderValue) -> Option<Self> {
        let value = Some(value.as_bytes()).filter(|value| value.len() <= LONGEST)?;
        let value: Value = serde_json::from_slice(value).ok()?;
        let count = |name: &str| value.get(name)?.as_u64().filter(|count| *count <= MOST_TOKENS);
        let model = value.get("model").and_then(Value::as_str);
        let usage = Self {
            model: model.filter(|model| is_model(model)).map(Box::from),
            prompt: count("prompt"),
            completion: count("completion"),
        };
        (usage != Self::default()).then_some(usage)
    }
}

/// What is known, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion: Option<u64>,
}

/// JSON in ASCII: other characters only stand in strings, and are escaped there.
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(2 * json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            let units = c.encode_utf16(&mut [0; 2]).to_vec();
            ascii.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    ascii
}

/// Whether a model may have this name.
pub fn is_model(name: &str) -> bool {
    !name.is_empty() && !name.contains(char::is_control) && name.chars().count() <= LONGEST_MODEL
}

/// The relay asks the bridge for a report, which comes in a trailer; tells whether it did. The caller's own `TE` goes along under
/// another name, because trailers are now the relay's wish.
pub fn ask<B>(request: &mut Request<B>) -> bool {
    // Tokens are counted where something is posted, and the head of any other request stays short.
    if request.method() != Method::POST {
        return false;
    }
    let headers = request.headers_mut();
    // A request that is sent once more was asked before.
    if !headers.contains_key(TUNNEL_USAGE) {
        headers.insert(TUNNEL_USAGE, HeaderValue::from_static("1"));
        if has_token(headers, &TE, "trailers") {
            headers.insert(TUNNEL_TE, TRAILERS);
        }
        headers.insert(TE, TRAILERS);
    }
    true
}

/// Whether the relay asks; `TE` is the caller's own again.
pub fn is_asked(headers: &mut HeaderMap) -> bool {
    let asked = headers.contains_key(TUNNEL_USAGE);
    if asked {
        headers.remove(TE);
        if has_token(headers, &TUNNEL_TE, "trailers") {
            headers.insert(TE, TRAILERS);
        }
    }
    asked
}

/// The bridge says in the head of an answer that a report may follow.
pub fn announce(headers: &mut HeaderMap) {
    headers.append(TRAILER, TUNNEL_USAGE.into());
}

/// Puts a report that is there already into the head, and takes back that it may follow: an answer in one piece has no trailers.
pub fn to_head(trailers: &mut Option<HeaderMap>, headers: &mut HeaderMap) {
    if !is_announced(headers) {
        return;
    }
    remove_tunnel(headers);
    if let Some(report) = trailers.as_mut().and_then(|trailers| trailers.remove(TUNNEL_USAGE)) {
        headers.insert(TUNNEL_USAGE, report);
        *trailers = trailers.take().filter(|trailers| !trailers.is_empty());
    }
}

/// Whether a report may follow.
pub fn is_announced(headers: &HeaderMap) -> bool {
    has_token(headers, &TRAILER, TUNNEL_USAGE.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Usage> {
        Usage::parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_not_as_it_should_be_counts_as_unknown() {
        let long = "x".repeat(LONGEST_MODEL + 1);
        for text in [
            "",
            "{}",
            "[1]",
            "7",
            "no",
            r#"{"prompt":-1,"completion":1.5,"model":""}"#,
            r#"{"prompt":"7","completion":4294967296,"model":7}"#,
            r#"{"prompt":18446744073709551616,"model":"a\nb"}"#,
            r#"{"model":"a\u001b[1m"}"#,
            &format!(r#"{{"model":"{long}"}}"#),
            &format!(r#"{{"prompt":1,"x":"{}"}}"#, "x".repeat(LONGEST)),
            &"[".repeat(LONGEST),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let partly = parse(r#"{"prompt":3,"completion":null,"model":["x"],"more":{}}"#).unwrap();
        assert_eq!((partly.prompt, partly.completion, partly.model), (Some(3), None, None));
    }

    #[test]
    fn the_callers_own_wish_for_trailers_stays_what_it_is() {
        for (own, repeated) in [
            (None, false),
            (Some("trailers"), false),
            (Some("trailers"), true),
            (None, true),
        ] {
            let mut request = Request::post("/api/chat").body(()).unwrap();
            if let Some(own) = own {
                request.headers_mut().insert(TE, HeaderValue::from_static(own));
            }
            for _ in 0..=i32::from(repeated) {
                assert!(ask(&mut request));
            }
            assert_eq!(request.headers()[TE], "trailers");
            assert!(is_asked(request.headers_mut()));
            let te = request.headers().get(TE).map(|te| te.to_str().unwrap());
            assert_eq!(te, own);
        }
        assert!(!ask(&mut Request::get("/").body(()).unwrap()));
    }

    proptest! {
        #[test]
        fn every_usage_survives(
            model in proptest::option::of("\\PC{1,128}"),
            prompt in proptest::option::of(0..=MOST_TOKENS),
            completion in proptest::option::of(0..=MOST_TOKENS),
        ) {
            let model = model.filter(|model| is_model(model)).map(String::into_boxed_str);
            let usage = Usage { model, prompt, completion };
            let known = (usage != Usage::default()).then_some(usage.clone());
            prop_assert_eq!(Usage::parse(&usage.to_header()), known);
        }

        #[test]
        fn any_usage_makes_a_header_and_none_harms(model: String, prompt: u64, octets: Vec<u8>) {
            let usage = Usage { model: Some(model.into()), prompt: Some(prompt), completion: None };
            prop_assert!(usage.to_header().to_str().is_ok());
            if let Ok(value) = HeaderValue::from_bytes(&octets) {
                let read = Usage::parse(&value);
                prop_assert!(read.is_none_or(|usage| usage.model.is_none_or(|model| is_model(&model))));
            }
        }
    }
}
