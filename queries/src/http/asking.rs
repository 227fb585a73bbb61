//! From a question to its answer: a Snapshot, the aggregate as of it, what to read, the reading. Everything in one answer
//! comes from one Snapshot, and pages of one answer all show the Snapshot of the first.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use engine::Snapshot;
use engine::change::Lsn;
use engine::materialization::bucket::Interval;
use engine::materialization::{Aggregate, AggregateState, Bucket, Granularity};
use engine::source::FollowedTable;

use super::layers::REQUEST_TIMEOUT;
use super::pages::Pages;
use super::state::{AppState, now_us, unknown_aggregate};
use super::turns::Turn;
use crate::access::Caller;
use crate::api::source::freshness;
use crate::api::table_rows::columns_left_out;
use crate::api::{AnswerView, Problem, Warning};
use crate::query::aggregate_query::MAX_LIMIT;
use crate::query::cursor::push_value;
use crate::query::fingerprint::Fingerprint;
use crate::query::instant::format_instant;
use crate::query::planner::coarser;
use crate::query::process::this_process;
use crate::query::{Access, AggregateQuery, LevelScan, QueryRequest, ReadPlan};
use crate::read::{Allowance, Answer, Before, Behind, ReadFailure, read, rows_of_cell};

/// So many point reads are done on the spot: they take microseconds, and a change of threads takes as long.
const MAX_INLINE_POINTS: usize = 64;

/// So many bytes of conditions are understood on the spot: each value of a list takes its time.
pub(super) const MAX_INLINE_BYTES: usize = 16 << 10;

/// Most rows of the table in one answer.
const MAX_ROWS_BEHIND: usize = 10_000;

/// A question with all that its answer depends on.
pub(super) struct Asked {
    caller: Caller,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) aggregate: Arc<Aggregate>,
    pub(super) query: AggregateQuery,
    pub(super) reads: ReadPlan,
    /// The same question about the range to compare with.
    earlier: Option<(AggregateQuery, ReadPlan)>,
    pub(super) lag_ms: u64,
    pub(super) freshness: &'static str,
}

/// An answer with what it is compared with.
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) before: Option<Before>,
    /// The newest rows of the table behind each row, where they were asked for.
    pub(super) behind: Option<Vec<Behind>>,
}

/// For whom something is read: who asks once is told to come back where it takes too long to begin, a live answer waits.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Once,
    Live,
}

/// Finds what a live answer is about, as this caller may ask it, waiting for the position it demands.
pub(super) async fn ask(
    state: &AppState,
    caller: &Caller,
    name: &str,
    request: &QueryRequest,
) -> Result<Asked, Problem> {
    ask_for(state, Reader::Live, caller, name, request, now_us()).await
}

/// The same of a question that is asked once, with the time that `now` and `-30d` are relative to.
pub(super) async fn ask_at(
    state: &AppState,
    caller: &Caller,
    name: &str,
    request: &QueryRequest,
    asked_us: i64,
) -> Result<Asked, Problem> {
    ask_for(state, Reader::Once, caller, name, request, asked_us).await
}

async fn ask_for(
    state: &AppState,
    reader: Reader,
    caller: &Caller,
    name: &str,
    request: &QueryRequest,
    asked_us: i64,
) -> Result<Asked, Problem> {
    let request = restricted(caller, name, request)?;
    let short = request.condition_bytes() <= MAX_INLINE_BYTES;
    let (mut snapshot, mut aggregate) = find(state, name)?;
    let of = Arc::clone(&aggregate);
    let resolve = move || Ok(AggregateQuery::resolve(&request, &of, asked_us)?);
    let query = run_for(state, reader, short, resolve).await?;
    if let Some(min_lsn) = query.min_lsn.filter(|min_lsn| snapshot.as_of().lsn < *min_lsn) {
        wait_for(state, min_lsn, query.wait).await?;
        let id = aggregate.id;
        (snapshot, aggregate) = find(state, name)?;
        if snapshot.as_of().lsn < min_lsn || aggregate.id != id {
            return Err(not_yet_visible(min_lsn, snapshot.as_of().lsn));
        }
    }
    if short {
        return ask_of(state, caller, snapshot, aggregate, query);
    }
    let (with, caller) = (state.clone(), caller.clone());
    run_for(state, reader, short, move || ask_of(&with, &caller, snapshot, aggregate, query)).await
}

/// The question with what the caller's token fixes.
pub(super) fn restricted(caller: &Caller, name: &str, request: &QueryRequest) -> Result<QueryRequest, Problem> {
    caller.restrict(name, request).ok_or_else(|| unknown_aggregate(name))
}

