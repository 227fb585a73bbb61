//! From what is asked to what was found: which aggregates, at which position, compared with whom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::boundary::NoBoundary;
use engine::change::{Lsn, TableId, TableSchema};
use engine::engine::Unavailable;
use engine::materialization::{Aggregate, AggregateState, Granularity};
use engine::recount::RecountError;
use engine::source::{FollowedTable, SourceError, TableState};
use engine::{Engine, Snapshot};
use tokio::sync::mpsc;

use super::bucket_range::{BadRange, BucketRange, Range};
use super::comparison::{ComparisonError, Tally, compare};
use super::expected::Expected;
use super::statement::level_statement;
use super::upstream::{Recounting, TextRow, Upstream};

/// How often a position whose Snapshot was not kept is replaced by another.
const MAX_ATTEMPTS: usize = 3;
/// How long the stream may take to come to the position.
const STREAM_PATIENCE: Duration = Duration::from_secs(30);
/// Cells recounted from the row images at a time.
pub const MAX_RECOUNTED: usize = 500_000;
/// Batches of rows that wait to be compared.
const WAITING_BATCHES: usize = 4;

/// Whom cells are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// Postgres' own `GROUP BY` at the same position.
    Postgres,
    /// The row images of the same Snapshot.
    Rows,
}

/// What is to be verified.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// One aggregate; all where there is none.
    pub aggregate: Option<String>,
    /// The buckets.
    pub range: Range,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Verification {
    /// With whom cells were compared.
    pub against: Against,
    /// The position of both sides.
    pub lsn: Lsn,
    /// What was compared.
    pub verified: Vec<Verified>,
    /// What was not.
    pub skipped: Vec<Skipped>,
    /// How long it took.
    pub took: Duration,
}

/// One aggregate that was compared.
#[derive(Clone, Debug)]
pub struct Verified {
    /// As of the position.
    pub aggregate: Arc<Aggregate>,
    /// Its levels, finest first.
    pub levels: Vec<Tally>,
}

/// One aggregate that was not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub aggregate: String,
    /// Stable name of the reason.
    pub code: String,
    /// Why.
    pub message: String,
}

