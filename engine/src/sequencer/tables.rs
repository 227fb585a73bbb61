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
use crate::source::{FollowedTable, SourceError, TableState};

/// Commands for the workers and changes of the registry that belong into one group.
#[derive(Default)]
pub(super) struct Changeover {
    pub(super) commands: Vec<Command>,
    pub(super) registry: Vec<RegistryChange>,
}

/// What to do about a table whose rows here are not those upstream.
pub(super) fn read_anew(table: &str) -> String {
    format!("have the table read anew: POST /v1/sources/{{name}}/tables {}", serde_json::json!({"table": table}))
}

impl Sequencer {
    /// A table begins to be read: whatever was there of its name is gone.
    pub(super) fn table_begins(&mut self, schema: TableSchema) -> Result<(), End> {
        self.mint_open()?;
        let name = schema.qualified_name();
        let mut change = self.suspend(&name, &AggregateState::Building);
        let before = self.tables.get(&name).cloned();
        for part in before.iter().flat_map(|table| table.parts()).chain([schema.id]) {
            self.open.rows.truncate(part);
        }
        if let Some(before) = &before {
            self.images.forget_table(before);
        }
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
        let mut change = self.suspend(&table.schema.qualified_name(), &AggregateState::Building);
        let mut left = table.as_ref().clone();
        left.partitions.retain(|part| *part != partition);
        self.images.forget_table(&table);
        let left = self.put_table(left, &mut change);
        self.images.add_table(&left);
        self.open.rows.truncate(partition);
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
        tracing::error!(code, %message, table = %table.schema.qualified_name(), "table halted");
        let standing = TableState::Halted { code: code.to_owned(), message, remedy };
        let table = self.put_table(FollowedTable { standing, ..table.clone() }, &mut change);
        self.images.add_table(&table);
        change
    }

    /// The partitioned tables of which these changes truncate a part: their cells cannot be emptied as a whole.
    pub(super) fn partly_truncated(&self, changes: &Changes) -> Vec<Arc<FollowedTable>> {
        let mut tables: Vec<Arc<FollowedTable>> = Vec::new();
        // The first look costs a row nothing: most sources have no partitioned table.
        if self.tables.values().all(|table| table.partitions.is_empty()) {
            return tables;
        }
        for change in changes.iter() {
            let Change::Truncate { table } = change else { continue };
            let partitioned = self.table_of(table).filter(|table| !table.partitions.is_empty());
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

    /// Fills the aggregates over these tables anew.
    pub(super) fn resume_all(&mut self, tables: &[Arc<FollowedTable>]) -> Result<(), End> {
        let mut change = Changeover::default();
        for table in tables {
            self.resume(table, &mut change);
        }
        self.mint_alone(change.commands, change.registry)
    }

    /// The table that an id names: its own, or that of one of its partitions.
    pub(super) fn table_of(&self, id: TableId) -> Option<Arc<FollowedTable>> {
        self.tables.values().find(|table| table.schema.id == id || table.partitions.contains(&id)).cloned()
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

    /// Has the suspended aggregates over a table filled: from the row images as they are now, or by another reading.
    fn resume(&mut self, table: &FollowedTable, change: &mut Changeover) {
        if table.schema.keeps_row_image {
            self.install(table, true, change);
        } else {
            self.to_read.insert(table.schema.id);
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
