//! One way from a caller to an upstream: an ephemeral bridge on one transport, and callers that name it.

use super::site::Site;
use crate::bridge::choice::Transport;
use crate::cmd::rig::bridge::{EphemeralBridge, NotConnected, Plan};
use crate::cmd::rig::caller::Caller;
use crate::cmd::rig::upstream::Upstream;

/// The way over one transport.
pub(super) struct Through {
    pub(super) transport: Transport,
    /// Reaches this bridge and no other.
    pub(super) caller: Caller,
    pub(super) bridge: EphemeralBridge,
}

impl Through {
    /// Connects the bridge and waits until callers reach it.
    pub(super) async fn open(site: &Site, upstream: &Upstream, transport: Transport) -> Result<Self, NotConnected> {
        let bridge = EphemeralBridge::start(Plan {
            relay: site.relay.clone(),
            dialer: site.dialer.clone(),
            token: site.token.clone(),
            transport,
            upstream: upstream.address(),
            goodbyes: site.goodbyes.clone(),
        })
        .await?;
        let caller = site.caller();
        bridge.reached_by(&caller).await?;
        Ok(Self {
            transport,
            caller: caller.to_bridge(bridge.name()),
            bridge,
        })
    }
}
