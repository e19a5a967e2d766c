//! A relay elsewhere, looked at before anything is measured: whether it takes the token, and whether the desktop is there.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use serde_json::Value;

use super::super::{Exit, Failure};
use crate::cmd::rig::caller::{Answer, Caller};
use crate::random;
use crate::token::Secret;
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::{empty, full, headers};

/// What a list of bridges may take.
const LONGEST: usize = 4 * 1024 * 1024;

/// The relay, the way there and the token for it.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) url: RelayUrl,
    pub(super) dialer: Dialer,
    pub(super) token: Secret,
}

impl Site {
    /// Whether bridges and callers are let in with this token.
    pub(super) async fn check(&self) -> Result<(), Failure> {
        let nobody = random::name().map_err(|error| Failure::new(Exit::Failed, error))?;
        let caller = self.caller();
        ask(&caller.to_bridge(&nobody), Method::GET, "/api/version", None).await?;
        // Nothing comes of it: it says nothing of who registers.
        ask(&caller, Method::POST, "/api/bridge/register", Some("{}")).await?;
        Ok(())
    }

    /// The transport of this desktop.
    pub(super) async fn transport_of(&self, name: &str) -> Result<Option<String>, Failure> {
        let caller = self.caller();
        ask(&caller.to_bridge(name), Method::GET, "/api/version", None).await?;
        let answer = ask(&caller, Method::GET, "/api/bridge", None).await?;
        let listed: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let bridges = listed.as_ref().and_then(|listed| listed.get("bridges")?.as_array());
        let Some(bridges) = bridges else {
            return Err(failed(&format!(
                "{} is no relay, or none that can be reached",
                self.url
            )));
        };
        let text = |bridge: &Value, field: &str| Some(bridge.get(field)?.as_str()?.to_owned());
        match bridges
            .iter()
            .find(|bridge| text(bridge, "name").as_deref() == Some(name))
        {
            Some(bridge) => Ok(text(bridge, "transport")),
            None => Err(failed(&format!("no desktop called {name} is connected"))),
        }
    }

    fn caller(&self) -> Caller {
        Caller::new(&self.dialer, &self.url).with_token(&self.token)
    }
}

/// Any answer but that the token is refused.
async fn ask(caller: &Caller, method: Method, path: &str, json: Option<&'static str>) -> Result<Answer, Failure> {
    let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let headers = json.map(|_| kind).into_iter().collect();
    let body = json.map_or_else(empty, full);
    let answer = caller.fetch(method, path, headers, body, LONGEST).await;
    let answer = answer.map_err(|error| Failure::new(Exit::Failed, error))?;
    let code = answer.headers.get(headers::TUNNEL_ERROR);
    let code = code.and_then(|code| code.to_str().ok()).unwrap_or_default();
    let refused = match answer.status {
        StatusCode::UNAUTHORIZED => "the relay refused the token",
        StatusCode::FORBIDDEN if code == "forbidden" => "the token is not good for both calling and bridging",
        _ => return Ok(answer),
    };
    Err(Failure::new(
        Exit::Refused,
        anyhow::anyhow!("{refused}\nThe operator makes one with: tunnel relay token --user NAME"),
    ))
}

fn failed(words: &str) -> Failure {
    Failure::new(Exit::Failed, anyhow::anyhow!("{words}"))
}
