//! Counters and gauges: the server's are counted as requests pass, the engine's are looked up when somebody asks.
//!
//! No label ever holds a value of a dimension. Names are never reused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use engine::Engine;
use engine::change::Lsn;
use engine::change::value::EPOCH_UNIX_US;
use engine::engine::{Status, StoreMemoryUse};
use engine::materialization::{Aggregate, AggregateState};
use engine::source::{Check, CheckOutcome, SourceState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::state::now_us;
use crate::api::source::freshness;
use crate::verify::Verification;

/// Answers take microseconds to milliseconds; what takes longer is waiting.
const DURATIONS_S: [f64; 15] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// The server's metrics, and how to get at the engine's.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    verified: Verified,
}

/// What verifications found, asked for or not.
#[derive(Default)]
struct Verified {
    cells: Counter,
    differing: Counter,
    skipped: Counter,
    lsn: Gauge,
    time_s: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

impl Metrics {
    /// Metrics of a server over an engine.
    #[must_use]
    pub fn new(engine: Engine, source_name: Arc<str>) -> Self {
        let mut metrics = Metrics::without_engine();
        metrics.registry.register_collector(Box::new(EngineMetrics { engine, source_name }));
        metrics
    }

    /// The server's alone.
    pub(super) fn without_engine() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let durations =
            Family::<RouteLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(DURATIONS_S));
        let mut registry = Registry::with_prefix("tidemark");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program that answers", build);
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Time from a request's head to its answer's",
            durations.clone(),
        );
        let verified = Verified::default();
        registry.register("verified_cells", "Cells compared with what they should be", verified.cells.clone());
        registry.register(
            "verified_differing_cells",
            "Cells that were not what they should be",
            verified.differing.clone(),
        );
        registry.register(
            "verified_skipped_aggregates",
            "Times that an aggregate could not be compared",
            verified.skipped.clone(),
        );
        registry.register("verified_lsn_bytes", "Position of the last comparison", verified.lsn.clone());
        registry.register("verified_time_seconds", "When that was, since 1970", verified.time_s.clone());
        Metrics { registry, requests, durations, verified }
    }

    pub(super) fn count_request(&self, route: &str, method: &Method, code: u16, took: Duration) {
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "PUT" | "POST" | "DELETE" | "PATCH" | "OPTIONS") => known,
            // Anybody can invent methods; each would be another time series.
            _ => "OTHER",
        };
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), code };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    /// An aggregate could not be compared.
    pub(super) fn count_unverified(&self) {
        self.verified.skipped.inc();
    }

    pub(super) fn count_verification(&self, found: &Verification) {
        self.verified.skipped.inc_by(found.skipped.len() as u64);
        for tally in found.verified.iter().flat_map(|verified| &verified.levels) {
            self.verified.cells.inc_by(tally.cells);
            self.verified.differing.inc_by(tally.differing);
        }
        self.verified.lsn.set(found.lsn.0 as i64);
        self.verified.time_s.set((now_us() + EPOCH_UNIX_US) / 1_000_000);
    }

    /// All metrics as OpenMetrics text.
    pub(super) fn encode(&self) -> Result<String, fmt::Error> {
        let mut buffer = String::new();
        text::encode(&mut buffer, &self.registry)?;
        Ok(buffer)
    }
}

/// Looks up the engine's state at each scrape.
struct EngineMetrics {
    engine: Engine,
    source_name: Arc<str>,
}

impl fmt::Debug for EngineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineMetrics").field("source_name", &self.source_name).finish_non_exhaustive()
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.engine.status();
        let mut families = families(&self.source_name, &status, &self.engine.aggregates());
        families.extend(self.engine.store_memory_use().map(store_memory));
        families.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

