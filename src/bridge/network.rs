//! Notices what makes a connection worth trying at once: the machine slept, it has another address, a name resolves again.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// The wall clock runs ahead of or behind the steady one by more than this: the machine slept, or the clock was set.
const JUMP: Duration = Duration::from_secs(5);

/// A look-up that takes longer is begun anew.
const STUCK: Duration = Duration::from_secs(2);
/// How long a look-up may hold up the first try to connect.
const LOOKUP: Duration = Duration::from_secs(1);

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The wall clock jumped.
    ClockJumped,
    /// Another local address leads there now.
    AddressChanged,
    /// The name to connect to, the relay's or its proxy's, has an address again.
    NameResolves,
    /// The network that was gone is back.
    Returned,
}

impl Change {
    /// Whether the network may be another: what was learned of the last one is of no use then.
    pub fn is_another_network(self) -> bool {
        self == Self::AddressChanged
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ClockJumped => "the computer woke up",
            Self::AddressChanged => "the network changed",
            Self::NameResolves => "the name resolves again",
            Self::Returned => "the network is back",
        })
    }
}

/// Compares each look with the one before.
#[derive(Debug)]
pub struct Network {
    authority: String,
    /// One of each family, for the way to the relay may be either.
    peers: [Option<SocketAddr>; 2],
    seen: Seen,
    /// There is no way to any of the peers.
    away: bool,
    next_look: Instant,
    /// A look-up under way.
    lookup: Option<JoinHandle<Option<[Option<SocketAddr>; 2]>>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    wall: SystemTime,
    steady: Instant,
    local: [Option<IpAddr>; 2],
}

impl Network {
    /// Watches the way to `host:port`: of the relay, or of the proxy that leads to it.
    pub fn new(authority: String) -> Self {
        Self {
            authority,
            peers: [None; 2],
            seen: Seen {
                wall: SystemTime::now(),
                steady: Instant::now(),
                local: [None; 2],
            },
            away: false,
            next_look: Instant::now() + INTERVAL,
            lookup: None,
        }
    }

    /// Resolves at the next change; nothing is missed when the future is dropped. `resolving`: the name had no address at the last try.
    pub async fn changed(&mut self, resolving: bool) -> Change {
        loop {
            sleep_until(self.next_look).await;
            let found = (resolving || self.peers == [None; 2]) && self.resolve().await;
            self.next_look = Instant::now() + INTERVAL;
            if found && resolving {
                return Change::NameResolves;
            }
            let now = Seen {
                wall: SystemTime::now(),
                steady: Instant::now(),
                local: self.peers.map(|peer| peer.and_then(local_address)),
            };
            let returned = self.note_way(&now);
            let change = compare(&self.seen, &now).or(returned);
            let before = self.seen.local;
            self.seen = Seen {
                // A moment without any address is no address.
                local: std::array::from_fn(|family| now.local[family].or(before[family])),
                ..now
            };
            if let Some(change) = change {
                return change;
            }
        }
    }

    /// Notes whether there is a way at all; tells when there is one again.
    fn note_way(&mut self, now: &Seen) -> Option<Change> {
        let known = self.peers != [None; 2];
        let away = known && now.local == [None; 2];
        (std::mem::replace(&mut self.away, away) && !away).then_some(Change::Returned)
    }

    /// The address this machine uses on the way to the relay, as far as that can be told without waiting long.
    pub async fn local(&mut self) -> Option<IpAddr> {
        if self.peers == [None; 2] {
            let _ = timeout(LOOKUP, self.resolve()).await;
        }
        let now = self.peers.map(|peer| peer.and_then(local_address));
        now.into_iter().chain(self.seen.local).flatten().next()
    }

    /// Looks the name up; a look-up that takes long is given up for a new one: the resolver may be another by now.
    async fn resolve(&mut self) -> bool {
        let authority = self.authority.clone();
        let lookup = self.lookup.get_or_insert_with(|| {
            tokio::spawn(async move {
                let found: Vec<SocketAddr> = tokio::net::lookup_host(authority).await.ok()?.collect();
                let first = |v4| found.iter().copied().find(|address| address.is_ipv4() == v4);
                Some([first(true), first(false)])
            })
        });
        let found = timeout(STUCK, lookup).await;
        self.lookup = None;
        match found {
            Ok(Ok(Some(peers))) => {
                self.peers = peers;
                true
            }
            _ => false,
        }
    }
}

fn compare(before: &Seen, now: &Seen) -> Option<Change> {
    let steady = now.steady.duration_since(before.steady);
    let wall = now.wall.duration_since(before.wall);
    let drift = match wall {
        Ok(wall) => wall.abs_diff(steady),
        Err(backwards) => backwards.duration() + steady,
    };
    if drift > JUMP {
        return Some(Change::ClockJumped);
    }
    let differs =
        |(before, now): (Option<IpAddr>, Option<IpAddr>)| before.zip(now).is_some_and(|(before, now)| before != now);
    let mut families = before.local.into_iter().zip(now.local);
    families.any(differs).then_some(Change::AddressChanged)
}

/// The address this machine would use to reach the peer. Connecting a UDP socket sends nothing.
fn local_address(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(wall: u64, steady: Instant, local: Option<[u8; 4]>) -> Seen {
        Seen {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall),
            steady,
            local: [local.map(Into::into), None],
        }
    }

    #[test]
    fn sleep_and_other_addresses_are_noticed_and_nothing_else() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let home = Some([192, 168, 1, 2]);
        let before = seen(1000, start, home);
        assert_eq!(compare(&before, &seen(1001, later, home)), None);
        assert_eq!(compare(&before, &seen(1001, later, None)), None);
        assert_eq!(compare(&before, &seen(4600, later, home)), Some(Change::ClockJumped));
        assert_eq!(compare(&before, &seen(900, later, home)), Some(Change::ClockJumped));
        let cafe = seen(1001, later, Some([10, 0, 0, 7]));
        assert_eq!(compare(&before, &cafe), Some(Change::AddressChanged));
    }

    #[test]
    fn the_loopback_is_reached_from_the_loopback() {
        let local = local_address(([127, 0, 0, 1], 9).into()).unwrap();
        assert!(local.is_loopback());
    }
}
