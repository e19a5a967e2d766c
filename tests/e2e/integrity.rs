//! No byte changes, however many exchanges run side by side, and however slowly some of them are read.

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tunnel::transport::{Body, full};

use crate::harness::upstream::channel_body;
use crate::harness::{Path, Upstream, chunk, on_each_transport, post, within};

/// Bytes that look random and are the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let fixed = request.headers().contains_key("x-fixed");
    let body = request.into_body();
    if fixed {
        Response::new(full(body.collect().await.unwrap().to_bytes()))
    } else {
        Response::new(body.map_err(Into::into).boxed_unsync())
    }
}

on_each_transport! {
    async fn a_thousand_exchanges_of_random_sizes_come_back_as_they_went(transport: Transport) {
        let path = Path::to(Upstream::serving(echo).await, transport).await;
        let lane = async |lane: u64| {
            let mut caller = path.caller().await;
            for number in 0..16 {
                let seed = lane * 100 + number;
                let length = (noise(seed, 8)[0] as usize) << (seed % 11);
                let sent = noise(seed, length);
                let mut request = post("/echo", sent.clone());
                if seed.is_multiple_of(2) {
                    request.headers_mut().insert("x-fixed", "1".parse().unwrap());
                }
                let response = caller.send(request).await;
                let received = within("the echo", response.into_body().collect()).await.unwrap().to_bytes();
                assert!(received == sent, "exchange {seed} of {length} octets came back changed");
            }
        };
        join_all((0..64).map(lane)).await;
    }

    async fn slow_readers_slow_only_themselves(transport: Transport) {
        let path = Path::scripted(transport).await;
        let whole = Bytes::from(noise(7, 4 * 1024 * 1024));
        let mut slow = Vec::new();
        // As many as may be in flight, but one.
        for _ in 0..127 {
            let mut caller = path.caller().await;
            let ((), response) = tokio::join!(
                async { path.upstream.next().await.finish(Response::new(full(whole.clone()))) },
                caller.post("/slow", ""),
            );
            slow.push((caller, response));
        }
        let mut quick = path.caller().await;
        for _ in 0..100 {
            let ((), response) = tokio::join!(
                async { path.upstream.next().await.finish(Response::new(full("quick"))) },
                quick.post("/quick", ""),
            );
            assert_eq!(crate::harness::text(response).await, "quick");
        }
        for (_caller, response) in slow {
            let received = within("a slow body", response.into_body().collect()).await.unwrap().to_bytes();
            assert!(received == whole, "a slow body came changed");
        }
    }

    async fn a_stalled_upload_slows_only_itself(transport: Transport) {
        let path = Path::scripted(transport).await;
        let (body, request) = channel_body();
        let mut caller = path.caller().await;
        let sending = tokio::spawn(async move {
            caller.send(Request::post("/stalled").body(request).unwrap()).await
        });
        let mut stalled = path.upstream.next().await;
        let piece = Bytes::from(noise(3, 256 * 1024));
        // Nobody reads: after some megabytes of buffers on the way there is no room for more.
        let mut sent = 0;
        while tokio::time::timeout(std::time::Duration::from_millis(500), body.send(piece.clone())).await.is_ok() {
            sent += piece.len();
            assert!(sent < 64 * 1024 * 1024, "an upload that nobody reads is held somewhere");
        }
        let mut quick = path.caller().await;
        let ((), response) = tokio::join!(
            async { path.upstream.next().await.finish(Response::new(full("quick"))) },
            quick.post("/quick", ""),
        );
        assert_eq!(crate::harness::text(response).await, "quick");
        drop(body);
        while stalled.read().await.is_some() {}
        stalled.finish(Response::new(full("done")));
        let mut response = sending.await.unwrap();
        assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "done");
    }
}
