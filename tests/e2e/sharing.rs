//! A desktop that its owner shares, on each database: who reaches it and how, what others learn of it, and what is cut when it is taken
//! back.

use std::pin::pin;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::accounts::{Database, EACH, Site, notice};
use crate::harness::bridge::Transport;
use crate::harness::upstream::Answer;
use crate::harness::{Caller, TestBridge, Upstream, chunk, get, on_each_transport, text, within};

/// A relay at which nobody waits for a bridge.
pub(crate) async fn site(database: Database) -> Site {
    Site::new(database).await.serving(&["--wait-for-bridge", "10ms"])
}

async fn desktop(site: &Site, upstream: &Upstream, name: &str, token: &str, transport: Transport) -> TestBridge {
    TestBridge::between(site.address, upstream.address)
        .token(TokenSource::Given(Secret::new(token)))
        .client_id(name)
        .name(name)
        .allow("* /*")
        .transport(transport)
        .start()
        .await
}

/// A desktop whose every answer is its name.
pub(crate) async fn named(
    site: &Site,
    name: &'static str,
    token: &str,
    transport: Transport,
) -> (TestBridge, Upstream) {
    let upstream = Upstream::serving(move |_| async move { Response::new(full(name)) }).await;
    let bridge = desktop(site, &upstream, name, token, transport).await;
    (bridge, upstream)
}

/// What the caller gets there, the bridge named in the header if one is.
async fn asked(site: &Site, credential: &str, path: &str, bridge: Option<&str>) -> (u16, String) {
    let mut request = get(path);
    if let Some(bridge) = bridge {
        request.headers_mut().insert("tunnel-bridge", bridge.parse().unwrap());
    }
    // Whoever drops it before the body is here gets no whole one.
    let mut caller = site.caller(credential).await;
    let response = caller.send(request).await;
    (response.status().as_u16(), text(response).await)
}

