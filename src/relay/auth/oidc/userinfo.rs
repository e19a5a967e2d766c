//! What the provider tells of the user to whom a token belongs.

use http::StatusCode;
use serde_json::{Map, Value};

use crate::transport::dial::Dialer;
use crate::transport::issuer::{FetchError, Place, get};

/// What it tells with this token; nothing, where it does not want to.
pub(super) async fn userinfo(dialer: &Dialer, place: &Place, token: &str) -> Result<Map<String, Value>, FetchError> {
    match get(dialer, place, Some(token)).await {
        // It may be signed, or in another form; then it says nothing that could be read here.
        Ok((_, body)) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
        Err(FetchError::Status { status, .. })
            if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS =>
        {
            Ok(Map::new())
        }
        Err(error) => Err(error),
    }
}
