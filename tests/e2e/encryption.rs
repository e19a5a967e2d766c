//! TLS between bridge and relay, and between bridge and local server.

use std::time::Duration;

use http::Response;
use tunnel::bridge::status::Phase;
use tunnel::transport::dial::Dialer;
use tunnel::transport::full;

use crate::harness::bridge::Transport;
use crate::harness::tls_front::TlsFront;
use crate::harness::{Caller, ChaosProxy, TestBridge, TestRelay, Upstream, on_each_transport, ready, text, within};

on_each_transport! {
    async fn a_relay_behind_tls_is_reached_and_so_is_a_local_server(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let (front, local) = (TlsFront::before(relay.address).await, TlsFront::before(upstream.address).await);
        // Both authorities in one file.
        let folder = tempfile::tempdir().unwrap();
        let both = folder.path().join("both.pem");
        let certificates = [front.ca_file(), local.ca_file()].map(|path| std::fs::read_to_string(path).unwrap());
        std::fs::write(&both, certificates.concat()).unwrap();
        let bridge = TestBridge::to(&relay, &upstream)
            .transport(transport)
            .relay_url(front.url())
            .upstream_url(local.url())
            .ca_file(both)
            .start()
            .await;
        ready(&relay, "ann").await;
        let token = relay.token("ann");
        let mut caller = Caller::connect(relay.address, &token).await;
        let ((), response) = tokio::join!(
            async {
                let call = upstream.next().await;
                assert_eq!(call.request.headers()["host"], format!("localhost:{}", local.address.port()));
                call.finish(Response::new(full("sealed")));
            },
            caller.post("/api/chat", "{}"),
        );
        assert_eq!(text(response).await, "sealed");
        drop(bridge);
    }

    async fn a_certificate_nobody_vouches_for_is_not_trusted(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let front = TlsFront::before(relay.address).await;
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).relay_url(front.url()).launch();
        let mut phase = bridge.status.phase();
        let refused = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains("cannot trust")));
        within("the refusal", refused).await.unwrap();
        bridge.stop().await;
    }

    async fn https_to_a_port_without_tls_is_told_in_plain_words(transport: Transport) {
        let relay = TestRelay::start().await;
        let upstream = Upstream::scripted().await;
        let url = format!("https://{}", relay.address);
        let bridge = TestBridge::to(&relay, &upstream).transport(transport).relay_url(url).launch();
        let mut phase = bridge.status.phase();
        let told = phase.wait_for(|phase| matches!(phase, Phase::Waiting { why } if why.contains("does not speak TLS")));
        within("the words", told).await.unwrap();
        bridge.stop().await;
    }
}

#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    assert!(Dialer::new(Some(&file), Duration::from_secs(1)).is_err());
    std::fs::write(&file, "nothing").unwrap();
    assert!(Dialer::new(Some(&file), Duration::from_secs(1)).is_err());
}

/// One connection carries the waiting poll and everything else.
#[tokio::test]
async fn polling_speaks_http2_where_the_relay_does() {
    let relay = TestRelay::start().await;
    let upstream = Upstream::scripted().await;
    let counting = ChaosProxy::to(relay.address, Duration::ZERO).await;
    let front = TlsFront::speaking(&["h2", "http/1.1"], counting.address).await;
    let bridge = TestBridge::to(&relay, &upstream)
        .transport(Transport::Poll)
        .relay_url(front.url())
        .ca_file(front.ca_file())
        .start()
        .await;
    ready(&relay, "ann").await;
    let token = relay.token("ann");
    let mut chats = Vec::new();
    for _ in 0..20 {
        let mut caller = Caller::connect(relay.address, &token).await;
        let (answer, response) = tokio::join!(
            async { upstream.next().await.begin(Response::builder()) },
            caller.post("/api/chat", "{}"),
        );
        answer.send("one").await;
        chats.push((caller, answer, response));
    }
    for (_caller, answer, response) in chats {
        answer.send(" two").await;
        drop(answer);
        assert_eq!(text(response).await, "one two");
    }
    // One for each of the two lanes.
    assert_eq!((counting.connections(), counting.requests()), (2, 0));
    drop(bridge);
}
