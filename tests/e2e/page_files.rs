//! The page as it is served: who gets it, and what its files may do in a browser.

use std::collections::BTreeSet;

use http::{HeaderMap, Request, Response};
use tunnel::transport::{Body, empty, full};

use crate::harness::{Caller, Path, TestRelay, get, on_each_transport, text};

const HTML: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn visit(path: &str) -> Request<Body> {
    let request = Request::get(path).header("accept", HTML);
    request.body(empty()).unwrap()
}

/// What an HTML or script file of the page asks for.
fn named(text: &str) -> BTreeSet<String> {
    let linked = text.split("\"./-/page/").skip(1);
    let imported = text.split("from './").skip(1);
    let names = linked.chain(imported).filter_map(|rest| rest.split(['"', '\'']).next());
    names.map(str::to_owned).collect()
}

fn assert_strict(headers: &HeaderMap, name: &str) {
    let policy = headers["content-security-policy"].to_str().unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self';",
        "style-src 'self';",
        "connect-src 'self';",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{name}: {policy}");
    }
    for (header, value) in [
        ("cache-control", "no-cache"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(headers[header], value, "{name}");
    }
}

on_each_transport! {
    async fn a_browser_gets_the_page_and_whoever_shows_a_token_the_desktop(transport: Transport) {
        let path = Path::scripted(transport).await;
        let mut nobody = Caller::connect(path.relay.address, "").await;
        let page = nobody.send(visit("/?code=a&state=b")).await;
        assert_eq!(page.status(), 200);
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(page.headers()["vary"], "Accept, Authorization, X-Api-Key, Tunnel-Bridge");
        assert!(text(page).await.starts_with("<!doctype html>"));
        // Ollama's clients look whether it runs.
        assert_eq!(nobody.send(get("/")).await.status(), 401);
        let mut caller = path.caller().await;
        let ((), response) = tokio::join!(
            async { path.upstream.next().await.finish(Response::new(full("Ollama is running"))) },
            caller.send(visit("/")),
        );
        assert_eq!(text(response).await, "Ollama is running");
    }
}

#[tokio::test]
async fn every_file_of_the_page_is_there_for_anybody_and_says_what_it_may_do() {
    let relay = TestRelay::start().await;
    let mut nobody = Caller::connect(relay.address, "").await;
    let page = nobody.send(visit("/")).await;
    assert_strict(page.headers(), "/");
    let mut waiting = named(&text(page).await);
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop_first() {
        let file = nobody.get(&format!("/-/page/{name}")).await;
        assert_eq!(file.status(), 200, "{name}");
        assert_strict(file.headers(), &name);
        let is_script = file.headers()["content-type"] == "text/javascript; charset=utf-8";
        assert_eq!(is_script, name.ends_with(".js"), "{name}");
        seen.insert(name);
        if is_script {
            waiting.extend(named(&text(file).await).difference(&seen).cloned());
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
    for wrong in [
        "/-/page/",
        "/-/page/../router.rs",
        "/-/page/%2e%2e/web.rs",
        "/-/page/app.js/",
    ] {
        assert_eq!(nobody.get(wrong).await.status(), 404, "{wrong}");
    }
}

#[tokio::test]
async fn a_file_that_did_not_change_is_not_sent_again() {
    let relay = TestRelay::start().await;
    let mut nobody = Caller::connect(relay.address, "").await;
    let tag = nobody.get("/-/page/app.js").await.headers()["etag"].clone();
    let known = Request::get("/-/page/app.js").header("if-none-match", tag);
    let again = nobody.send(known.body(empty()).unwrap()).await;
    assert_eq!(again.status(), 304);
    assert_strict(again.headers(), "304");
    assert_eq!(text(again).await, "");
}
