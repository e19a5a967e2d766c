//! Keeps callers off the models that run on the owner's account in the cloud; stands between `policy`, which knows only
//! paths, and `upstream`, which sends the body on.
//!
//! Ollama tells such a model by the end of its name (`internal/modelref`): the tag is `cloud` or ends in `-cloud`, in
//! any case, with space around it. The name stands inside the body, and bodies are never collected here: a scanner
//! of constant size reads along, and the piece that completes such a name is not passed on. So Ollama never sees a
//! complete request, and does not act on it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::scan::{Attention, Reader, Scanner};
use crate::transport::headers::is_plain;
use crate::transport::{Body, BoxError, ExchangeError};

const CLOUD: &str =
    "the bridge does not open models that run in the cloud on its owner's account; its owner can with --allow-cloud";
const ENCODED: &str =
    "cloud models are closed, and the bridge cannot look for them in an encoded body; its owner can use --allow-cloud";

/// Whether a request with this normalised path can name a model, so that it has to pass [`guard`].
pub fn applies(method: &Method, path: &str) -> bool {
    // Ollama's router decodes before it matches; an encoded slash gets here only if the owner opened every path.
    let path = path.replace("%2F", "/");
    let named = matches!(
        path.as_str(),
        "/api/chat" | "/api/generate" | "/api/embed" | "/api/embeddings" | "/api/show"
    );
    method == Method::POST && (named || path.starts_with("/v1/"))
}

/// Puts a guard into the request's body: it breaks when it names a model of the cloud.
///
/// # Errors
/// [`ExchangeError::Refused`] for a body that cannot be looked into because of its `Content-Encoding`.
pub fn guard(request: Request<Body>) -> Result<(Request<Body>, Guard), ExchangeError> {
    let refused = Arc::new(AtomicBool::new(false));
    let guard = Guard(Arc::clone(&refused));
    if http_body::Body::is_end_stream(request.body()) {
        return Ok((request, guard));
    }
    if !is_plain(request.headers()) {
        return Err(policy(ENCODED));
    }
    let guarded = request.map(|body| {
        GuardedBody {
            body,
            scanner: Scanner::default(),
            names: Names::default(),
            refused,
        }
        .boxed_unsync()
    });
    Ok((guarded, guard))
}

/// Knows afterwards whether the body was broken on purpose.
#[derive(Debug)]
pub struct Guard(Arc<AtomicBool>);

impl Guard {
    /// What to answer in place of the error that the broken body led to; none if nothing was refused.
    pub fn refusal(&self) -> Option<ExchangeError> {
        self.0.load(Ordering::Acquire).then(|| policy(CLOUD))
    }
}

fn policy(detail: &str) -> ExchangeError {
    ExchangeError::Refused {
        code: "policy".to_owned(),
        detail: detail.to_owned(),
    }
}

/// A request body that is read along on its way to the local server.
struct GuardedBody {
    body: Body,
    scanner: Scanner,
    names: Names,
    refused: Arc<AtomicBool>,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // An error each time, never an end: whoever polls on must not take the request for a complete one.
        if self.refused.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(CLOUD.into())));
        }
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.scanner.feed(data, &mut this.names);
        }
        if this.names.found {
            this.refused.store(true, Ordering::Release);
            return Poll::Ready(Some(Err(CLOUD.into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.refused.load(Ordering::Acquire)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Looks for a cloud model's name in the outermost object of a document.
///
/// Only documents that are valid must be judged right: Ollama reads a whole document before it acts, and answers 400 to
/// anything else. What comes after the first document it never reads.
#[derive(Debug, Default)]
struct Names {
    /// Objects and arrays around this place. Ollama takes 10000, so what saturates is refused there.
    depth: u32,
    role: Role,
    /// Whether the last outermost key is one that names a model.
    named: bool,
    word: Word,
    found: bool,
    over: bool,
}

/// What a string at this place of the outermost object is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Role {
    Key,
    Model,
    #[default]
    Other,
}

impl Reader for Names {
    fn attention(&self) -> Attention {
        match self.depth {
            _ if self.found || self.over => Attention::Over,
            1 if self.role != Role::Other => Attention::Texts,
            0 | 1 => Attention::Marks,
            _ => Attention::Nesting,
        }
    }

    fn mark(&mut self, mark: u8) {
        match mark {
            b'{' if self.depth == 0 => {
                self.depth = 1;
                self.role = Role::Key;
            }
            _ if self.depth == 0 => self.over = true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth -= 1;
                self.over = self.depth == 0;
            }
            b':' => self.role = if self.named { Role::Model } else { Role::Other },
            _ => self.role = Role::Key,
        }
    }

    fn plain(&mut self, byte: u8) {
        // With the byte order mark: not JSON, but some readers skip it.
        let skipped = matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF);
        self.over |= self.depth == 0 && !skipped;
    }

    fn begin_text(&mut self) {
        self.over |= self.depth == 0;
        self.word = Word::default();
    }

    fn octets(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.word.push((*octet).into()));
    }

    fn unit(&mut self, unit: u16) {
        self.word.push(unit);
    }

    fn end_text(&mut self) {
        match self.role {
            Role::Key => self.named = self.word.names_model(),
            // Of several, Ollama takes the last; refusing for any cannot be wrong in the caller's favour.
            Role::Model => self.found = self.word.is_cloud(),
            Role::Other => {}
        }
        self.role = Role::Other;
    }
}

