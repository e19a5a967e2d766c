//! Names to addresses: a resolver that is silent is not waited for long, and what it found the last time is used meanwhile.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hyper_util::client::legacy::connect::dns::Name;
use tokio::time::{Instant, timeout};
use tower_service::Service;

/// How long a look-up may take where nothing is known of the name.
const PATIENCE: Duration = Duration::from_secs(8);
/// And where its addresses are known from before.
const PATIENCE_KNOWN: Duration = Duration::from_secs(1);
/// A look-up that takes longer is not joined by others: the network, and with it the resolver, may be another by now.
const SHARED_FOR: Duration = Duration::from_secs(2);

/// The system's resolver; cheap to clone, and all clones know the same.
#[derive(Clone, Default)]
pub(super) struct Resolver(Arc<Mutex<HashMap<Name, Known>>>);

#[derive(Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    looking: Option<(Instant, LookUp)>,
}

type LookUp = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, String>>>;

impl Resolver {
    async fn resolve(self, name: Name) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        let (known, looking) = self.look(&name);
        let patience = if known.is_empty() { PATIENCE } else { PATIENCE_KNOWN };
        let why = match timeout(patience, looking).await {
            Ok(Ok(addresses)) => return Ok(addresses.into_iter()),
            Ok(Err(why)) => why,
            Err(_) => "the resolver does not answer".to_owned(),
        };
        if known.is_empty() {
            return Err(io::Error::other(why));
        }
        Ok(known.into_iter())
    }

    /// What is known of the name, and a look-up under way.
    fn look(&self, name: &Name) -> (Vec<SocketAddr>, LookUp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(name.clone()).or_default();
        let joined = known
            .looking
            .as_ref()
            .filter(|(since, looking)| looking.peek().is_none() && since.elapsed() < SHARED_FOR);
        let looking = match joined {
            Some((_, looking)) => looking.clone(),
            None => {
                let looking = self.clone().look_up(name.clone()).boxed().shared();
                // It goes on when nobody waits for it any more, for the next who asks.
                tokio::spawn(looking.clone());
                known.looking = Some((Instant::now(), looking.clone()));
                looking
            }
        };
        (known.addresses.clone(), looking)
    }

    async fn look_up(self, name: Name) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name).or_default().addresses.clone_from(&addresses);
        Ok(addresses)
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        self.clone().resolve(name).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_found_and_what_was_found_stays_known() {
        let resolver = Resolver::default();
        let name: Name = "localhost".parse().unwrap();
        let found: Vec<_> = resolver.clone().resolve(name.clone()).await.unwrap().collect();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(resolver.look(&name).0, found);
    }

    #[tokio::test]
    async fn a_name_that_fails_later_is_where_it_was() {
        let resolver = Resolver::default();
        let name: Name = "nowhere.invalid".parse().unwrap();
        assert!(resolver.clone().resolve(name.clone()).await.is_err());
        let address: SocketAddr = ([127, 0, 0, 1], 0).into();
        resolver.0.lock().unwrap().get_mut(&name).unwrap().addresses = vec![address];
        assert_eq!(resolver.resolve(name).await.unwrap().as_slice(), [address]);
    }
}
