//! Pre-aggregated differences on their way between workers: many (bucket, group) entries of one aggregate in three flat
//! arrays, so that a message is a block and not a row.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::aggregate::{Accumulator, Misfit};
use crate::change::ValueRef;
use crate::materialization::bucket::BucketCache;
use crate::materialization::{AggregateId, Bucket, Plan, group_key};

/// Differences of one aggregate for the groups of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The aggregate, by number.
    pub aggregate: u32,
    /// The worker that owns the groups.
    pub target: u64,
    /// Groups, one after the other.
    keys: Vec<u8>,
    /// Bucket, end of the group's bytes in `keys`, and rows.
    entries: Vec<(i64, u32, i64)>,
    /// As many per entry as the aggregate has measures.
    accumulators: Vec<Accumulator>,
    /// A row did not fit: the aggregate halts.
    pub misfit: Option<Halt>,
}

/// Why an aggregate halts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Halt {
    /// A value or a sum left 128 bits.
    Overflow,
    /// A number has more digits than 128 bits hold.
    Wide,
    /// A value has more digits than the measure keeps.
    Scale,
    /// A value is not of the column's type.
    Type,
    /// The time of a row, this number, is no date under the definition's codec.
    Time(i64),
    /// A group's key is too long.
    GroupTooLong,
    /// A cell was about to take the same difference twice.
    AppliedTwice,
    /// A cell could not be read.
    Unreadable,
}

impl Halt {
    /// Stable code, what happened, what to do.
    #[must_use]
    pub fn reason(self) -> (&'static str, String, &'static str) {
        let (code, message, remedy) = match self {
            Halt::Overflow => (
                "sum_overflow",
                "a value or a sum does not fit 128 bits",
                "register it with a smaller scale or more dimensions: PUT with ?on_change=rebuild",
            ),
            Halt::Wide => (
                "value_too_wide",
                "a number of a row has more than 38 digits, and can be neither added up nor compared exactly",
                "round the number in its row; then have it built anew: POST .../backfill:rebuild",
            ),
            Halt::Scale => (
                "scale_exceeded",
                "a value has more digits after the point than the measure keeps, and rounding it would be wrong",
                "register it with a larger \"scale\": PUT with ?on_change=rebuild",
            ),
            Halt::Type => (
                "value_misfit",
                "a value is not of its column's type",
                "have it built anew from the rows: POST .../backfill:rebuild; if it recurs, report it",
            ),
            Halt::Time(number) => {
                return (
                    "time_misfit",
                    format!("the time of a row, {number}, is no date under the definition's codec"),
                    "correct the row and have it built anew: POST .../backfill:rebuild; or leave such rows out by \"where\": PUT with \
                     ?on_change=rebuild",
                );
            }
            Halt::GroupTooLong => (
                "group_too_long",
                "the dimensions of a row take more than 1,024 bytes",
                "register it without the long column: PUT with ?on_change=rebuild",
            ),
            Halt::AppliedTwice => (
                "applied_twice",
                "a cell was about to take the same difference twice",
                "have it built anew from the rows: POST .../backfill:rebuild; please report it",
            ),
            Halt::Unreadable => (
                "store_corrupt",
                "a cell could not be read from the store",
                "check the disk; then have it built anew from the rows: POST .../backfill:rebuild",
            ),
        };
        (code, message.to_owned(), remedy)
    }
}

impl From<Misfit> for Halt {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Overflow => Halt::Overflow,
            Misfit::Wide => Halt::Wide,
            Misfit::Scale => Halt::Scale,
            Misfit::Type => Halt::Type,
        }
    }
}

/// One entry of a block.
pub struct Entry<'a> {
    /// The bucket.
    pub bucket: Bucket,
    /// The group.
    pub group: &'a [u8],
    /// Rows.
    pub rows: i64,
    /// One per measure.
    pub accumulators: &'a [Accumulator],
}