/// The last eight characters of a string, in lower case; zero where there are none.
///
/// Names and keys are visible ASCII. Anything else can only be space that Ollama trims, and a run of it counts as one:
/// no amount of it pushes out what stands before.
#[derive(Debug, Clone, Copy, Default)]
struct Word(u64);

impl Word {
    fn push(&mut self, unit: u16) {
        let byte = match u8::try_from(unit) {
            Ok(byte @ b'!'..=b'~') => byte.to_ascii_lowercase(),
            _ => b' ',
        };
        if byte != b' ' || !self.ends_blank() {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn ends_blank(self) -> bool {
        self.0.to_be_bytes().ends_with(b" ")
    }

    /// Whether this is a key Ollama reads a model's name from; it compares keys without case.
    fn names_model(self) -> bool {
        matches!(&self.0.to_be_bytes(), b"\0\0\0model" | b"\0\0\0\0name")
    }

    fn is_cloud(self) -> bool {
        let name = if self.ends_blank() { self.0 >> 8 } else { self.0 }.to_be_bytes();
        // Ollama trims the tag by itself, too.
        name.ends_with(b":cloud") || name.ends_with(b": cloud") || name.ends_with(b"-cloud")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{empty, full};
    use futures_util::FutureExt;
    use http::HeaderValue;
    use http::header::CONTENT_ENCODING;
    use http_body_util::StreamBody;
    use proptest::collection::{hash_map, vec};
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::Value;

    fn found(document: impl AsRef<[u8]>) -> bool {
        found_in([document.as_ref()])
    }

    fn found_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let (mut scanner, mut names) = (Scanner::default(), Names::default());
        for piece in pieces {
            scanner.feed(piece, &mut names);
        }
        names.found
    }

    /// The same by other means.
    fn oracle(document: &Value) -> bool {
        let is_cloud = |name: &str| {
            let name = name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_graphic(), " ");
            let tag = name.rsplit_once(':').map(|(_, tag)| tag.trim());
            tag == Some("cloud") || name.trim().ends_with("-cloud")
        };
        document.as_object().is_some_and(|members| {
            members.iter().any(|(key, value)| {
                matches!(key.to_ascii_lowercase().as_str(), "model" | "name") && value.as_str().is_some_and(is_cloud)
            })
        })
    }

    const NAMES: &str = r"gpt-oss:120b-cloud qwen3-coder:480b-cloud kimi-k2:cloud Kimi-K2:CLOUD a:\u0063loud
        a\u002dcloud a\u003Acloud \ta:cloud\n a:\u00a0\t\u3000cloud\u2003\u3000";
    const FOUND: &str = r#"{"stream":false,"MODEL" : "a:cloud","x":1}
        {"\u006dod\u0065l":"a:cloud"}
        {"name":"a: cloud "}
        {"model":"a","model":"a:cloud"}
        {"model":"a:cloud","model":"a"}
        {"x":{"a":["}\"]",{}]},"y":"{\"\\","model":"a:cloud"}"#;
    const PASSED: &str = r#"{}
        not json "model":"a:cloud"
        [{"model":"a:cloud"}]
        {"model":"llama3.2:1b"}
        {"model":"cloud"}
        {"model":"cloud:1b"}
        {"model":"a:cloudy"}
        {"model":"mycloud"}
        {"model":null,"x":"a:cloud"}
        {"model":["a:cloud"]}
        {"options":{"model":"a:cloud"}}
        {"xmodel":"a:cloud","models":"a:cloud"," model":"a:cloud","\u0000model":"a:cloud"}
        {"prompt":"\"model\":\"a:cloud\"","x":"model","y":"a:cloud"}
        {"prompt":"\\","messages":[{"content":"}","model":"a:cloud"}]}
        {"model":"a:cloud
        {} {"model":"a:cloud"}"#;

    #[test]
    fn cloud_models_are_found_and_nothing_else() {
        for name in NAMES.split_whitespace() {
            assert!(found(format!("\u{feff} \r\n{{\"model\":\"{name}\"}}")), "{name}");
        }
        let spaces = " ".repeat(5000);
        assert!(found(format!("{{\"model\":\"{spaces}x{spaces}-cloud{spaces}\"}}")));
        assert!(found(format!("{{\"model\":\"x:{spaces}cloud{spaces}\"}}")));
        for document in FOUND.lines() {
            assert!(found(document), "{document}");
        }
        for document in PASSED.lines() {
            assert!(!found(document), "{document}");
        }
    }

    fn is_policy(error: &ExchangeError) -> bool {
        matches!(error, ExchangeError::Refused { code, detail } if code == "policy"
            && detail.contains("--allow-cloud") && HeaderValue::from_str(detail).is_ok())
    }

    fn chunked(pieces: &[&'static str]) -> Body {
        let frame = |piece: &&'static str| Ok::<_, BoxError>(Frame::data(Bytes::from(*piece)));
        let frames: Vec<_> = pieces.iter().map(frame).collect();
        StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    }

    #[test]
    fn the_piece_that_completes_the_name_is_not_passed_on() {
        let (request, guard) = guard(Request::new(chunked(&["{\"mod", "el\":\"a:clo", "ud\"", "}"]))).unwrap();
        let mut body = request.into_body();
        for passed in ["{\"mod", "el\":\"a:clo"] {
            assert!(guard.refusal().is_none());
            let frame = body.frame().now_or_never().unwrap().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), passed);
        }
        assert!(body.frame().now_or_never().unwrap().unwrap().is_err());
        assert!(guard.refusal().is_some_and(|error| is_policy(&error)));
    }

    #[test]
    fn a_broken_body_never_comes_to_an_end() {
        let mut body = guard(Request::new(full("{\"model\":\"a:cloud\"}")))
            .unwrap()
            .0
            .into_body();
        for _ in 0..2 {
            assert!(body.frame().now_or_never().unwrap().unwrap().is_err());
            assert!(!http_body::Body::is_end_stream(&body));
        }
    }

    #[test]
    fn other_bodies_pass_as_they_are() {
        let (request, guard) = guard(Request::new(full("{\"model\":\"a\"}"))).unwrap();
        assert_eq!(http_body::Body::size_hint(request.body()).exact(), Some(13));
        let passed = request.into_body().collect().now_or_never().unwrap().unwrap();
        assert_eq!(passed.to_bytes(), "{\"model\":\"a\"}");
        assert!(guard.refusal().is_none());
    }

    #[test]
    fn what_cannot_be_looked_into_is_refused() {
        let with = |coding: &'static str, body| {
            let mut request = Request::new(body);
            let coding = HeaderValue::from_static(coding);
            request.headers_mut().insert(CONTENT_ENCODING, coding);
            guard(request).map(|_| ())
        };
        for coding in ["zstd", "gzip", "identity, zstd", "Zstd", "identity;q=1"] {
            assert!(
                with(coding, full("x")).is_err_and(|error| is_policy(&error)),
                "{coding}"
            );
        }
        assert!(with("Identity", full("x")).is_ok());
        assert!(with("zstd", empty()).is_ok());
    }

