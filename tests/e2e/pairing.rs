//! Pairing, on each database: a code that is good once lets a real bridge in, and its token renews itself.

use std::os::unix::fs::PermissionsExt;

use http::Response;
use rusqlite::Connection;
use serde_json::json;
use tunnel::transport::full;

use crate::harness::accounts::{Database, EACH, Site};
use crate::harness::desktop::Desktop;
use crate::harness::process::{Process, command, run};
use crate::harness::{Upstream, json as read_json, on_each_transport, within};

async fn claim(site: &Site, code: &str) -> (u16, serde_json::Value) {
    let body = json!({"code": code}).to_string();
    let mut caller = site.caller("").await;
    let response = caller.post("/-/pair/claim", body).await;
    (response.status().as_u16(), read_json(response).await)
}

on_each_transport! {
    async fn a_code_lets_a_desktop_in_until_it_logs_out(transport: Transport) {
        for database in EACH {
            let site = Site::new(database).await;
            let _relay = site.relay().await;
            let upstream = Upstream::serving(|_| async { Response::new(full("served")) }).await;
            let desktop = Desktop::of(site.address);
            let code = site.output(&["pair", "--user", "ann"]).await;
            assert_eq!((code.len(), code.find('-')), (9, Some(4)), "{code}");
            let login = desktop.pair(&code.to_lowercase()).await;
            assert_eq!(login.code, Some(0), "{}", login.errors);
            assert!(login.errors.contains("as ann"), "{}", login.errors);
            let again = Desktop::of(site.address).pair(&code).await;
            assert_eq!(again.code, Some(3), "a code is good once: {}", again.errors);

            let kept = desktop.kept();
            let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!((kept.len(), mode(&kept[0]), mode(kept[0].parent().unwrap())), (1, 0o600, 0o700));
            let token = std::fs::read_to_string(&kept[0]).unwrap();
            assert!(!login.errors.contains(token.trim()));
            let listed = site.list(&["token", "list"]).await;
            assert_eq!((listed.len(), &listed[0]["scopes"]), (1, &"bridge".into()));
            assert!(listed[0]["label"].as_str().unwrap().starts_with("paired"));

            let upstream = format!("http://{}", upstream.address);
            let arguments = ["bridge", "--transport", transport.name(), "--upstream", &upstream];
            let mut bridge = Process::start(command(desktop.home.path(), &arguments));
            bridge.error_line("connected relay=").await;
            assert_eq!(site.status(token.trim()).await, 403, "it is for bridges only");
            let caller = site.token("ann").await;
            site.answered(&caller, 200).await;

            let logout = desktop.run(&["bridge", "logout"]).await;
            assert_eq!(logout.code, Some(0), "{}", logout.errors);
            let id = crate::harness::accounts::id_of(token.trim());
            assert!(logout.errors.contains(&format!("tunnel relay token revoke {id}")), "{}", logout.errors);
            assert!(desktop.kept().is_empty());
            assert_eq!(desktop.run(&["bridge"]).await.code, Some(2));
            assert_eq!(desktop.run(&["bridge", "logout"]).await.code, Some(2));
        }
    }

    async fn a_paired_bridge_renews_its_token_where_it_is_kept(transport: Transport) {
        let site = Site::new(Database::Sqlite).await;
        let _relay = site.relay().await;
        // What is made lives no longer than its maker.
        let manager = site.output(&["token", "--user", "ann", "--scope", "manage", "--expires", "12s"]).await;
        let made = read_json(site.caller(&manager).await.post("/-/pair", "").await).await;
        let desktop = Desktop::of(site.address);
        let login = desktop.pair(made["code"].as_str().unwrap()).await;
        assert_eq!(login.code, Some(0), "{}", login.errors);
        let path = desktop.kept().remove(0);
        let first = std::fs::read_to_string(&path).unwrap();
        let mut bridge = Process::start(command(desktop.home.path(), &["bridge", "--transport", transport.name()]));
        bridge.error_line("connected relay=").await;
        bridge.error_line("the token was renewed").await;
        assert_ne!(std::fs::read_to_string(&path).unwrap(), first);
    }
}

