//! The scenarios: what one way is asked in one round, and what is noted of it.

mod bulk;
mod reconnect;
mod small;
mod tokens;

use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;

use super::measurement::{Slice, Wrong};
use super::pacing::Pace;
use super::settings::{Scenario, Settings, Subject};
use super::stage::{Stage, Way};
use crate::cmd::rig::caller::{CallError, Caller};
use crate::transport::{Body, headers};

impl From<CallError> for Wrong {
    fn from(error: CallError) -> Self {
        Self(error.to_string())
    }
}

/// Measures one way once; none if there is nothing on it to be measured.
pub(super) async fn measure(
    scenario: Scenario,
    stage: &Stage,
    way: &Way,
    settings: &Settings,
) -> anyhow::Result<Option<Slice>> {
    let before = stage.spent(way).await;
    let pace = Pace {
        time: settings.slice,
        rate: settings.rate,
    };
    let clock = stage.ticker.clock();
    let one = &way.callers[..1.min(way.callers.len())];
    let mut slice = match scenario {
        Scenario::Small => pace.drive(one, clock, small::exchange).await?,
        Scenario::Crowd => {
            let crowd = &way.callers[..settings.concurrency.min(way.callers.len())];
            pace.drive(crowd, clock, small::exchange).await?
        }
        Scenario::First => {
            let model = settings.subject.model();
            let first = async |caller: &Caller| tokens::first(caller, model).await;
            pace.drive(one, clock, first).await?
        }
        Scenario::Tokens => tokens::measure(way, settings).await?,
        Scenario::Bulk => bulk::measure(way, settings.bulk_size).await?,
        Scenario::Reconnect => match &way.link {
            Some(link) => reconnect::measure(link, way, &stage.ticker).await?,
            None => return Ok(None),
        },
    };
    slice.spent = stage.spent(way).await.since(before);
    if let (Scenario::Tokens, Some(link)) = (scenario, &way.link) {
        tokens::count_octets(link, &mut slice).await;
    }
    Ok(Some(slice))
}

impl Subject {
    /// The real model that writes the tokens, if that is who writes them.
    fn model(&self) -> Option<&str> {
        match self {
            Self::Desktop { model, .. } => model.as_deref(),
            _ => None,
        }
    }
}

/// Sends a request; what is answered with anything but 200 is wrong.
async fn ask(caller: &Caller, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, Wrong> {
    let response = caller.send(method, path, HeaderMap::new(), body).await?;
    check_head(&response)?;
    Ok(response)
}

fn check_head<B>(response: &Response<B>) -> Result<(), Wrong> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let code = response.headers().get(headers::TUNNEL_ERROR);
    let code = code.and_then(|code| code.to_str().ok());
    let code = code.map_or_else(String::new, |code| format!(" ({code})"));
    Err(Wrong(format!("answered {}{code}", status.as_u16())))
}

fn broken(error: &hyper::Error) -> Wrong {
    Wrong(format!("the answer broke off: {error}"))
}