    #[test]
    fn it_applies_where_a_model_is_named() {
        for path in "/api/chat /api/show /v1/messages /v1/x/y /api%2Fchat /v1%2Fmessages".split(' ') {
            assert!(applies(&Method::POST, path), "{path}");
            assert!(!applies(&Method::GET, path), "{path}");
        }
        for path in ["/", "/api/pull", "/api/chats", "/v1", "/v1x/chat"] {
            assert!(!applies(&Method::POST, path), "{path}");
        }
    }

    const TOKENS: &str = r#"{.}.[.].:.,.".\.\u00.6d. .1.model."model":."a:cloud"."name":"b-cloud"."x":"#;
    const WORDS: &str = r#"model Name MODEL a:cloud b-CLOUD cloud "} \"#;

    fn word() -> impl Strategy<Value = String> {
        let known: Vec<_> = WORDS.split(' ').map(str::to_owned).collect();
        prop_oneof![select(known), "\\PC{0,9}(:|-)?\\s?(cloud)?\\s?"]
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![word().prop_map(Value::from), any::<Option<i32>>().prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            let object = hash_map(word(), inner.clone(), 0..3).prop_map(Value::from_iter);
            prop_oneof![vec(inner, 0..3).prop_map(Value::from), object]
        });
        hash_map(word(), value, 0..6).prop_map(Value::from_iter)
    }

    proptest! {
        #[test]
        fn documents_are_judged_as_by_a_parser_in_any_pieces(
            document in document(), escape in any::<bool>(), size in 1_usize..9,
        ) {
            let mut written = format!("{document:#}");
            if escape {
                // Neither letter stands outside of strings or in an escape.
                written = written.replace('o', "\\u006f").replace('m', "\\u006D");
            }
            prop_assert_eq!(&serde_json::from_str::<Value>(&written).unwrap(), &document);
            prop_assert_eq!(found(&written), oracle(&document), "{}", written);
            prop_assert_eq!(found_in(written.as_bytes().chunks(size)), oracle(&document), "{}", written);
        }

        #[test]
        fn no_valid_document_slips_through(
            tokens in vec(select(TOKENS.split('.').collect::<Vec<_>>()), 0..24),
        ) {
            for document in [tokens.concat(), format!("{{{}}}", tokens.concat())] {
                let parsed = serde_json::from_str(&document).is_ok_and(|parsed| oracle(&parsed));
                prop_assert!(found(&document) || !parsed, "{}", document);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..64)) {
            found(&bytes);
            found([b"{\"model\":\"", &bytes[..]].concat());
        }
    }
}