/// Plans a question to an aggregate of a Snapshot. A page shows the Snapshot of the page before it.
pub(super) fn ask_of(
    state: &AppState,
    caller: &Caller,
    newest: Arc<Snapshot>,
    aggregate: Arc<Aggregate>,
    query: AggregateQuery,
) -> Result<Asked, Problem> {
    let reads = ReadPlan::choose(&query, &aggregate.plan)?;
    let earlier = earlier(&query, &aggregate)?;
    let all_reads = || std::iter::once(&reads).chain(earlier.as_ref().map(|(_, reads)| reads));
    let (snapshot, aggregate) = match &query.cursor {
        None => {
            all_reads().try_for_each(|reads| check_covered(state, &newest, &aggregate, reads))?;
            (newest, aggregate)
        }
        Some(cursor) if !cursor.is_ours() => return Err(expired()),
        Some(cursor) => page_of(state, caller, &newest, &aggregate, (cursor.sequence, query.min_lsn), all_reads())?,
    };
    let status = state.engine.status();
    Ok(Asked {
        caller: caller.clone(),
        snapshot,
        aggregate,
        query,
        reads,
        earlier,
        lag_ms: status.lag_ms,
        freshness: freshness(&status.source.state),
    })
}

/// The Snapshot that a page is of, with the aggregate as it was in it: it may have been filled less far than it is now. A page
/// cannot show a later position than the first one did.
pub(super) fn page_of<'r>(
    state: &AppState,
    caller: &Caller,
    newest: &Arc<Snapshot>,
    aggregate: &Aggregate,
    (sequence, min_lsn): (u64, Option<Lsn>),
    mut reads: impl Iterator<Item = &'r ReadPlan>,
) -> Result<(Arc<Snapshot>, Arc<Aggregate>), Problem> {
    let snapshot = state.pages.get(newest, sequence, caller).ok_or_else(expired)?;
    if min_lsn > Some(snapshot.as_of().lsn) {
        return Err(expired());
    }
    let then = snapshot.catalog().aggregates.get(&aggregate.name).filter(|then| then.id == aggregate.id);
    let then = Arc::clone(then.ok_or_else(expired)?);
    reads
        .try_for_each(|reads| check_covered(state, &snapshot, &then, reads))
        .map_err(|problem| problem.hint("a page shows its aggregate as it was: ask for the first page again"))?;
    Ok((snapshot, then))
}

/// Refuses to read what is not filled yet.
pub(super) fn check_covered(
    state: &AppState,
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    reads: &ReadPlan,
) -> Result<(), Problem> {
    match snapshot.catalog().answers_from(aggregate) {
        Some(covered_from) if reads.reads_from() >= covered_from => Ok(()),
        Some(covered_from) => {
            let from = format_instant(covered_from, &aggregate.plan.calendar);
            Err(Problem::not_covered(&aggregate.name, from, state.engine.build_progress(aggregate.id)))
        }
        None => Err(Problem::building(&aggregate.name, state.engine.build_progress(aggregate.id))),
    }
}

/// A page of an answer whose Snapshot is gone.
pub(super) fn expired() -> Problem {
    Problem::new(410, "page_expired", "the answer that this page belongs to is not kept any more").hint(
        "ask for the first page again; pages are kept for a minute after each request, and for ten minutes in all",
    )
}

fn earlier(query: &AggregateQuery, aggregate: &Aggregate) -> Result<Option<(AggregateQuery, ReadPlan)>, Problem> {
    let Some(period) = query.comparison else { return Ok(None) };
    let before = |instant: Option<i64>| {
        instant.map(|instant| period.before(instant, &query.calendar)).map(|earlier| {
            earlier.ok_or_else(|| {
                Problem::new(
                    422,
                    "compare_out_of_calendar",
                    "the range begins or ends on a day that the period before lacks",
                )
                .hint("compare ranges that begin and end on the first of a month, or go back by weeks or days")
            })
        })
    };
    let earlier = AggregateQuery {
        from: before(query.from).transpose()?,
        to: before(query.to).transpose()?,
        limit: MAX_LIMIT,
        order: Vec::new(),
        having: None,
        others: false,
        share: None,
        cursor: None,
        comparison: None,
        rows: None,
        ..query.clone()
    };
    let reads = ReadPlan::choose(&earlier, &aggregate.plan)?;
    Ok(Some((earlier, reads)))
}

