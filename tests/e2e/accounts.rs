//! Tokens, users and usage in a relay that runs, on each database: what is taken back is cut, what was acknowledged stays, and the
//! database may be away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tunnel::bridge::config::TokenSource;
use tunnel::token::Secret;
use tunnel::transport::full;

use crate::harness::accounts::{Database, EACH, Site, id_of, notice};
use crate::harness::bridge::Transport;
use crate::harness::process::Process;
use crate::harness::relay::token_for;
use crate::harness::{TestBridge, Upstream, chunk, json, on_each_transport, text, within};

async fn serving() -> Upstream {
    Upstream::serving(|_| async { Response::new(full("served")) }).await
}

async fn bridge(site: &Site, upstream: &Upstream, token: &str, transport: Transport) -> TestBridge {
    TestBridge::between(site.address, upstream.address)
        .token(TokenSource::Given(Secret::new(token)))
        .client_id("the same desktop")
        .transport(transport)
        .start()
        .await
}

on_each_transport! {
    async fn a_live_stream_is_cut_when_the_callers_token_is_revoked(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let _relay = site.relay().await;
            let upstream = Upstream::scripted().await;
            let of_desktop = site.token("ann").await;
            let (of_phone, of_tablet) = (site.token("ann").await, site.token("ann").await);
            let desktop = bridge(&site, &upstream, &of_desktop, transport).await;
            let mut caller = site.caller(&of_phone).await;
            let (answer, response) = tokio::join!(
                async { upstream.next().await.begin(Response::builder()) },
                caller.post("/api/chat", "{}"),
            );
            let mut response = response;
            answer.send("one").await;
            assert_eq!(chunk(&mut response).await.unwrap().unwrap(), "one");
            site.output(&["token", "revoke", &id_of(&of_phone)]).await;
            let revoked = Instant::now();
            let broken = within("the stream's end", chunk(&mut response)).await;
            assert!(broken.unwrap().is_err(), "broken visibly");
            assert!(revoked.elapsed() < notice(), "{database:?}: {:?}", revoked.elapsed());
            answer.abandoned().await;
            assert_eq!(site.status(&of_phone).await, 401);
            // A request that waits for its answer is cut as well.
            let mut caller = site.caller(&of_tablet).await;
            let waiting = tokio::spawn(async move { caller.get("/api/tags").await.status().as_u16() });
            let mut call = upstream.next().await;
            site.output(&["token", "revoke", &id_of(&of_tablet)]).await;
            assert_eq!(within("the answer", waiting).await.unwrap(), 401);
            call.abandoned().await;
            // The other token goes on, until it is revoked itself.
            let mut caller = site.caller(&of_desktop).await;
            let ((), response) = tokio::join!(
                async { upstream.next().await.finish(Response::new(full("served"))) },
                caller.get("/api/tags"),
            );
            assert_eq!(text(response).await, "served");
            site.output(&["token", "revoke", &id_of(&of_desktop)]).await;
            desktop.disconnected().await;
        }
    }

    async fn a_disabled_user_is_cut_off_and_let_in_again(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let _relay = site.relay().await;
            let upstream = serving().await;
            let (ann, bob) = (site.token("ann").await, site.token("bob").await);
            let desktop = bridge(&site, &upstream, &ann, transport).await;
            let _other = bridge(&site, &upstream, &bob, transport).await;
            site.answered(&ann, 200).await;
            site.output(&["user", "disable", "ann"]).await;
            let disabled = Instant::now();
            desktop.disconnected().await;
            assert!(disabled.elapsed() < notice(), "{database:?}: {:?}", disabled.elapsed());
            assert_eq!(site.status(&ann).await, 403);
            assert_eq!(site.status(&bob).await, 200);
            let refused = site.run(&["token", "--user", "ann"]).await;
            assert!(refused.errors.contains("tunnel relay user enable ann"), "{}", refused.errors);
            site.output(&["user", "enable", "ann"]).await;
            desktop.stop().await;
            site.answered(&ann, 503).await;
            let _back = bridge(&site, &upstream, &ann, transport).await;
            site.answered(&ann, 200).await;
        }
    }

    async fn a_kicked_bridge_comes_back(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let mut relay = site.relay().await;
            let upstream = serving().await;
            let ann = site.token("ann").await;
            let _desktop = bridge(&site, &upstream, &ann, transport).await;
            site.answered(&ann, 200).await;
            let known = within("the store to know it", async {
                loop {
                    if let Some(bridge) = site.list(&["bridges"]).await.pop() {
                        return bridge;
                    }
                }
            })
            .await;
            assert_eq!((known["user"].as_str(), known["platform"].as_str()), (Some("ann"), Some("linux")));
            let name = known["name"].as_str().unwrap();
            site.output(&["kick", &format!("ann/{name}")]).await;
            relay.error_line("bridge gone").await;
            relay.error_line("bridge connected").await;
            site.answered(&ann, 200).await;
            let unknown = site.run(&["kick", "nobody's"]).await;
            assert_eq!(unknown.code, Some(1));
        }
    }

    async fn what_was_acknowledged_survives_a_kill(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let relay = site.relay().await;
            let upstream = serving().await;
            let [ann, revoked, disabled] = [site.token("ann").await, site.token("ann").await, site.token("bob").await];
            let desktop = bridge(&site, &upstream, &ann, transport).await;
            site.answered(&ann, 200).await;
            for _ in 0..20 {
                assert_eq!(site.status(&ann).await, 200);
            }
            site.output(&["token", "revoke", &id_of(&revoked)]).await;
            site.output(&["user", "disable", "bob"]).await;
            site.used(&ann, 21).await;
            relay.signal(Signal::KILL);
            relay.ended().await;
            let _relay = site.relay().await;
            assert_eq!(site.status(&revoked).await, 401);
            assert_eq!(site.status(&disabled).await, 403);
            desktop.connected().await;
            site.answered(&ann, 200).await;
            assert!(site.usage(&ann).await["total"]["exchanges"].as_u64().unwrap() >= 21);
            let ids: Vec<_> = site.list(&["token", "list"]).await;
            assert_eq!(ids.len(), 3);
        }
    }
}

