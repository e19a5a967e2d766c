//! Tokens: the bridge counts them, the relay knows them, and no caller sees anything of that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tunnel::bridge;
use tunnel::bridge::local::Local;
use tunnel::bridge::policy::Policy;
use tunnel::demo::Demo;
use tunnel::transport::dial::Dialer;
use tunnel::transport::{Body, Exchange, full};

use crate::harness::bridge::Transport;
use crate::harness::raw_bridge::{ALL, RawBridge};
use crate::harness::watch::Watched;
use crate::harness::{Caller, PATIENCE, Path, Upstream, chunk, on_each_transport, post, within};

const LINE: &str = "{\"model\":\"m\",\"response\":\"one\",\"done\":false}\n";
const LAST: &str = "{\"model\":\"m\",\"done\":true,\"prompt_eval_count\":26,\"eval_count\":7}\n";

async fn path(upstream: Upstream, transport: Transport) -> (Path, Watched) {
    let (relay, watched) = Watched::start(|_| {}).await;
    (Path::with(relay, upstream, transport).await, watched)
}

fn ndjson() -> http::response::Builder {
    Response::builder().header("content-type", "application/x-ndjson")
}

fn whole(body: &'static str) -> Response<Body> {
    let response = Response::builder().header("content-type", "application/json; charset=utf-8");
    response.body(full(body)).unwrap()
}

/// All of an answer, which must show nothing of the counting.
async fn collected(response: Response<Incoming>) -> (HeaderMap, Bytes) {
    let (head, body) = response.into_parts();
    let body = within("the whole body", body.collect()).await.unwrap();
    assert!(body.trailers().is_none(), "{:?}", body.trailers());
    let shown = format!("{:?}", head.headers).to_lowercase();
    assert!(!shown.contains("tunnel") && !shown.contains("trailer"), "{shown}");
    (head.headers, body.to_bytes())
}

fn tokens(line: &Value) -> (Option<u64>, Option<u64>) {
    (line["prompt_tokens"].as_u64(), line["completion_tokens"].as_u64())
}

