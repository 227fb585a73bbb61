//! What happens to tables while the source runs: read (again), split into partitions, shortened by a column, given up.
//!
//! The surprise: cells are never corrected for any of it. The aggregates over the table are suspended (another number on
//! disk, `building`, in no worker), the row images are brought to their new state, and then the aggregates are filled from
//! them, as after a registration. One path, exact for every case, and no answer is given in between.
//!
//! ```text
//! group n      Remove old aggregates; Replace them by suspended ones (registry); delete rows
//! groups ...   rows of the table; nothing folds them
//! group m      Install the suspended aggregates; fill them from the view of this very commit
//! ```
//!
//! Without row images there is nothing to fill from but the reading itself. So there the aggregates are installed with
//! `TableBegin`, still `building`, fold what is read, and are live with `TableDone`; and whatever would be a filling is another
//! reading, which the connector is asked for. An aggregate that was registered in the middle of a reading waits for the next.

use std::sync::Arc;

use super::{End, Sequencer};
use crate::change::{Change, Changes, ColumnType, TableId, TableSchema};
use crate::commit::RegistryChange;
use crate::dataflow::Command;
use crate::materialization::{Aggregate, AggregateId, AggregateState, Plan, Registration};
use crate::source::{FollowedTable, SourceError, SourceIdentity, TableState};

/// Commands for the workers and changes of the registry that belong into one group.
#[derive(Default)]
pub(super) struct Changeover {
    pub(super) commands: Vec<Command>,
    pub(super) registry: Vec<RegistryChange>,
}

/// The same where the source cannot be asked for the rows.
const START_OVER: &str =
    "start over with an empty data directory and a new snapshot of the source: tidemark serve --data NEWDIR";

impl Sequencer {
    /// What to do about a table whose rows here are not those upstream.
    pub(super) fn read_anew(&self, table: &str) -> String {
        match self.identity.as_ref().filter(|identity| identity.reads_anew()) {
            Some(SourceIdentity { connector, .. }) => {
                let body = serde_json::json!({"table": table});
                format!("have the table read anew: POST /v1/sources/{connector}/tables {body}")
            }
            None => START_OVER.to_owned(),
        }
    }

    /// A table begins to be read: whatever was there of its name is gone.
    pub(super) fn table_begins(&mut self, schema: TableSchema) -> Result<(), End> {
        self.mint_open()?;
        let name = schema.qualified_name();
        let mut change = self.suspend(&name, &AggregateState::Building);
        self.forget_other_name(&schema, &mut change);
        self.claim(schema.id, &schema, &mut change);
        let before = self.tables.get(&name).cloned();
        if let Some(before) = &before {
            self.forget_rows(before);
        }
        self.open.rows.truncate(schema.id);
        let forgotten = before.map(|before| before.schema.id).filter(|id| *id != schema.id);
        let table = self.put_table(FollowedTable::new(schema, TableState::Reading), &mut change);
        self.images.add_table(&table);
        change.registry.extend(forgotten.map(RegistryChange::TableForgotten));
        self.to_read.remove(&table.schema.id);
        if !table.schema.keeps_row_image {
            let installed = self.install(&table, false, &mut change);
            self.folding.extend(installed);
        }
        self.mint(change.commands, change.registry)
    }

    /// A table is complete as of the source's position: its aggregates are filled, from its row images or by what was read.
    pub(super) fn table_done(&mut self, id: TableId) -> Result<(), End> {
        self.mint_open()?;
        // One that halted while it was read stays so: rows of it were passed over.
        let Some(table) = self.table_of(id).filter(|table| table.standing == TableState::Reading) else {
            return Ok(());
        };
        let mut change = Changeover::default();
        let table = self.put_table(FollowedTable { standing: TableState::Live, ..table.as_ref().clone() }, &mut change);
        if table.schema.keeps_row_image {
            self.install(&table, true, &mut change);
        } else {
            let over: Vec<AggregateId> =
                self.aggregates_over(&table.schema.qualified_name()).map(|aggregate| aggregate.id).collect();
            for id in over.into_iter().filter(|id| self.folding.remove(id)).collect::<Vec<_>>() {
                self.filled(id, &mut change);
            }
        }
        self.mint(change.commands, change.registry)
    }

