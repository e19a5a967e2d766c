//! What those see who watch a relay: its metrics, read as Prometheus reads them, and its access log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tunnel::relay::access::Log;
use tunnel::relay::config::Config;
use tunnel::relay::metrics;
use tunnel::telemetry::LogFormat;

use super::{Caller, TestRelay, text, until};

type Labels = BTreeMap<String, String>;

/// A relay that is watched.
pub(crate) struct Watched {
    pub(crate) metrics: SocketAddr,
    pub(crate) log: Lines,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> (TestRelay, Self) {
        let log = Lines::default();
        let relay = TestRelay::with(|config| {
            config.access_log = Some(Log::start(LogFormat::Json, log.clone()).unwrap());
            change(config);
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metrics = listener.local_addr().unwrap();
        let task = tokio::spawn(metrics::serve(listener, Arc::clone(&relay.relay)));
        let task = task.abort_handle();
        (relay, Self { metrics, log, task })
    }

    /// The metrics now.
    pub(crate) async fn page(&self) -> Page {
        let mut caller = Caller::connect(self.metrics, "").await;
        let response = caller.get("/metrics").await;
        assert_eq!(response.status(), 200);
        Page::parse(&text(response).await)
    }
}

/// Lines of an access log.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// All that was written.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The fields of so many lines, which must be all there are.
    pub(crate) async fn fields(&self, number: usize) -> Vec<Value> {
        until("the lines of the access log", || self.text().lines().count() >= number).await;
        let text = self.text();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), number, "{text}");
        lines.iter().map(|line| line["fields"].clone()).collect()
    }

    /// The fields of the next line after so many.
    pub(crate) async fn last(&self, number: usize) -> Value {
        self.fields(number).await.pop().unwrap()
    }
}

/// Metrics as they were written.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) text: String,
    samples: Vec<(String, Labels, f64)>,
}

impl Page {
    /// Reads them, and fails where a rule of the format is broken.
    fn parse(text: &str) -> Self {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut kinds = BTreeMap::new();
        let mut samples = Vec::new();
        for line in text.lines() {
            match line
                .strip_prefix("# ")
                .map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>())
            {
                Some(rest) if rest[0] == "TYPE" => {
                    assert!(kinds.insert(rest[1], rest[2]).is_none(), "twice: {line}");
                }
                Some(rest) => assert!(matches!(rest[0], "HELP" | "EOF"), "{line}"),
                None => samples.push(sample(line)),
            }
        }
        let seen: BTreeSet<_> = samples.iter().map(|(name, labels, _)| (name, labels)).collect();
        assert_eq!(seen.len(), samples.len(), "a series stands there twice");
        let page = Self {
            text: text.to_owned(),
            samples,
        };
        for (name, kind) in kinds {
            page.check(name, kind);
        }
        page
    }

    fn check(&self, name: &str, kind: &str) {
        match kind {
            "counter" => assert!(self.of(&format!("{name}_total")).all(|(_, value)| value >= 0.0)),
            "gauge" => assert!(self.of(name).count() > 0, "{name}"),
            "histogram" => {
                let buckets: Vec<_> = self.of(&format!("{name}_bucket")).collect();
                let counts: Vec<_> = self.of(&format!("{name}_count")).collect();
                for (labels, count) in counts {
                    let same = |of: &Labels| labels.iter().all(|(name, value)| of.get(name) == Some(value));
                    let own: Vec<_> = buckets.iter().filter(|(of, _)| same(of)).collect();
                    assert!(own.is_sorted_by(|(_, a), (_, b)| a <= b), "{name}");
                    let (last, all) = own.last().unwrap();
                    assert_eq!((last["le"].as_str(), *all), ("+Inf", count), "{name}");
                }
            }
            other => panic!("{name} is a {other}"),
        }
    }

    fn of(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        let found = self.samples.iter().filter(move |(other, ..)| other == name);
        found.map(|(_, labels, value)| (labels, *value))
    }

    /// The sum of all series of this name with these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |of: &Labels| {
            labels
                .iter()
                .all(|(name, value)| of.get(*name).is_some_and(|v| v == value))
        };
        self.of(name)
            .filter(|(of, _)| has(of))
            .fold(0.0, |sum, (_, value)| sum + value)
    }

    /// How many series there are.
    pub(crate) fn series(&self) -> usize {
        self.samples.len()
    }

    /// The names that samples have or may come to have.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let kinds = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = kinds.flat_map(|kind| {
            let (name, kind) = kind.split_once(' ').unwrap();
            let endings = match kind {
                "counter" => ["_total"].as_slice(),
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            endings.iter().map(move |ending| format!("{name}{ending}"))
        });
        names.collect()
    }

    /// The names of all labels there are.
    pub(crate) fn labels(&self) -> BTreeSet<&str> {
        let labels = self.samples.iter().flat_map(|(_, labels, _)| labels.keys());
        labels.map(String::as_str).collect()
    }
}

fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value = value.parse().unwrap();
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
    };
    let known = |c: char| c.is_ascii_lowercase() || c == '_';
    assert!(name.chars().all(known), "{line}");
    let pairs = labels.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once("=\"").unwrap();
        assert!(name.chars().all(known), "{line}");
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    });
    (name.to_owned(), pairs.collect(), value)
}
