//! What is accepted as a token, and what is not.

use futures_util::FutureExt;

use super::*;
use crate::relay::auth::caller_keys::{CallerKey, hash, make};

const BOTH: Scopes = Scopes::BOTH;

fn tokens() -> Tokens {
    Tokens::new(&[7; 32])
}

/// What needs no provider is decided on at once.
fn verify(tokens: &Tokens, token: &str) -> Result<Identity, Denied> {
    tokens.identify(token).now_or_never().unwrap()
}

fn sign(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
    format!("{text}.{signature}")
}

#[test]
fn a_renewed_token_is_the_same_credential_and_another_one_is_not() {
    let tokens = tokens();
    let issue = || tokens.issue("ann", BOTH, Some(Duration::from_secs(60))).unwrap();
    let identity = verify(&tokens, issue().expose()).unwrap();
    let (renewed, _) = tokens.renew(&identity).unwrap();
    let renewed = verify(&tokens, renewed.expose()).unwrap();
    assert_eq!((&renewed.id, renewed.credential), (&identity.id, identity.credential));
    assert_ne!(
        verify(&tokens, issue().expose()).unwrap().credential,
        identity.credential
    );
}

#[test]
fn a_token_says_what_it_was_issued_for() {
    let tokens = tokens();
    let scopes = Scopes::BRIDGE;
    let token = tokens.issue("ann", scopes, Some(Duration::from_secs(60))).unwrap();
    for _ in 0..2 {
        let identity = verify(&tokens, token.expose()).unwrap();
        assert_eq!((&*identity.user, identity.scopes), ("ann", scopes));
        assert_eq!(identity.expires.unwrap() - identity.issued.unwrap(), 60);
    }
    assert!(matches!(tokens.issue("", BOTH, None), Err(IssueError::BadUser)));
}

#[test]
fn what_is_not_ours_is_denied_with_its_reason() {
    let tokens = tokens();
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode("{}")
    );
    let other = Tokens::new(&[8; 32]).issue("ann", BOTH, None).unwrap();
    for (token, reason) in [
        (sign(hs256, r#"{"sub":"ann","exp":1}"#), Denied::Expired),
        (sign(hs256, r#"{"sub":"ann","nbf":99999999999}"#), Denied::NotYetValid),
        (sign(hs256, r#"{"sub":""}"#), Denied::NoUser),
        (sign(hs256, r#"{"sub":"a\nb"}"#), Denied::NoUser),
        (sign(hs256, "{}"), Denied::NoUser),
        (sign(r#"{"alg":"RS256"}"#, r#"{"sub":"ann"}"#), Denied::Algorithm),
        (sign(r#"{"alg":"HS512"}"#, r#"{"sub":"ann"}"#), Denied::Algorithm),
        (none, Denied::Algorithm),
        (other.expose().to_owned(), Denied::Signature),
        ("nonsense".to_owned(), Denied::Malformed),
        ("x".repeat(100 * 1024), Denied::TooLong),
    ] {
        assert_eq!(
            verify(&tokens, &token).unwrap_err(),
            reason,
            "{}",
            &token[..20.min(token.len())]
        );
    }
}

#[test]
fn a_remembered_token_ends_all_the_same() {
    let tokens = tokens();
    let token = tokens.issue("ann", BOTH, None).unwrap();
    verify(&tokens, token.expose()).unwrap();
    for known in tokens.lock().values_mut() {
        known.identity.expires = Some(1);
    }
    assert_eq!(verify(&tokens, token.expose()), Err(Denied::Expired));
}

#[tokio::test]
async fn during_a_rotation_two_secrets_are_accepted_and_one_signs() {
    let (old, new) = ([7; 32], [9; 32]);
    let tokens = tokens();
    let before = tokens.issue("ann", BOTH, None).unwrap();
    let identity = verify(&tokens, before.expose()).unwrap();
    let id = tokens.bridge_id("ann", "x");
    tokens.replace(Keys::new(&new, Some(&old)));
    let (fresh, _) = tokens.renew(&verify(&tokens, before.expose()).unwrap()).unwrap();
    let renewed = verify(&Tokens::new(&new), fresh.expose()).unwrap();
    assert_eq!(&*renewed.user, "ann");
    assert!(!tokens.is_current(&identity) && tokens.is_current(&renewed));
    verify(&tokens, fresh.expose()).unwrap();
    let over = tokens.refused(&identity);
    tokio::pin!(over);
    assert!(futures_util::poll!(&mut over).is_pending());
    tokens.replace(Keys::new(&new, None));
    over.await;
    assert_eq!(verify(&tokens, before.expose()), Err(Denied::Signature));
    verify(&tokens, fresh.expose()).unwrap();
    assert_eq!(tokens.bridge_id("ann", "x"), id);
}

#[test]
fn a_bridge_id_is_of_one_user_and_one_client() {
    let tokens = tokens();
    assert_eq!(tokens.bridge_id("ann", "x"), tokens.bridge_id("ann", "x"));
    assert_ne!(tokens.bridge_id("ann", "x"), tokens.bridge_id("bob", "x"));
    assert_ne!(tokens.bridge_id("ann", "xy"), tokens.bridge_id("annx", "y"));
}

#[tokio::test]
async fn a_key_is_decided_on_at_once_and_cut_when_it_is_taken_back() {
    let tokens = tokens();
    let (key, id) = make().unwrap();
    let kept = CallerKey {
        id: id.into(),
        user: "ann".into(),
        bridge: None,
        rate: None,
        issued: 1,
        expires: None,
    };
    tokens.accept_keys([(hash(key.expose()).into(), kept)].into_iter().collect());
    let identity = tokens.identify(key.expose()).now_or_never().unwrap().unwrap();
    assert!(identity.is_key() && identity.scopes == Scopes::API && !tokens.is_current(&identity));
    assert!(matches!(tokens.renew(&identity), Err(IssueError::Key)));
    let token = tokens.issue("ann", BOTH, None).unwrap();
    for wrong in [
        "tun_00000000000000000000000000".to_owned(),
        format!("tun_{}", token.expose()),
    ] {
        assert_eq!(
            tokens.identify(&wrong).now_or_never(),
            Some(Err(Denied::UnknownKey)),
            "{wrong}"
        );
    }
    let over = tokens.refused(&identity);
    tokio::pin!(over);
    assert!(futures_util::poll!(&mut over).is_pending());
    tokens.accept_keys(CallerKeys::default());
    over.await;
    assert_eq!(verify(&tokens, key.expose()), Err(Denied::UnknownKey));
}

#[test]
fn what_vouches_for_one_credential_vouches_for_no_other() {
    let tokens = tokens();
    let token = tokens.issue("ann", BOTH, None).unwrap();
    let identity = verify(&tokens, token.expose()).unwrap();
    let with = |key| Identity {
        key,
        ..identity.clone()
    };
    let (foreign, key) = (with(KeyId::of_provider(&[7; 32])), with(KeyId::Caller));
    assert_eq!(tokens.stands(&foreign), Err(Denied::ProviderAway));
    assert_eq!(tokens.stands(&key), Err(Denied::UnknownKey));
    assert!(matches!(tokens.renew(&foreign), Err(IssueError::Foreign)));
}