    /// Rows told under `partition` are rows of the table from here on.
    pub(super) fn partition_added(&mut self, id: TableId, partition: TableId) -> Result<(), End> {
        let Some(table) = self.table_of(id).filter(|table| !table.partitions.contains(&partition)) else {
            return Ok(());
        };
        self.mint_open()?;
        let mut table = table.as_ref().clone();
        table.partitions.push(partition);
        let mut change = Changeover::default();
        self.claim(partition, &table.schema, &mut change);
        let table = self.put_table(table, &mut change);
        self.images.add_table(&table);
        self.mint(change.commands, change.registry)
    }

    /// The rows under `partition` are no rows of the table any more.
    pub(super) fn partition_gone(&mut self, id: TableId, partition: TableId) -> Result<(), End> {
        let Some(table) = self.table_of(id).filter(|table| table.partitions.contains(&partition)) else {
            return Ok(());
        };
        self.mint_open()?;
        // A halted table has no aggregates to fill: its rows are not those upstream.
        let mut change = match table.standing {
            TableState::Halted { .. } => Changeover::default(),
            _ => self.suspend(&table.schema.qualified_name(), &AggregateState::Building),
        };
        let mut left = table.as_ref().clone();
        left.partitions.retain(|part| *part != partition);
        if self.images.owner(partition).is_none_or(|owner| owner == id) {
            self.open.rows.truncate(partition);
        }
        self.images.forget_table(&table);
        let left = self.put_table(left, &mut change);
        self.images.add_table(&left);
        self.resume(&left, &mut change);
        self.mint(change.commands, change.registry)
    }

    /// A column holds NULL from here on: what used it cannot be exact any more.
    pub(super) fn column_unusable(&mut self, id: TableId, column: usize, reason: &SourceError) -> Result<(), End> {
        let Some(table) = self.table_of(id) else { return Ok(()) };
        let mut table = table.as_ref().clone();
        match table.schema.columns.get_mut(column) {
            Some(column) if !matches!(column.column_type, ColumnType::Gone(_)) => {
                column.column_type = ColumnType::Gone(reason.message.clone());
            }
            _ => return Ok(()),
        }
        self.mint_open()?;
        let name = table.schema.qualified_name();
        let users: Vec<Arc<Aggregate>> = self
            .aggregates_over(&name)
            .filter(|aggregate| Plan::resolve(&aggregate.definition, &table.schema).is_err())
            .cloned()
            .collect();
        let mut change = Changeover::default();
        let table = self.put_table(table, &mut change);
        self.images.add_table(&table);
        for aggregate in users {
            self.replace(&aggregate, halted(reason), &mut change);
        }
        self.mint(change.commands, change.registry)
    }

    /// The table cannot be followed exactly any more.
    pub(super) fn table_halted(&mut self, id: TableId, reason: &SourceError) -> Result<(), End> {
        let Some(table) = self.table_of(id) else { return Ok(()) };
        let change = self.halt_table(&table, reason);
        self.mint_alone(change.commands, change.registry)
    }

    /// What halting a table takes; for a group that the caller mints.
    pub(super) fn halt_table(&mut self, table: &FollowedTable, reason: &SourceError) -> Changeover {
        let mut change = self.suspend(&table.schema.qualified_name(), &halted(reason));
        let SourceError { code, message, remedy } = reason.clone();
        tracing::error!(code, reason = %message, table = %table.schema.qualified_name(), "table halted");
        let standing = TableState::Halted { code: code.to_owned(), message, remedy };
        let table = self.put_table(FollowedTable { standing, ..table.clone() }, &mut change);
        self.images.add_table(&table);
        change
    }

