//! The demonstration: what it prints works when pasted, its address lets one browser in, and all that this one may do works.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::events::Ear;
use crate::harness::bridge::Transport;
use crate::harness::process::{Process, command, run};
use crate::harness::{Caller, chunk, json as read_json, on_each_transport, text, within};

struct Demonstration {
    home: tempfile::TempDir,
    process: Process,
    address: SocketAddr,
    code: String,
}

impl Demonstration {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let arguments = ["relay", "--demo", "--listen", "127.0.0.1:0", "--demo-pace", "1ms"];
        let mut process = Process::start(command(home.path(), &arguments));
        let first = process.output_line("").await;
        let url = first
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .unwrap();
        let (address, code) = url.trim_start_matches("http://").split_once("/#code=").unwrap();
        Self {
            home,
            process,
            address: address.parse().unwrap(),
            code: code.to_owned(),
        }
    }

    async fn claim(&self, code: &str) -> (u16, Value) {
        let mut caller = Caller::connect(self.address, "").await;
        let response = caller.post("/-/auth/claim", json!({"code": code}).to_string()).await;
        (response.status().as_u16(), read_json(response).await)
    }

    /// The token of the one who opens it.
    async fn open(&self) -> String {
        let (status, answer) = self.claim(&self.code).await;
        assert_eq!((status, &answer["expires"]), (200, &Value::Null));
        answer["token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn the_demonstration_prints_what_works_when_pasted() {
    let mut demo = Demonstration::start().await;
    let line = demo.process.output_line("curl -N").await;
    assert!(line.contains(&format!("http://{}/api/chat", demo.address)), "{line}");
    let token = line.split("Bearer ").nth(1).unwrap().split('\'').next().unwrap();
    let mut caller = Caller::connect(demo.address, token).await;
    let chat = r#"{"model":"demo","messages":[{"role":"user","content":"Hello!"}]}"#;
    let mut response = caller.post("/api/chat", chat).await;
    let mut lines = String::new();
    let mut pieces = 0;
    while let Some(piece) = chunk(&mut response).await {
        lines.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        pieces += 1;
    }
    assert!(pieces > 5, "not streamed");
    assert!(
        lines.trim_end().lines().last().unwrap().contains(r#""done":true"#),
        "{lines}"
    );
    demo.process.signal(Signal::INT);
    assert_eq!(demo.process.ended().await, Some(0));
}

#[tokio::test]
async fn the_code_of_a_demonstration_is_good_once_and_guessed_by_nobody() {
    let demo = Demonstration::start().await;
    for wrong in ["", "0", &demo.code[1..], &demo.code.to_uppercase()] {
        assert_eq!(demo.claim(wrong).await.0, 401, "{wrong}");
    }
    let token = demo.open().await;
    let me = read_json(Caller::connect(demo.address, &token).await.get("/-/me").await).await;
    let expected = json!({
        "user": "demo", "kind": "token", "scopes": ["bridge", "api", "manage"], "expires": null, "bridge": null,
        "accounts": true,
    });
    assert_eq!(me, expected);
    assert_eq!(demo.claim(&demo.code).await.0, 401, "a code is good once");
    assert_eq!(demo.claim(&demo.code).await.0, 429);

    let guessed = Demonstration::start().await;
    for _ in 0..5 {
        assert_eq!(guessed.claim("0").await.0, 401);
    }
    assert_eq!(
        guessed.claim(&guessed.code).await.0,
        429,
        "nobody finds out by trying on"
    );
}

on_each_transport! {
    async fn who_opened_a_demonstration_makes_keys_and_adds_desktops(transport: Transport) {
        let demo = Demonstration::start().await;
        let token = demo.open().await;
        let mut caller = Caller::connect(demo.address, &token).await;
        let key = read_json(caller.post("/-/keys", r#"{"label":"phone"}"#).await).await;
        let id = key["id"].as_str().unwrap().to_owned();
        let key = key["key"].as_str().unwrap().to_owned();
        let status = async |credential: &str| {
            Caller::connect(demo.address, credential).await.get("/api/tags").await.status().as_u16()
        };
        within("the key", async { while status(&key).await != 200 {} }).await;
        let mut with_key = Caller::connect(demo.address, &key).await;
        let chat = r#"{"model":"demo","messages":[{"role":"user","content":"Hello!"}]}"#;
        assert!(text(with_key.post("/api/chat", chat).await).await.contains(r#""done":true"#));
        let listed = read_json(caller.get("/-/keys").await).await;
        assert_eq!(listed["keys"][0]["label"], "phone");
        within("the usage", async {
            loop {
                let usage = read_json(caller.get("/api/bridge/usage?per=all").await).await;
                let lines = usage["usage"].as_array().unwrap();
                if lines.iter().any(|line| line["token"]["id"] == *id && line["completionTokens"].as_u64() > Some(0)) {
                    break;
                }
            }
        })
        .await;

        let code = read_json(caller.post("/-/pair", "").await).await;
        let relay = format!("http://{}", demo.address);
        let arguments = ["bridge", "login", "--relay", &relay, "--code", code["code"].as_str().unwrap()];
        let login = run(command(demo.home.path(), &arguments)).await;
        assert_eq!(login.code, Some(0), "{}", login.errors);
        let transport = if transport == Transport::Poll { "poll" } else { "ws" };
        let arguments = ["bridge", "--name", "laptop", "--transport", transport];
        let mut bridge = Process::start(command(demo.home.path(), &arguments));
        bridge.error_line("connected relay=").await;
        let mut ear = Ear::of(Caller::connect(demo.address, &token).await).await;
        within("both desktops", async { while ear.bridges.len() < 2 { assert!(ear.hear().await); } }).await;
        assert_eq!(ear.bridges["laptop"]["transport"], transport);
        assert_eq!(ear.bridges["demo"]["lastHour"]["exchanges"], 2);
    }
}
