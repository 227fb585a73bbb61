//! What handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::Engine;
use engine::change::value::EPOCH_UNIX_US;
use engine::materialization::{Aggregate, Plan};
use engine::source::FollowedTable;
use tokio::sync::Semaphore;

use super::metrics::Metrics;
use crate::api::Problem;
use crate::inlet::EventInlet;
use crate::query::suggestion::did_you_mean;

/// Scans that run at once; more wait for their turn, so that a dashboard cannot take all threads.
const MAX_SCANS: usize = 16;

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    pub(super) engine: Engine,
    pub(super) source_name: Arc<str>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) scans: Arc<Semaphore>,
    /// Takes events that are posted, where the source does.
    pub(super) inlet: Option<Arc<dyn EventInlet>>,
    /// The process was ready once.
    pub(super) was_ready: Arc<AtomicBool>,
}

impl AppState {
    /// The state over a running engine; `source_name` is what `/v1/sources` calls its source.
    #[must_use]
    pub fn new(engine: Engine, source_name: impl Into<Arc<str>>) -> Self {
        let source_name = source_name.into();
        AppState {
            metrics: Arc::new(Metrics::new(engine.clone(), Arc::clone(&source_name))),
            engine,
            source_name,
            scans: Arc::new(Semaphore::new(MAX_SCANS)),
            inlet: None,
            was_ready: Arc::default(),
        }
    }

    /// The source takes events.
    #[must_use]
    pub fn with_inlet(self, inlet: Arc<dyn EventInlet>) -> Self {
        AppState { inlet: Some(inlet), ..self }
    }

    /// An aggregate, whatever its state.
    pub(super) fn aggregate(&self, name: &str) -> Result<Arc<Aggregate>, Problem> {
        let aggregates = self.engine.aggregates();
        aggregates.iter().find(|aggregate| aggregate.name == name).cloned().ok_or_else(|| {
            Problem::new(404, "unknown_aggregate", format!("there is no aggregate {name:?}"))
                .hint(did_you_mean(name, aggregates.iter().map(|aggregate| aggregate.name.as_str())))
        })
    }

    /// The table an aggregate is over.
    pub(super) fn table(&self, plan: &Plan) -> Option<Arc<FollowedTable>> {
        self.engine.tables().into_iter().find(|table| table.schema.id == plan.table)
    }
}

/// Microseconds since 2000-01-01 UTC.
pub(super) fn now_us() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(unix).unwrap_or(i64::MAX).saturating_sub(EPOCH_UNIX_US)
}
