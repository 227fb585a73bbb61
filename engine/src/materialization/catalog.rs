//! The aggregates that exist and the tables they are over, as of one commit. Immutable: every change makes a new one,
//! so a reader's Snapshot and its catalog always agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Calendar, days_from_civil};
use super::definition::Definition;
use super::plan::Plan;
use crate::source::{FollowedTable, TableState};

/// Names an aggregate on disk. Never reused, so late deletion of a dropped aggregate's cells is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AggregateId(pub u32);

/// Whether an aggregate can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AggregateState {
    /// Being filled from the row images; answers only of what [`Catalog::covered_from`] says is whole.
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

impl AggregateState {
    /// It cannot be exact any more.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        matches!(self, AggregateState::Halted { .. })
    }
}

/// Ends the name of a version that is built beside the one that answers. No name of a user contains it.
const NEXT: &str = "+next";

/// How clocks were read when the cells of an aggregate were filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockReading {
    /// A reading without a zone was the first instant where the clock shows it twice, the end of what it skips; and from 2038 on clocks
    /// went by the rules of a year since 2010. Not Postgres' cells. Of records that say nothing.
    #[default]
    Former,
    /// As [`Calendar`] reads them.
    Postgres,
}

/// A registered aggregate as it is stored. Its plan is resolved anew at every start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Part of its cells' keys.
    pub id: AggregateId,
    /// In URLs; of a version that is being built, see [`Registration::next_name`].
    pub name: String,
    /// Definitions under one name are numbered.
    #[serde(default = "first")]
    pub version: u32,
    /// As the user wrote it.
    pub definition: Definition,
    /// Whether it can answer.
    pub state: AggregateState,
    /// Of its cells, where it has any.
    #[serde(default)]
    pub clock_reading: ClockReading,
}

fn first() -> u32 {
    1
}

impl Registration {
    /// The name under which the next version of an aggregate is built.
    #[must_use]
    pub fn next_name(name: &str) -> String {
        format!("{name}{NEXT}")
    }

    /// The name that a version will have once it is filled; `None` where it has it already.
    #[must_use]
    pub fn final_name(name: &str) -> Option<&str> {
        name.strip_suffix(NEXT)
    }

    /// From which bucket on its cells may be others than those that rows are read into now; `None` where all are the same: clocks were
    /// read as they are, or were never set.
    #[must_use]
    pub fn read_otherwise_from(&self) -> Option<Bucket> {
        let was_set = |zone: &str| zone.parse().is_ok_and(|zone| Calendar::new(zone, 0).was_ever_set());
        let time = self.definition.time.as_ref().filter(|_| self.clock_reading != ClockReading::Postgres)?;
        if time.assume_time_zone.as_deref().is_some_and(was_set) {
            return Some(Bucket(Bucket::NEGATIVE_INFINITY.0 + 1));
        }
        was_set(&time.time_zone).then_some(Bucket((days_from_civil(2038, 1, 1) - 1) * 86_400_000_000))
    }
}

/// One registered aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// On disk.
    pub id: AggregateId,
    /// In URLs.
    pub name: String,
    /// Definitions under one name are numbered.
    pub version: u32,
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
    pub fn restore(stored: Registration, tables: &BTreeMap<String, Arc<FollowedTable>>) -> Aggregate {
        let Registration { id, name, version, definition, state, clock_reading: _ } = stored;
        if tables.is_empty() {
            let plan = Arc::new(Plan::unresolved());
            return Aggregate { id, name, version, definition, plan, state: AggregateState::Building };
        }
        let table = definition.qualified_table();
        let resolved = tables
            .get(&table)
            .ok_or_else(|| format!("there is no table {table} any more"))
            .and_then(|table| Plan::resolve(&definition, &table.schema).map_err(|error| error.to_string()));
        let (plan, state) = match resolved {
            Ok(plan) => (plan, state),
            // Why it halted first is what is to be done about.
            Err(_) if state.is_halted() => (Plan::unresolved(), state),
            Err(message) => {
                let halted = AggregateState::Halted {
                    code: "definition_misfit".to_owned(),
                    message: format!("the definition no longer fits its table: {message}"),
                    remedy: "register it as the table is now: PUT with ?on_change=rebuild".to_owned(),
                };
                (Plan::unresolved(), halted)
            }
        };
        // Whatever is stored of the aggregate: nothing is folded into the cells of a table that halted.
        let state = match tables.get(&table).map(|table| &table.standing) {
            Some(TableState::Halted { code, message, remedy }) if !state.is_halted() => {
                AggregateState::Halted { code: code.clone(), message: message.clone(), remedy: remedy.clone() }
            }
            _ => state,
        };
        Aggregate { id, name, version, definition, plan: Arc::new(plan), state }
    }

    /// As it is stored. What was read otherwise was given up at the start, or is halted and answers only once it is filled anew.
    #[must_use]
    pub fn registration(&self) -> Registration {
        Registration {
            id: self.id,
            name: self.name.clone(),
            version: self.version,
            definition: self.definition.clone(),
            state: self.state.clone(),
            clock_reading: ClockReading::Postgres,
        }
    }

    /// A version that is built beside the one that answers.
    #[must_use]
    pub fn is_next(&self) -> bool {
        Registration::final_name(&self.name).is_some()
    }
}

