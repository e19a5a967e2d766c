//! The bridges that somebody sees at one moment, and what is different from an earlier one. What did not change is shared with
//! the snapshot before, and what did is written down once for all who listen.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use crate::relay::own::{address, unix_ms};
use crate::relay::reach::Visible;
use crate::relay::registry::Session;
use crate::relay::registry::last_hour::Done;

/// A round trip is told anew where it is so different: it never is the same twice, and a line for that alone says nothing.
const DIFFERENT_SHARE: f64 = 0.25;
const DIFFERENT_MS: f64 = 5.0;

/// The bridges by address, one after the other.
#[derive(Debug)]
pub(super) struct Snapshot {
    number: u64,
    bridges: BTreeMap<Arc<str>, Arc<Seen>>,
    /// The line for those who were told the snapshot before this one.
    change: Bytes,
}

/// One bridge as it is told.
#[derive(Debug)]
struct Seen {
    connection_id: u64,
    in_flight: usize,
    last_hour: Done,
    round_trip_ms: Option<f64>,
    json: String,
}

impl Snapshot {
    /// One with no other before it.
    pub(super) fn first(visible: &[Visible]) -> Self {
        let nothing = BTreeMap::new();
        let bridges = look(&nothing, visible);
        Self {
            number: 0,
            change: difference(&nothing, &bridges).unwrap_or_default(),
            bridges,
        }
    }

    /// The one after this, if anything is different in it.
    pub(super) fn next(&self, visible: &[Visible]) -> Option<Self> {
        let bridges = look(&self.bridges, visible);
        Some(Self {
            number: self.number + 1,
            change: difference(&self.bridges, &bridges)?,
            bridges,
        })
    }
}

/// What to tell one who was told `before`, or nothing yet; none if that is nothing.
pub(super) fn line(before: Option<&Snapshot>, after: &Snapshot) -> Option<Bytes> {
    match before {
        Some(before) if before.number + 1 == after.number => Some(after.change.clone()),
        Some(before) => difference(&before.bridges, &after.bridges),
        None => difference(&BTreeMap::new(), &after.bridges).or_else(|| Some(write(&[], &[]))),
    }
}

fn difference(before: &BTreeMap<Arc<str>, Arc<Seen>>, after: &BTreeMap<Arc<str>, Arc<Seen>>) -> Option<Bytes> {
    let is_new = |address: &Arc<str>, seen: &Arc<Seen>| before.get(address).is_none_or(|old| !Arc::ptr_eq(old, seen));
    let changed = after.iter().filter(|(address, seen)| is_new(address, seen));
    let changed: Vec<&str> = changed.map(|(_, seen)| seen.json.as_str()).collect();
    let gone = before.keys().filter(|address| !after.contains_key(*address));
    let gone: Vec<&str> = gone.map(|address| &**address).collect();
    (!changed.is_empty() || !gone.is_empty()).then(|| write(&changed, &gone))
}

fn write(changed: &[&str], gone: &[&str]) -> Bytes {
    let changed = changed.join(",");
    format!(
        "{{\"type\":\"bridges\",\"bridges\":[{changed}],\"gone\":{}}}\n",
        json!(gone)
    )
    .into()
}

fn look(before: &BTreeMap<Arc<str>, Arc<Seen>>, visible: &[Visible]) -> BTreeMap<Arc<str>, Arc<Seen>> {
    let seen = visible.iter().map(|(owner, session)| {
        let written = match owner {
            None => Cow::Borrowed(session.identity.name.as_str()),
            Some(_) => Cow::Owned(address(session).to_string()),
        };
        let (address, old) = match before.get_key_value(&*written) {
            Some((address, old)) => (Arc::clone(address), Some(old)),
            None => (written.as_ref().into(), None),
        };
        let same = old.filter(|old| old.is_still(session)).map(Arc::clone);
        let seen = same.unwrap_or_else(|| Arc::new(Seen::of(&address, owner.as_deref(), session)));
        (address, seen)
    });
    seen.collect()
}