on_each_transport! {
    async fn the_relay_knows_the_tokens_of_every_api(transport: Transport) {
        let demo = Arc::new(Demo::new(Duration::ZERO));
        let upstream = Upstream::serving(move |request| {
            let demo = Arc::clone(&demo);
            async move {
                let (mut parts, body) = request.into_parts();
                parts.headers.insert("host", HeaderValue::from_static("localhost"));
                demo.answer(http::Request::from_parts(parts, body)).await
            }
        }).await;
        let (path, watched) = path(upstream, transport).await;
        let mut caller = path.caller().await;
        let messages = json!([{"role": "user", "content": "good day"}]);
        let chat = |stream: bool| json!({"model": "demo", "messages": messages, "max_tokens": 3, "stream": stream,
            "options": {"num_predict": 3}, "stream_options": {"include_usage": true}});
        let prompt = |stream: bool| json!({"model": "demo", "prompt": "good day", "max_tokens": 3, "stream": stream,
            "options": {"num_predict": 3}, "stream_options": {"include_usage": true}});
        let input = json!({"model": "demo", "input": "good day"});
        let mut asked = Vec::new();
        for stream in [true, false] {
            asked.extend(["/api/chat", "/v1/chat/completions", "/v1/messages"].map(|path| (path, chat(stream), Some(3))));
            asked.extend(["/api/generate", "/v1/completions"].map(|path| (path, prompt(stream), Some(3))));
        }
        asked.extend(["/api/embed", "/v1/embeddings"].map(|path| (path, input.clone(), None)));
        for (number, (api, body, completion)) in asked.into_iter().enumerate() {
            collected(caller.post(api, body.to_string()).await).await;
            let line = watched.log.last(number + 1).await;
            assert_eq!(tokens(&line), (Some(2), completion), "{api} {body} {line}");
            assert!(line["model"] == "demo" || line["model"] == "demo:latest", "{api} {line}");
        }
    }

    async fn callers_get_the_framing_that_the_upstream_gave(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        let large: &'static str = format!("{{\"x\":\"{}\",\"prompt_eval_count\":26,\"eval_count\":7}}", "x".repeat(300_000)).leak();
        let http1 = path.caller().await;
        let http2 = Caller::connect_http2(path.relay.address, &path.token).await;
        let mut lines = 0;
        for (mut caller, is_http1) in [(http1, true), (http2, false)] {
            for body in [LAST, large] {
                let ((), response) = tokio::join!(
                    async { path.upstream.next().await.finish(whole(body)) },
                    caller.post("/api/generate", "{}"),
                );
                let (headers, octets) = collected(response).await;
                assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
                assert!(octets == body);
                lines += 1;
                assert_eq!(tokens(&watched.log.last(lines).await), (Some(26), Some(7)));
            }
            let (upstream, response) = tokio::join!(
                async { path.upstream.next().await.begin(ndjson()) },
                caller.post("/api/generate", "{}"),
            );
            upstream.send(LINE).await;
            upstream.send(LAST).await;
            drop(upstream);
            let (headers, _) = collected(response).await;
            assert!(!headers.contains_key(CONTENT_LENGTH));
            assert_eq!(headers.contains_key("transfer-encoding"), is_http1);
            lines += 1;
            assert_eq!(tokens(&watched.log.last(lines).await), (Some(26), Some(7)));
        }
    }

    async fn the_last_piece_does_not_wait_for_the_end(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let (upstream, mut response) = tokio::join!(
            async { path.upstream.next().await.begin(ndjson()) },
            caller.post("/api/chat", "{}"),
        );
        for piece in [LINE, LAST] {
            upstream.send(piece).await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), piece);
        }
        drop(upstream);
        assert!(chunk(&mut response).await.is_none());
        assert_eq!(tokens(&watched.log.last(1).await), (Some(26), Some(7)));
    }

    async fn an_answer_that_does_not_come_to_its_end_has_no_tokens(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        for (number, breaks) in [true, false].into_iter().enumerate() {
            let mut caller = path.caller().await;
            let (upstream, mut response) = tokio::join!(
                async { path.upstream.next().await.begin(ndjson()) },
                caller.post("/api/chat", r#"{"model":"m"}"#),
            );
            upstream.send(LAST).await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), LAST);
            if breaks {
                upstream.break_off().await;
                assert!(chunk(&mut response).await.unwrap().is_err());
            } else {
                drop((response, caller));
                upstream.abandoned().await;
            }
            let line = watched.log.last(number + 1).await;
            assert_eq!(line["outcome"], if breaks { "broken" } else { "cancelled" });
            assert_eq!((tokens(&line), line.get("model")), ((None, None), None));
        }
    }

    async fn what_has_no_counts_passes_as_it_is(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let typed = |kind: &'static str, status: u16| {
            Response::builder().status(status).header("content-type", kind)
        };
        for (number, (api, response)) in [
            ("/api/show", typed("application/json", 200)),
            ("/api/chat", typed("text/plain", 200)),
            ("/api/chat", typed("application/json", 404)),
            ("/api/chat", typed("application/json", 200).header("content-encoding", "gzip")),
        ].into_iter().enumerate() {
            let ((), response) = tokio::join!(
                async { path.upstream.next().await.finish(response.body(full(LAST)).unwrap()) },
                caller.post(api, "{}"),
            );
            let (headers, _) = collected(response).await;
            assert_eq!(headers[CONTENT_LENGTH], LAST.len().to_string());
            assert_eq!(tokens(&watched.log.last(number + 1).await), (None, None), "{number}");
        }
    }

    async fn the_model_of_the_request_counts_where_the_answer_names_none(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let ((), response) = tokio::join!(
            async {
                let (request, reply) = path.upstream.next().await.split();
                within("the request", request.into_body().collect()).await.unwrap();
                reply.send(whole(r#"{"embedding":[0.1]}"#)).ok();
            },
            caller.post("/api/embeddings", r#"{"prompt":"\"model\":\"x\"","model":"mine"}"#),
        );
        collected(response).await;
        let line = watched.log.last(1).await;
        assert_eq!((&line["model"], tokens(&line)), (&"mine".into(), (None, None)));
    }

    async fn an_upstream_cannot_report_and_its_trailers_stay(transport: Transport) {
        let (path, watched) = path(Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        for (number, (api, wished, found)) in [
            ("/api/chat", true, Some(7)),
            ("/api/chat", false, Some(7)),
            ("/api/show", true, None),
        ].into_iter().enumerate() {
            let mut request = post(api, "{}");
            if wished {
                request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
            }
            let ((), response) = tokio::join!(
                async {
                    let call = path.upstream.next().await;
                    let headers = call.request.headers();
                    assert_eq!(headers.contains_key(TE), wished);
                    assert!(headers.keys().all(|name| !name.as_str().starts_with("tunnel-")), "{headers:?}");
                    let answer = call.begin(ndjson()
                        .header(TRAILER, "x-sum, Tunnel-Usage")
                        .header("tunnel-usage", r#"{"prompt":1}"#)
                        .header("tunnel-content-length", "3"));
                    answer.send(LAST).await;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-sum", HeaderValue::from_static("42"));
                    trailers.insert("tunnel-usage", HeaderValue::from_static(r#"{"prompt":1,"completion":1}"#));
                    answer.trailers(trailers).await;
                },
                caller.send(request),
            );
            assert_eq!(response.headers()[TRAILER], "x-sum");
            assert!(!response.headers().contains_key(CONTENT_LENGTH));
            let body = within("the body", response.into_body().collect()).await.unwrap();
            let sum = body.trailers().map(|trailers| (trailers.len(), trailers["x-sum"].clone()));
            assert_eq!(sum, wished.then(|| (1, HeaderValue::from_static("42"))));
            assert_eq!(body.to_bytes(), LAST);
            assert_eq!(tokens(&watched.log.last(number + 1).await).1, found, "{api}");
        }
    }
}

/// What a bridge sends that nobody should.
const NONSENSE: [&str; 5] = [
    "no",
    r#"{"prompt":-1,"completion":1e99,"model":"a\u001b[1m"}"#,
    r#"{"prompt":99999999999999999999}"#,
    "[[[[[[[[",
    r#"{"model":{"x":[]},"prompt":null}"#,
];

#[tokio::test]
async fn whatever_a_polling_bridge_reports_harms_nobody() {
    let (relay, watched) = Watched::start(|_| {}).await;
    let bridge = RawBridge::register(&relay, "ann", ALL).await;
    let mut caller = Caller::connect(relay.address, &bridge.token).await;
    for (number, report) in NONSENSE.into_iter().enumerate() {
        let head = json!({"status": 200, "headers": {"trailer": "tunnel-usage", "content-length": "4"}, "more": true});
        let (id, response) = bridge.begun(&mut caller, &head).await;
        let trailers = json!({"tunnel-usage": report}).to_string();
        let end = [("tunnel-end", "1"), ("tunnel-trailers", trailers.as_str())];
        bridge.give(&id, 1, &end, "body").await;
        assert_eq!(collected(response).await.1, "body");
        let line = watched.log.last(number + 1).await;
        assert_eq!((tokens(&line), line.get("model")), ((None, None), None));
    }
    let report = r#"{"model":"m","prompt":26,"completion":7}"#;
    let head = json!({"status": 200, "headers": {"tunnel-usage": report}, "body": "body"});
    let (_, response) = bridge.begun(&mut caller, &head).await;
    assert_eq!(collected(response).await.1, "body");
    assert_eq!(tokens(&watched.log.last(NONSENSE.len() + 1).await), (Some(26), Some(7)));
}

#[tokio::test]
async fn a_relay_that_does_not_ask_gets_no_report() {
    let upstream = Upstream::serving(|_| async { whole(LAST) }).await;
    let dialer = Dialer::new(None, PATIENCE).unwrap();
    let base = format!("http://{}", upstream.address).parse().unwrap();
    let local = Local::new(
        Policy::new(false, Vec::new()),
        bridge::upstream::Upstream::new(base, HeaderMap::new(), dialer),
        Arc::default(),
    );
    for asks in [false, true] {
        let mut request = post("/api/chat", "{}");
        if asks {
            request
                .headers_mut()
                .insert("tunnel-usage", HeaderValue::from_static("1"));
        }
        let (head, body) = local.call(request).await.unwrap().into_parts();
        assert_eq!(head.headers[CONTENT_LENGTH], LAST.len().to_string());
        assert_eq!(head.headers.contains_key(TRAILER), asks);
        let body = within("the body", body.collect()).await.unwrap();
        assert_eq!(
            body.trailers()
                .is_some_and(|trailers| trailers.contains_key("tunnel-usage")),
            asks
        );
    }
}
