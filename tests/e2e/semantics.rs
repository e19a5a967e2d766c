//! HTTP passes as HTTP: statuses, fields, framing, trailers, expectations.

use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tunnel::transport::{empty, full};

use crate::harness::upstream::channel_body;
use crate::harness::{Caller, Path, get, on_each_transport, post, text, within};

on_each_transport! {
    async fn statuses_and_repeated_fields_pass(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        for status in [200, 201, 202, 204, 206, 301, 304, 400, 404, 409, 418, 429, 500, 503] {
            let ((), response) = tokio::join!(
                async {
                    let call = path.upstream.next().await;
                    let tags: Vec<_> = call.request.headers().get_all("x-tag").iter().collect();
                    assert_eq!(tags, ["a", "b"]);
                    let mut response = Response::new(empty());
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    response.headers_mut().append("set-cookie", HeaderValue::from_static("a=1"));
                    response.headers_mut().append("set-cookie", HeaderValue::from_static("b=2"));
                    call.finish(response);
                },
                async {
                    let mut request = get("/any");
                    request.headers_mut().append("x-tag", HeaderValue::from_static("a"));
                    request.headers_mut().append("x-tag", HeaderValue::from_static("b"));
                    caller.send(request).await
                },
            );
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
            assert!(!response.headers().contains_key("tunnel-error"));
            assert_eq!(text(response).await, "");
        }
    }

    async fn head_tells_the_length_and_sends_nothing(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        for _ in 0..3 {
            let ((), response) = tokio::join!(
                async {
                    let call = path.upstream.next().await;
                    assert_eq!(call.request.method(), Method::HEAD);
                    call.finish(Response::builder().header("content-length", "1234").body(empty()).unwrap());
                },
                caller.send(Request::head("/api/tags").body(empty()).unwrap()),
            );
            assert_eq!(response.headers()["content-length"], "1234");
            assert_eq!(text(response).await, "");
        }
    }

    async fn framing_is_told_as_it_was(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let ((), response) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                assert_eq!(call.request.headers()["content-length"], "5");
                assert!(!call.request.headers().contains_key("transfer-encoding"));
                call.finish(Response::new(full("fixed")));
            },
            caller.post("/fixed", "12345"),
        );
        assert_eq!(response.headers()["content-length"], "5");
        assert!(!response.headers().contains_key("x-accel-buffering"));
        assert_eq!(text(response).await, "fixed");

        let (body, request) = channel_body();
        let ((), response) = tokio::join!(
            async {
                body.send("chunked").await;
                drop(body);
                let mut call = path.upstream.next().await;
                assert_eq!(call.request.headers()["transfer-encoding"], "chunked");
                assert_eq!(call.read().await.unwrap(), "chunked");
                let answer = call.begin(Response::builder());
                answer.send("too").await;
            },
            caller.send(Request::post("/chunked").body(request).unwrap()),
        );
        assert_eq!(response.headers()["transfer-encoding"], "chunked");
        assert_eq!(text(response).await, "too");
    }

    async fn declared_trailers_pass(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let ((), response) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                assert_eq!(call.request.headers()["te"], "trailers");
                let answer = call.begin(Response::builder().header("trailer", "x-sum"));
                answer.send("body").await;
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("42"));
                answer.trailers(trailers).await;
            },
            async {
                let mut request = get("/trailers");
                request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
                caller.send(request).await
            },
        );
        let collected = within("the body", response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "42");
        assert_eq!(collected.to_bytes(), "body");
    }

    async fn what_belongs_to_one_hop_or_to_the_relay_does_not_pass(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let mut request = get("/api/tags");
        for (name, value) in [
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("cookie", "a=b"),
            ("x-api-key", path.token.as_str()),
            ("origin", "https://elsewhere.example"),
            ("referer", "https://elsewhere.example/x"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("tunnel-error", "policy"),
            ("x-kept", "yes"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let ((), response) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                let headers = call.request.headers();
                for name in [
                    "connection", "x-hop", "keep-alive", "proxy-authorization", "cookie", "x-api-key", "authorization",
                    "origin", "referer", "forwarded", "x-real-ip", "tunnel-error",
                ] {
                    assert!(!headers.contains_key(name), "{name} reached the upstream");
                }
                assert_eq!(headers["x-kept"], "yes");
                assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
                assert_eq!(headers["host"], path.upstream.address.to_string());
                let response = Response::builder()
                    .header("connection", "x-hop")
                    .header("x-hop", "1")
                    .header("tunnel-error", "policy")
                    .header("tunnel-other", "x")
                    .header("x-kept", "yes");
                call.finish(response.body(full("fine")).unwrap());
            },
            caller.send(request),
        );
        assert_eq!(response.status(), 200);
        for name in ["x-hop", "tunnel-error", "tunnel-other"] {
            assert!(!response.headers().contains_key(name), "{name} reached the caller");
        }
        assert_eq!(response.headers()["x-kept"], "yes");
        assert_eq!(text(response).await, "fine");
    }

    async fn an_expected_body_crosses_once_and_a_refusal_comes_before_it(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let expecting = |path: &str, body| {
            Request::post(path).header("expect", "100-continue").body(body).unwrap()
        };
        let ((), response) = tokio::join!(
            async {
                let mut call = path.upstream.next().await;
                assert_eq!(call.read().await.unwrap(), "the body");
                assert!(call.read().await.is_none());
                call.finish(Response::new(full("taken")));
            },
            caller.send(expecting("/api/blobs/x", full("the body"))),
        );
        assert_eq!(text(response).await, "taken");

        // The upstream refuses without asking for the body: the caller is never told to go on.
        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        let head = format!(
            "POST /api/blobs/x HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {}\r\n\
             Expect: 100-continue\r\nContent-Length: 8\r\n\r\n",
            path.token
        );
        let ((), answer) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                let response = Response::builder().status(403).body(full("no")).unwrap();
                call.finish(response);
            },
            async {
                raw.send(&head).await;
                raw.until("\r\n\r\nno").await
            },
        );
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");

        // And so does the relay itself.
        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        raw.send("POST /api/chat HTTP/1.1\r\nHost: relay\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n").await;
        let answer = raw.until("}").await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }

    async fn callers_over_http2_and_http10_are_served_alike(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut http2 = Caller::connect_http2(path.relay.address, &path.token).await;
        let ((), response) = tokio::join!(
            async {
                let call = path.upstream.next().await;
                assert_eq!(call.request.version(), http::Version::HTTP_11);
                assert_eq!(call.request.headers()["host"], path.upstream.address.to_string());
                call.begin(Response::builder()).send("streamed").await;
            },
            http2.send(post("/api/chat", "{}")),
        );
        assert_eq!(text(response).await, "streamed");

        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        let head = format!("GET /api/tags HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", path.token);
        let ((), answer) = tokio::join!(
            async { path.upstream.next().await.begin(Response::builder()).send("streamed").await },
            async {
                raw.send(&head).await;
                raw.rest().await.unwrap()
            },
        );
        assert!(answer.ends_with("\r\n\r\nstreamed"), "{answer}");
        assert!(!answer.contains("chunked"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_line_for_another_host_is_refused() {
    let path = Path::scripted(crate::harness::bridge::Transport::Ws).await;
    for (line, host) in [
        ("GET http://elsewhere.example/api/tags HTTP/1.1", "relay"),
        ("GET http://user@relay/api/tags HTTP/1.1", "relay"),
        ("CONNECT elsewhere.example:443 HTTP/1.1", "relay"),
        ("GET /a%00b HTTP/1.1", "relay"),
        ("GET /a%5cb HTTP/1.1", "relay"),
    ] {
        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        raw.send(&format!(
            "{line}\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n\r\n",
            path.token
        ))
        .await;
        let answer = raw.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{line}: {answer}");
    }
}
