//! A caller that leaves stops the upstream at once, and disturbs nobody else.

use futures_util::future::join_all;
use http::Response;

use crate::harness::upstream::channel_body;
use crate::harness::{Path, TestRelay, Upstream, chunk, on_each_transport, post, text, until};

on_each_transport! {
    async fn a_caller_that_leaves_before_the_first_byte_stops_the_upstream(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let waiting = tokio::spawn(async move { caller.try_send(post("/api/chat", "{}")).await });
        let mut call = path.upstream.next().await;
        waiting.abort();
        call.abandoned().await;
    }

    async fn a_caller_that_leaves_in_mid_stream_stops_the_upstream(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let (answer, response) = path.begun(&mut caller).await;
        let mut response = response;
        answer.send("first").await;
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "first");
        drop((response, caller));
        answer.abandoned().await;
    }

    async fn a_caller_that_leaves_in_mid_upload_stops_the_upstream(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = path.caller().await;
        let (body, request) = channel_body();
        let sending = tokio::spawn(async move {
            caller.try_send(http::Request::post("/api/blobs/x").body(request).unwrap()).await
        });
        let mut call = path.upstream.next().await;
        body.send("first").await;
        assert_eq!(call.read().await.unwrap(), "first");
        sending.abort();
        call.broken_off().await;
    }

    async fn a_caller_over_http2_that_resets_its_stream_stops_the_upstream(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut caller = crate::harness::Caller::connect_http2(path.relay.address, &path.token).await;
        let (answer, response) = path.begun(&mut caller).await;
        answer.send("first").await;
        drop(response);
        answer.abandoned().await;
        // The connection itself goes on.
        let (call, response) = tokio::join!(
            async { path.upstream.next().await.finish(Response::new(tunnel::transport::full("second"))) },
            caller.post("/api/chat", "{}"),
        );
        let () = call;
        assert_eq!(text(response).await, "second");
    }

    async fn five_hundred_callers_leaving_together_disturb_nobody(transport: Transport) {
        let relay = TestRelay::with(|config| {
            config.limits.in_flight_per_bridge = 600;
            config.limits.in_flight_per_user = 1200;
        })
        .await;
        let path = Path::with(relay, Upstream::scripted().await, transport).await;
        let mut witness = path.caller().await;
        let (answer, response) = path.begun(&mut witness).await;
        let mut response = response;
        for round in 0..5 {
            let callers = join_all((0..500).map(|_| path.caller())).await;
            let waiting: Vec<_> = callers
                .into_iter()
                .map(|mut caller| tokio::spawn(async move { caller.try_send(post("/api/chat", "{}")).await.is_ok() }))
                .collect();
            let mut calls = Vec::new();
            for _ in 0..500 {
                calls.push(path.upstream.next().await);
            }
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
            for call in &mut calls {
                call.abandoned().await;
            }
            answer.send(format!("{round}")).await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), format!("{round}"));
        }
        until("everything to be counted off", || path.bridge.status.figures().in_flight == 1).await;
        assert!(path.relay.relay.registry.pick("ann", None).unwrap().in_flight() == 1);
    }
}
