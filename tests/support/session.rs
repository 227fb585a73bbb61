//! One session of a source that a test plays itself, and the engine it talks to. The source says that it is live from the
//! start, so that an engine which waits for more is not taken for one that is behind.

use std::sync::Arc;
use std::time::Duration;

use engine::change::{Lsn, TableSchema, Transaction};
use engine::engine::EngineConfig;
use engine::materialization::{AggregateState, Registration};
use engine::source::{Milestone, ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceState};
use engine::{Engine, Snapshot};

/// Many times what anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Session {
    pub engine: Engine,
    pub context: SourceContext,
}

impl Session {
    /// Starts the engine and announces the tables; `lsn` is where upstream is.
    pub async fn open(config: &EngineConfig, tables: Vec<TableSchema>, lsn: Lsn) -> Session {
        let (engine, context) = Engine::start(config).unwrap();
        context.status.send_modify(|status| {
            status.state = SourceState::Live;
            status.upstream_lsn_at_start = Some(lsn);
        });
        let identity = SourceIdentity { connector: "model".to_owned(), ..SourceIdentity::default() };
        context.events.send(SourceEvent::Tables { identity, tables }).await.unwrap();
        Session { engine, context }
    }

    /// What was still on its way when the last session ended, and a little more than that.
    pub async fn send_again(&self, log: &[Transaction], durable: Lsn, what: &str) {
        let ResumePoint::Resume { lsn, milestone, .. } = &self.context.resume else {
            panic!("{what}: nothing to go on from")
        };
        assert_eq!(*lsn, durable, "{what}");
        let from = log.partition_point(|transaction| transaction.end_lsn <= *lsn);
        let expected = log[..from].iter().fold(Milestone::begin(milestone.begins), |before, transaction| {
            before.after(transaction.end_lsn, transaction.commit_time_us)
        });
        assert_eq!(*milestone, expected, "{what}");
        for transaction in &log[from.saturating_sub(3)..] {
            self.send(SourceEvent::Transaction(transaction.clone())).await;
        }
    }

    pub async fn send(&self, event: SourceEvent) {
        self.context.events.send(event).await.unwrap();
    }

    /// Waits until answers show this position.
    pub async fn reached(&self, lsn: Lsn, what: &str) {
        assert!(self.engine.wait_for(lsn, PATIENCE).await, "{what}: {:?}", self.engine.status());
    }

    /// A Snapshot in which the newest version of an aggregate is filled.
    pub async fn live(&self, name: &str, what: &str) -> Arc<Snapshot> {
        loop {
            let snapshot = self.engine.snapshot().unwrap();
            let aggregates = &snapshot.catalog().aggregates;
            match &aggregates.get(&Registration::next_name(name)).unwrap_or(&aggregates[name]).state {
                AggregateState::Live => return snapshot,
                AggregateState::Building => {
                    let mut applied = self.engine.applied();
                    let sequence = snapshot.as_of().sequence;
                    let _ = applied.wait_for(|as_of| as_of.sequence > sequence).await;
                }
                state => panic!("{what}: {name}: {state:?}"),
            }
        }
    }

    /// Ends it; what upstream was told last.
    pub async fn stop(self) -> Lsn {
        self.engine.stop().await;
        *self.context.durable.borrow()
    }
}