    /// The partitioned tables of which these changes truncate a part: their cells cannot be emptied as a whole. Not those that
    /// halted: their cells are nobody's.
    pub(super) fn partly_truncated(&self, changes: &Changes) -> Vec<Arc<FollowedTable>> {
        let mut tables: Vec<Arc<FollowedTable>> = Vec::new();
        // The first look costs a row nothing: most sources have no partitioned table.
        if self.tables.values().all(|table| table.partitions.is_empty()) {
            return tables;
        }
        for change in changes.iter() {
            let Change::Truncate { table } = change else { continue };
            let partitioned =
                self.images.owner(table).and_then(|id| self.table_of(id)).filter(|table| {
                    !(table.partitions.is_empty() || matches!(table.standing, TableState::Halted { .. }))
                });
            if let Some(table) =
                partitioned.filter(|table| !tables.iter().any(|known| known.schema.id == table.schema.id))
            {
                tables.push(table);
            }
        }
        tables
    }

    /// Takes the aggregates over these tables out of the workers, so that the next groups fold nothing into them.
    pub(super) fn suspend_all(&mut self, tables: &[Arc<FollowedTable>]) -> Result<(), End> {
        let mut all = Changeover::default();
        for table in tables {
            let change = self.suspend(&table.schema.qualified_name(), &AggregateState::Building);
            all.commands.extend(change.commands);
            all.registry.extend(change.registry);
        }
        self.mint_alone(all.commands, all.registry)
    }

    /// Fills the aggregates over these tables anew, as the tables are by now.
    pub(super) fn resume_all(&mut self, tables: &[Arc<FollowedTable>]) -> Result<(), End> {
        let mut change = Changeover::default();
        for table in tables {
            if let Some(table) = self.table_of(table.schema.id) {
                self.resume(&table, &mut change);
            }
        }
        self.mint_alone(change.commands, change.registry)
    }

    /// The table of this id.
    pub(super) fn table_of(&self, id: TableId) -> Option<Arc<FollowedTable>> {
        self.by_id(id).cloned()
    }

    pub(super) fn standing(&self, id: TableId) -> Option<&TableState> {
        self.by_id(id).map(|table| &table.standing)
    }

    fn by_id(&self, id: TableId) -> Option<&Arc<FollowedTable>> {
        self.tables.values().find(|table| table.schema.id == id)
    }

    /// A relation's rows are rows of this table from here on. What is stored of it under another table goes; that one is not
    /// exact any more, unless the connector has said before what becomes of it.
    fn claim(&mut self, relation: TableId, by: &TableSchema, change: &mut Changeover) {
        let owner = self.images.owner(relation).filter(|owner| *owner != by.id);
        let Some(owner) = owner.and_then(|owner| self.table_of(owner)) else { return };
        self.open.rows.truncate(relation);
        if matches!(owner.standing, TableState::Halted { .. }) {
            return;
        }
        let (name, by) = (owner.schema.qualified_name(), by.qualified_name());
        let reason = SourceError {
            code: "schema_changed",
            message: format!("rows of table {name} are rows of table {by} now, and would count twice"),
            remedy: format!(
                "ask for totals over {by}; or, once they are rows of {name} alone, {}",
                self.read_anew(&name)
            ),
        };
        let mut left = owner.as_ref().clone();
        left.partitions.retain(|part| *part != relation);
        let halted = self.halt_table(&left, &reason);
        change.commands.extend(halted.commands);
        change.registry.extend(halted.registry);
    }

    /// The table was followed under another name, of which nothing is left but the aggregates over it.
    fn forget_other_name(&mut self, schema: &TableSchema, change: &mut Changeover) {
        let name = schema.qualified_name();
        let other =
            self.tables.values().find(|table| table.schema.id == schema.id && table.schema.qualified_name() != name);
        let Some(other) = other.cloned() else { return };
        let before = other.schema.qualified_name();
        let reason = SourceError {
            code: "schema_changed",
            message: format!("table {before} is called {name} now, and is followed under that name"),
            remedy: format!("register it over {name}: PUT with ?on_change=rebuild"),
        };
        let halted = self.suspend(&before, &halted(&reason));
        change.commands.extend(halted.commands);
        change.registry.extend(halted.registry);
        self.forget_rows(&other);
        self.tables.remove(&before);
    }