impl Block {
    /// Appends one entry.
    pub fn push(&mut self, bucket: Bucket, group: &[u8], rows: i64, accumulators: &[Accumulator]) {
        self.keys.extend_from_slice(group);
        self.entries.push((bucket.0, self.keys.len() as u32, rows));
        self.accumulators.extend_from_slice(accumulators);
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> + '_ {
        let measures = self.accumulators.len().checked_div(self.entries.len()).unwrap_or(0);
        let mut start = 0usize;
        self.entries.iter().enumerate().map(move |(index, (bucket, end, rows))| {
            let group = self.keys.get(start..*end as usize).unwrap_or_default();
            start = *end as usize;
            let accumulators = self.accumulators.get(index * measures..(index + 1) * measures).unwrap_or_default();
            Entry { bucket: Bucket(*bucket), group, rows: *rows, accumulators }
        })
    }

    /// True where it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.misfit.is_none()
    }
}

/// Contributions of rows that existed before an aggregate did, for all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Filled {
    /// The aggregate.
    pub aggregate: AggregateId,
    /// One per worker with anything to say.
    pub blocks: Vec<Block>,
}

/// Owner of a group. Part of no format: workers share one store, and which of them keeps a group in memory may change
/// with every start.
#[must_use]
pub fn owner(group: &[u8], workers: usize) -> usize {
    (HASHER.hash_one(group) >> 32) as usize % workers.max(1)
}

const HASHER: FixedState = FixedState::with_seed(0x6D61_726B);

/// Adds up the rows of one aggregate until they are taken as blocks.
pub struct PreAggregate {
    bucket_cache: BucketCache,
    index: HashTable<u32>,
    keys: Vec<u8>,
    /// Bucket, start and end of the group in `keys`, rows.
    entries: Vec<(Bucket, u32, u32, i64)>,
    accumulators: Vec<Accumulator>,
    misfit: Option<Halt>,
    key: Vec<u8>,
    /// Columns that the condition on rows compares, and those of measures.
    compared: [Vec<usize>; 2],
}

