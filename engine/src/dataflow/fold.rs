//! Rows into blocks: for every registered aggregate filter, bucket, group key, plus or minus the measures.

use std::collections::HashMap;
use std::sync::Arc;

use super::block::{Block, PreAggregate};
use super::{Command, Epoch};
use crate::change::{TableId, ValueRef};
use crate::commit_group::{GroupRows, SignedRow};
use crate::materialization::{AggregateId, Plan};

/// The registry of one worker and what it has added up.
#[derive(Default)]
pub struct Fold {
    by_table: HashMap<TableId, Vec<Folding>>,
}

/// Rows of an epoch of which as many go away as appear: nobody ever saw them. Asked for only where a row does not fit: a
/// transaction may correct what it wrote itself.
struct Voids<'a>(HashMap<(TableId, &'a [u8]), i64>);

impl<'a> Voids<'a> {
    fn of(rows: &'a GroupRows) -> Self {
        let mut net = HashMap::new();
        for row in rows.signed() {
            *net.entry((row.table, rows.row(row).0)).or_default() += i64::from(row.sign);
        }
        Voids(net)
    }

    fn contains(&self, row: &SignedRow, rows: &GroupRows) -> bool {
        self.0.get(&(row.table, rows.row(row).0)) == Some(&0)
    }
}

struct Folding {
    aggregate: AggregateId,
    plan: Arc<Plan>,
    sums: PreAggregate,
}