    /// The rows of a table go, but for those of relations that another table has by now.
    fn forget_rows(&mut self, table: &FollowedTable) {
        for part in table.parts() {
            if self.images.owner(part).is_none_or(|owner| owner == table.schema.id) {
                self.open.rows.truncate(part);
            }
        }
        self.images.forget_table(table);
    }

    fn put_table(&mut self, table: FollowedTable, change: &mut Changeover) -> Arc<FollowedTable> {
        let table = Arc::new(table);
        self.tables.insert(table.schema.qualified_name(), Arc::clone(&table));
        change.registry.push(RegistryChange::Table(Arc::clone(&table)));
        table
    }

    fn aggregates_over(&self, table: &str) -> impl Iterator<Item = &Arc<Aggregate>> {
        self.aggregates.values().filter(move |aggregate| aggregate.definition.qualified_table() == table)
    }

    /// Replaces the aggregates over a table by ones that no worker knows.
    fn suspend(&mut self, table: &str, state: &AggregateState) -> Changeover {
        let mut change = Changeover::default();
        let over: Vec<Arc<Aggregate>> = self.aggregates_over(table).cloned().collect();
        for aggregate in over {
            self.replace(&aggregate, state.clone(), &mut change);
        }
        change
    }

    /// Under another number: nothing that is still on its way to the old one may count.
    fn replace(&mut self, old: &Arc<Aggregate>, state: AggregateState, change: &mut Changeover) {
        let new = Arc::new(Aggregate { id: AggregateId(self.next_aggregate), state, ..old.as_ref().clone() });
        self.next_aggregate += 1;
        self.aggregates.insert(new.name.clone(), Arc::clone(&new));
        self.folding.remove(&old.id);
        if self.never_filled.remove(&old.id) {
            self.never_filled.insert(new.id);
        }
        change.commands.push(Command::Remove(old.id));
        change.registry.push(RegistryChange::Replace { old: Arc::clone(old), new });
    }

    /// Has the suspended aggregates over a table filled: from the row images as they are now, or by another reading. Not where
    /// the row images are not those upstream: not yet, and `TableDone` fills them, or not any more.
    fn resume(&mut self, table: &FollowedTable, change: &mut Changeover) {
        match (&table.standing, table.schema.keeps_row_image) {
            (TableState::Live, true) => drop(self.install(table, true, change)),
            (TableState::Live | TableState::Reading, false) => drop(self.to_read.insert(table.schema.id)),
            (TableState::Reading, true) | (TableState::Halted { .. }, _) => {}
        }
    }

    /// Puts the suspended aggregates over a table to work again, and returns them; one that no longer fits the table halts.
    fn install(&mut self, table: &FollowedTable, fill: bool, change: &mut Changeover) -> Vec<AggregateId> {
        let mut installed = Vec::new();
        let over: Vec<Arc<Aggregate>> = self.aggregates_over(&table.schema.qualified_name()).cloned().collect();
        for suspended in over {
            let registration = Registration { state: AggregateState::Building, ..suspended.registration() };
            let aggregate = Arc::new(Aggregate::restore(registration, &self.tables));
            if aggregate.state == AggregateState::Building {
                change.commands.push(Command::Install(Arc::clone(&aggregate)));
                installed.push(aggregate.id);
            }
            self.aggregates.insert(aggregate.name.clone(), Arc::clone(&aggregate));
            change.registry.push(RegistryChange::Register { aggregate, fill, reply: None });
        }
        installed
    }
}

fn halted(reason: &SourceError) -> AggregateState {
    AggregateState::Halted {
        code: reason.code.to_owned(),
        message: reason.message.clone(),
        remedy: reason.remedy.clone(),
    }
}
