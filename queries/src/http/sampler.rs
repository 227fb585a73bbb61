//! Verification that nobody asks for: now and then one bucket of one aggregate, of every level in turn, with everything that
//! is in it. So a small part of the table is read upstream each time, where its time column has an index.

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;

use engine::Snapshot;
use engine::materialization::{Aggregate, AggregateState, Bucket, Calendar, Granularity};
use engine::snapshot::ReadError;

use super::state::{AppState, now_us};
use crate::query::instant::format_instant;
use crate::verify::{Against, Range, Scope, verify};

/// Verifies as often as is set, for ever.
pub(super) async fn run(state: AppState) {
    let Some(every) = state.verify_every else { return std::future::pending().await };
    for turn in 0.. {
        tokio::time::sleep(every).await;
        // While somebody verifies there is no need to.
        let Ok(_place) = Arc::clone(&state.verifying).try_acquire_owned() else { continue };
        let Some(scope) = choose(&state, turn) else { continue };
        let upstream = state.upstream.as_deref();
        let against = if upstream.is_some() { Against::Postgres } else { Against::Rows };
        match verify(&state.engine, upstream, &scope, against).await {
            Ok(found) => {
                state.metrics.count_verification(&found);
                let tallies = || found.verified.iter().flat_map(|verified| &verified.levels);
                let cells: u64 = tallies().map(|tally| tally.cells).sum();
                let differing: u64 = tallies().map(|tally| tally.differing).sum();
                if differing > 0 {
                    tracing::error!(?scope, lsn = %found.lsn, cells, differing, "cells are not what they should be");
                } else {
                    tracing::debug!(?scope, lsn = %found.lsn, cells, "cells are what they should be");
                }
            }
            Err(why) => {
                state.metrics.count_unverified();
                tracing::warn!(?scope, %why, "cells could not be compared");
            }
        }
    }
}

/// The aggregate and level whose turn it is, and a bucket by chance.
fn choose(state: &AppState, turn: usize) -> Option<Scope> {
    let snapshot = state.engine.snapshot().ok()?;
    let live = |one: &&Arc<Aggregate>| one.state == AggregateState::Live && !one.is_next();
    let aggregates: Vec<&Arc<Aggregate>> = snapshot.catalog().aggregates.values().filter(live).collect();
    let aggregate = aggregates.get(turn.checked_rem(aggregates.len())?)?;
    let level = turn.checked_div(aggregates.len())? % aggregate.plan.levels.len().max(1);
    let bucket = bucket(&snapshot, aggregate, level).ok()?;
    let range = bucket.map(|bucket| range_of(aggregate, level, bucket)).unwrap_or_default();
    Some(Scope { aggregate: Some(aggregate.name.clone()), range: Range { now_us: now_us(), ..range } })
}

/// One that begins, by chance; `None` where none does.
fn bucket(snapshot: &Snapshot, aggregate: &Aggregate, level: usize) -> Result<Option<Bucket>, ReadError> {
    if aggregate.plan.levels.get(level) == Some(&Granularity::All) {
        return Ok(None);
    }
    let mut chosen = None;
    let (from, to) = (Bucket(i64::MIN + 1), Bucket(i64::MAX - 2));
    let mut seen = 0u64;
    let chance = RandomState::new();
    snapshot.partitions(aggregate, level, from, to, |bucket, _, _| {
        seen += 1;
        // Each is kept with the same chance, however many follow.
        if chance.hash_one(seen).is_multiple_of(seen) {
            chosen = Some(bucket);
        }
        ControlFlow::Continue(())
    })?;
    Ok(chosen)
}

fn range_of(aggregate: &Aggregate, level: usize, bucket: Bucket) -> Range {
    let granularity = aggregate.plan.levels.get(level).copied().unwrap_or(Granularity::All);
    let end = aggregate.plan.calendar.interval(granularity, bucket.0).end;
    let text = |us| Some(format_instant(us, &Calendar::UTC));
    Range { from: text(bucket.0), to: text(end), now_us: 0 }
}
