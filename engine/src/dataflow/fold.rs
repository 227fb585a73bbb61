//! Rows into blocks: for every registered aggregate filter, bucket, group key, plus or minus the measures.

use std::collections::HashMap;
use std::sync::Arc;

use super::block::{Block, PreAggregate};
use super::{Command, Epoch};
use crate::change::{TableId, ValueRef};
use crate::materialization::{AggregateId, Plan};

/// The registry of one worker and what it has added up.
#[derive(Default)]
pub struct Fold {
    by_table: HashMap<TableId, Vec<Folding>>,
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
        for row in signed.get(from..to).unwrap_or_default() {
            let Some(foldings) = self.by_table.get_mut(&row.table) else { continue };
            // Rows were checked when their key was read; a damaged one folds as a misfit of whatever column is missing.
            let _ = epoch.rows.row(row).decode_into(&mut values);
            for folding in foldings {
                folding.sums.add(&folding.plan, &values, i64::from(row.sign));
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