/// Waits until the caller gets this there.
pub(crate) async fn reaches(site: &Site, credential: &str, path: &str, expected: &str) {
    within(expected, async {
        while asked(site, credential, path, None).await != (200, expected.to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Waits until there is no bridge for the caller there.
pub(crate) async fn reaches_none(site: &Site, credential: &str, path: &str) {
    within("an answer that there is none", async {
        loop {
            let mut caller = site.caller(credential).await;
            // What had just begun when it was taken back breaks off.
            if let Ok(response) = caller.try_send(get(path)).await
                && response
                    .headers()
                    .get("tunnel-error")
                    .is_some_and(|code| code == "no_bridge")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn send(site: &Site, credential: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let mut request = Request::new(full(body.to_string()));
    (*request.method_mut(), *request.uri_mut()) = (method, path.parse().unwrap());
    let mut caller = site.caller(credential).await;
    let response = caller.send(request).await;
    let status = response.status().as_u16();
    (
        status,
        serde_json::from_str(&text(response).await).unwrap_or(Value::Null),
    )
}

pub(crate) async fn manager(site: &Site, user: &str) -> String {
    site.output(&["token", "--user", user, "--scope", "manage"]).await
}

/// Shares a bridge; the share's id.
pub(crate) async fn share(site: &Site, manager: &str, bridge: &str, with: &str) -> String {
    let wish = json!({"bridge": bridge, "with": with});
    let (status, share) = send(site, manager, Method::POST, "/-/shares", wish).await;
    assert_eq!(status, 201, "{share}");
    assert_eq!((&share["name"], &share["with"]), (&bridge.into(), &with.into()));
    share["id"].as_str().unwrap().to_owned()
}

/// A chat that has begun, once the caller is let through to the desktop.
async fn streaming(site: &Site, upstream: &Upstream, credential: &str) -> (Caller, Answer, Response<Incoming>) {
    within("the desktop to be shared", async {
        loop {
            let mut caller = site.caller(credential).await;
            let mut begun = pin!(async { upstream.next().await.begin(Response::builder()) });
            let asked = async {
                let mut asked = pin!(caller.post("/api/chat", "{}"));
                tokio::select! {
                    answer = &mut begun => Some((answer, asked.await)),
                    refused = &mut asked => {
                        assert_eq!(refused.status(), 503);
                        None
                    }
                }
            };
            if let Some((answer, response)) = asked.await {
                return (caller, answer, response);
            }
        }
    })
    .await
}

/// A request whose answer has not begun is told what is told of a bridge that does not exist.
async fn cut_while_it_waits(site: &Site, upstream: &Upstream, manager: &str, credential: &str) {
    let id = share(site, manager, "box", "all").await;
    let (caller, answer, response) = streaming(site, upstream, credential).await;
    drop((caller, response));
    answer.abandoned().await;
    let mut caller = site.caller(credential).await;
    let (mut call, response) = tokio::join!(
        async {
            let call = upstream.next().await;
            assert_eq!(unshare(site, manager, &id).await, 204);
            call
        },
        caller.get("/b/ann/box/api/tags"),
    );
    assert_eq!(
        (response.status().as_u16(), &response.headers()["tunnel-error"]),
        (503, &"no_bridge".parse().unwrap())
    );
    call.abandoned().await;
}

pub(crate) async fn unshare(site: &Site, manager: &str, id: &str) -> u16 {
    send(site, manager, Method::DELETE, &format!("/-/shares/{id}"), Value::Null)
        .await
        .0
}

on_each_transport! {
    async fn a_shared_desktop_is_called_by_header_by_path_and_where_there_is_no_own_one(transport: Transport) {
        for database in EACH {
            let site = site(database).await;
            let _relay = site.relay().await;
            let (ann, bob, carl) = (site.token("ann").await, site.token("bob").await, site.token("carl").await);
            let _box = named(&site, "box", &ann, transport).await;
            reaches(&site, &ann, "/api/tags", "box").await;
            // Not shared is as not there.
            let absent = asked(&site, &bob, "/api/tags", Some("nobody/box")).await;
            assert_eq!(absent.0, 503);
            for (path, bridge) in [("/api/tags", Some("ann/box")), ("/b/ann/box/api/tags", None), ("/api/tags", Some("ann/none"))] {
                assert_eq!(asked(&site, &bob, path, bridge).await, absent, "{path} {bridge:?}");
            }
            let manager = manager(&site, "ann").await;
            let id = share(&site, &manager, "box", "user:bob").await;
            assert_eq!(share(&site, &manager, "box", "user:bob").await, id, "the same again");
            reaches(&site, &bob, "/api/tags", "box").await;
            for (path, bridge) in [("/api/tags", Some("ann/box")), ("/b/ann/box/api/tags", None), ("/b/ann/box", None)] {
                assert_eq!(asked(&site, &bob, path, bridge).await, (200, "box".to_owned()), "{path} {bridge:?}");
            }
            for path in ["/b/ann/box/-/keys", "/b/ann/box/api/bridge", "/b/ann/box/x/../healthz", "/b/ann/box/.tunnel/ready"] {
                assert_eq!(asked(&site, &bob, path, None).await.0, 404, "{path}");
            }
            assert_eq!(asked(&site, &bob, "/b/box/api/tags", None).await, absent, "its name alone is that of an own one");
            assert_eq!(asked(&site, &carl, "/api/tags", Some("ann/box")).await, absent);
            assert_eq!(asked(&site, &carl, "/api/tags", None).await.0, 503);
            let (_, listed) = send(&site, &bob, Method::GET, "/api/bridge", Value::Null).await;
            let shared = &listed["shared"][0];
            assert_eq!((&shared["address"], &shared["owner"]), (&"ann/box".into(), &"ann".into()));
            assert!(shared["id"].is_null() && listed["bridges"] == json!([]), "{listed}");
            for user in [&carl, &ann] {
                assert_eq!(send(&site, user, Method::GET, "/api/bridge", Value::Null).await.1["shared"], json!([]));
            }
            // The owner may say whose it is, too.
            assert_eq!(asked(&site, &ann, "/api/tags", Some("ann/box")).await.1, "box");
            assert_eq!(asked(&site, &ann, "/b/ann/box/api/tags", None).await.1, "box");
            // A desktop of one's own goes first, and so does one that is called as somebody else.
            let _den = named(&site, "den", &bob, transport).await;
            reaches(&site, &bob, "/api/tags", "den").await;
            assert_eq!(asked(&site, &bob, "/b/ann/box/api/tags", None).await.1, "box");
            let _ann = named(&site, "ann", &bob, transport).await;
            reaches(&site, &bob, "/b/ann/box/api/tags", "ann").await;
            assert_eq!(asked(&site, &bob, "/api/tags", Some("ann/box")).await.1, "box");
            // A key for one bridge reaches that of its user.
            let key = site.output(&["key", "add", "--user", "bob", "--bridge", "den"]).await;
            reaches(&site, &key, "/api/tags", "den").await;
            assert_eq!(asked(&site, &key, "/api/tags", Some("ann/box")).await.0, 403);
            assert_eq!(asked(&site, &key, "/api/tags", Some("bob/den")).await.1, "den");
            assert_eq!(send(&site, &key, Method::GET, "/api/bridge", Value::Null).await.1["shared"], json!([]));
        }
    }

    async fn a_share_that_is_taken_back_cuts_what_goes_on(transport: Transport) {
        for database in EACH {
            let site = site(database).await;
            let _relay = site.relay().await;
            let upstream = Upstream::scripted().await;
            let (ann, bob) = (site.token("ann").await, site.token("bob").await);
            let _box = desktop(&site, &upstream, "box", &ann, transport).await;
            let manager = manager(&site, "ann").await;
            for taken_back in ["unshare", "disable", "delete"] {
                let id = share(&site, &manager, "box", "all").await;
                let (_caller, answer, mut response) = streaming(&site, &upstream, &bob).await;
                answer.send("one").await;
                assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
                match taken_back {
                    "unshare" => assert_eq!(unshare(&site, &manager, &id).await, 204),
                    verb => drop(site.output(&["user", verb, "ann"]).await),
                }
                let since = Instant::now();
                let broken = within("the stream's end", chunk(&mut response)).await;
                assert!(broken.unwrap().is_err(), "broken visibly");
                assert!(since.elapsed() < notice(), "{database:?} {taken_back}: {:?}", since.elapsed());
                answer.abandoned().await;
                if taken_back == "unshare" {
                    cut_while_it_waits(&site, &upstream, &manager, &bob).await;
                }
                reaches_none(&site, &bob, "/b/ann/box/api/tags").await;
                if taken_back == "disable" {
                    site.output(&["user", "enable", "ann"]).await;
                    within("ann to be let in", async {
                        while send(&site, &manager, Method::GET, "/-/shares", Value::Null).await.0 != 200 {}
                    })
                    .await;
                }
            }
        }
    }
}

#[tokio::test]
async fn only_who_manages_shares_and_nobody_sees_anothers_shares() {
    for database in EACH {
        let site = site(database).await;
        let _relay = site.relay().await;
        let (ann, bob) = (site.token("ann").await, manager(&site, "bob").await);
        let (_box, upstream) = named(&site, "box", &ann, Transport::Ws).await;
        reaches(&site, &ann, "/api/tags", "box").await;
        let manager = manager(&site, "ann").await;
        let id = share(&site, &manager, "box", "group:staff").await;
        let key = site.output(&["key", "add", "--user", "ann"]).await;
        reaches(&site, &key, "/api/tags", "box").await;
        let wish = json!({"bridge": "box", "with": "all"});
        for credential in [&key, &ann] {
            for (method, path) in [
                (Method::GET, "/-/shares"),
                (Method::POST, "/-/shares"),
                (Method::DELETE, "/-/shares/x"),
            ] {
                assert_eq!(
                    send(&site, credential, method.clone(), path, wish.clone()).await.0,
                    403,
                    "{method} {path}"
                );
            }
        }
        let (_, listed) = send(&site, &manager, Method::GET, "/-/shares", Value::Null).await;
        let listed = listed["shares"].as_array().unwrap().clone();
        assert_eq!(
            (listed.len(), &listed[0]["id"], &listed[0]["with"]),
            (1, &id.as_str().into(), &"group:staff".into())
        );
        assert!(
            listed[0]["bridge"].is_string() && listed[0]["since"].is_u64(),
            "{listed:?}"
        );
        let of_bob = send(&site, &bob, Method::GET, "/-/shares", Value::Null).await;
        assert_eq!(of_bob, (200, json!({"shares": []})));
        assert_eq!(send(&site, &bob, Method::POST, "/-/shares", wish).await.0, 404);
        assert_eq!(unshare(&site, &bob, &id).await, 404);
        for wrong in [
            json!({"bridge": "box"}),
            json!({"bridge": "box", "with": "bob"}),
            json!({"bridge": "box", "with": "user:"}),
        ] {
            assert_eq!(
                send(&site, &manager, Method::POST, "/-/shares", wrong.clone()).await.0,
                400,
                "{wrong}"
            );
        }
        assert_eq!(unshare(&site, &manager, &id).await, 204);
        assert_eq!(unshare(&site, &manager, &id).await, 404);
        let probe = TestBridge::between(site.address, upstream.address)
            .token(TokenSource::Given(Secret::new(&ann)))
            .name("probe")
            .ephemeral()
            .start()
            .await;
        probe.connected().await;
        let wish = json!({"bridge": "probe", "with": "all"});
        assert_eq!(send(&site, &manager, Method::POST, "/-/shares", wish).await.0, 404);
    }
}

#[tokio::test]
async fn usage_is_counted_for_who_calls_and_told_to_the_owner_by_user() {
    for database in EACH {
        let site = site(database).await;
        let _relay = site.relay().await;
        let (ann, bob) = (site.token("ann").await, site.token("bob").await);
        let _box = named(&site, "box", &ann, Transport::Ws).await;
        reaches(&site, &ann, "/api/tags", "box").await;
        let manager = manager(&site, "ann").await;
        let id = share(&site, &manager, "box", "user:bob").await;
        reaches(&site, &bob, "/api/tags", "box").await;
        site.used(&bob, 1).await;
        site.used(&ann, 1).await;
        let of = async |credential: &str, path: &str| send(&site, credential, Method::GET, path, Value::Null).await.1;
        let on_box = of(&ann, "/api/bridge/usage?of=bridges&per=all").await;
        assert_eq!(on_box["total"]["exchanges"], 2, "{on_box}");
        let users: Vec<_> = on_box["usage"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| &line["user"])
            .collect();
        assert_eq!(users, [&Value::from("ann"), &"bob".into()]);
        assert!(on_box["usage"][1]["token"].is_null(), "{on_box}");
        assert_eq!(of(&bob, "/api/bridge/usage?of=bridges").await["total"]["exchanges"], 0);
        let line = async || of(&bob, "/api/bridge/usage").await["usage"][0].clone();
        assert_eq!(line().await["bridge"], json!({"id": null, "name": "ann/box"}));
        let own = of(&ann, "/api/bridge/usage").await["usage"][0]["bridge"].clone();
        assert!(own["id"].is_string() && own["name"] == "box", "{own}");
        let key = site.output(&["key", "add", "--user", "ann"]).await;
        let bridge = site.output(&["token", "--user", "ann", "--scope", "bridge"]).await;
        reaches(&site, &key, "/api/tags", "box").await;
        for credential in [&key, &bridge] {
            let path = "/api/bridge/usage?of=bridges";
            assert_eq!(send(&site, credential, Method::GET, path, Value::Null).await.0, 403);
        }
        assert_eq!(unshare(&site, &manager, &id).await, 204);
        reaches_none(&site, &bob, "/api/tags").await;
        assert_eq!(line().await["bridge"]["name"], Value::Null);
    }
}

#[tokio::test]
async fn the_operator_shares_by_names_that_need_escapes() {
    let site = site(Database::Sqlite).await;
    let _relay = site.relay().await;
    let bob = site.token("bob").await;
    let mut desktops = Vec::new();
    for (owner, written) in [("auth0|1", "auth0%7C1"), ("a/b", "a%2Fb")] {
        let token = site.token(owner).await;
        desktops.push(named(&site, "box", &token, Transport::Ws).await);
        reaches(&site, &token, "/api/tags", "box").await;
        within("the desktop in the list", async {
            while !site
                .list(&["bridges"])
                .await
                .iter()
                .any(|bridge| bridge["user"] == owner)
            {}
        })
        .await;
        let address = format!("{owner}/box");
        let shared = site.run(&["share", &address, "--with", "bob"]).await;
        assert!(shared.code == Some(0), "{}", shared.errors);
        let path = format!("/b/{written}/box/api/tags");
        reaches(&site, &bob, &path, "box").await;
        let named = format!("{written}/box");
        assert_eq!(
            asked(&site, &bob, "/api/tags", Some(&named)).await,
            (200, "box".to_owned())
        );
        let listed = site.list(&["shares", "--of", owner]).await;
        assert_eq!(
            (listed.len(), &listed[0]["with"], &listed[0]["owner"]),
            (1, &"user:bob".into(), &owner.into())
        );
        site.output(&["unshare", &address, "--with", "user:bob"]).await;
        reaches_none(&site, &bob, &path).await;
        let again = site.run(&["unshare", &address, "--with", "bob"]).await;
        assert!(
            again.code == Some(1) && again.errors.contains("tunnel relay shares"),
            "{}",
            again.errors
        );
    }
    for (arguments, told) in [
        (["share", "box", "--with", "all"], "USER/NAME"),
        (["share", "a%2Fb/box", "--with", "groups:staff"], "group:NAME"),
    ] {
        let refused = site.run(&arguments).await;
        assert!(
            refused.code == Some(2) && refused.errors.contains(told),
            "{}",
            refused.errors
        );
    }
}

#[tokio::test]
async fn who_waits_for_a_desktop_of_their_own_is_not_sent_to_another_one() {
    let site = site(Database::Sqlite).await;
    let relay = site.relay().await;
    let (ann, bob) = (site.token("ann").await, site.token("bob").await);
    let _box = named(&site, "box", &ann, Transport::Ws).await;
    let (den, _upstream) = named(&site, "den", &bob, Transport::Ws).await;
    reaches(&site, &ann, "/api/tags", "box").await;
    reaches(&site, &bob, "/api/tags", "den").await;
    within("both desktops in the list", async {
        while site.list(&["bridges"]).await.len() < 2 {}
    })
    .await;
    site.output(&["share", "ann/box", "--with", "all"]).await;
    reaches(&site, &bob, "/b/ann/box/api/tags", "box").await;
    den.stop().await;
    reaches_none(&site, &bob, "/api/tags").await;
    relay.signal(Signal::KILL);
    relay.ended().await;
    let _relay = site.relay().await;
    reaches(&site, &bob, "/b/ann/box/api/tags", "box").await;
    assert_eq!(asked(&site, &bob, "/api/tags", None).await.0, 503);
}

#[tokio::test]
async fn who_is_deleted_is_shared_with_no_more() {
    let site = site(Database::Sqlite).await;
    let _relay = site.relay().await;
    let (ann, bob) = (site.token("ann").await, site.token("bob").await);
    let _box = named(&site, "box", &ann, Transport::Ws).await;
    reaches(&site, &ann, "/api/tags", "box").await;
    let manager = manager(&site, "ann").await;
    share(&site, &manager, "box", "user:bob").await;
    reaches(&site, &bob, "/api/tags", "box").await;
    site.output(&["user", "delete", "bob"]).await;
    let another = site.token("bob").await;
    reaches_none(&site, &another, "/api/tags").await;
    assert_eq!(site.list(&["shares"]).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_shared_desktop_that_is_away_is_waited_for() {
    let site = Site::new(Database::Sqlite).await.serving(&["--wait-for-bridge", "15s"]);
    let _relay = site.relay().await;
    let (ann, bob) = (site.token("ann").await, site.token("bob").await);
    let (first, _upstream) = named(&site, "box", &ann, Transport::Ws).await;
    reaches(&site, &ann, "/api/tags", "box").await;
    share(&site, &manager(&site, "ann").await, "box", "user:bob").await;
    reaches(&site, &bob, "/api/tags", "box").await;
    first.stop().await;
    let (named_one, any, _again) = tokio::join!(
        asked(&site, &bob, "/api/tags", Some("ann/box")),
        asked(&site, &bob, "/api/tags", None),
        named(&site, "box", &ann, Transport::Ws),
    );
    for answered in [named_one, any] {
        assert_eq!(answered, (200, "box".to_owned()));
    }
}
