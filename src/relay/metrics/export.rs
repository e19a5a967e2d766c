//! The metrics as text, in the format that Prometheus reads: OpenMetrics, which its older format is close to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::PerPath;
use super::histogram::Histogram;
use super::labels::{Fallback, Outcome, RouteClass, Transport};
use crate::platform;
use crate::relay::Relay;
use crate::relay::keeper::Keeper;

/// All metrics of the relay.
pub(super) fn text(relay: &Arc<Relay>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Export(Arc::clone(relay))));
    let mut text = String::with_capacity(32 * 1024);
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Export(Arc<Relay>);

impl Collector for Export {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.exchanges(&mut page)?;
        self.traffic(&mut page)?;
        self.times(&mut page)?;
        self.bridges(&mut page)?;
        self.relay(&mut page)?;
        process(&self.0, &mut page)
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// Writes one metric after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn metric<'s>(&'s mut self, name: &'s str, help: &str, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// One value for each word of a label.
    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&'static str, u64)]) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Counter)?;
        for (word, value) in values {
            let labels = [(label, *word)];
            let mut one = metric.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&'static str, usize)]) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Gauge)?;
        for (word, value) in values {
            let labels = [(label, *word)];
            metric.encode_family(&labels)?.encode_gauge(value)?;
        }
        Ok(())
    }

    fn histograms(&mut self, name: &str, help: &str, table: &PerPath<Histogram>) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Histogram)?;
        for (route, transport) in paths() {
            let labels = [("route", route.as_str()), ("transport", transport.as_str())];
            table[route as usize][transport as usize].encode(&mut metric, &labels)?;
        }
        Ok(())
    }
}

fn paths() -> impl Iterator<Item = (RouteClass, Transport)> {
    let routes = RouteClass::ALL.iter();
    routes.flat_map(|route| Transport::ALL.iter().map(|transport| (*route, *transport)))
}

