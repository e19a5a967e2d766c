//! The page in a real browser. What people do there is told in JavaScript (`tests/browser`); a script ends with 0 if every promise
//! was kept, and says which one was not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::browser::script;
use crate::harness::on_each_transport;

/// What a whole story may take on a busy machine.
const SLOW: Duration = Duration::from_secs(300);

async fn is_kept(name: &str, mut argument: Value) {
    let home = tempfile::tempdir().unwrap();
    argument["tunnel"] = env!("CARGO_BIN_EXE_tunnel").into();
    argument["home"] = home.path().to_str().into();
    // To be looked at by eye.
    argument["pictures"] = std::env::var("TUNNEL_PICTURES").ok().into();
    let ended = tokio::time::timeout(SLOW, script(name, &argument).output()).await;
    let ended = ended
        .unwrap_or_else(|_| panic!("the story goes on for too long"))
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
}

on_each_transport! {
    async fn people_sign_in_add_a_desktop_chat_share_and_hand_out_keys(transport: Transport) {
        is_kept("page.js", json!({"transport": transport.name()})).await;
    }
}

on_each_transport! {
    async fn a_page_renews_its_token_while_a_chat_goes_on_and_only_a_refusal_ends_the_sign_in(transport: Transport) {
        is_kept("renew.js", json!({"transport": transport.name()})).await;
    }
}

#[tokio::test]
async fn a_demonstration_opens_signed_in_and_chats_at_once() {
    is_kept("demo.js", json!({})).await;
}

#[tokio::test]
async fn a_page_under_a_path_is_used_by_keyboard_and_shows_names_as_text() {
    is_kept("prefix.js", json!({})).await;
}

#[tokio::test]
async fn many_desktops_that_change_all_the_time_are_neither_drawn_anew_nor_all_asked() {
    is_kept("many.js", json!({})).await;
}
