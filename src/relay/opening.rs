//! `POST /-/auth/claim`: the code by which the page of a demonstration opens signed in; good once, and for its process only.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::Relay;
use super::auth::Scopes;
use super::error::{Code, Error};
use super::own::{json_response, read_json};
use super::pairing::wrong_code;
use crate::token::Secret;
use crate::transport::Body;

/// Who may come in by a code, until somebody did.
#[derive(Debug, Clone)]
pub struct Opening {
    user: Arc<str>,
    code: Arc<Mutex<Option<Secret>>>,
}

impl Opening {
    /// Lets whoever knows the code in as the user, once.
    pub fn new(user: &str, code: Secret) -> Self {
        Self {
            user: user.into(),
            code: Arc::new(Mutex::new(Some(code))),
        }
    }

    /// Whether it was the code; it is not any more then.
    fn take(&self, code: &str) -> bool {
        let mut kept = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |kept: &mut Secret| verify_slices_are_equal(kept.expose().as_bytes(), code.as_bytes()).is_ok();
        kept.take_if(same).is_some()
    }
}

#[derive(Deserialize)]
struct Claim {
    code: String,
}

/// A token with every scope for whoever knows the code; it lives as long as the process, as all of a demonstration does.
///
/// # Errors
/// `not_found` where this is no demonstration, `unauthorized` for a code that is not good, `rate_limited` after too many of these,
/// `bad_request`.
pub async fn claim(relay: &Relay, address: IpAddr, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let opening = relay.config.opening.as_ref().ok_or_else(Error::not_found)?;
    let claim: Claim = read_json(request).await?;
    relay.wrong_codes.begin(address)?;
    if !opening.take(&claim.code) {
        return Err(wrong_code());
    }
    relay.wrong_codes.forgive(address);
    let token = relay.tokens.issue(&opening.user, Scopes::ALL, None);
    let token = token.map_err(|error| Error::new(Code::Overloaded, error.to_string()))?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"token": token.expose(), "expires": null}),
    ))
}