impl Export {
    fn exchanges(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        let mut metric = page.metric("tunnel_exchanges", "Exchanges that are over", MetricType::Counter)?;
        for (route, transport) in paths() {
            let counts = &metrics.exchanges[route as usize][transport as usize];
            for outcome in Outcome::ALL {
                let count = load(&counts[*outcome as usize]);
                if count == 0 {
                    continue;
                }
                let labels = [
                    ("route", route.as_str()),
                    ("transport", transport.as_str()),
                    ("outcome", outcome.as_str()),
                ];
                let mut one = metric.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn traffic(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        page.counters(
            "tunnel_exchanges_refused",
            "Exchanges that the relay answered with an error of its own",
            "code",
            &metrics.refused.counts(),
        )?;
        let bytes = [("in", load(&metrics.received)), ("out", load(&metrics.sent))];
        page.counters(
            "tunnel_exchange_bytes",
            "Octets of bodies: in from callers, out to them",
            "direction",
            &bytes,
        )?;
        let in_flight = load(&metrics.in_flight) as f64;
        page.gauge("tunnel_exchanges_in_flight", "Exchanges under way", in_flight)?;
        let waiting = load(&metrics.waiting) as f64;
        page.gauge("tunnel_exchanges_waiting", "Exchanges that wait for a bridge", waiting)
    }

    fn times(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        page.histograms(
            "tunnel_exchange_first_byte_seconds",
            "From the head of a request to the first octet of the answer's body, or to its head where no body is",
            &metrics.first_byte,
        )?;
        page.histograms(
            "tunnel_exchange_duration_seconds",
            "From the head of a request to the end of the exchange",
            &metrics.total,
        )?;
        let mut metric = page.metric(
            "tunnel_cancel_told_seconds",
            "From a caller's leaving to its bridge being told",
            MetricType::Histogram,
        )?;
        for transport in Transport::ALL {
            let labels = [("transport", transport.as_str())];
            metrics.told[*transport as usize].encode(&mut metric, &labels)?;
        }
        Ok(())
    }

    fn bridges(&self, page: &mut Page<'_>) -> fmt::Result {
        let (relay, metrics) = (&self.0, &self.0.metrics);
        let (ws, poll) = relay.registry.connected();
        page.gauges(
            "tunnel_bridges_connected",
            "Bridges that take work",
            "transport",
            &[("ws", ws), ("poll", poll)],
        )?;
        let mut metric = page.metric("tunnel_bridge_connects", "Bridges that connected", MetricType::Counter)?;
        for transport in [Transport::Ws, Transport::Poll] {
            for (kind, count) in ["first", "again"]
                .into_iter()
                .zip(&metrics.connects[transport as usize])
            {
                let labels = [("transport", transport.as_str()), ("kind", kind)];
                let mut one = metric.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&load(count), None)?;
            }
        }
        let fallbacks = Fallback::ALL.iter();
        let fallbacks: Vec<_> = fallbacks
            .map(|fallback| (fallback.as_str(), load(&metrics.fallbacks[*fallback as usize])))
            .collect();
        page.counters(
            "tunnel_bridge_fallbacks",
            "Bridges that connected by polling because of something in the way of WebSocket",
            "reason",
            &fallbacks,
        )?;
        let queued = relay.pollers.queued() as f64;
        page.gauge(
            "tunnel_poll_queue",
            "Requests that wait for a bridge's next poll",
            queued,
        )?;
        let watched = relay.feeds.users() as f64;
        page.gauge(
            "tunnel_events_users",
            "Users whose bridges a page is told of as it happens",
            watched,
        )?;
        page.counters(
            "tunnel_auth_refusals",
            "Credentials of callers and bridges that were not accepted",
            "reason",
            &metrics.denied.counts(),
        )
    }

    fn store(&self, keeper: &Keeper, page: &mut Page<'_>) -> fmt::Result {
        let relay = &self.0;
        let up = f64::from(u8::from(keeper.is_well()));
        page.gauge("tunnel_store_up", "1 while the database does what it is asked for", up)?;
        let lag = keeper.lag(relay).as_secs_f64();
        page.gauge(
            "tunnel_store_lag_seconds",
            "How long the oldest that is not written has waited",
            lag,
        )?;
        let help = "Exchanges and bridges that were not noted because too much waits already";
        page.counter("tunnel_store_dropped", help, relay.ledger.dropped())?;
        let help = "How long the database took to answer";
        let mut metric = page.metric("tunnel_store_latency_seconds", help, MetricType::Histogram)?;
        let none: [(&str, &str); 0] = [];
        relay.metrics.store.encode(&mut metric, &none)
    }

    fn relay(&self, page: &mut Page<'_>) -> fmt::Result {
        let relay = &self.0;
        let most = relay.config.limits.connections;
        let connections = most.saturating_sub(relay.free_connections()) as f64;
        page.gauge("tunnel_connections", "Connections of callers and bridges", connections)?;
        page.gauge("tunnel_connections_limit", "As many as may be at once", most as f64)?;
        if let Some(tls) = &relay.config.tls {
            // Without a certificate nobody can connect: that reads as one that is over.
            let left = tls
                .expires()
                .map_or(0.0, |end| seconds(end) - seconds(SystemTime::now()));
            let help = "Until the certificate in use ends; 0 if there is none";
            page.gauge("tunnel_tls_certificate_left_seconds", help, left)?;
        }
        if let Some(log) = &relay.config.access_log {
            let help = "Lines of the access log that were left out because standard error takes no more";
            page.counter("tunnel_access_log_dropped", help, log.dropped())?;
        }
        if let Some(keeper) = &relay.config.keeper {
            self.store(keeper, page)?;
        }
        let draining = f64::from(u8::from(relay.shutdown.is_draining()));
        page.gauge("tunnel_draining", "1 while the relay stops", draining)?;
        page.gauges(
            "tunnel_build_info",
            "Which version runs",
            "version",
            &[(env!("CARGO_PKG_VERSION"), 1)],
        )
    }
}

fn process(relay: &Relay, page: &mut Page<'_>) -> fmt::Result {
    let started = seconds(relay.metrics.started);
    page.gauge(
        "process_start_time_seconds",
        "When the relay started, since 1970",
        started,
    )?;
    if let Some(memory) = platform::resident_memory() {
        page.gauge("process_resident_memory_bytes", "Memory in use", memory as f64)?;
    }
    if let Some(open) = platform::open_files() {
        page.gauge("process_open_fds", "Open file descriptors", open as f64)?;
    }
    Ok(())
}