impl Seen {
    fn of(address: &str, owner: Option<&str>, session: &Session) -> Self {
        let bridge = &session.identity;
        let (in_flight, last_hour) = (session.in_flight(), session.last_hour.sum());
        let round_trip_ms = round_trip_ms(session);
        let json = json!({
            "address": address,
            "id": owner.is_none().then_some(&*bridge.bridge_id),
            "name": bridge.name,
            "owner": owner,
            "transport": session.transport,
            "reason": session.reason,
            "priority": bridge.priority,
            "connectedSince": unix_ms(Some(session.since.1)),
            "roundTripMs": round_trip_ms,
            "inFlight": in_flight,
            "lastHour": {
                "exchanges": last_hour.exchanges,
                "promptTokens": last_hour.prompt,
                "completionTokens": last_hour.completion,
            },
        });
        Self {
            connection_id: session.connection_id,
            in_flight,
            last_hour,
            round_trip_ms,
            json: json.to_string(),
        }
    }

    /// Whether it says of the bridge what there is to say now.
    fn is_still(&self, session: &Session) -> bool {
        self.connection_id == session.connection_id
            && self.in_flight == session.in_flight()
            && self.last_hour == session.last_hour.sum()
            && is_near(self.round_trip_ms, round_trip_ms(session))
    }
}

fn round_trip_ms(session: &Session) -> Option<f64> {
    let time = session.link().round_trip()?;
    Some((time.as_secs_f64() * 1e4).round() / 10.0)
}

fn is_near(told: Option<f64>, now: Option<f64>) -> bool {
    match (told, now) {
        (Some(told), Some(now)) => (told - now).abs() <= (told * DIFFERENT_SHARE).max(DIFFERENT_MS),
        (told, now) => told.is_none() && now.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(number: u64, bridges: &[(&str, &Arc<Seen>)]) -> Snapshot {
        let bridges = bridges
            .iter()
            .map(|(address, seen)| ((*address).into(), Arc::clone(seen)));
        Snapshot {
            number,
            bridges: bridges.collect(),
            change: Bytes::from_static(b"shared"),
        }
    }

    fn seen(json: &str) -> Arc<Seen> {
        Arc::new(Seen {
            connection_id: 1,
            in_flight: 0,
            last_hour: Done::default(),
            round_trip_ms: None,
            json: json.to_owned(),
        })
    }

    #[test]
    fn whoever_missed_something_is_told_all_of_it_at_once() {
        let (a, b, other) = (seen("1"), seen("2"), seen("3"));
        let first = snapshot(0, &[("a", &a), ("b", &b)]);
        let second = snapshot(1, &[("a", &a), ("b", &b), ("c", &a)]);
        let third = snapshot(2, &[("b", &other), ("c", &a)]);
        let told = |before: Option<&Snapshot>, after: &Snapshot| {
            line(before, after).map(|line| String::from_utf8(line.to_vec()).unwrap())
        };
        let of = |bridges: &str, gone: &str| {
            Some(format!(
                "{{\"type\":\"bridges\",\"bridges\":[{bridges}],\"gone\":[{gone}]}}\n"
            ))
        };
        assert_eq!(told(None, &second), of("1,2,1", ""));
        assert_eq!(told(Some(&second), &third).as_deref(), Some("shared"));
        assert_eq!(told(Some(&first), &third), of("3,1", "\"a\""));
        assert_eq!(told(None, &snapshot(3, &[])), of("", ""));
    }

    #[test]
    fn a_round_trip_that_only_wavers_is_not_told_again() {
        for (told, now, near) in [
            (Some(50.0), Some(60.0), true),
            (Some(50.0), Some(63.0), false),
            (Some(0.3), Some(4.0), true),
            (Some(0.3), Some(9.0), false),
            (None, Some(1.0), false),
            (Some(1.0), None, false),
            (None, None, true),
        ] {
            assert_eq!(is_near(told, now), near, "{told:?} {now:?}");
        }
    }
}
