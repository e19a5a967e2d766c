//! `tunnel relay --demo`: relay, bridge and a model in one process, talking over real sockets, and the commands to try it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpListener;

use super::relay::{STOPPING, listen, warn_if_public};
use super::{Failure, bridge as bridge_cmd, duration, print, tell};
use crate::bridge;
use crate::bridge::choice::{Mode, Timing, Transport};
use crate::bridge::config::{Config as BridgeConfig, TokenSource};
use crate::bridge::policy::Policy;
use crate::bridge::status::{Phase, Status};
use crate::demo::{Demo, MODEL};
use crate::random;
use crate::relay::auth::Scopes;
use crate::relay::auth::tokens::Tokens;
use crate::relay::config::Config;
use crate::relay::{self, Relay};
use crate::shutdown::Shutdown;
use crate::transport::dial::{BaseUrl, Dialer};
use crate::transport::http1::{self, Connection};
use crate::transport::{collect, empty};

const OLLAMA: &str = "http://127.0.0.1:11434";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of the demonstration.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Demonstration")]
pub(super) struct DemoArgs {
    /// Run relay and bridge together, with the local Ollama if there is one and a built-in model otherwise
    #[arg(long)]
    demo: bool,
    /// How long the built-in model takes for a word
    #[arg(long, value_name = "TIME", default_value = "40ms", value_parser = duration)]
    demo_pace: Duration,
}

impl DemoArgs {
    /// Whether it was asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.demo
    }
}

/// Runs until a signal.
///
/// # Errors
/// [`Failure`] when a part cannot be started.
pub(super) async fn run(args: DemoArgs, address: SocketAddr, config: Config) -> Result<(), Failure> {
    let listener = listen(address, "--listen").await?;
    let address = listener.local_addr().context("cannot tell the address")?;
    let shutdown = Shutdown::new();
    tokio::spawn(shutdown.clone().on_signals(STOPPING));
    // Nothing of a demonstration is kept: the secret and the token are as long-lived as the process.
    let tokens = Tokens::new(random::name().context("cannot make a secret")?.as_bytes());
    let token = tokens
        .issue("demo", Scopes::BOTH, None)
        .context("cannot make a token")?;
    let dialer = Dialer::new(None, CONNECT_TIMEOUT).context("cannot make connections")?;
    let (upstream, model) = match local_model(&dialer).await {
        Some(model) => (OLLAMA.to_owned(), model),
        None => (start_model(args.demo_pace, &shutdown).await?, MODEL.to_owned()),
    };
    let bridge = BridgeConfig {
        relay: format!("http://{}", reachable(address))
            .parse()
            .context("the relay's address")?,
        token: TokenSource::Given(token.clone()),
        name: "demo".to_owned(),
        priority: 0,
        ephemeral: false,
        client_id: random::name().context("cannot make an identity")?,
        upstream: upstream.parse().context("the model's address")?,
        upstream_headers: HeaderMap::new(),
        policy: Policy::new(false, Vec::new()),
        dialer,
        transport: Mode::Only(Transport::Ws),
        timing: Timing::default(),
        memory: None,
    };
    let status = Arc::new(Status::default());
    let relay = tokio::spawn(relay::serve(listener, Relay::new(config, tokens, shutdown.clone())));
    tokio::select! {
        ended = bridge::run(bridge, Arc::clone(&status), shutdown.clone()) => ended.map_err(bridge_cmd::explain)?,
        () = async {
            connected(&status).await;
            print(&commands(&reachable(address).to_string(), token.expose(), &model));
            warn_if_public(address);
            tell("\nThis goes on until you press Ctrl-C.");
            std::future::pending::<()>().await;
        } => {}
    }
    relay.await.context("the relay broke")?;
    Ok(())
}

/// An address to connect to, for one to listen on.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

async fn connected(status: &Status) {
    let mut phase = status.phase();
    // The sender lives as long as the status does.
    let _ = phase.wait_for(|phase| matches!(phase, Phase::Connected { .. })).await;
}

/// The first model of the Ollama on this machine, if one answers.
async fn local_model(dialer: &Dialer) -> Option<String> {
    let base: BaseUrl = OLLAMA.parse().ok()?;
    let asked = async {
        let stream = dialer.dial(base.origin()).await.ok()?;
        let connection = Connection::begin(stream).await.ok()?;
        let request = Request::get("/api/tags")
            .header(http::header::HOST, "127.0.0.1:11434")
            .body(empty())
            .ok()?;
        let response = http1::exchange(connection, std::sync::Weak::new(), request)
            .await
            .ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = collect(response.into_body(), 1024 * 1024).await?;
        let tags: serde_json::Value = serde_json::from_slice(&body).ok()?;
        tags.pointer("/models/0/name")?.as_str().map(str::to_owned)
    };
    tokio::time::timeout(Duration::from_secs(2), asked).await.ok()?
}

async fn start_model(pace: Duration, shutdown: &Shutdown) -> Result<String, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("cannot start the built-in model")?;
    let address = listener.local_addr().context("cannot tell the address")?;
    tokio::spawn(Demo::new(pace).serve(listener, shutdown.end_token()));
    Ok(format!("http://{address}"))
}

fn commands(address: &str, token: &str, model: &str) -> String {
    format!(
        r#"The relay is at http://{address}, a bridge is connected to it, and behind that is the model {model}.

Paste into another terminal:

With curl, a streamed chat:

curl -N http://{address}/api/chat -H 'Authorization: Bearer {token}' \
  -d '{{"model":"{model}","messages":[{{"role":"user","content":"Hello!"}}]}}'

With Python and its package ollama:

OLLAMA_HOST=http://{address} OLLAMA_API_KEY={token} \
  python3 -c 'import ollama; [print(p.message.content, end="", flush=True) for p in ollama.chat("{model}", [{{"role":"user","content":"Hello!"}}], stream=True)]; print()'

With Python and its package openai:

OPENAI_BASE_URL=http://{address}/v1 OPENAI_API_KEY={token} \
  python3 -c 'import openai; [print(c.choices[0].delta.content or "", end="", flush=True) for c in openai.OpenAI().chat.completions.create(model="{model}", messages=[{{"role":"user","content":"Hello!"}}], stream=True)]; print()'"#
    )
}
