//! The aggregates that exist and the tables they are over, as of one commit. Immutable: every change makes a new one,
//! so a reader's Snapshot and its catalog always agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use super::plan::Plan;
use crate::source::FollowedTable;

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

impl Aggregate {
    /// A stored aggregate over the tables as they are. One that no longer fits its table is halted and stays visible; one
    /// whose tables are not known yet waits as `Building`.
    #[must_use]
    pub fn restore(
        id: AggregateId,
        name: String,
        definition: Definition,
        state: AggregateState,
        tables: &BTreeMap<String, Arc<FollowedTable>>,
    ) -> Aggregate {
        if tables.is_empty() {
            let plan = Arc::new(Plan::unresolved());
            return Aggregate { id, name, definition, plan, state: AggregateState::Building };
        }
        let table = definition.qualified_table();
        let resolved = tables
            .get(&table)
            .ok_or_else(|| format!("there is no table {table} any more"))
            .and_then(|table| Plan::resolve(&definition, &table.schema).map_err(|error| error.to_string()));
        let (plan, state) = match resolved {
            Ok(plan) => (plan, state),
            Err(message) => {
                let halted = AggregateState::Halted {
                    code: "definition_misfit".to_owned(),
                    message: format!("the definition no longer fits its table: {message}"),
                    remedy: "drop the aggregate and register it as the table is now".to_owned(),
                };
                (Plan::unresolved(), halted)
            }
        };
        Aggregate { id, name, definition, plan: Arc::new(plan), state }
    }
}

/// All aggregates and tables as of one commit.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By name.
    pub aggregates: BTreeMap<String, Arc<Aggregate>>,
    /// By qualified name.
    pub tables: BTreeMap<String, Arc<FollowedTable>>,
}