impl PreAggregate {
    /// Nothing added up yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let mut compared = [Vec::new(), Vec::new()];
        let [of_rows, of_measures] = &mut compared;
        plan.filter.iter().for_each(|filter| filter.compared(of_rows));
        plan.measures.iter().flat_map(|measure| &measure.filter).for_each(|filter| filter.compared(of_measures));
        for columns in &mut compared {
            columns.sort_unstable();
            columns.dedup();
        }
        let base = plan.levels.first().copied().unwrap_or(crate::materialization::Granularity::All);
        PreAggregate {
            bucket_cache: BucketCache::new(plan.calendar, base),
            index: HashTable::new(),
            keys: Vec::new(),
            entries: Vec::new(),
            accumulators: Vec::new(),
            misfit: None,
            key: Vec::new(),
            compared,
        }
    }

    /// Adds (`sign` 1) or takes away (`sign` -1) one row.
    #[inline]
    pub fn add(&mut self, plan: &Plan, row: &[ValueRef<'_>], sign: i64) {
        self.add_unless(plan, row, sign, || false);
    }

    /// The same. A row that does not fit is passed over where it is `void`: where as many of it go away as appear.
    #[inline]
    pub fn add_unless(&mut self, plan: &Plan, row: &[ValueRef<'_>], sign: i64, void: impl FnOnce() -> bool) {
        if self.misfit.is_some() {
            return;
        }
        match self.try_add(plan, row, sign) {
            Ok(()) => {}
            // It says nothing of the row alone.
            Err(misfit @ Halt::Overflow) => self.misfit = Some(misfit),
            Err(_) if void() => {}
            Err(misfit) => self.misfit = Some(misfit),
        }
    }

    fn try_add(&mut self, plan: &Plan, row: &[ValueRef<'_>], sign: i64) -> Result<(), Halt> {
        let [of_rows, of_measures] = &self.compared;
        let is_wide = |column: &usize| matches!(row.get(*column), Some(ValueRef::Opaque(_)));
        if of_rows.iter().any(is_wide) {
            return Err(Halt::Wide);
        }
        if plan.filter.as_ref().is_some_and(|filter| !filter.accepts(row)) {
            return Ok(());
        }
        if of_measures.iter().any(is_wide) {
            return Err(Halt::Wide);
        }
        let bucket = match plan.time {
            None => Bucket::ALL,
            Some(time) => {
                let value = row.get(time.column).ok_or(Halt::Type)?;
                self.bucket_cache.bucket(time.instant(*value).ok_or(match *value {
                    ValueRef::Int(number) => Halt::Time(number),
                    _ => Halt::Type,
                })?)
            }
        };
        self.key.clear();
        for dimension in &plan.dimensions {
            let value = row.get(dimension.column).ok_or(Halt::Type)?;
            group_key::push(&mut self.key, *value).map_err(|_| match value {
                ValueRef::Opaque(_) => Halt::Wide,
                _ => Halt::Type,
            })?;
        }
        if self.key.len() > group_key::MAX_LENGTH {
            return Err(Halt::GroupTooLong);
        }
        let at = self.entry(plan, bucket);
        if let Some(entry) = self.entries.get_mut(at) {
            entry.3 += sign;
        }
        let measures = plan.measures.len();
        let accumulators = self.accumulators.get_mut(at * measures..(at + 1) * measures).unwrap_or_default();
        for (measure, accumulator) in plan.measures.iter().zip(accumulators) {
            if measure.filter.as_ref().is_some_and(|filter| !filter.accepts(row)) {
                continue;
            }
            let value = match measure.column {
                Some(column) => *row.get(column).ok_or(Halt::Type)?,
                None => ValueRef::Null,
            };
            measure.function.accumulate(accumulator, value, sign)?;
        }
        Ok(())
    }

    /// The position of the current key's entry, made where there is none.
    fn entry(&mut self, plan: &Plan, bucket: Bucket) -> usize {
        let PreAggregate { index, keys, entries, accumulators, key, .. } = self;
        let hash_of = |bucket: Bucket, group: &[u8]| {
            HASHER.hash_one(group) ^ (bucket.0 as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        let hash = hash_of(bucket, key);
        let group_of = |start: u32, end: u32| keys.get(start as usize..end as usize).unwrap_or_default();
        let same = |at: &u32| {
            entries
                .get(*at as usize)
                .is_some_and(|entry| entry.0 == bucket && group_of(entry.1, entry.2) == key.as_slice())
        };
        if let Some(at) = index.find(hash, same) {
            return *at as usize;
        }
        let at = entries.len();
        index.insert_unique(hash, at as u32, |at| {
            entries.get(*at as usize).map_or(0, |entry| hash_of(entry.0, group_of(entry.1, entry.2)))
        });
        let start = keys.len() as u32;
        keys.extend_from_slice(key);
        entries.push((bucket, start, keys.len() as u32, 0));
        accumulators.extend(plan.measures.iter().map(|measure| measure.function.zero()));
        at
    }

    /// Number of entries added up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there is nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.misfit.is_none()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.index.clear();
        self.keys.clear();
        self.entries.clear();
        self.accumulators.clear();
        self.misfit = None;
    }

    /// Takes what was added up as one block per owning worker; entries that cancelled out are left out.
    pub fn take(&mut self, aggregate: AggregateId, measures: usize, workers: usize) -> Vec<Block> {
        let mut blocks: Vec<Block> = (0..workers.max(1))
            .map(|target| Block {
                aggregate: aggregate.0,
                target: target as u64,
                misfit: self.misfit,
                ..Block::default()
            })
            .collect();
        for (index, (bucket, start, end, rows)) in self.entries.iter().enumerate() {
            let accumulators = self.accumulators.get(index * measures..(index + 1) * measures).unwrap_or_default();
            if *rows == 0 && accumulators.iter().all(Accumulator::is_zero) {
                continue;
            }
            let group = self.keys.get(*start as usize..*end as usize).unwrap_or_default();
            let target = if workers > 1 { owner(group, workers) } else { 0 };
            if let Some(block) = blocks.get_mut(target) {
                block.push(*bucket, group, *rows, accumulators);
            }
        }
        self.clear();
        blocks.retain(|block| !block.is_empty());
        blocks
    }
}
