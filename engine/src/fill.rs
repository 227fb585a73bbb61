//! Filling an aggregate that was registered late, from the row images.
//!
//! The committer takes a view of the store with the commit that registers the aggregate; from the next group on the
//! stream contributes. So the rows of that view and the stream together are every row once, and because contributions
//! commute it does not matter that they arrive interleaved. A crash in the middle starts the filling over under another
//! aggregate number; two views are never mixed. Rows that cannot be read halt the aggregate that is filled, and no other.
//!
//! A large table whose keys grow with time is filled newest first, by windows of time (`windows.rs`). Once the last row of a window is handed on, the
//! buckets from its beginning on are whole, and the group that commits it says so: questions within them are answered while
//! older rows are still to come.

pub mod windows;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use self::windows::{Run, Survey, Window, instant};
use crate::change::{RowRef, TableId, ValueRef};
use crate::dataflow::block::{Filled, PreAggregate};
use crate::drill;
use crate::engine::BuildProgress;
use crate::materialization::plan::TimePlan;
use crate::materialization::{Aggregate, AggregateId};
use crate::sample;
use crate::shared::Shared;
use crate::store::key::Range;
use crate::store::{StoreError, View, key};
use crate::torture::{self, Bug, Failpoint};

/// Rows read in one turn; what they add up to is then handed on.
const CHUNK_ROWS: u64 = 20_000;
/// Rows from which on it is worth looking at all times first, which takes half as long as filling: fewer are filled before
/// somebody could ask.
const MANY_ROWS: u64 = 1_000_000;
/// Places that are looked at first to find out whether keys grow with time, and rows at each.
const GLANCES: u64 = 64;
const GLANCE_ROWS: u64 = 50;
/// Entries added up before they are handed on.
const CHUNK_ENTRIES: usize = 20_000;

/// An aggregate to be filled.
pub struct FillRequest {
    /// The aggregate.
    pub aggregate: Arc<Aggregate>,
    /// The store as of the commit that registered it.
    pub view: Arc<View>,
    /// The relations that hold the table's rows.
    pub parts: Vec<TableId>,
    /// Rows in them, about.
    pub rows_estimated: u64,
}

/// What the filler tells the sequencer.
pub enum FillMessage {
    /// Contributions of some rows, and their entries in the row index where there is one.
    Chunk(Filled, Vec<Vec<u8>>),
    /// All rows from this instant on, microseconds since 2000-01-01 UTC, are handed on.
    Covered(AggregateId, i64),
    /// That was all.
    Done(AggregateId),
    /// The rows cannot be read.
    Failed(Arc<Aggregate>, StoreError),
}

/// How long a filling that is held, or that yields, sleeps before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often a filling yields to the stream at most before its next chunk: it has to come to an end too.
const MAX_YIELDS: u32 = 40;
/// Groups in flight from which on the stream has the engine to itself.
const BUSY_IN_FLIGHT: u64 = 3;

/// Fills aggregates until the committer is gone. They take turns by chunks on the thread this runs on, so that one that is
/// held holds no other.
pub async fn run(
    mut requests: UnboundedReceiver<FillRequest>,
    to_sequencer: &Sender<FillMessage>,
    shared: &Shared,
    workers: usize,
) {
    let mut fillings = FuturesUnordered::new();
    let mut more = true;
    while more || !fillings.is_empty() {
        tokio::select! {
            biased;
            request = requests.recv(), if more => match request {
                Some(request) => fillings.push(fill(Reading { request, to_sequencer, shared }, workers)),
                None => more = false,
            },
            Some(()) = fillings.next() => {}
        }
    }
}

async fn fill(mut reading: Reading<'_>, workers: usize) {
    if torture::planted(Bug::FillsFromNow) {
        reading.request.view = Arc::new(reading.request.view.store().view());
    }
    let (to_sequencer, shared) = (reading.to_sequencer, reading.shared);
    let aggregate = Arc::clone(&reading.request.aggregate);
    let outcome = Filling::new(reading, workers).run().await;
    shared.building().remove(&aggregate.id);
    shared.paused().remove(&aggregate.id);
    if let Err(Ended::Failed(error)) = outcome {
        tracing::error!(aggregate = %aggregate.name, %error, "the rows to fill an aggregate from cannot be read");
        // Nobody is left to be told where the engine has ended.
        let _ = to_sequencer.send(FillMessage::Failed(aggregate, error)).await;
    }
}