/// Why nothing was found out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unverified {
    /// No answers can be given now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no such aggregate.
    #[error("there is no aggregate {0:?}")]
    Unknown(String),
    /// The one aggregate that was named cannot be compared.
    #[error("{0:?}")]
    Resting(Skipped),
    /// Nothing can be compared in the range.
    #[error(transparent)]
    Range(#[from] BadRange),
    /// The source is no Postgres.
    #[error("the source is no Postgres that could be asked")]
    NoPostgres,
    /// Postgres did not recompute them.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no Snapshot of Postgres' position.
    #[error(transparent)]
    Boundary(#[from] NoBoundary),
    /// The table keeps no rows to recount.
    #[error("table {0} keeps no row images to recount")]
    NoRowImage(String),
    /// The two sides cannot be compared.
    #[error("{aggregate}: {error}")]
    Comparison {
        /// Which aggregate.
        aggregate: String,
        /// Why.
        error: ComparisonError,
    },
    /// The rows cannot be added up.
    #[error("{aggregate}: {error}")]
    Recount {
        /// Which aggregate.
        aggregate: String,
        /// Why.
        error: RecountError,
    },
    /// The comparison itself failed.
    #[error("the comparison was interrupted")]
    Interrupted,
}

impl Unverified {
    /// The aggregate as one that was skipped, where only it cannot be compared and it was not the one that was asked for.
    fn skipped(self, aggregate: &Aggregate, scope: &Scope) -> Result<Skipped, Unverified> {
        let code = match &self {
            _ if scope.aggregate.is_some() => return Err(self),
            Unverified::NoRowImage(_) => "no_row_image",
            Unverified::Recount { error: RecountError::TooMany(_), .. } => "too_many_cells",
            Unverified::Source(error) if error.code == "not_comparable" => "not_comparable",
            // The others may be damage.
            _ => return Err(self),
        };
        Ok(Skipped { aggregate: aggregate.name.clone(), code: code.to_owned(), message: self.to_string() })
    }
}

/// Compares the cells in a scope with what they should be.
pub async fn verify(
    engine: &Engine,
    upstream: Option<&dyn Upstream>,
    scope: &Scope,
    against: Against,
) -> Result<Verification, Unverified> {
    let started = Instant::now();
    let newest = engine.snapshot()?;
    let mut found = match against {
        Against::Rows => verify_rows(newest, scope).await?,
        Against::Postgres => {
            let upstream = upstream.ok_or(Unverified::NoPostgres)?;
            let mut attempt = 1;
            loop {
                match verify_postgres(engine, upstream, scope).await {
                    Err(Unverified::Boundary(NoBoundary::Missed(lsn))) if attempt < MAX_ATTEMPTS => {
                        tracing::debug!(%lsn, "no Snapshot of the position: another one is taken");
                        attempt += 1;
                    }
                    done => break done?,
                }
            }
        }
    };
    found.took = started.elapsed();
    Ok(found)
}

/// What of a scope can be compared in a Snapshot, and what cannot.
struct Selection {
    chosen: Vec<(Arc<Aggregate>, Arc<FollowedTable>)>,
    skipped: Vec<Skipped>,
}

fn select(snapshot: &Snapshot, scope: &Scope) -> Result<Selection, Unverified> {
    let catalog = snapshot.catalog();
    let named = |aggregate: &&Arc<Aggregate>| match &scope.aggregate {
        Some(name) => aggregate.name == *name,
        None => !aggregate.is_next(),
    };
    let mut selection = Selection { chosen: Vec::new(), skipped: Vec::new() };
    for aggregate in catalog.aggregates.values().filter(named) {
        let table = catalog.tables.get(&aggregate.definition.qualified_table());
        match (&aggregate.state, table) {
            (AggregateState::Live, Some(table)) if table.standing == TableState::Live => {
                selection.chosen.push((Arc::clone(aggregate), Arc::clone(table)));
            }
            (state, _) => selection.skipped.push(resting(aggregate, state)),
        }
    }
    match (&scope.aggregate, selection.chosen.is_empty(), selection.skipped.pop()) {
        (Some(name), true, None) => Err(Unverified::Unknown(name.clone())),
        (Some(_), true, Some(skipped)) => Err(Unverified::Resting(skipped)),
        (_, _, last) => {
            selection.skipped.extend(last);
            Ok(selection)
        }
    }
}

fn resting(aggregate: &Aggregate, state: &AggregateState) -> Skipped {
    let (code, message) = match state {
        AggregateState::Halted { code, message, .. } => (code.clone(), format!("it is halted: {message}")),
        AggregateState::Building => ("building".to_owned(), "it is being filled".to_owned()),
        AggregateState::Live => ("table_halted".to_owned(), "its table is not followed at the moment".to_owned()),
    };
    Skipped { aggregate: aggregate.name.clone(), code, message }
}

async fn verify_postgres(engine: &Engine, upstream: &dyn Upstream, scope: &Scope) -> Result<Verification, Unverified> {
    let newest = engine.snapshot()?;
    let before = select(&newest, scope)?;
    let mut tables: BTreeMap<TableId, TableSchema> = BTreeMap::new();
    tables.extend(before.chosen.iter().map(|(_, table)| (table.schema.id, table.schema.clone())));
    let mut found = Verification {
        against: Against::Postgres,
        lsn: newest.as_of().lsn,
        verified: Vec::new(),
        skipped: before.skipped,
        took: Duration::ZERO,
    };
    if tables.is_empty() {
        return Ok(found);
    }
    drop(newest);
    let watch = engine.watch_boundaries();
    let recounting = upstream.open(tables.values().cloned().collect()).await?;
    found.lsn = recounting.lsn();
    let snapshot = watch.at(found.lsn, STREAM_PATIENCE).await?;
    // From here on transactions may share a commit again.
    drop(watch);
    // What is compared is what was registered as of the position.
    let Selection { chosen, skipped } = select(&snapshot, scope)?;
    found.skipped = skipped;
    for (aggregate, table) in chosen.into_iter().filter(|(_, table)| tables.contains_key(&table.schema.id)) {
        found.compare(&snapshot, aggregate, &table, scope, Some(recounting.as_ref())).await?;
    }
    Ok(found)
}

async fn verify_rows(snapshot: Arc<Snapshot>, scope: &Scope) -> Result<Verification, Unverified> {
    let Selection { chosen, skipped } = select(&snapshot, scope)?;
    let lsn = snapshot.as_of().lsn;
    let mut found = Verification { against: Against::Rows, lsn, verified: Vec::new(), skipped, took: Duration::ZERO };
    for (aggregate, table) in chosen {
        if !table.schema.keeps_row_image {
            let refused = Unverified::NoRowImage(table.schema.qualified_name());
            found.skipped.push(refused.skipped(&aggregate, scope)?);
            continue;
        }
        found.compare(&snapshot, aggregate, &table, scope, None).await?;
    }
    Ok(found)
}

impl Verification {
    /// Compares the levels of one aggregate with what Postgres recounts, or with what the row images come to. One of which a level is
    /// refused is not told as compared, unless something differs.
    async fn compare(
        &mut self,
        snapshot: &Arc<Snapshot>,
        aggregate: Arc<Aggregate>,
        table: &Arc<FollowedTable>,
        scope: &Scope,
        recounting: Option<&dyn Recounting>,
    ) -> Result<(), Unverified> {
        let (mut levels, mut refused) = (Vec::new(), None);
        for (level, granularity) in aggregate.plan.levels.iter().copied().enumerate() {
            let Some(range) = scope.range.buckets(&aggregate.plan.calendar, granularity)? else { continue };
            let side = Side { snapshot, aggregate: &aggregate, table, level, granularity, range };
            let compared = match recounting {
                Some(recounting) => side.compare_with_postgres(recounting).await,
                None => side.compare_with_rows().await,
            };
            match compared {
                Ok(tally) => levels.push(tally),
                Err(why) => {
                    refused = Some(why.skipped(&aggregate, scope)?);
                    break;
                }
            }
        }
        if refused.is_none() || levels.iter().any(|tally| tally.differing > 0) {
            self.verified.push(Verified { aggregate, levels });
        }
        self.skipped.extend(refused);
        Ok(())
    }
}

/// Our side of one comparison.
struct Side<'a> {
    snapshot: &'a Arc<Snapshot>,
    aggregate: &'a Arc<Aggregate>,
    table: &'a Arc<FollowedTable>,
    level: usize,
    granularity: Granularity,
    range: BucketRange,
}