/// A Snapshot, and the aggregate as of it.
pub(super) fn find(state: &AppState, name: &str) -> Result<(Arc<Snapshot>, Arc<Aggregate>), Problem> {
    let snapshot = match state.engine.snapshot() {
        Ok(snapshot) => snapshot,
        // A name that is wrong stays wrong: say so rather than "try again".
        Err(why) => return state.aggregate(name).and(Err(why.into())),
    };
    let aggregate = find_in(state, &snapshot, name)?;
    Ok((snapshot, aggregate))
}

/// An aggregate that can answer, as of a Snapshot; where it is being filled, a part of what it is asked.
pub(super) fn find_in(state: &AppState, snapshot: &Snapshot, name: &str) -> Result<Arc<Aggregate>, Problem> {
    let Some(aggregate) = snapshot.catalog().aggregates.get(name).cloned() else {
        // Registered after the Snapshot was taken, or not at all.
        let aggregate = state.aggregate(name)?;
        return Err(Problem::building(name, state.engine.build_progress(aggregate.id)));
    };
    match &aggregate.state {
        AggregateState::Live => Ok(aggregate),
        AggregateState::Building if snapshot.catalog().answers_from(&aggregate).is_some() => Ok(aggregate),
        AggregateState::Building => Err(Problem::building(name, state.engine.build_progress(aggregate.id))),
        AggregateState::Halted { code, message, remedy } => {
            Err(Problem::new(503, code.clone(), format!("{name} is halted: {message}")).hint(remedy.clone()))
        }
    }
}

/// Waits until a position is visible.
pub(super) async fn wait_for(state: &AppState, min_lsn: Lsn, wait: Duration) -> Result<(), Problem> {
    // So that the caller hears "not yet" and not "timeout".
    let wait = wait.min(REQUEST_TIMEOUT.saturating_sub(Duration::from_secs(1)));
    if state.engine.wait_for(min_lsn, wait).await {
        return Ok(());
    }
    // Where it never will be, that is the answer.
    state.engine.snapshot()?;
    Err(not_yet_visible(min_lsn, state.engine.status().applied_lsn))
}

pub(super) fn not_yet_visible(min_lsn: Lsn, visible: Lsn) -> Problem {
    Problem::new(503, "not_yet_visible", format!("{min_lsn} was asked for, answers show {visible}"))
        .hint("ask again, or wait longer with wait=2s")
        .retry_after(1)
}

/// Runs what reads cells, or much of a question: on the spot where it is short, otherwise in its turn on a thread that may block.
/// All of it takes from one [`Allowance`].
pub(super) async fn in_turn<R: Send + 'static>(
    state: &AppState,
    short: bool,
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    run_for(state, Reader::Once, short, work).await
}

/// The same for a live answer.
pub(super) async fn in_live_turn<R: Send + 'static>(
    state: &AppState,
    short: bool,
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    run_for(state, Reader::Live, short, work).await
}

async fn run_for<R: Send + 'static>(
    state: &AppState,
    reader: Reader,
    short: bool,
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    if short {
        return Allowance::default().spend(work);
    }
    let turn = match reader {
        Reader::Once => state.turns.take().await?,
        Reader::Live => state.turns.take_live().await?,
    };
    on_thread(state, turn, work).await
}

async fn on_thread<R: Send + 'static>(
    state: &AppState,
    turn: Turn,
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    let work = move || {
        let done = work();
        drop(turn);
        done
    };
    let interrupted = || Problem::new(500, "internal_error", "the read was interrupted");
    state.scan_threads.run(work).await.ok_or_else(interrupted)?
}

