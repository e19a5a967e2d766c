//! An upload that is answered before it was read.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tunnel::transport::full;

use crate::harness::upstream::channel_body;
use crate::harness::{Path, TestRelay, Upstream, json, on_each_transport, text, within};

on_each_transport! {
    async fn an_early_413_reaches_the_caller_every_time(transport: Transport) {
        // Refuses and closes without reading: what a server does with an upload that is too large.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 16 * 1024];
                tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.unwrap();
                let answer = b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\n\r\ntoo large";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
        });
        let relay = TestRelay::start().await;
        let bridge = crate::harness::TestBridge::between(relay.address, address)
            .transport(transport)
            .manage()
            .start()
            .await;
        crate::harness::ready(&relay, "ann").await;
        let token = relay.token("ann");
        for round in 0..60 {
            let (body, request) = channel_body();
            let mut caller = crate::harness::Caller::connect(relay.address, &token).await;
            let piece = Bytes::from(vec![1; 64 * 1024]);
            let pushing = tokio::spawn(async move {
                // Until nobody takes any more.
                while body.try_send(piece.clone()).await {}
            });
            let request = Request::post("/api/blobs/sha256:1").body(request).unwrap();
            let response = caller.send(request).await;
            assert_eq!(response.status(), 413, "round {round}");
            let told = within("the body", response.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(told, "too large", "round {round}");
            pushing.abort();
        }
        server.abort();
        drop(bridge);
    }

    async fn a_caller_that_reads_only_after_sending_all_hears_a_refusal_too(transport: Transport) {
        let path = Path::scripted(transport).await;
        for _ in 0..10 {
            let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
            // Refused for its token, long before the body is through.
            let length = 4 * 1024 * 1024;
            raw.send(format!("POST /api/chat HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n")).await;
            raw.send(vec![b'x'; length]).await;
            let answer = raw.until("}").await;
            assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        }
    }

    async fn an_upload_goes_on_while_nobody_reads_the_answer_to_it(transport: Transport) {
        const SIZE: usize = 24 * 1024 * 1024;
        let upstream = Upstream::serving(|request: Request<hyper::body::Incoming>| async move {
            let (answer, body) = channel_body();
            tokio::spawn(async move { while answer.try_send(vec![1; 64 * 1024]).await {} });
            tokio::spawn(request.into_body().collect());
            Response::new(body)
        })
        .await;
        let path = Path::to(upstream, transport).await;
        let mut raw = crate::harness::caller::Raw::connect(path.relay.address).await;
        raw.send(format!(
            "POST /x HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {}\r\nContent-Length: {SIZE}\r\n\r\n",
            path.token
        ))
        .await;
        within("room for the whole upload", raw.send(vec![2; SIZE])).await;
    }

    async fn a_body_over_the_relays_limit_is_refused_with_413(transport: Transport) {
        let relay = TestRelay::with(|config| config.limits.body = Some(1000)).await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut caller = path.caller().await;
        let response = caller.post("/api/chat", vec![b'x'; 1001]).await;
        assert_eq!(response.status(), 413);
        assert_eq!(response.headers()["tunnel-error"], "too_large");
        drop(response);

        let mut caller = path.caller().await;
        let (body, request) = channel_body();
        let sending = tokio::spawn(async move {
            caller.send(Request::post("/api/chat").body(request).unwrap()).await
        });
        body.send(vec![b'x'; 600]).await;
        let mut call = path.upstream.next().await;
        assert_eq!(call.read().await.unwrap().len(), 600);
        body.send(vec![b'x'; 600]).await;
        let response = within("the answer", sending).await.unwrap();
        assert_eq!(response.status(), 413);
        assert!(json(response).await["error"].as_str().unwrap().contains("--max-body"));
        call.broken_off().await;

        let mut caller = path.caller().await;
        let ((), response) = tokio::join!(
            async {
                let mut call = path.upstream.next().await;
                while call.read().await.is_some() {}
                call.finish(Response::new(full("fits")));
            },
            caller.post("/api/chat", vec![b'x'; 1000]),
        );
        assert_eq!(text(response).await, "fits");
    }
}