#[tokio::test]
async fn wrong_codes_are_few_and_a_code_that_ran_out_is_one() {
    for database in EACH {
        let site = Site::new(database).await;
        let _relay = site.relay().await;
        let old = site.output(&["pair", "--user", "ann"]).await;
        let sql = "UPDATE codes SET expires = 1";
        match &site.postgres {
            None => {
                let database = Connection::open(site.home.path().join("data/relay.db")).unwrap();
                database.execute_batch(sql).unwrap();
            }
            Some(postgres) => {
                let url = std::fs::read_to_string(site.home.path().join("url")).unwrap();
                postgres.execute(&url, sql).await;
            }
        }
        let good = site.output(&["pair", "--user", "ann"]).await;
        assert_eq!(claim(&site, &old).await.0, 401);
        for _ in 0..4 {
            assert_eq!(claim(&site, "0000-0000").await.0, 401);
        }
        let response = site.caller("").await.post("/-/pair/claim", r#"{"code":"0"}"#).await;
        assert_eq!(response.status(), 429);
        let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((30..=60).contains(&wait), "{wait}");
        assert_eq!(claim(&site, &good).await.0, 429, "nobody finds out by trying on");
    }
}

#[tokio::test]
async fn of_two_relays_on_one_database_one_gives_the_token() {
    let one = Site::new(Database::Postgres).await;
    let mut other = Site::new(Database::Sqlite).await;
    other.use_those_of(&one);
    let _relays = (one.relay().await, other.relay().await);
    for _ in 0..4 {
        let code = one.output(&["pair", "--user", "ann"]).await;
        let ((first, _), (second, _)) = tokio::join!(claim(&one, &code), claim(&other, &code));
        let mut both = [first, second];
        both.sort_unstable();
        assert_eq!(both, [200, 401]);
    }
    assert_eq!(one.list(&["token", "list"]).await.len(), 4);
}

#[tokio::test]
async fn a_login_is_asked_for_its_code_and_serves_the_only_relay_or_the_one_that_is_named() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let desktop = Desktop::of(site.address);
    let code = site.output(&["pair", "--user", "ann"]).await;
    let mut asked = command(desktop.home.path(), &["bridge", "login", "--relay", &desktop.relay]);
    asked.stdin(std::process::Stdio::piped());
    let mut child = asked.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{code}\n").as_bytes())
        .await
        .unwrap();
    drop(stdin);
    assert!(within("the login", child.wait()).await.unwrap().success());

    // The probe may connect a bridge and do no more with this token; so far it is let in.
    let probe = desktop.run(&["probe", "--only", "routes", "--json"]).await;
    assert_eq!(probe.code, Some(0), "{}", probe.output);
    let report: serde_json::Value = serde_json::from_str(&probe.output).unwrap();
    assert_eq!(report["relay"], desktop.relay);
    let token = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["check"] == "token");
    let (outcome, seen) = (&token.unwrap()["outcome"], token.unwrap()["seen"].as_str().unwrap());
    assert_eq!((outcome, seen.contains("for bridge")), (&"pass".into(), true), "{seen}");

    let kept = desktop.kept().remove(0);
    std::fs::copy(&kept, kept.with_file_name("https%3A%2F%2Frelay.example.com.token")).unwrap();
    for command in [["bridge"].as_slice(), &["bridge", "logout"]] {
        let refused = desktop.run(command).await;
        assert_eq!(refused.code, Some(2));
        let both = refused.errors.contains(&desktop.relay) && refused.errors.contains("https://relay.example.com");
        assert!(both, "{}", refused.errors);
    }
    let named = desktop
        .run(&["bridge", "logout", "--relay", "https://relay.example.com/"])
        .await;
    assert_eq!((named.code, desktop.kept()), (Some(0), vec![kept]));
}

#[tokio::test]
async fn a_token_that_is_given_is_never_sent_to_the_relay_of_a_login() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let desktop = Desktop::of(site.address);
    let code = site.output(&["pair", "--user", "ann"]).await;
    assert_eq!(desktop.pair(&code).await.code, Some(0));
    let file = desktop.home.path().join("token");
    std::fs::write(&file, "meant for another relay").unwrap();
    for part in ["bridge", "probe"] {
        let mut with_variable = command(desktop.home.path(), &[part]);
        with_variable.env("TUNNEL_TOKEN", "meant for another relay");
        let with_file = command(desktop.home.path(), &[part, "--token-file", file.to_str().unwrap()]);
        for command in [with_variable, with_file] {
            let refused = run(command).await;
            assert_eq!(refused.code, Some(2), "{}", refused.errors);
            assert!(
                refused.errors.contains("the relay's address is needed"),
                "{}",
                refused.errors
            );
        }
    }
}

#[tokio::test]
async fn a_login_that_could_not_be_kept_uses_up_no_code() {
    let site = Site::new(Database::Sqlite).await;
    let _relay = site.relay().await;
    let desktop = Desktop::of(site.address);
    let code = site.output(&["pair", "--user", "ann"]).await;
    let folder = desktop.home.path().join(".config/tunnel");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("relays"), "in the way").unwrap();
    let failed = desktop.pair(&code).await;
    assert_eq!(failed.code, Some(1), "{}", failed.errors);
    assert!(failed.errors.contains("the code is still good"), "{}", failed.errors);
    std::fs::remove_file(folder.join("relays")).unwrap();
    assert_eq!(desktop.pair(&code).await.code, Some(0));
    assert_eq!(desktop.kept().len(), 1, "and nothing else");
}