on_each_transport! {
    async fn usage_is_told_by_token_bridge_and_model(transport: Transport) {
        let site = Site::new(Database::Sqlite).await;
        let _relay = site.relay().await;
        let upstream = Upstream::serving(|request| async move {
            let counted = r#"{"model":"llama3.2","done":true,"prompt_eval_count":11,"eval_count":22}"#;
            let body = if request.uri().path() == "/api/chat" { counted } else { "{}" };
            Response::builder().header("content-type", "application/json").body(full(body)).unwrap()
        })
        .await;
        let phone = site.output(&["token", "--user", "ann", "--label", "phone"]).await;
        let _bridge = bridge(&site, &upstream, &phone, transport).await;
        site.answered(&phone, 200).await;
        let mut caller = site.caller(&phone).await;
        for _ in 0..3 {
            assert_eq!(text(caller.post("/api/chat", "hello").await).await.len(), 71);
        }
        site.used(&phone, 4).await;
        let usage = site.usage(&phone).await;
        let total = &usage["total"];
        assert_eq!((total["promptTokens"].as_u64(), total["completionTokens"].as_u64()), (Some(33), Some(66)));
        assert_eq!((total["bytesReceived"].as_u64(), total["countedExchanges"].as_u64()), (Some(15), Some(3)));
        let lines = usage["usage"].as_array().unwrap();
        let of = |model: serde_json::Value| lines.iter().find(|line| line["model"] == model).unwrap();
        let known = of("llama3.2".into());
        assert_eq!((known["exchanges"].as_u64(), known["token"]["label"].as_str()), (Some(3), Some("phone")));
        assert!(known["bridge"]["name"].is_string() && known["firstByteMs"].is_number());
        // What is not known stays so.
        assert!(of(serde_json::Value::Null)["completionTokens"].is_null());
        let bob = site.token("bob").await;
        assert_eq!(site.usage(&bob).await["total"]["exchanges"].as_u64(), Some(0));
        let refused = site.caller(&phone).await.get("/api/bridge/usage?per=week").await;
        assert_eq!(refused.status(), 400);
    }
}

#[tokio::test]
async fn a_deleted_user_is_forgotten_and_may_come_back() {
    for database in EACH {
        let site = Site::new(database).await;
        let _relay = site.relay().await;
        let upstream = serving().await;
        let ann = site.token("ann").await;
        let desktop = bridge(&site, &upstream, &ann, Transport::Ws).await;
        site.answered(&ann, 200).await;
        site.used(&ann, 1).await;
        let renewed = json(site.caller(&ann).await.post("/-/token/renew", "").await).await;
        let renewed = renewed["token"].as_str().unwrap();
        site.output(&["user", "delete", "ann"]).await;
        desktop.disconnected().await;
        for token in [&ann, renewed] {
            assert_eq!(site.status(token).await, 401);
        }
        assert_eq!(site.list(&["user", "list"]).await.len(), 0);
        let again = site.token("ann").await;
        site.answered(&again, 503).await;
        desktop.stop().await;
        let _desktop = bridge(&site, &upstream, &again, Transport::Ws).await;
        site.answered(&again, 200).await;
        assert_eq!(site.status(&ann).await, 401);
    }
}

