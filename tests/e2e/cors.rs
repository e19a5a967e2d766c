//! Web pages of other origins: any by default, or those that are named.

use http::{Method, Request, Response};
use tunnel::transport::{empty, full};

use crate::harness::bridge::Transport;
use crate::harness::{Caller, Path, TestRelay, Upstream};

fn from(origin: &str, method: Method, path: &str) -> Request<tunnel::transport::Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("origin", origin)
        .body(empty())
        .unwrap()
}

fn preflight(origin: &str) -> Request<tunnel::transport::Body> {
    let mut request = from(origin, Method::OPTIONS, "/api/chat");
    request
        .headers_mut()
        .insert("access-control-request-method", "POST".parse().unwrap());
    request.headers_mut().insert(
        "access-control-request-headers",
        "authorization,content-type".parse().unwrap(),
    );
    request
}

#[tokio::test]
async fn any_origin_may_ask_by_default_and_errors_are_readable_too() {
    let path = Path::scripted(Transport::Ws).await;
    let mut nobody = Caller::connect(path.relay.address, "").await;
    let response = nobody.send(preflight("https://app.example")).await;
    assert_eq!(response.status(), 204);
    let headers = response.headers().clone();
    drop(response);
    assert_eq!(headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(headers["access-control-allow-methods"], "POST");
    assert_eq!(headers["access-control-allow-headers"], "authorization,content-type");
    assert!(headers.contains_key("access-control-max-age"));
    assert_eq!(headers["vary"], "Origin");

    let response = nobody.send(from("https://app.example", Method::GET, "/api/tags")).await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
    let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap();
    for name in ["Tunnel-Error", "Retry-After", "X-Request-Id"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    drop(response);

    let mut caller = path.caller().await;
    let ((), response) = tokio::join!(
        async {
            let call = path.upstream.next().await;
            assert!(!call.request.headers().contains_key("origin"));
            let response = Response::builder().header("access-control-allow-origin", "http://localhost");
            call.finish(response.body(full("fine")).unwrap());
        },
        caller.send(from("https://app.example", Method::GET, "/api/tags")),
    );
    let allowed: Vec<_> = response
        .headers()
        .get_all("access-control-allow-origin")
        .iter()
        .collect();
    assert_eq!(allowed, ["https://app.example"]);
}

#[tokio::test]
async fn with_origins_named_another_one_gets_no_permission() {
    let relay = TestRelay::with(|config| config.cors_origins = vec!["https://app.example".into()]).await;
    let path = Path::with(relay, Upstream::scripted().await, Transport::Ws).await;
    let mut caller = path.caller().await;
    for (origin, allowed) in [
        ("https://app.example", true),
        ("https://evil.example", false),
        ("null", false),
    ] {
        let response = caller.send(preflight(origin)).await;
        let permission = response.headers().contains_key("access-control-allow-origin");
        assert_eq!(permission, allowed, "{origin}");
        drop(response);
        let response = caller.send(from(origin, Method::GET, "/api/bridge")).await;
        assert_eq!(
            response.headers().contains_key("access-control-allow-origin"),
            allowed,
            "{origin}"
        );
    }
}

#[tokio::test]
async fn a_web_page_does_not_connect_as_a_bridge_unless_named() {
    let path = Path::scripted(Transport::Ws).await;
    let mut caller = path.caller().await;
    let response = caller
        .send(from("https://evil.example", Method::GET, "/ws/tunnel"))
        .await;
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["tunnel-error"], "forbidden");
}
