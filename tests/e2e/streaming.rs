//! Answers arrive as they are made, however long that takes.

use std::time::Duration;

use http::Response;

use crate::harness::{ChaosProxy, Path, TestBridge, TestRelay, Upstream, chunk, on_each_transport, post, text};

on_each_transport! {
    async fn a_streamed_chat_arrives_chunk_by_chunk_in_lock_step(transport: Transport) {
        let path = Path::scripted(transport).await;
        for content_type in ["application/x-ndjson", "text/event-stream", "application/x-whatever"] {
            let mut caller = path.caller().await;
            let (call, response) = tokio::join!(
                async {
                    let call = path.upstream.next().await;
                    call.begin(Response::builder().header("content-type", content_type))
                },
                caller.post("/api/chat", "{}"),
            );
            let mut response = response;
            assert_eq!(response.headers()["content-type"], content_type);
            assert_eq!(response.headers()["x-accel-buffering"], "no");
            assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
            for number in 0..50 {
                // The next is sent only after this one was seen.
                let line = format!("{{\"chunk\":{number}}}\n");
                call.send(line.clone()).await;
                assert_eq!(chunk(&mut response).await.unwrap().unwrap(), line);
            }
            drop(call);
            assert!(chunk(&mut response).await.is_none());
        }
    }

    async fn an_upload_arrives_chunk_by_chunk_in_lock_step(transport: Transport) {
        let path = Path::scripted(transport).await;
        let (sender, body) = crate::harness::upstream::channel_body();
        let mut caller = path.caller().await;
        let request = http::Request::post("/api/blobs/x").body(body).unwrap();
        let sending = tokio::spawn(async move {
            let response = caller.send(request).await;
            text(response).await
        });
        let mut call = path.upstream.next().await;
        for number in 0..50 {
            let piece = format!("piece {number}");
            sender.send(piece.clone()).await;
            assert_eq!(call.read().await.unwrap(), piece);
        }
        drop(sender);
        assert!(call.read().await.is_none());
        call.finish(Response::new(tunnel::transport::full("done")));
        assert_eq!(sending.await.unwrap(), "done");
    }

    async fn an_upstream_that_is_silent_for_minutes_is_not_cut(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let answering = async {
            let call = path.upstream.next().await;
            silence(Duration::from_secs(14 * 60)).await;
            let answer = call.begin(Response::builder());
            answer.send("first").await;
            silence(Duration::from_secs(14 * 60)).await;
            answer.send(" last").await;
        };
        let ((), whole) = tokio::join!(answering, async {
            // Not within the patience of the harness: its clock runs ahead too.
            let response = caller.try_send(post("/api/chat", "{}")).await.unwrap();
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
            body.to_bytes()
        });
        assert_eq!(whole, "first last");
    }

    async fn a_distant_bridge_streams_in_lock_step_too(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let proxy = ChaosProxy::to(relay.address, Duration::from_millis(10)).await;
        let bridge = TestBridge::between(proxy.address, upstream.address).transport(transport).start().await;
        let token = relay.token("ann");
        let mut caller = crate::harness::Caller::connect(relay.address, &token).await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            async {
                crate::harness::ready(&relay, "ann").await;
                caller.post("/api/chat", "{}").await
            },
        );
        let mut response = response;
        for number in 0..10 {
            answer.send(format!("{number}")).await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), format!("{number}"));
        }
        drop(bridge);
    }
}

/// Lets this time pass on the clock of the runtime, in steps that leave room for everybody's pings. The long run
/// (`TUNNEL_LONG_TESTS=1`) waits for three real minutes instead.
async fn silence(time: Duration) {
    if crate::harness::long() {
        tokio::time::sleep(Duration::from_secs(180)).await;
        return;
    }
    tokio::time::pause();
    let step = Duration::from_secs(1);
    let mut passed = Duration::ZERO;
    while passed < time {
        tokio::time::advance(step).await;
        passed += step;
        // Real sockets need real turns of the loop to carry a ping and its answer.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_micros(300));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
}