/// One metric with its series.
#[derive(Debug)]
struct MetricFamily {
    name: &'static str,
    help: &'static str,
    series: Vec<(Vec<(&'static str, String)>, Number)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Counter(u64),
    Gauge(i64),
    Seconds(f64),
}

impl MetricFamily {
    fn encode(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        use prometheus_client::metrics::MetricType;
        let Some((_, first)) = self.series.first() else { return Ok(()) };
        let metric_type = match first {
            Number::Counter(_) => MetricType::Counter,
            Number::Gauge(_) | Number::Seconds(_) => MetricType::Gauge,
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, None, metric_type)?;
        for (labels, number) in &self.series {
            // Braces around nothing would be legal and odd.
            if labels.is_empty() {
                return number.encode(family);
            }
            number.encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Number {
    fn bytes(bytes: u64) -> Number {
        Number::Gauge(i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    fn encode(self, encoder: MetricEncoder) -> Result<(), fmt::Error> {
        match self {
            Number::Counter(count) => ConstCounter::new(count).encode(encoder),
            Number::Gauge(value) => ConstGauge::new(value).encode(encoder),
            Number::Seconds(value) => ConstGauge::new(value).encode(encoder),
        }
    }
}

/// The engine's metrics. Positions are bytes of upstream's log, so that differences of them are bytes too.
fn families(source: &str, status: &Status, aggregates: &[Arc<Aggregate>]) -> Vec<MetricFamily> {
    let source_label = || vec![("source", source.to_owned())];
    let gauge = |name, help, number| MetricFamily { name, help, series: vec![(source_label(), number)] };
    let position = |name, help, lsn: Lsn| gauge(name, help, Number::Gauge(lsn.0 as i64));
    let plain = |name, help, number| MetricFamily { name, help, series: vec![(Vec::new(), number)] };
    let counters = status.counters;
    let changes = [
        ("insert", counters.inserts),
        ("update", counters.updates),
        ("delete", counters.deletes),
        ("truncate", counters.truncates),
        ("snapshot", counters.snapshot_rows),
    ];
    let up = matches!(status.source.state, SourceState::Live | SourceState::CatchingUp);
    let mut families = vec![
        gauge("source_up", "1 while the source follows upstream's log", Number::Gauge(i64::from(up))),
        gauge("source_ready", "1 while answers can be given", Number::Gauge(i64::from(status.ready.is_ok()))),
        gauge(
            "source_lag_seconds",
            "How far answers are behind upstream",
            Number::Seconds(status.lag_ms as f64 / 1_000.0),
        ),
        position("source_received_lsn_bytes", "Newest position received", status.source.received_lsn),
        position("source_applied_lsn_bytes", "Newest position that answers show", status.applied_lsn),
        position("source_durable_lsn_bytes", "Newest position that survives a crash", status.durable_lsn),
        position(
            "source_acknowledged_lsn_bytes",
            "Newest position told upstream as durable",
            status.source.acknowledged_lsn,
        ),
        position("source_upstream_lsn_bytes", "End of upstream's log when last looked at", status.source.upstream_lsn),
        MetricFamily {
            name: "source_changes",
            help: "Rows changed upstream, by kind",
            series: changes
                .map(|(op, count)| (vec![("source", source.to_owned()), ("op", op.to_owned())], Number::Counter(count)))
                .to_vec(),
        },
        MetricFamily {
            name: "source_reconnects",
            help: "Connections to upstream that failed and were made anew",
            series: vec![(source_label(), Number::Counter(status.source.reconnects))],
        },
        source_states(source, &status.source.state),
        checks(source, &status.source.checks),
        each_check(source, &status.source.checks),
        plain("transactions", "Upstream transactions applied", Number::Counter(counters.transactions)),
        plain("commits", "Batches written", Number::Counter(counters.commits)),
        plain("cells_written", "Cells written", Number::Counter(counters.cells_written)),
        plain("cells_cached", "Cells held in memory by the workers", Number::Gauge(counters.cells_cached as i64)),
        plain(
            "in_flight_commit_groups",
            "Commit groups minted and not yet written",
            Number::Gauge(counters.in_flight as i64),
        ),
        plain("scrubbed_cells", "Cells compared with their control totals", Number::Counter(counters.scrubbed_cells)),
        plain("scrub_passes", "Times that all cells were", Number::Counter(counters.scrub_passes)),
        plain(
            "damaged_aggregates",
            "Aggregates that were found damaged, and halted",
            Number::Counter(counters.damaged_aggregates),
        ),
        plain("disk_free_bytes", "Free on the disk of the store", Number::bytes(status.free_space.free_bytes)),
        plain(
            "disk_min_free_bytes",
            "Free bytes below which nothing is taken from the source",
            Number::bytes(status.free_space.min_free_bytes),
        ),
        plain(
            "disk_low",
            "1 while nothing is taken from the source for want of space",
            Number::Gauge(i64::from(status.free_space.low)),
        ),
        aggregate_states(aggregates),
    ];
    if let Some(bytes) = status.source.retained_wal_bytes {
        families.push(gauge(
            "source_slot_retained_bytes",
            "Log that upstream keeps for us",
            Number::Gauge(bytes as i64),
        ));
    }
    if let Some(slot) = &status.source.slot_status {
        families.push(slot_states(source, &slot.wal_status));
        families.push(gauge(
            "source_slot_spilled_bytes",
            "Bytes of large transactions that upstream wrote to its disk for us",
            Number::Gauge(slot.spilled_bytes),
        ));
        if let Some(bytes) = slot.safe_wal_bytes {
            families.push(gauge(
                "source_slot_safe_wal_bytes",
                "Log that upstream can write before the slot may be lost",
                Number::Gauge(bytes),
            ));
        }
    }
    families
}

fn store_memory(used: StoreMemoryUse) -> MetricFamily {
    let part = |part: &str, bytes: u64| (vec![("part", part.to_owned())], Number::bytes(bytes));
    MetricFamily {
        name: "store_memory_bytes",
        help: "Memory that the store takes, by what for",
        series: vec![part("block_cache", used.block_cache), part("memtables", used.memtables)],
    }
}

/// One series per possible state, 1 for the one it is in: alerts can then name a state.
fn one_of(
    name: &'static str,
    help: &'static str,
    source: &str,
    label: &'static str,
    states: &[&str],
    is: &str,
) -> MetricFamily {
    let series = states
        .iter()
        .map(|state| {
            let labels = vec![("source", source.to_owned()), (label, (*state).to_owned())];
            (labels, Number::Gauge(i64::from(*state == is)))
        })
        .collect();
    MetricFamily { name, help, series }
}

fn source_states(source: &str, state: &SourceState) -> MetricFamily {
    const STATES: [&str; 8] =
        ["preflight", "creating_slot", "snapshotting", "catching_up", "live", "disk_low", "reconnecting", "halted"];
    one_of("source_state", "1 for the state the source is in", source, "state", &STATES, freshness(state))
}

/// One series per check: alerts can then name what they are about. One that is made of several things is in order where all are.
fn each_check(source: &str, checks: &[Check]) -> MetricFamily {
    let mut in_order: BTreeMap<&str, bool> = BTreeMap::new();
    for check in checks {
        *in_order.entry(check.name).or_insert(true) &= check.outcome == CheckOutcome::Ok;
    }
    let series = in_order
        .into_iter()
        .map(|(name, ok)| {
            let labels = vec![("source", source.to_owned()), ("check", name.to_owned())];
            (labels, Number::Gauge(i64::from(ok)))
        })
        .collect();
    MetricFamily { name: "source_check_ok", help: "1 where a check of upstream found nothing to do", series }
}

fn slot_states(source: &str, wal_status: &str) -> MetricFamily {
    const STATES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];
    let help = "1 for how upstream holds the slot's log";
    one_of("source_slot_wal_status", help, source, "wal_status", &STATES, wal_status)
}

fn checks(source: &str, checks: &[Check]) -> MetricFamily {
    let outcomes = [("failed", CheckOutcome::Failed), ("warning", CheckOutcome::Warning), ("ok", CheckOutcome::Ok)];
    let series = outcomes
        .map(|(outcome, which)| {
            let count = checks.iter().filter(|check| check.outcome == which).count();
            let labels = vec![("source", source.to_owned()), ("outcome", outcome.to_owned())];
            (labels, Number::Gauge(i64::try_from(count).unwrap_or(i64::MAX)))
        })
        .to_vec();
    MetricFamily { name: "source_checks", help: "Checks of upstream by outcome", series }
}

/// One series per aggregate and possible state, 1 for the one it is in: alerts can then name a state.
fn aggregate_states(aggregates: &[Arc<Aggregate>]) -> MetricFamily {
    let mut series = Vec::new();
    for aggregate in aggregates {
        for (state, is) in [
            ("building", aggregate.state == AggregateState::Building),
            ("live", aggregate.state == AggregateState::Live),
            ("halted", aggregate.state.is_halted()),
        ] {
            let labels = vec![("aggregate", aggregate.name.clone()), ("state", state.to_owned())];
            series.push((labels, Number::Gauge(i64::from(is))));
        }
    }
    MetricFamily { name: "aggregate_state", help: "1 for the state an aggregate is in", series }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::engine::Counters;
    use engine::free_space::FreeSpace;
    use engine::source::{SlotStatus, SourceIdentity, SourceStatus};

    use super::*;

    #[derive(Debug)]
    struct Fixed(Status);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
            families("payments_db", &self.0, &[]).iter().try_for_each(|family| family.encode(&mut encoder))
        }
    }

    #[test]
    fn everything_promised_is_in_the_text() {
        let mut metrics = Metrics::without_engine();
        let check = |outcome| Check { name: "wal_level", outcome, message: String::new(), remedy: String::new() };
        let slot = SlotStatus {
            wal_status: "extended".to_owned(),
            safe_wal_bytes: Some(900),
            spilled_bytes: 8_192,
            ..SlotStatus::default()
        };
        let source = SourceStatus {
            state: SourceState::Live,
            retained_wal_bytes: Some(4_096),
            slot_status: Some(slot),
            checks: vec![
                check(CheckOutcome::Warning),
                check(CheckOutcome::Ok),
                Check { name: "held_log", ..check(CheckOutcome::Ok) },
            ],
            ..SourceStatus::default()
        };
        metrics.registry.register_collector(Box::new(Fixed(Status {
            source,
            identity: SourceIdentity::default(),
            applied_lsn: Lsn(77),
            applied_time_us: 0,
            durable_lsn: Lsn(70),
            lag_ms: 12,
            ready: Ok(()),
            free_space: FreeSpace { free_bytes: 900, min_free_bytes: 1_000, low: true },
            counters: Counters { inserts: 5, commits: 3, ..Counters::default() },
        })));
        metrics.count_request("/v1/aggregates", &Method::GET, 200, Duration::from_micros(80));
        let text = metrics.encode().unwrap();
        for line in [
            "tidemark_build_info{version=\"0.1.0\"} 1",
            "tidemark_source_up{source=\"payments_db\"} 1",
            "tidemark_source_lag_seconds{source=\"payments_db\"} 0.012",
            "tidemark_source_applied_lsn_bytes{source=\"payments_db\"} 77",
            "tidemark_source_slot_retained_bytes{source=\"payments_db\"} 4096",
            "tidemark_source_slot_wal_status{source=\"payments_db\",wal_status=\"extended\"} 1",
            "tidemark_source_slot_wal_status{source=\"payments_db\",wal_status=\"lost\"} 0",
            "tidemark_source_slot_safe_wal_bytes{source=\"payments_db\"} 900",
            "tidemark_source_slot_spilled_bytes{source=\"payments_db\"} 8192",
            "tidemark_source_state{source=\"payments_db\",state=\"live\"} 1",
            "tidemark_source_state{source=\"payments_db\",state=\"halted\"} 0",
            "tidemark_source_checks{source=\"payments_db\",outcome=\"failed\"} 0",
            "tidemark_source_check_ok{source=\"payments_db\",check=\"wal_level\"} 0",
            "tidemark_source_check_ok{source=\"payments_db\",check=\"held_log\"} 1",
            "tidemark_source_checks{source=\"payments_db\",outcome=\"ok\"} 2",
            "tidemark_source_changes_total{source=\"payments_db\",op=\"insert\"} 5",
            "tidemark_commits_total 3",
            "tidemark_disk_free_bytes 900",
            "tidemark_disk_min_free_bytes 1000",
            "tidemark_disk_low 1",
            "tidemark_cells_cached 0",
            "tidemark_in_flight_commit_groups 0",
            "tidemark_http_requests_total{route=\"/v1/aggregates\",method=\"GET\",code=\"200\"} 1",
            "tidemark_http_request_duration_seconds_bucket{le=\"0.0001\",route=\"/v1/aggregates\"} 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
