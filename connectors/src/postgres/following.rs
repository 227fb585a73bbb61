//! The tables of a source as this process follows them, and what follows for the engine from what is seen of them.
//!
//! Pure: looks, RELATION messages and positions in, events for the engine out. It outlives sessions; what it must know
//! again after a restart is in the events: the standing of the tables, and the notes.
//!
//! | seen | told |
//! |---|---|
//! | a column that no aggregate can read any more | `ColumnUnusable`: NULL from here on |
//! | a table that cannot be followed exactly | `TableHalted`: none of its rows from here on |
//! | a partition that holds no rows of it any more | `PartitionGone`, once everything that was sent before is handed over |
//! | a relation that holds rows of it now | to be checked by the caller: did it hold rows before? |

use std::collections::BTreeMap;

use engine::change::{ColumnType, Lsn, TableId, TableSchema};
use engine::source::{FollowedTable, SourceError, SourceEvent, TableState};

use super::catalog::made_whole_and_read;
use super::error::{START_OVER, source_error};
use super::signs::{Baseline, Drift, Look, TableSigns, drifts};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Following {
    tables: Vec<FollowedTable>,
    baseline: Baseline,
    /// As the engine has it.
    noted: Option<Baseline>,
    /// By table, the end of upstream's log when its baseline was looked at: older looks say nothing new.
    looked_at: BTreeMap<TableId, Lsn>,
    /// The same of the publication's.
    publication_at: Lsn,
    /// Partitions that are gone, and the position up to which rows of them may still come.
    vanished: BTreeMap<TableId, Lsn>,
}

/// What a look leads to.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) events: Vec<SourceEvent>,
    /// Relations that hold rows of a table now: (table, relation).
    pub(super) appeared: Vec<(TableId, TableId)>,
    /// Tables that hold rows which were never sent.
    pub(super) read_anew: Vec<TableId>,
    /// The publication was altered, and something of any table may have been left out meanwhile.
    pub(super) all_anew: bool,
}

impl Following {
    /// From what the engine has stored.
    pub(super) fn resume(tables: Vec<FollowedTable>, notes: Option<&str>) -> Self {
        let noted: Option<Baseline> = notes.and_then(|notes| serde_json::from_str(notes).ok());
        Following { tables, baseline: noted.clone().unwrap_or_default(), noted, ..Following::default() }
    }

    /// Every table the engine knows, whatever its standing.
    pub(super) fn tables(&self) -> &[FollowedTable] {
        &self.tables
    }

    /// Their ids, to look at.
    pub(super) fn ids(&self) -> Vec<TableId> {
        self.tables.iter().map(|table| table.schema.id).collect()
    }

