//! The aggregates that exist and the tables they are over, as of one commit. Immutable: every change makes a new one,
//! so a reader's Snapshot and its catalog always agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use super::plan::Plan;
use crate::change::TableSchema;

/// Names an aggregate on disk. Never reused, so late deletion of a dropped aggregate's cells is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AggregateId(pub u32);

/// Whether an aggregate can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AggregateState {
    /// Being filled from the row images; answers nothing yet.
    Building,
    /// Exact as of every Snapshot.
    Live,
    /// Cannot be exact any more. Answers nothing; drop it and register it again once the cause is gone.
    Halted {
        /// Stable name of the reason.
        code: String,
        /// What happened.
        message: String,
        /// What to do.
        remedy: String,
    },
}

/// One registered aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// On disk.
    pub id: AggregateId,
    /// In URLs.
    pub name: String,
    /// As the user wrote it.
    pub definition: Definition,
    /// As it is executed.
    pub plan: Arc<Plan>,
    /// Whether it can answer.
    pub state: AggregateState,
}

/// All aggregates and tables as of one commit.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By name.
    pub aggregates: BTreeMap<String, Arc<Aggregate>>,
    /// By qualified name.
    pub tables: BTreeMap<String, Arc<TableSchema>>,
}