impl Side<'_> {
    async fn compare_with_postgres(&self, recounting: &dyn Recounting) -> Result<Tally, Unverified> {
        let sql = level_statement(self.aggregate, self.table, self.granularity, self.range);
        tracing::trace!(aggregate = %self.aggregate.name, %sql, "recounting");
        let (into, batches) = mpsc::channel(WAITING_BATCHES);
        let (snapshot, aggregate) = (Arc::clone(self.snapshot), Arc::clone(self.aggregate));
        let (level, granularity, range) = (self.level, self.granularity, self.range);
        let comparing = tokio::task::spawn_blocking(move || {
            let rows = Rows { batches, batch: Vec::new().into_iter() };
            let expected = rows.map(|row| Expected::of_row(&row, &aggregate.plan, granularity));
            compare(&snapshot, &aggregate, level, range, expected)
        });
        let (read, compared) = tokio::join!(recounting.rows(sql, into), comparing);
        // Where Postgres stopped in the middle, the rest only seems to be missing.
        read?;
        compared.map_err(|_| Unverified::Interrupted)?.map_err(|error| self.not_comparable(error))
    }

    async fn compare_with_rows(&self) -> Result<Tally, Unverified> {
        let (snapshot, aggregate, table) =
            (Arc::clone(self.snapshot), Arc::clone(self.aggregate), Arc::clone(self.table));
        let (level, range) = (self.level, self.range);
        let comparing = tokio::task::spawn_blocking(move || {
            let plan = &aggregate.plan;
            let recounted = snapshot.recount(plan, &table, level, (range.from, range.to), MAX_RECOUNTED);
            let name = || aggregate.name.clone();
            let cells = recounted.map_err(|error| Unverified::Recount { aggregate: name(), error })?;
            let expected =
                cells.into_iter().map(|((bucket, group), cell)| Ok(Expected::of_cell(bucket, group, &cell, plan)));
            let compared = compare(&snapshot, &aggregate, level, range, expected);
            compared.map_err(|error| Unverified::Comparison { aggregate: name(), error })
        });
        comparing.await.map_err(|_| Unverified::Interrupted)?
    }

    fn not_comparable(&self, error: ComparisonError) -> Unverified {
        Unverified::Comparison { aggregate: self.aggregate.name.clone(), error }
    }
}

/// Rows that come in batches, on a thread that may block.
struct Rows {
    batches: mpsc::Receiver<Vec<TextRow>>,
    batch: std::vec::IntoIter<TextRow>,
}

impl Iterator for Rows {
    type Item = TextRow;

    fn next(&mut self) -> Option<TextRow> {
        loop {
            if let Some(row) = self.batch.next() {
                return Some(row);
            }
            self.batch = self.batches.blocking_recv()?.into_iter();
        }
    }
}