/// Visits the Partitions of these runs, as long as the request may take.
pub(super) fn look_at_partitions(
    snapshot: &Snapshot,
    aggregate: &Aggregate,
    scans: &[LevelScan],
    mut visit: impl FnMut(Bucket, u64, u64),
) -> Result<(), ReadFailure> {
    let allowance = Allowance::current();
    for scan in scans {
        let mut stepped = Ok(());
        snapshot.partitions(aggregate, scan.level, scan.from, scan.to, |bucket, cells, changed| {
            visit(bucket, cells, changed);
            stepped = allowance.step();
            if stepped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        stepped?;
    }
    Ok(())
}

/// A number after a byte that says what it is.
fn tagged(tag: u8, number: i64) -> [u8; 9] {
    let mut bytes = [tag; 9];
    if let Some(rest) = bytes.get_mut(1..) {
        rest.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

impl Asked {
    /// Whether the answer takes microseconds.
    pub(super) fn is_short(&self) -> bool {
        let few = |reads: &ReadPlan| matches!(&reads.access, Access::Points { points, .. } if points.len() <= MAX_INLINE_POINTS);
        few(&self.reads) && self.earlier.as_ref().is_none_or(|(_, reads)| few(reads))
    }

    /// Keeps its Snapshot for further pages, or for who comes back.
    pub(super) fn keep(&self, pages: &Pages) {
        pages.keep(&self.snapshot, &self.caller);
    }

    /// Reads the cells.
    pub(super) fn answer(&self) -> Result<Answered, Problem> {
        let sequence = self.snapshot.as_of().sequence;
        let read = |query, reads| {
            read(&*self.snapshot, &self.aggregate, query, reads, sequence).map_err(|failure| self.failed(failure))
        };
        let answer = read(&self.query, &self.reads)?;
        let before = match &self.earlier {
            None => None,
            Some((query, reads)) => {
                let then = read(query, reads)?;
                if then.truncated {
                    return Err(Problem::new(
                        422,
                        "compare_too_wide",
                        format!("there were more than {MAX_LIMIT} rows"),
                    )
                    .hint("ask with a coarser granularity or fewer dimensions"));
                }
                Some(Before::join(&answer, then, |bucket| self.earlier_bucket(query, bucket)))
            }
        };
        let behind = self.query.rows.map(|limit| self.behind(&answer, limit)).transpose()?;
        Ok(Answered { answer, before, behind })
    }

    /// The table, as of the Snapshot.
    pub(super) fn table(&self) -> Option<&FollowedTable> {
        self.snapshot.catalog().tables.get(&self.aggregate.definition.qualified_table()).map(Arc::as_ref)
    }

    fn behind(&self, answer: &Answer, limit: usize) -> Result<Vec<Behind>, Problem> {
        let rows = answer.rows.len().saturating_mul(limit);
        if rows > MAX_ROWS_BEHIND {
            return Err(Problem::new(422, "too_many_rows", format!("up to {rows} rows of the table would be shown"))
                .hint(format!("at most {MAX_ROWS_BEHIND} are: lower limit or rows")));
        }
        let behind = |row| rows_of_cell(&self.snapshot, &self.aggregate, &self.query, row, limit);
        answer.rows.iter().map(behind).collect::<Result<_, _>>().map_err(|failure| self.failed(failure))
    }

    fn earlier_bucket(&self, earlier: &AggregateQuery, bucket: Bucket) -> Option<Bucket> {
        let AggregateQuery { granularity, calendar, comparison, .. } = &self.query;
        if *granularity == Granularity::All {
            return Some(bucket);
        }
        let period = comparison.filter(|_| !bucket.is_special())?;
        let range = |query: &AggregateQuery| Some(Interval { start: query.from?, end: query.to? });
        period.counterpart(bucket.0, *granularity, calendar, range(&self.query)?, range(earlier)?).map(Bucket)
    }

    /// The answer with everything that is said about it.
    pub(super) fn view<'a>(&'a self, answered: &'a Answered) -> AnswerView<'a> {
        AnswerView {
            aggregate: &self.aggregate,
            query: &self.query,
            reads: &self.reads,
            answer: &answered.answer,
            before: answered.before.as_ref(),
            behind: answered.behind.as_deref().zip(self.table()),
            as_of: self.snapshot.as_of(),
            lag_ms: self.lag_ms,
            state: self.freshness,
            warnings: self.warnings(&answered.answer),
        }
    }

    /// Identifies the answer's rows, before they are read: what is asked, and the newest change of each Partition touched.
    /// Last year's chart keeps its tag while today moves. `None` where reading is as cheap as looking. Partitions are
    /// everybody's: a pinned asker must not be shown it, since how many cells they have can be found out from it.
    pub(super) fn tag_of_partitions(&self) -> Result<Option<u64>, Problem> {
        // A payment may change without its total.
        if self.query.rows.is_some() {
            return Ok(None);
        }
        let mut hash = self.shape();
        for reads in std::iter::once(&self.reads).chain(self.earlier.as_ref().map(|(_, reads)| reads)) {
            let Access::Scans(scans) = &reads.access else { return Ok(None) };
            let visit = |bucket: Bucket, cells: u64, changed: u64| {
                hash = hash.with([bucket.0.to_be_bytes(), cells.to_be_bytes(), changed.to_be_bytes()].concat());
            };
            look_at_partitions(&self.snapshot, &self.aggregate, scans, visit)
                .map_err(|failure| self.failed(failure))?;
        }
        Ok(Some(hash.finish()))
    }

    /// Identifies the answer's rows, once they are read.
    pub(super) fn tag_of_rows(&self, answered: &Answered) -> u64 {
        let answer = &answered.answer;
        let mut hash = self.shape().with([u8::from(answer.truncated), u8::from(answer.others.is_some())]);
        let mut bytes = Vec::new();
        for values in answer.others.iter().chain(&answer.whole) {
            bytes.clear();
            values.iter().for_each(|value| push_value(&mut bytes, *value));
            hash = hash.with(&bytes);
        }
        for row in &answer.rows {
            bytes.clear();
            bytes.extend_from_slice(&row.bucket.0.to_be_bytes());
            row.values.iter().for_each(|value| push_value(&mut bytes, *value));
            hash = hash.with(&bytes).with(&row.key);
        }
        if answered.before.is_some() || answered.behind.is_some() {
            hash = hash.with(format!("{:?} {:?}", answered.before, answered.behind));
        }
        hash.finish()
    }

    /// A tag of this commit's answer alone.
    pub(super) fn with_commit(&self, hash: u64) -> u64 {
        let sequence = self.snapshot.as_of().sequence;
        Fingerprint::default().with(hash.to_be_bytes()).with(sequence.to_be_bytes()).finish()
    }

    /// Everything but the cells that the rows depend on. Cells are told apart by numbers of commits, which mean nothing to another
    /// process.
    fn shape(&self) -> Fingerprint {
        // Buckets become complete as time passes, without a change of any cell.
        let open = match self.query.granularity {
            Granularity::All => 0,
            other => self.query.calendar.interval(other, self.snapshot.as_of().commit_time_us).start,
        };
        let query = &self.query;
        let edge = |edge: Option<i64>| edge.map_or([0; 9], |us| tagged(1, us));
        let page = query.cursor.as_ref();
        let mut hash = Fingerprint::default()
            .with(query.fingerprint.to_be_bytes())
            .with(this_process().to_be_bytes())
            .with(self.freshness)
            .with([edge(query.from), edge(query.to), tagged(2, open)].concat())
            .with((query.limit as u64).to_be_bytes())
            .with([query.layout as u8, query.fill as u8, u8::from(query.others)])
            .with(page.map_or([0; 9], |cursor| tagged(1, cursor.bucket.0)))
            .with(page.map_or(&[][..], |cursor| &cursor.key));
        if query.share.is_some() || query.comparison.is_some() || query.rows.is_some() {
            hash = hash.with(format!("{:?} {:?} {:?}", query.share, query.comparison, query.rows));
        }
        for output in &query.outputs {
            hash = hash.with(&output.name).with(format!("{:?}", output.source));
        }
        hash
    }

    fn failed(&self, failure: ReadFailure) -> Problem {
        if let ReadFailure::Store(error) = &failure {
            tracing::error!(aggregate = self.aggregate.name, %error, "a read failed");
        }
        let too_wide = failure == ReadFailure::TooWide;
        let problem = Problem::from(failure);
        if !too_wide {
            return problem;
        }
        let coarser = coarser(&self.query, &self.aggregate.plan);
        let coarser = coarser.map(|coarser| format!("granularity={coarser}, ")).unwrap_or_default();
        problem.hint(format!("ask with {coarser}a shorter range, or fix a dimension with where"))
    }

    fn warnings(&self, answer: &Answer) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if answer.truncated {
            let limit = self.query.limit;
            warnings.push(Warning::new(
                "truncated",
                format!("there are more than {limit} rows; follow page.next for the rest"),
            ));
        }
        if self.cuts_a_bucket() {
            let granularity = self.query.granularity;
            let message = format!("the range begins or ends inside a {granularity}; that row holds the part inside");
            warnings.push(Warning::new("partial_bucket", message));
        }
        if self.freshness != "live" {
            let state = self.freshness;
            let message = format!("the source is {state}: the answer is exact as of its position, not of now");
            warnings.push(Warning::new("source_not_streaming", message));
        }
        if self.query.rows.is_some() {
            warnings.extend(self.table().and_then(|table| columns_left_out(&table.schema)));
        }
        warnings
    }

    fn cuts_a_bucket(&self) -> bool {
        let granularity = self.query.granularity;
        let inside = |edge: i64| self.query.calendar.interval(granularity, edge).start != edge;
        granularity != Granularity::All && (self.query.from.is_some_and(inside) || self.query.to.is_some_and(inside))
    }
}