#[tokio::test]
async fn tokens_from_before_there_was_a_store_stay_valid_and_can_be_revoked() {
    let site = Site::new(Database::Sqlite).await;
    let secret = std::str::from_utf8(crate::harness::relay::SECRET).unwrap();
    let data = site.home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("jwt.secret"), secret).unwrap();
    let _relay = site.relay().await;
    let token = token_for("ann", "api");
    site.answered(&token, 503).await;
    within("the store to know it", async {
        while site.list(&["token", "list"]).await.is_empty() {}
    })
    .await;
    site.output(&["token", "revoke", &id_of(&token)]).await;
    site.answered(&token, 401).await;
}

/// Callers that ask one after the other until they are told to stop; how many answers they got.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    callers: JoinSet<()>,
}

impl Load {
    fn begin(site: &Site, token: &str) -> Self {
        let load = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            callers: JoinSet::new(),
        };
        let mut load = load;
        for _ in 0..4 {
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            let (address, token) = (site.address, token.to_owned());
            load.callers.spawn(async move {
                let mut caller = crate::harness::Caller::connect(address, &token).await;
                while !stop.load(Ordering::Relaxed) {
                    let response = caller.get("/api/tags").await;
                    assert_eq!(response.status(), 200);
                    assert_eq!(text(response).await, "served");
                    answers.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        load
    }

    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(caller) = self.callers.join_next().await {
            caller.unwrap();
        }
        self.answers.load(Ordering::Relaxed)
    }
}

on_each_transport! {
    async fn a_database_that_is_away_fails_nobody_and_loses_no_usage(transport: Transport) {
        let mut site = Site::new(Database::Postgres).await;
        let mut relay = site.relay().await;
        let upstream = serving().await;
        let ann = site.token("ann").await;
        let _bridge = bridge(&site, &upstream, &ann, transport).await;
        site.answered(&ann, 200).await;
        let load = Load::begin(&site, &ann);
        let away = if crate::harness::long() { Duration::from_secs(20) } else { Duration::from_secs(3) };
        for _ in 0..2 {
            site.postgres.as_mut().unwrap().kill().await;
            relay.error_line("the database is away").await;
            assert_eq!(site.readiness().await, (200, serde_json::json!({"status": "ready", "store": "away"})));
            assert_eq!(site.run(&["token", "list"]).await.code, Some(1));
            tokio::time::sleep(away).await;
            site.postgres.as_mut().unwrap().restart().await;
            relay.error_line("the database is back").await;
        }
        let answers = load.end().await;
        site.used(&ann, answers + 1).await;
        assert_eq!(site.readiness().await.1["store"], "ok");
    }
}

#[tokio::test]
async fn a_relay_that_starts_without_its_database_lets_nobody_in_until_it_is_there() {
    let mut site = Site::new(Database::Postgres).await;
    let (ann, revoked) = (site.token("ann").await, site.token("ann").await);
    site.output(&["token", "revoke", &id_of(&revoked)]).await;
    site.postgres.as_mut().unwrap().kill().await;
    let mut relay = site.start();
    let told = relay.error_line("the database is away").await;
    assert!(!told.contains("sesame"), "{told}");
    relay.error_line("listens on").await;
    assert_eq!(
        site.readiness().await,
        (503, serde_json::json!({"status": "starting", "store": "away"}))
    );
    for token in [&ann, &revoked] {
        let response = site.caller(token).await.get("/api/tags").await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        assert_eq!(response.headers()["tunnel-error"], "overloaded");
    }
    site.postgres.as_mut().unwrap().restart().await;
    relay.error_line("the database is back").await;
    assert_eq!(site.readiness().await.0, 200);
    assert_eq!(site.status(&revoked).await, 401);
    let response = site.caller(&ann).await.get("/api/tags").await;
    assert_eq!(response.headers()["tunnel-error"], "no_bridge");
}

#[tokio::test]
async fn two_relays_share_a_database() {
    let one = Site::new(Database::Postgres).await;
    let mut other = Site::new(Database::Sqlite).await;
    other.use_those_of(&one);
    // Both at once, on a database with nothing in it.
    let (mut relays, token): (Vec<Process>, _) = (vec![one.start(), other.start()], one.token("ann").await);
    for relay in &mut relays {
        relay.error_line("listens on").await;
    }
    for site in [&one, &other] {
        site.answered(&token, 503).await;
    }
    one.output(&["token", "revoke", &id_of(&token)]).await;
    for site in [&one, &other] {
        site.answered(&token, 401).await;
    }
}

#[tokio::test]
async fn a_backup_taken_under_load_restores_to_the_same_relay() {
    for database in EACH {
        let site = Site::new(database).await;
        let relay = site.relay().await;
        let upstream = serving().await;
        let (ann, revoked) = (site.token("ann").await, site.token("bob").await);
        site.output(&["token", "revoke", &id_of(&revoked)]).await;
        let desktop = bridge(&site, &upstream, &ann, Transport::Ws).await;
        site.answered(&ann, 200).await;
        let load = Load::begin(&site, &ann);
        site.used_at_least(&ann, 50).await;
        let file = site.home.path().join("backup");
        site.output(&["backup", file.to_str().unwrap()]).await;
        let counted = load.end().await;
        let again = site.run(&["backup", file.to_str().unwrap()]).await;
        assert_eq!(again.code, Some(1), "an older backup is not overwritten");
        let id = site.list(&["bridges"]).await[0]["id"].clone();
        let refused = site.run(&["restore", file.to_str().unwrap()]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.errors);
        relay.signal(Signal::KILL);
        relay.ended().await;

        // From either database into the other one.
        let other = if database == Database::Sqlite {
            Database::Postgres
        } else {
            Database::Sqlite
        };
        let mut elsewhere = Site::new(other).await;
        elsewhere.address = site.address;
        elsewhere.output(&["restore", file.to_str().unwrap()]).await;
        let _relay = elsewhere.relay().await;
        desktop.connected().await;
        elsewhere.answered(&ann, 200).await;
        assert_eq!(elsewhere.status(&revoked).await, 401);
        assert_eq!(elsewhere.list(&["bridges"]).await[0]["id"], id);
        let used = elsewhere.usage(&ann).await["total"]["exchanges"].as_u64().unwrap();
        assert!((50..=counted + 1).contains(&used), "{used} of {counted}");
    }
}

#[tokio::test]
async fn a_damaged_backup_changes_nothing() {
    let site = Site::new(Database::Sqlite).await;
    site.token("ann").await;
    let file = site.home.path().join("backup");
    site.output(&["backup", file.to_str().unwrap()]).await;
    let whole = std::fs::read_to_string(&file).unwrap();
    let (without_end, _) = whole.trim_end().rsplit_once('\n').unwrap();
    let evil = whole.replace("\"jwt.secret\"", "\"../../evil\"");
    let later = whole.replace("\"table\":\"tokens\"", "\"table\":\"clouds\"");
    for (content, words) in [
        (without_end, "its end is missing"),
        (&*whole.replace("\"entries\":2", "\"entries\":3"), "damaged"),
        ("{}\n", "no backup"),
        (&*whole.replacen("\"format\":1", "\"format\":2", 1), "newer release"),
        (&*evil, "strange name"),
        // Files were brought back before this is found.
        (&*later, "an entry for clouds cannot be read"),
    ] {
        std::fs::write(&file, content).unwrap();
        let elsewhere = Site::new(Database::Sqlite).await;
        let refused = elsewhere.run(&["restore", file.to_str().unwrap()]).await;
        assert_eq!(refused.code, Some(2), "{words}");
        assert!(refused.errors.contains(words), "{}", refused.errors);
        assert!(!elsewhere.home.path().join("data/jwt.secret").exists());
    }
}

#[tokio::test]
async fn a_password_in_an_argument_is_refused_and_one_in_the_environment_is_not() {
    let home = tempfile::tempdir().unwrap();
    let url = "postgres://ann:sesame@127.0.0.1:1/relay";
    let mut arguments = vec!["relay", "token", "list", "--data-dir", home.path().to_str().unwrap()];
    let mut by_environment = crate::harness::process::command(home.path(), &arguments);
    by_environment.env("TUNNEL_DATABASE_URL", url);
    let ended = crate::harness::process::run(by_environment).await;
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    assert!(
        ended.errors.contains("127.0.0.1:1") && !ended.errors.contains("sesame"),
        "{}",
        ended.errors
    );
    arguments.extend(["--database-url", url]);
    let ended = crate::harness::process::run(crate::harness::process::command(home.path(), &arguments)).await;
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.errors.contains("--database-url-file") && !ended.errors.contains("sesame"),
        "{}",
        ended.errors
    );
}