impl Fold {
    /// Applies the epoch's commands, then folds this worker's slice of its rows. The blocks are for all workers.
    pub fn epoch(&mut self, epoch: &Epoch, worker: usize, workers: usize) -> Vec<Block> {
        epoch.commands.iter().for_each(|command| self.command(command));
        let signed = epoch.rows.signed();
        let from = signed.len() * worker / workers.max(1);
        let to = signed.len() * (worker + 1) / workers.max(1);
        let mut values: Vec<ValueRef<'_>> = Vec::with_capacity(32);
        let mut voids: Option<Voids<'_>> = None;
        for row in signed.get(from..to).unwrap_or_default() {
            let Some(foldings) = self.by_table.get_mut(&row.table) else { continue };
            // Rows were checked when their key was read; a damaged one folds as a misfit of whatever column is missing.
            let _ = epoch.rows.row(row).decode_into(&mut values);
            for folding in foldings {
                let void = || voids.get_or_insert_with(|| Voids::of(&epoch.rows)).contains(row, &epoch.rows);
                folding.sums.add_unless(&folding.plan, &values, i64::from(row.sign), void);
            }
        }
        let mut blocks = Vec::new();
        for folding in self.by_table.values_mut().flatten().filter(|folding| !folding.sums.is_empty()) {
            blocks.append(&mut folding.sums.take(folding.aggregate, folding.plan.measures.len(), workers));
        }
        blocks
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Install(aggregate) => {
                let sums = PreAggregate::new(&aggregate.plan);
                self.by_table.entry(aggregate.plan.table).or_default().push(Folding {
                    aggregate: aggregate.id,
                    plan: Arc::clone(&aggregate.plan),
                    sums,
                });
            }
            Command::Remove(id) => {
                self.by_table.values_mut().for_each(|foldings| foldings.retain(|folding| folding.aggregate != *id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::change::{Column, ColumnType, Numeric, RowWriter, TableSchema};
    use crate::dataflow::block::Halt;
    use crate::materialization::Definition;

    const TABLE: TableId = TableId(1);

    fn plan(definition: &str) -> Plan {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TABLE,
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![
                column("id", ColumnType::Int8),
                column("note", ColumnType::Text),
                column("amount", ColumnType::Numeric { scale: None }),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let definition: Definition = serde_json::from_str(definition).unwrap();
        Plan::resolve(&definition, &schema).unwrap()
    }

    /// What the rows, of these signs, come to in each of two workers: what did not fit, or the number of rows.
    fn fold(plan: &Plan, rows: &[(i8, &str, ValueRef<'_>)]) -> Vec<Result<i64, Halt>> {
        let mut group = GroupRows::default();
        for (sign, note, amount) in rows {
            let mut row = Vec::new();
            let mut writer = RowWriter::new(&mut row);
            writer.push(ValueRef::Int(1));
            writer.push(ValueRef::Text(note));
            writer.push(*amount);
            let row = group.store(&row).unwrap();
            group.sign((TABLE, TABLE), *sign, row);
        }
        let epoch = Epoch { sequence: 1, rows: Arc::new(group), commands: Vec::new(), filled: Vec::new() };
        let folded = |worker| {
            let mut fold = Fold::default();
            let (aggregate, plan) = (AggregateId(1), Arc::new(plan.clone()));
            let sums = PreAggregate::new(&plan);
            fold.by_table.insert(TABLE, vec![Folding { aggregate, plan, sums }]);
            let blocks = fold.epoch(&epoch, worker, 2);
            let misfit = blocks.iter().find_map(|block| block.misfit);
            misfit.map_or_else(|| Ok(blocks.iter().flat_map(Block::iter).map(|entry| entry.rows).sum()), Err)
        };
        vec![folded(0), folded(1)]
    }

    fn number(mantissa: i128, scale: u16) -> ValueRef<'static> {
        ValueRef::Numeric(Numeric::Finite { mantissa, scale })
    }

    #[test]
    fn what_a_group_writes_and_takes_back_has_not_to_fit() {
        let long = "x".repeat(2_000);
        let plan = plan(r#"{"table":"t","measures":[{"name":"s","sum":"amount","scale":2}],"dimensions":["note"]}"#);
        let (fine, too_fine) = (number(251, 2), number(1_005, 3));
        // Both in one worker's slice, and one in each.
        for rows in [
            [(1, "a", too_fine), (-1, "a", too_fine), (1, "a", fine), (1, "b", fine)],
            [(1, "a", too_fine), (1, "a", fine), (1, "b", fine), (-1, "a", too_fine)],
            [(1, &long, fine), (1, "a", fine), (1, "b", fine), (-1, &long, fine)],
        ] {
            let folded = fold(&plan, &rows);
            assert_eq!(folded.iter().map(|rows| rows.unwrap()).sum::<i64>(), 2, "{rows:?}");
        }
        let stays = [(1, "a", too_fine), (-1, "a", fine), (1, "a", too_fine), (-1, "a", too_fine)];
        assert_eq!(fold(&plan, &stays), [Err(Halt::Scale), Err(Halt::Scale)]);
    }

    #[test]
    fn a_number_that_cannot_be_compared_halts_and_counts_for_nothing() {
        let wide = ValueRef::Opaque(&[0, 1, 0, 10, 0, 0, 0, 0, 0, 1]);
        for (definition, halts) in [
            (r#"{"table":"t","measures":[{"name":"n","count":"*"}],"where":"amount > 100"}"#, true),
            (
                r#"{"table":"t","measures":[{"name":"n","count":"*"}],"where":"note = 'a' or not amount in (1, 2)"}"#,
                true,
            ),
            (r#"{"table":"t","measures":[{"name":"n","count":"*","where":"amount <= 100"}]}"#, true),
            (
                r#"{"table":"t","measures":[{"name":"n","count":"*","where":"amount <= 100"}],"where":"note = 'b'"}"#,
                false,
            ),
            (r#"{"table":"t","measures":[{"name":"n","sum":"amount","scale":2}]}"#, true),
            (r#"{"table":"t","measures":[{"name":"n","count":"*"}],"dimensions":["amount"]}"#, true),
            (r#"{"table":"t","measures":[{"name":"n","count":"amount"}],"where":"amount is not null"}"#, false),
        ] {
            let folded = fold(&plan(definition), &[(1, "a", wide)]);
            let halted = folded.contains(&Err(Halt::Wide));
            assert_eq!(halted, halts, "{definition}: {folded:?}");
        }
    }
}
