//! A desktop that is shared with a group of the provider of sign-in.

use http::Method;
use serde_json::json;

use crate::harness::accounts::{EACH, Site};
use crate::harness::oidc::{AUDIENCE, Key, Provider, now};
use crate::harness::on_each_transport;
use crate::sharing::{named, reaches, reaches_none, site};

async fn trusting(site: Site, provider: &Provider) -> Site {
    let issuer = provider.issuer();
    let options = [
        "--oidc-issuer",
        &issuer,
        "--oidc-audience",
        AUDIENCE,
        "--oidc-client-id",
        "page",
        "--oidc-allow-all",
    ];
    site.serving(&options)
}

on_each_transport! {
    async fn members_of_a_group_reach_what_is_shared_with_it_also_by_their_keys(transport: Transport) {
        for database in EACH {
            let provider = Provider::start(&[Key::ec("one")]).await;
            let site = trusting(site(database).await, &provider).await;
            let _relay = site.relay().await;
            let ann = site.token("ann").await;
            let _box = named(&site, "box", &ann, transport).await;
            reaches(&site, &ann, "/api/tags", "box").await;
            let key = site.output(&["key", "add", "--user", "bob"]).await;
            let own = site.token("bob").await;
            let saying = |groups: &[&str], ago: u64| provider.token_with("bob", &json!({"groups": groups, "iat": now() - ago}));
            let member = saying(&["staff", "tennis"], 100);
            reaches_none(&site, &member, "/api/tags").await;
            let manager = provider.token("ann");
            let wish = json!({"bridge": "box", "with": "group:staff"});
            let mut request = http::Request::new(tunnel::transport::full(wish.to_string()));
            (*request.method_mut(), *request.uri_mut()) = (Method::POST, "/-/shares".parse().unwrap());
            assert_eq!(site.caller(&manager).await.send(request).await.status(), 201);
            for credential in [&member, &key, &own] {
                reaches(&site, credential, "/b/ann/box/api/tags", "box").await;
            }
            reaches_none(&site, &provider.token("carl"), "/b/ann/box/api/tags").await;
            // What a token says of its groups holds for that token, whatever a newer one says.
            let left = saying(&["tennis"], 50);
            reaches_none(&site, &left, "/b/ann/box/api/tags").await;
            for credential in [&key, &own] {
                reaches_none(&site, credential, "/b/ann/box/api/tags").await;
            }
            reaches(&site, &member, "/b/ann/box/api/tags", "box").await;
            // One that says nothing of groups changes nothing.
            let silent = provider.token("bob");
            reaches_none(&site, &silent, "/b/ann/box/api/tags").await;
            reaches(&site, &saying(&["staff"], 10), "/b/ann/box/api/tags", "box").await;
            for credential in [&key, &silent] {
                reaches(&site, credential, "/b/ann/box/api/tags", "box").await;
            }
        }
    }
}