/// All aggregates and tables as of one commit.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By name.
    pub aggregates: BTreeMap<String, Arc<Aggregate>>,
    /// By qualified name.
    pub tables: BTreeMap<String, Arc<FollowedTable>>,
    /// Of aggregates that are being filled: the instant, microseconds since 2000-01-01 UTC, from which on their buckets are
    /// whole. Absent where none is yet, and where all are.
    pub covered_from: BTreeMap<AggregateId, i64>,
}

impl Catalog {
    /// From which instant on an aggregate answers, microseconds since 2000-01-01 UTC; `i64::MIN` where it answers everything,
    /// `None` where it answers nothing.
    #[must_use]
    pub fn answers_from(&self, aggregate: &Aggregate) -> Option<i64> {
        match &aggregate.state {
            AggregateState::Live => Some(i64::MIN),
            AggregateState::Building => self.covered_from.get(&aggregate.id).copied(),
            AggregateState::Halted { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::change::{Column, ColumnType, TableId, TableSchema};

    #[test]
    fn a_record_that_does_not_say_how_clocks_were_read_is_of_before() {
        let stored = |zones: &str| -> Registration {
            let time = format!(r#"{{"column":"at","granularity":"day"{zones}}}"#);
            let definition = format!(r#"{{"table":"t","measures":[{{"name":"n","count":"*"}}],"time":{time}}}"#);
            let record = format!(r#"{{"id":1,"name":"a","definition":{definition},"state":{{"state":"live"}}}}"#);
            serde_json::from_str(&record).unwrap()
        };
        let from = |zones: &str| stored(zones).read_otherwise_from();
        assert!(from(r#","assume_time_zone":"Europe/Madrid""#).is_some_and(|from| from.0 < -1_000_000_000_000_000_000));
        let late = from(r#","time_zone":"Europe/Madrid","assume_time_zone":"UTC""#);
        assert_eq!(late, Some(Bucket((days_from_civil(2037, 12, 31)) * 86_400_000_000)));
        for same in ["", r#","assume_time_zone":"UTC""#, r#","time_zone":"Etc/GMT+5""#] {
            assert_eq!(from(same), None, "{same}");
        }
        let read = stored(r#","assume_time_zone":"Europe/Madrid""#);
        let again = Aggregate::restore(read, &BTreeMap::new()).registration();
        let written: Registration = serde_json::from_slice(&serde_json::to_vec(&again).unwrap()).unwrap();
        assert_eq!(written.read_otherwise_from(), None);
    }

    #[test]
    fn nothing_is_live_over_a_table_that_halted() {
        let restored = |standing: TableState, state: AggregateState| {
            let schema = TableSchema {
                id: TableId(1),
                namespace: "public".to_owned(),
                name: "t".to_owned(),
                columns: vec![Column { name: "id".to_owned(), column_type: ColumnType::Int8 }],
                primary_key: vec![0],
                keeps_row_image: true,
            };
            let tables = BTreeMap::from([("public.t".to_owned(), Arc::new(FollowedTable::new(schema, standing)))]);
            let definition = serde_json::from_str(r#"{"table":"t","measures":[{"name":"n","count":"*"}]}"#).unwrap();
            let stored = Registration {
                id: AggregateId(1),
                name: "a".to_owned(),
                version: 1,
                definition,
                state,
                clock_reading: ClockReading::Postgres,
            };
            Aggregate::restore(stored, &tables).state
        };
        let halted = |code: &str| {
            let (code, message, remedy) = (code.to_owned(), String::new(), String::new());
            AggregateState::Halted { code, message, remedy }
        };
        let of_the_table =
            || TableState::Halted { code: "schema_changed".to_owned(), message: String::new(), remedy: String::new() };
        assert_eq!(restored(TableState::Live, AggregateState::Live), AggregateState::Live);
        assert_eq!(restored(of_the_table(), AggregateState::Live), halted("schema_changed"));
        assert_eq!(restored(of_the_table(), AggregateState::Building), halted("schema_changed"));
        assert_eq!(restored(of_the_table(), halted("sum_overflow")), halted("sum_overflow"));
    }
}
