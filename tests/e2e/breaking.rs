//! What breaks is seen to be broken: never a short answer that looks whole.

use http::Response;

use crate::harness::bridge::Transport;
use crate::harness::caller::Raw;
use crate::harness::{Caller, Path, chunk, json, on_each_transport, post, until, within};

on_each_transport! {
    async fn an_upstream_that_dies_in_mid_answer_breaks_the_body(transport: Transport) {
        let path = Path::scripted(transport).await;
        for http2 in [false, true] {
            for fixed in [false, true] {
                let mut caller = match http2 {
                    true => Caller::connect_http2(path.relay.address, &path.token).await,
                    false => path.caller().await,
                };
                let (answer, response) = tokio::join!(
                    async {
                        let head = Response::builder();
                        let head = if fixed { head.header("content-length", "1000") } else { head };
                        let answer = path.upstream.next().await.begin(head);
                        answer.send("begun").await;
                        answer
                    },
                    caller.post("/api/chat", "{}"),
                );
                let mut response = response;
                assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "begun");
                answer.break_off().await;
                assert!(chunk(&mut response).await.unwrap().is_err(), "http2: {http2}, fixed: {fixed}");
            }
        }
    }

    async fn an_upstream_that_dies_in_mid_answer_resets_an_http10_caller(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut raw = Raw::connect(path.relay.address).await;
        raw.send(format!("GET /api/tags HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", path.token)).await;
        let answer = path.upstream.next().await.begin(Response::builder());
        answer.send("begun").await;
        raw.until("begun").await;
        answer.break_off().await;
        let end = raw.rest().await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }

    async fn an_upstream_that_dies_before_the_head_is_told_at_once(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let sending = tokio::spawn(async move { caller.post("/api/chat", "{}").await });
        drop(path.upstream.next().await);
        let response = within("the answer", sending).await.unwrap();
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["tunnel-error"], "upstream_unreachable");
    }

    async fn an_upstream_that_does_not_run_is_told_in_these_words_and_works_when_started(transport: Transport) {
        let path = Path::scripted(transport).await;
        path.upstream.stop().await;
        let mut caller = path.caller().await;
        let response = caller.post("/api/chat", "{}").await;
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["tunnel-error"], "upstream_unreachable");
        let told = json(response).await["error"].as_str().unwrap().to_owned();
        assert!(told.contains("Ollama is not running on the desktop"), "{told}");
        until("the bridge to tell its owner", || path.bridge.status.is_upstream_away()).await;

        let listener = tokio::net::TcpListener::bind(path.upstream.address).await.unwrap();
        let demo = tunnel::demo::Demo::new(std::time::Duration::ZERO);
        let started = tokio::spawn(demo.serve(listener, tokio_util::sync::CancellationToken::new()));
        let response = caller.get("/api/version").await;
        assert_eq!(response.status(), 200);
        assert!(!path.bridge.status.is_upstream_away());
        started.abort();
    }

    async fn an_upstream_that_closes_kept_connections_is_met_with_fresh_ones(transport: Transport) {
        // Answers one request a connection, and says nothing of closing it.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
        });
        let relay = crate::harness::TestRelay::start().await;
        let bridge = crate::harness::TestBridge::between(relay.address, address).transport(transport).start().await;
        crate::harness::ready(&relay, "ann").await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        for _ in 0..20 {
            let response = caller.send(post("/api/chat", "")).await;
            assert_eq!(crate::harness::text(response).await, "ok");
        }
        server.abort();
        drop(bridge);
    }
}

#[tokio::test]
async fn a_bridge_that_dies_in_mid_answer_breaks_the_body() {
    let transport = Transport::Ws;
    for http2 in [false, true] {
        let path = Path::scripted(transport).await;
        let mut caller = match http2 {
            true => Caller::connect_http2(path.relay.address, &path.token).await,
            false => path.caller().await,
        };
        let (answer, response) = tokio::join!(
            async {
                let answer = path.upstream.next().await.begin(Response::builder());
                answer.send("begun").await;
                answer
            },
            caller.post("/api/chat", "{}"),
        );
        let mut response = response;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "begun");
        path.bridge.stop().await;
        assert!(chunk(&mut response).await.unwrap().is_err(), "http2: {http2}");
        answer.abandoned().await;
    }
}

#[tokio::test]
async fn a_bridge_that_dies_before_the_head_is_told_at_once() {
    let transport = Transport::Ws;
    let path = Path::scripted(transport).await;
    let mut caller = path.caller().await;
    let sending = tokio::spawn(async move { caller.post("/v1/chat/completions", "{}").await });
    let call = path.upstream.next().await;
    path.bridge.stop().await;
    let response = within("the answer", sending).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["tunnel-error"], "bridge_gone");
    assert_eq!(json(response).await["error"]["code"], "bridge_gone");
    drop(call);
}
