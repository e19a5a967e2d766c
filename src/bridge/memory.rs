//! What was learned of networks, kept in the state folder: where WebSocket was blocked, polling is tried first the next time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files;

/// Networks remembered; the one longest not seen is forgotten.
const NETWORKS: usize = 32;

/// The memory; without a file it lasts as long as the process.
#[derive(Debug, Default)]
pub struct Memory {
    file: Option<PathBuf>,
    networks: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Why WebSocket does not work there.
    blocked: String,
    /// Seconds since 1970.
    seen: u64,
}

impl Memory {
    /// Reads the file; one that cannot be read is like an empty one.
    pub fn open(file: Option<PathBuf>) -> Self {
        let read = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let networks = read
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { file, networks }
    }

    /// Why WebSocket did not work, the last time, on the way from this local address to that relay.
    pub fn blocked(&self, local: Option<IpAddr>, relay: &str) -> Option<String> {
        let known = self.networks.get(&key(local?, relay))?;
        Some(known.blocked.clone())
    }

    /// Notes what was found: why WebSocket does not work, or that it does.
    pub fn note(&mut self, local: Option<IpAddr>, relay: &str, blocked: Option<&str>) {
        let Some(local) = local else {
            return;
        };
        let key = key(local, relay);
        let before = self.networks.get(&key).map(|known| known.blocked.as_str());
        if before == blocked {
            return;
        }
        match blocked {
            None => drop(self.networks.remove(&key)),
            Some(blocked) => {
                let seen = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |time| time.as_secs());
                let blocked = blocked.to_owned();
                self.networks.insert(key, Known { blocked, seen });
            }
        }
        while self.networks.len() > NETWORKS {
            let oldest = self
                .networks
                .iter()
                .min_by_key(|(_, known)| known.seen)
                .map(|(key, _)| key.clone());
            oldest.and_then(|key| self.networks.remove(&key));
        }
        self.write();
    }

    fn write(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let written = serde_json::to_vec_pretty(&self.networks)
            .map_err(std::io::Error::other)
            .and_then(|bytes| files::replace_private(file, &bytes));
        if let Err(error) = written {
            // Nothing is lost but a few seconds at the next start.
            tracing::debug!(file = %file.display(), %error, "could not note what was learned of this network");
        }
    }
}

/// A desktop's address changes with its network, mostly in the last part; the relay may be reached by another way elsewhere.
fn key(local: IpAddr, relay: &str) -> String {
    let network = match local {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
    };
    format!("{network} {relay}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: &str = "https://relay.example.com";

    fn at(last: u8) -> Option<IpAddr> {
        Some([192, 168, 1, last].into())
    }

    #[test]
    fn a_network_is_known_again_after_a_restart_and_by_any_of_its_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("networks"));
        let mut memory = Memory::open(file.clone());
        memory.note(at(2), RELAY, Some("blocked"));
        let mut memory_later = Memory::open(file.clone());
        assert_eq!(memory_later.blocked(at(9), RELAY).as_deref(), Some("blocked"));
        assert_eq!(memory_later.blocked(at(9), "https://other"), None);
        assert_eq!(memory_later.blocked(Some([10, 0, 0, 1].into()), RELAY), None);
        memory_later.note(at(3), RELAY, None);
        assert_eq!(Memory::open(file).blocked(at(2), RELAY), None);
    }

    #[test]
    fn not_more_networks_are_kept_than_fit_a_life_of_travel() {
        let mut memory = Memory::default();
        for n in 0..100 {
            memory.note(Some([10, 0, n, 1].into()), RELAY, Some("blocked"));
        }
        assert_eq!(memory.networks.len(), NETWORKS);
    }

    #[test]
    fn a_damaged_file_is_like_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("networks");
        std::fs::write(&file, b"{nonsense").unwrap();
        assert_eq!(Memory::open(Some(file)).blocked(at(1), RELAY), None);
    }
}
