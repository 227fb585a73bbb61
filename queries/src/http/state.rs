//! What handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Engine;
use engine::change::value::EPOCH_UNIX_US;
use engine::materialization::{Aggregate, Plan};
use engine::source::FollowedTable;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::hosts::Hosts;
use super::metrics::Metrics;
use super::pages::Pages;
use super::scan_threads::ScanThreads;
use super::turns::Turns;
use crate::access::{Caller, Gate};
use crate::api::Problem;
use crate::dashboard::story::Teller;
use crate::inlet::EventInlet;
use crate::query::suggestion::did_you_mean;
use crate::verify::Upstream;

/// Live answers that are read at once; each costs memory and looks at every commit.
const MAX_SUBSCRIBERS: usize = 512;

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    pub(super) engine: Engine,
    /// Who may do what.
    pub(super) gate: Gate,
    /// Names that are ours.
    pub(super) hosts: Arc<Hosts>,
    pub(super) source_name: Arc<str>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) turns: Turns,
    /// Where what reads many cells runs.
    pub(super) scan_threads: Arc<ScanThreads>,
    /// Snapshots of answers that have further pages.
    pub(super) pages: Arc<Pages>,
    /// Snapshots that live answers showed last.
    pub(super) moments: Arc<Pages>,
    /// Live answers that may be read at once.
    pub(super) subscribers: Arc<Semaphore>,
    /// Cancelled when the server stops: live answers end then.
    pub(super) stopping: CancellationToken,
    /// Takes events that are posted, where the source does.
    pub(super) inlet: Option<Arc<dyn EventInlet>>,
    /// Recomputes totals, where the source does.
    pub(super) upstream: Option<Arc<dyn Upstream>>,
    /// How often a bucket is verified unasked.
    pub(super) verify_every: Option<Duration>,
    /// Verifications that may run at once.
    pub(super) verifying: Arc<Semaphore>,
    /// Tells the demo's story, where this is the demo.
    pub(super) teller: Option<Arc<dyn Teller>>,
    /// The process was ready once.
    pub(super) was_ready: Arc<AtomicBool>,
}

impl AppState {
    /// The state over a running engine; `source_name` is what `/v1/sources` calls its source.
    ///
    /// # Errors
    ///
    /// The system gives no threads.
    pub fn new(engine: Engine, source_name: impl Into<Arc<str>>) -> std::io::Result<Self> {
        let source_name = source_name.into();
        let scans = ScanThreads::count();
        Ok(AppState {
            metrics: Arc::new(Metrics::new(engine.clone(), Arc::clone(&source_name))),
            engine,
            gate: Gate::default(),
            hosts: Arc::default(),
            source_name,
            turns: Turns::of(scans),
            scan_threads: Arc::new(ScanThreads::start(scans)?),
            pages: Arc::default(),
            moments: Arc::default(),
            subscribers: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
            stopping: CancellationToken::new(),
            inlet: None,
            upstream: None,
            verify_every: None,
            verifying: Arc::new(Semaphore::new(1)),
            teller: None,
            was_ready: Arc::default(),
        })
    }

    /// Everyone is held to tokens.
    #[must_use]
    pub fn with_gate(self, gate: Gate) -> Self {
        AppState { gate, ..self }
    }

    /// It is asked by these names, too.
    #[must_use]
    pub fn with_hosts(self, hosts: Hosts) -> Self {
        AppState { hosts: Arc::new(hosts), ..self }
    }

    /// Whether nobody is let in without a token.
    #[must_use]
    pub fn asks_for_tokens(&self) -> bool {
        !self.gate.is_open()
    }

    /// The source takes events.
    #[must_use]
    pub fn with_inlet(self, inlet: Arc<dyn EventInlet>) -> Self {
        AppState { inlet: Some(inlet), ..self }
    }

    /// The source can be asked for its own totals.
    #[must_use]
    pub fn with_upstream(self, upstream: Arc<dyn Upstream>) -> Self {
        AppState { upstream: Some(upstream), ..self }
    }

    /// A bucket is verified this often, unasked.
    #[must_use]
    pub fn with_verification(self, every: Option<Duration>) -> Self {
        AppState { verify_every: every, ..self }
    }

    /// An aggregate, whatever its state, as somebody sees it.
    pub(super) fn aggregate_for(&self, caller: &Caller, name: &str) -> Result<Arc<Aggregate>, Problem> {
        if caller.sees(name) { self.aggregate(name) } else { Err(unknown_aggregate(name)) }
    }

    /// This is the demo.
    #[must_use]
    pub fn with_teller(self, teller: Arc<dyn Teller>) -> Self {
        AppState { teller: Some(teller), ..self }
    }

    /// An aggregate, whatever its state. The hint where there is none names others: `told` keeps it from who is pinned.
    pub(super) fn aggregate(&self, name: &str) -> Result<Arc<Aggregate>, Problem> {
        let aggregates = self.engine.aggregates();
        aggregates.iter().find(|aggregate| aggregate.name == name).cloned().ok_or_else(|| {
            unknown_aggregate(name).hint(did_you_mean(name, aggregates.iter().map(|aggregate| aggregate.name.as_str())))
        })
    }

    /// The table an aggregate is over.
    pub(super) fn table(&self, plan: &Plan) -> Option<Arc<FollowedTable>> {
        self.engine.tables().into_iter().find(|table| table.schema.id == plan.table)
    }
}

/// There is no such aggregate, or none that the caller sees.
pub(super) fn unknown_aggregate(name: &str) -> Problem {
    Problem::new(404, "unknown_aggregate", format!("there is no aggregate {name:?}"))
}

/// Microseconds since 2000-01-01 UTC.
pub(super) fn now_us() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(unix).unwrap_or(i64::MAX).saturating_sub(EPOCH_UNIX_US)
}
