//! Filling an aggregate that was registered late, from the row images.
//!
//! The committer takes a view of the store with the commit that registers the aggregate; from the next group on the
//! stream contributes. So the rows of that view and the stream together are every row once, and because contributions
//! commute it does not matter that they arrive interleaved. A crash in the middle starts the filling over under another
//! aggregate number; two views are never mixed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tokio::sync::mpsc::Sender;

use crate::change::{RowRef, TableId, ValueRef};
use crate::dataflow::block::{Filled, PreAggregate};
use crate::engine::BuildProgress;
use crate::materialization::Aggregate;
use crate::shared::Shared;
use crate::store::{View, key};

/// Rows folded before what they add up to is handed on.
const CHUNK_ROWS: u64 = 20_000;
/// Entries added up before they are handed on.
const CHUNK_ENTRIES: usize = 20_000;

/// An aggregate to be filled.
pub struct FillRequest {
    /// The aggregate.
    pub aggregate: Arc<Aggregate>,
    /// The store as of the commit that registered it.
    pub view: View,
    /// The relations that hold the table's rows.
    pub parts: Vec<TableId>,
    /// Rows in them, about.
    pub rows_estimated: u64,
}

/// What the filler tells the sequencer.
pub enum FillMessage {
    /// Contributions of some rows.
    Chunk(Filled),
    /// That was all.
    Done(crate::materialization::AggregateId),
}

/// Fills one aggregate after the other until the committer is gone.
pub fn run(requests: &Receiver<FillRequest>, to_sequencer: &Sender<FillMessage>, shared: &Shared, workers: usize) {
    while let Ok(request) = requests.recv() {
        let id = request.aggregate.id;
        let outcome = fill(&request, to_sequencer, shared, workers);
        shared.building().remove(&id);
        if let Err(reason) = outcome {
            shared.halt("store_failed", reason, "check the disk; then start over with an empty data directory");
            return;
        }
    }
}

fn fill(
    request: &FillRequest,
    to_sequencer: &Sender<FillMessage>,
    shared: &Shared,
    workers: usize,
) -> Result<(), String> {
    let aggregate = &request.aggregate;
    let plan = &aggregate.plan;
    let measures = plan.measures.len();
    let mut sums = PreAggregate::new(plan);
    let mut progress = BuildProgress { rows_estimated: request.rows_estimated, ..BuildProgress::default() };
    let started = Instant::now();
    let mut gone = false;
    let mut damaged = false;
    shared.building().insert(aggregate.id, progress);
    for part in &request.parts {
        let scanned = request.view.scan(&key::rows(*part), |_, row| {
            let mut values: Vec<ValueRef<'_>> = Vec::with_capacity(32);
            if RowRef(row).decode_into(&mut values).is_err() {
                damaged = true;
                return ControlFlow::Break(());
            }
            sums.add(plan, &values, 1);
            progress.rows_done += 1;
            if progress.rows_done.is_multiple_of(CHUNK_ROWS) || sums.len() >= CHUNK_ENTRIES {
                note(&mut progress, started);
                shared.building().insert(aggregate.id, progress);
                let registered =
                    shared.catalog.load().aggregates.get(&aggregate.name).is_some_and(|a| a.id == aggregate.id);
                let blocks = sums.take(aggregate.id, measures, workers);
                let chunk = FillMessage::Chunk(Filled { aggregate: aggregate.id, blocks });
                gone = !registered || to_sequencer.blocking_send(chunk).is_err();
            }
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        scanned.map_err(|error| format!("filling {} failed: {error}", aggregate.name))?;
        if damaged || gone {
            break;
        }
    }
    if damaged {
        return Err(format!("filling {} failed: a row image is damaged", aggregate.name));
    }
    if !gone {
        let blocks = sums.take(aggregate.id, measures, workers);
        let _ = to_sequencer.blocking_send(FillMessage::Chunk(Filled { aggregate: aggregate.id, blocks }));
        let _ = to_sequencer.blocking_send(FillMessage::Done(aggregate.id));
    }
    Ok(())
}

fn note(progress: &mut BuildProgress, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    if seconds > 0.0 {
        progress.rows_per_second = progress.rows_done as f64 / seconds;
        let left = progress.rows_estimated.saturating_sub(progress.rows_done);
        progress.eta_s = Some(left as f64 / progress.rows_per_second);
    }
}