    pub(super) fn table(&self, id: TableId) -> Option<&FollowedTable> {
        self.tables.iter().find(|table| table.schema.id == id)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&FollowedTable> {
        self.tables.iter().find(|table| table.schema.qualified_name() == name)
    }

    /// What the engine is to keep for us, where that has changed since it was last asked for.
    pub(super) fn new_notes(&mut self) -> Option<SourceEvent> {
        if self.noted.as_ref() == Some(&self.baseline) {
            return None;
        }
        // Maps of numbers and strings: writing them cannot fail.
        let notes = serde_json::to_string(&self.baseline).ok()?;
        self.noted = Some(self.baseline.clone());
        Some(SourceEvent::Notes(notes))
    }

    /// Takes a table in. It replaces the one of its name, and itself under another name.
    pub(super) fn put(&mut self, table: FollowedTable, look: &Look) {
        let (name, id) = (table.schema.qualified_name(), table.schema.id);
        let is_it = |before: &FollowedTable| before.schema.id == id || before.schema.qualified_name() == name;
        for before in self.tables.extract_if(.., |before| is_it(before)) {
            self.baseline.tables.remove(&before.schema.id.0);
            self.looked_at.remove(&before.schema.id);
        }
        if let Some(signs) = look.tables.get(&table.schema.id.0) {
            self.baseline.tables.insert(table.schema.id.0, signs.clone());
            self.looked_at.insert(table.schema.id, look.at);
        }
        self.tables.push(table);
    }

    /// Takes the publication as what it is from here on.
    pub(super) fn note_publication(&mut self, look: &Look) {
        self.baseline.publication.clone_from(&look.publication);
        self.publication_at = look.at;
    }

    /// The publication is the one it always was, and carries everything. True where it was written anew: its owner may be
    /// another one, or something was left out for a moment, which nothing tells apart.
    fn judge_publication(&mut self, name: &str, look: &Look) -> Result<bool, SourceError> {
        if look.from < self.publication_at {
            return Ok(false);
        }
        let changed = |what: &str, remedy: &str| {
            let what = format!("publication {name} {what}: changes in between were not sent and cannot be known");
            Err(source_error("publication_changed", what, remedy))
        };
        let before = self.baseline.publication.as_ref();
        let Some(now) = &look.publication else { return changed("does not exist any more", START_OVER) };
        if before.is_some_and(|before| before.oid != now.oid) {
            return changed("was created anew", START_OVER);
        }
        if !now.is_complete() {
            let what = "leaves out operations, is FOR ALL TABLES, or publishes via the partition root";
            let whole = made_whole_and_read(name);
            return changed(what, if now.flags.starts_with('t') { START_OVER } else { &whole });
        }
        let rewritten = before.is_some_and(|before| !before.is_still(now));
        self.note_publication(look);
        Ok(rewritten)
    }

    /// Nothing that was looked at before is known any more: of another timeline, positions say nothing of what came first.
    pub(super) fn forget_looks(&mut self) {
        self.looked_at.clear();
        self.publication_at = Lsn::ZERO;
    }

    /// A table is read (again): none of its rows from here on but by who reads it.
    pub(super) fn begin_reading(&mut self, id: TableId, keeps_row_image: bool) -> Option<SourceEvent> {
        // Its partitions are as its reader finds them.
        for partition in self.table(id).into_iter().flat_map(|table| table.partitions.clone()).collect::<Vec<_>>() {
            self.vanished.remove(&partition);
        }
        self.change(id, |table| {
            table.standing = TableState::Reading;
            table.schema.keeps_row_image = keeps_row_image;
        });
        self.table(id).map(|table| SourceEvent::TableBegin(table.schema.clone()))
    }

    /// The tables whose rows are taken from the stream.
    pub(super) fn live(&self) -> impl Iterator<Item = &FollowedTable> {
        self.tables.iter().filter(|table| table.standing == TableState::Live)
    }

    /// The live table that a relation belongs to.
    pub(super) fn live_table_of(&self, relation: TableId) -> Option<&FollowedTable> {
        self.live().find(|table| table.schema.id == relation || table.partitions.contains(&relation))
    }

    /// The relations that live tables other than this one have: their partitions, and their own.
    pub(super) fn relations_of_others(&self, id: Option<TableId>) -> Vec<TableId> {
        let others = self.live().filter(|table| Some(table.schema.id) != id);
        others.flat_map(|table| table.partitions.iter().copied().chain([table.schema.id])).collect()
    }

    /// Live tables with a partition that another live table has too.
    pub(super) fn overlapping(&self) -> Vec<TableId> {
        let overlaps = |table: &&FollowedTable| {
            let others = self.relations_of_others(Some(table.schema.id));
            table.partitions.iter().any(|partition| others.contains(partition))
        };
        self.live().filter(|table| !table.partitions.is_empty()).filter(overlaps).map(|table| table.schema.id).collect()
    }

    /// A table is complete.
    pub(super) fn done(&mut self, id: TableId) {
        self.change(id, |table| table.standing = TableState::Live);
    }

    /// The table cannot be followed exactly any more.
    pub(super) fn halt(&mut self, id: TableId, reason: SourceError) -> SourceEvent {
        self.change(id, |table| {
            table.standing = TableState::Halted {
                code: reason.code.to_owned(),
                message: reason.message.clone(),
                remedy: reason.remedy.clone(),
            };
        });
        SourceEvent::TableHalted { table: id, reason }
    }

    /// A column cannot be read any more.
    pub(super) fn unusable(&mut self, id: TableId, column: usize, what: &str) -> Option<SourceEvent> {
        let table = self.tables.iter_mut().find(|table| table.schema.id == id)?;
        let name = table.schema.qualified_name();
        let found = table.schema.columns.get_mut(column)?;
        if matches!(found.column_type, ColumnType::Gone(_)) {
            return None;
        }
        let message = format!("table {name}: {what}");
        found.column_type = ColumnType::Gone(message.clone());
        let reason = source_error("column_gone", message, read_anew(&name));
        Some(SourceEvent::ColumnUnusable { table: id, column, reason })
    }

    /// A relation holds rows of a table from here on.
    pub(super) fn add_partition(&mut self, id: TableId, partition: TableId) -> Option<SourceEvent> {
        let table = self.tables.iter_mut().find(|table| table.schema.id == id)?;
        self.vanished.remove(&partition);
        if table.partitions.contains(&partition) {
            return None;
        }
        table.partitions.push(partition);
        Some(SourceEvent::PartitionAdded { table: id, partition })
    }

    /// As [`Following::judge`], of the publication as well. What is judged is known from then on: it has to reach the engine.
    pub(super) fn judge_all(&mut self, publication: &str, look: &Look, reached: Lsn) -> Result<Judgement, SourceError> {
        let all_anew = self.judge_publication(publication, look)?;
        Ok(Judgement { all_anew, ..self.judge(look, reached) })
    }

    /// Compares a look with what was known; `reached` is the position up to which everything was handed over.
    pub(super) fn judge(&mut self, look: &Look, reached: Lsn) -> Judgement {
        let mut judgement = Judgement::default();
        for id in look.asked.iter().copied() {
            let Some(table) = self.table(id).cloned() else { continue };
            let known = self.looked_at.get(&id).is_some_and(|at| look.from < *at);
            // One that is being read is compared with what its reader saw, once it is done.
            if known || table.standing != TableState::Live {
                continue;
            }
            self.looked_at.insert(id, look.at);
            let now = look.tables.get(&id.0);
            let before = match (self.baseline.tables.get(&id.0), now) {
                (Some(before), _) => before.clone(),
                // Stored without signs: by an earlier version, or in the moment before a crash.
                (None, Some(now)) if now.key == primary_key(&table.schema) => now.clone(),
                (None, _) => {
                    judgement.events.push(self.halt(id, changed(&table, "its primary key")));
                    continue;
                }
            };
            for drift in drifts(&table, &before, now) {
                self.follow_up(&table, drift, look.at, reached, &mut judgement);
            }
            if let Some(now) = now {
                self.advance(id, &before, now);
            }
        }
        judgement
    }

    fn follow_up(&mut self, table: &FollowedTable, drift: Drift, at: Lsn, reached: Lsn, judgement: &mut Judgement) {
        let id = table.schema.id;
        match drift {
            Drift::Table(reason) => judgement.events.push(self.halt(id, reason)),
            Drift::Column(column, what) => judgement.events.extend(self.unusable(id, column, &what)),
            Drift::PartAppeared(part) => judgement.appeared.push((id, part)),
            Drift::PartReturned(_) => judgement.read_anew.push(id),
            Drift::PartVanished(part) => {
                if reached >= *self.vanished.entry(part).or_insert(at) {
                    self.vanished.remove(&part);
                    self.change(id, |table| table.partitions.retain(|partition| *partition != part));
                    if let Some(signs) = self.baseline.tables.get_mut(&id.0) {
                        signs.parts.remove(&part.0);
                    }
                    judgement.events.push(SourceEvent::PartitionGone { table: id, partition: part });
                }
            }
        }
    }

    /// The look is what later ones are compared with, but for what has not been acted on yet.
    fn advance(&mut self, id: TableId, before: &TableSigns, now: &TableSigns) {
        let mut next = now.clone();
        // Only the columns we read are ours to watch, under the numbers they had.
        next.columns
            .retain(|column| before.columns.iter().any(|was| was.attnum == column.attnum && was.name == column.name));
        // A new relation is known once it was checked; one that vanished, until its rows are taken away.
        next.parts.retain(|part, signs| before.parts.get(part).is_some_and(|was| was.attached == signs.attached));
        let waiting = before.parts.iter().filter(|(part, _)| self.vanished.contains_key(&TableId(**part)));
        next.parts.extend(waiting.map(|(part, signs)| (*part, signs.clone())));
        self.baseline.tables.insert(id.0, next);
    }

    /// The signs of a relation that was checked and taken in.
    pub(super) fn note_part(&mut self, id: TableId, part: TableId, look: &Look) {
        let found = look.tables.get(&id.0).and_then(|signs| signs.parts.get(&part.0));
        if let (Some(found), Some(signs)) = (found, self.baseline.tables.get_mut(&id.0)) {
            signs.parts.insert(part.0, found.clone());
        }
    }

    fn change(&mut self, id: TableId, change: impl FnOnce(&mut FollowedTable)) {
        if let Some(table) = self.tables.iter_mut().find(|table| table.schema.id == id) {
            change(table);
        }
    }
}

fn primary_key(schema: &TableSchema) -> Vec<String> {
    schema.primary_key.iter().filter_map(|index| schema.columns.get(*index)).map(|column| column.name.clone()).collect()
}

/// The reason of a table whose shape is not the one its rows are stored under.
pub(super) fn changed(table: &FollowedTable, what: &str) -> SourceError {
    let name = table.schema.qualified_name();
    source_error("schema_changed", format!("table {name}: {what} is not what it was"), read_anew(&name))
}

/// The one remedy where a table, or a column of it, is not what was stored.
pub(super) fn read_anew(table: &str) -> String {
    format!("have the table read anew as it is now: {}", reading(table))
}

/// The request itself, without an address: only who asks knows under which we are reached.
pub(super) fn reading(table: &str) -> String {
    format!("POST /v1/sources/postgres/tables {}", serde_json::json!({"table": table}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_the_one_of_its_name_and_itself() {
        let table = |id, name: &str| {
            let schema = TableSchema {
                id: TableId(id),
                namespace: "public".to_owned(),
                name: name.to_owned(),
                columns: Vec::new(),
                primary_key: Vec::new(),
                keeps_row_image: true,
            };
            FollowedTable::new(schema, TableState::Live)
        };
        let mut following = Following::default();
        for before in [table(1, "a"), table(2, "b"), table(3, "c")] {
            following.put(before, &Look::default());
        }
        // The names of the first two were swapped, and the second is read as what it is called now.
        following.put(table(2, "a"), &Look::default());
        assert_eq!(following.ids(), [TableId(3), TableId(2)]);
        assert!(following.by_name("public.b").is_none());
    }

    #[test]
    fn a_name_in_a_command_says_nothing_to_a_shell() {
        // It is no command, but the body of a request, and one string in that.
        assert!(
            read_anew("public.payments").ends_with(r#": POST /v1/sources/postgres/tables {"table":"public.payments"}"#)
        );
        assert!(reading("public.\"\n").ends_with(r#" {"table":"public.\"\n"}"#));
    }
}
