//! A bridge for one measurement: reachable by a name that nobody guesses, in no list, and gone afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::caller::Caller;
use crate::bridge::choice::{Mode, Timing, Transport};
use crate::bridge::config::{Config, TokenSource};
use crate::bridge::policy::Policy;
use crate::bridge::status::{Phase, Status};
use crate::bridge::{self, Stopped};
use crate::random;
use crate::shutdown::Shutdown;
use crate::token::Secret;
use crate::transport::dial::{Dialer, RelayUrl};
use crate::transport::empty;

/// How long it may take until callers reach it.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The most that is read of what it answers them, octets.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Between two looks whether they do.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Who is told to end does so within this; a relay that cannot be told finds out by itself.
const GOODBYE: Duration = Duration::from_secs(2);

/// Waits until everybody who ended has said goodbye.
pub(in crate::cmd) async fn said(goodbyes: &TaskTracker) {
    goodbyes.close();
    let _ = timeout(GOODBYE, goodbyes.wait()).await;
}

/// What a bridge is made of.
pub(in crate::cmd) struct Plan {
    pub(in crate::cmd) relay: RelayUrl,
    pub(in crate::cmd) dialer: Dialer,
    pub(in crate::cmd) token: Secret,
    pub(in crate::cmd) transport: Transport,
    pub(in crate::cmd) upstream: SocketAddr,
    /// The bridge lives in it, until its goodbye is said.
    pub(in crate::cmd) goodbyes: TaskTracker,
}

/// A connected bridge; dropped, it says goodbye to the relay: wait for that with [`Plan::goodbyes`].
pub(in crate::cmd) struct EphemeralBridge {
    name: String,
    status: Arc<Status>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Stopped>>,
}

/// Why there is none, in a sentence.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(in crate::cmd) struct NotConnected(pub(in crate::cmd) String);

impl EphemeralBridge {
    /// Connects.
    pub(in crate::cmd) async fn start(plan: Plan) -> Result<Self, NotConnected> {
        let name = random::name().map_err(|error| NotConnected(error.to_string()))?;
        let wrong = |error: &dyn std::fmt::Display| NotConnected(error.to_string());
        let config = Config {
            relay: plan.relay,
            token: TokenSource::Given(plan.token),
            name: format!("probe-{}", &name[..12]),
            priority: i32::MIN,
            ephemeral: true,
            client_id: name,
            upstream: format!("http://{}", plan.upstream)
                .parse()
                .map_err(|error| wrong(&error))?,
            upstream_headers: HeaderMap::new(),
            // What is behind it is the rig's own.
            policy: Policy::new(false, vec!["* /*".parse().map_err(|error| wrong(&error))?]),
            dialer: plan.dialer,
            transport: Mode::Only(plan.transport),
            timing: Timing::default(),
            memory: None,
        };
        let name = config.name.clone();
        let status = Arc::new(Status::default());
        let shutdown = Shutdown::new();
        let running = bridge::run(config, Arc::clone(&status), shutdown.clone());
        let task = plan.goodbyes.spawn(running);
        let mut bridge = Self {
            name,
            status,
            shutdown,
            task,
        };
        match timeout(READY_WITHIN, bridge.connected()).await {
            Ok(Ok(())) => Ok(bridge),
            Ok(Err(stopped)) => Err(NotConnected(stopped)),
            Err(_) => Err(NotConnected(bridge.why_not())),
        }
    }

    /// Waits until it is connected; the error is why it gave up.
    async fn connected(&mut self) -> Result<(), String> {
        let mut phase = self.status.phase();
        tokio::select! {
            _ = phase.wait_for(|phase| matches!(phase, Phase::Connected { .. })) => Ok(()),
            ended = &mut self.task => Err(match ended {
                Ok(Err(stopped)) => stopped.to_string(),
                _ => "it ended".to_owned(),
            }),
        }
    }

    fn why_not(&self) -> String {
        match &*self.status.phase().borrow() {
            Phase::Waiting { why } => why.clone(),
            _ => format!("no answer within {} s", READY_WITHIN.as_secs()),
        }
    }

    /// Waits until requests of this caller reach it: the relay proves a link before it uses it.
    pub(in crate::cmd) async fn reached_by(&self, caller: &Caller) -> Result<(), NotConnected> {
        let caller = caller.to_bridge(&self.name);
        let mut last = format!("callers do not reach it within {} s", READY_WITHIN.as_secs());
        let asked = async {
            loop {
                let asked = caller.fetch(Method::GET, "/api/version", HeaderMap::new(), empty(), LONGEST_ANSWER);
                match asked.await {
                    Ok(answer) if answer.status == StatusCode::OK => return,
                    Ok(answer) => last = format!("a request to it was answered {}", answer.status),
                    Err(error) => last = error.to_string(),
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let reached = timeout(READY_WITHIN, asked).await;
        reached.map_err(|_| NotConnected(last))
    }

    /// The name by which callers reach it.
    pub(in crate::cmd) fn name(&self) -> &str {
        &self.name
    }

    /// What it does.
    pub(in crate::cmd) fn status(&self) -> &Arc<Status> {
        &self.status
    }
}

impl Drop for EphemeralBridge {
    fn drop(&mut self) {
        self.shutdown.end();
    }
}