/// Why a filling ends before its end.
enum Ended {
    /// The aggregate was dropped, or the engine stops.
    Gone,
    /// The store cannot be read.
    Failed(StoreError),
}

/// The rows to be folded, read in turns with the other fillings and after the stream.
struct Reading<'s> {
    request: FillRequest,
    to_sequencer: &'s Sender<FillMessage>,
    shared: &'s Shared,
}

impl Reading<'_> {
    /// Visits rows of a range until the visitor has enough for one turn; returns what is left of the range.
    async fn read(
        &self,
        range: &Range,
        mut visit: impl FnMut(&[u8], RowRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<Option<Range>, Ended> {
        // The others' turn, also where nothing is to be waited for.
        tokio::task::yield_now().await;
        self.wait().await?;
        torture::reached(Failpoint::Filling);
        let mut rest = None;
        let mut failed = None;
        let scanned = self.request.view.scan(range, |row_key, row| match visit(row_key, RowRef(row)) {
            Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
            Ok(ControlFlow::Break(())) => {
                let from = [row_key, &[0]].concat();
                rest = Some(Range { from, to: range.to.clone() });
                ControlFlow::Break(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        });
        scanned.and(failed.map_or(Ok(rest), Err)).map_err(Ended::Failed)
    }

    /// Waits while the filling is held, and a while for a stream that is behind.
    async fn wait(&self) -> Result<(), Ended> {
        let aggregate = &self.request.aggregate;
        let mut yields = 0;
        loop {
            let registered =
                self.shared.published.catalog().aggregates.get(&aggregate.name).is_some_and(|a| a.id == aggregate.id);
            if !registered || self.to_sequencer.is_closed() {
                return Err(Ended::Gone);
            }
            let held = self.shared.paused().contains(&aggregate.id);
            let busy = yields < MAX_YIELDS && self.shared.counters().in_flight >= BUSY_IN_FLIGHT;
            if !held && !busy {
                return Ok(());
            }
            yields += u32::from(!held);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn send(&self, message: FillMessage) -> Result<(), Ended> {
        self.to_sequencer.send(message).await.map_err(|_| Ended::Gone)
    }

    /// Looks at the times of some rows, here and there.
    async fn glance(&self, time: TimePlan) -> Result<Survey, Ended> {
        let mut survey = Survey::default();
        for part in &self.request.parts {
            let range = key::rows(*part);
            let edges = self.request.view.edges(&range).map_err(Ended::Failed)?;
            for range in sample::runs(&range, edges, GLANCES) {
                let mut run = Run::empty(range.clone());
                self.read(&range, |_, row| {
                    survey.note(&mut run, instant(time, row.columns().nth(time.column).and_then(Result::ok)));
                    Ok(if run.rows() == GLANCE_ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })
                .await?;
                survey.runs.push(run);
            }
        }
        Ok(survey)
    }

    /// Looks at the times of all rows.
    async fn survey(&self, time: TimePlan) -> Result<Survey, Ended> {
        let mut survey = Survey::default();
        for part in &self.request.parts {
            let mut rest = Some(key::rows(*part));
            while let Some(range) = rest {
                let mut run = Run::empty(range.clone());
                rest = self
                    .read(&range, |_, row| {
                        survey.note(&mut run, instant(time, row.columns().nth(time.column).and_then(Result::ok)));
                        Ok(if run.rows() == CHUNK_ROWS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                    })
                    .await?;
                if let Some(rest) = &rest {
                    run.range.to.clone_from(&rest.from);
                }
                survey.runs.push(run);
            }
        }
        Ok(survey)
    }
}

/// One aggregate being filled.
struct Filling<'s> {
    reading: Reading<'s>,
    aggregate: Arc<Aggregate>,
    workers: usize,
    sums: PreAggregate,
    /// Entries of the row index, where there is one.
    entries: Vec<Vec<u8>>,
    progress: BuildProgress,
    started: Instant,
}

impl<'s> Filling<'s> {
    fn new(reading: Reading<'s>, workers: usize) -> Self {
        let aggregate = Arc::clone(&reading.request.aggregate);
        let sums = PreAggregate::new(&aggregate.plan);
        let progress = BuildProgress { rows_estimated: reading.request.rows_estimated, ..BuildProgress::default() };
        reading.shared.building().insert(aggregate.id, progress);
        Filling { reading, aggregate, workers, sums, entries: Vec::new(), progress, started: Instant::now() }
    }

    async fn run(mut self) -> Result<(), Ended> {
        let id = self.aggregate.id;
        let parts = self.reading.request.parts.iter();
        let mut runs: Vec<Run> = parts.map(|part| Run::unseen(key::rows(*part))).collect();
        let mut windows = vec![Window::ALL];
        if let Some(time) = self.aggregate.plan.time
            && self.progress.rows_estimated >= MANY_ROWS
            && self.reading.glance(time).await?.windows(&self.aggregate.plan).len() > 1
        {
            let survey = self.reading.survey(time).await?;
            windows = survey.windows(&self.aggregate.plan);
            runs = survey.runs;
        }
        for window in windows {
            for run in runs.iter().filter(|run| window.meets(run)) {
                self.fold(run, window).await?;
            }
            let filled = match window.from {
                i64::MIN => FillMessage::Done(id),
                from => FillMessage::Covered(id, from),
            };
            self.reading.send(filled).await?;
        }
        Ok(())
    }

    /// Adds up the rows of a run that a window holds, and hands them on chunk by chunk.
    async fn fold(&mut self, run: &Run, window: Window) -> Result<(), Ended> {
        let time = self.aggregate.plan.time.filter(|_| !window.holds_all(run));
        let mut rest = Some(run.range.clone());
        while let Some(range) = rest {
            let mut read = 0;
            let Filling { reading, aggregate, sums, entries, progress, .. } = self;
            rest = reading
                .read(&range, |row_key, row| {
                    read += 1;
                    let mut values = Vec::with_capacity(32);
                    row.decode_into(&mut values).map_err(|_| StoreError::Damaged("row image"))?;
                    if time.is_none_or(|time| window.holds(instant(time, values.get(time.column).copied()))) {
                        add(aggregate, row_key, &values, sums, entries);
                        progress.rows_done += 1;
                    }
                    let enough = read == CHUNK_ROWS || sums.len() >= CHUNK_ENTRIES;
                    Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })
                .await?;
            self.hand_on().await?;
        }
        Ok(())
    }

    /// Hands on what was added up.
    async fn hand_on(&mut self) -> Result<(), Ended> {
        note(&mut self.progress, self.started);
        let aggregate = &self.aggregate;
        self.reading.shared.building().insert(aggregate.id, self.progress);
        let blocks = self.sums.take(aggregate.id, aggregate.plan.measures.len(), self.workers);
        let filled = Filled { aggregate: aggregate.id, blocks };
        self.reading.send(FillMessage::Chunk(filled, std::mem::take(&mut self.entries))).await
    }
}

fn add(
    aggregate: &Aggregate,
    row_key: &[u8],
    values: &[ValueRef<'_>],
    sums: &mut PreAggregate,
    entries: &mut Vec<Vec<u8>>,
) {
    sums.add(&aggregate.plan, values, 1);
    if aggregate.definition.drill_through {
        let mut entry = Vec::new();
        if drill::encode(&mut entry, aggregate.id, &aggregate.plan, values, row_key) {
            entries.push(entry);
        }
    }
}

fn note(progress: &mut BuildProgress, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    if seconds > 0.0 {
        progress.rows_per_second = progress.rows_done as f64 / seconds;
        let left = progress.rows_estimated.saturating_sub(progress.rows_done);
        progress.eta_s = Some(left as f64 / progress.rows_per_second);
    }
}
