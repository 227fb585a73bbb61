//! Where a test makes the process fail, and the mistakes that a test plants to see whether it would find them.
//!
//! Without the feature `torture` both are nothing: no branch is left of them, and no environment variable is looked at. A
//! binary that is shipped cannot be told to lie.

/// The steps between the socket and the acknowledgement, in the order in which a change passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// Rows of the initial snapshot lie in files, and are not part of the store yet.
    SnapshotFilesWritten,
    /// They are, and the store does not know that the snapshot is complete.
    SnapshotTakenIn,
    /// A transaction came whole.
    TransactionReceived,
    /// A commit group is closed, and given to the workers.
    GroupMinted,
    /// A worker has added a group to its cells.
    GroupApplied,
    /// The batch is put together.
    BatchBuilt,
    /// The batch is written, and nobody sees it.
    BatchWritten,
    /// Readers see it, and some of what is to be told of it is not.
    Publishing,
    /// It is told, and it may be lost with the power.
    Published,
    /// About to be synced.
    BeforeSync,
    /// It is synced, and nobody has been told.
    Synced,
    /// Upstream is about to be told.
    Acknowledging,
    /// Upstream was told.
    Acknowledged,
    /// A registration is durable, and unanswered.
    Registered,
    /// The rows for a late aggregate are being read.
    Filling,
    /// An aggregate is filled, and does not answer.
    Filled,
    /// The next version takes the place of the one before, and that is not written.
    Promoting,
    /// An aggregate is dropped, and that is not written.
    Dropping,
    /// A truncate is taken, and that is not written.
    Truncating,
    /// Told to stop.
    Stopping,
}

impl Failpoint {
    /// All of them.
    pub const ALL: [Failpoint; 20] = [
        Failpoint::SnapshotFilesWritten,
        Failpoint::SnapshotTakenIn,
        Failpoint::TransactionReceived,
        Failpoint::GroupMinted,
        Failpoint::GroupApplied,
        Failpoint::BatchBuilt,
        Failpoint::BatchWritten,
        Failpoint::Publishing,
        Failpoint::Published,
        Failpoint::BeforeSync,
        Failpoint::Synced,
        Failpoint::Acknowledging,
        Failpoint::Acknowledged,
        Failpoint::Registered,
        Failpoint::Filling,
        Failpoint::Filled,
        Failpoint::Promoting,
        Failpoint::Dropping,
        Failpoint::Truncating,
        Failpoint::Stopping,
    ];
}

/// Mistakes that have been made in systems like this one. Where the moment at which one shows is very short, it is made longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Upstream is told of what was received, not of what is durable.
    AcknowledgesReceived,
    /// The cursor is written ahead of its cells, in a batch of its own.
    CursorAhead,
    /// An update adds the new row and leaves the old one.
    KeepsTheOldRow,
    /// Rows of groups that are written next are not seen by those after them.
    ForgetsGroupsInFlight,
    /// Part of a transaction is committed with the one before.
    SplitsTransactions,
    /// A cell of no rows stays.
    KeepsEmptyCells,
    /// Cells stay where their table is truncated.
    KeepsTruncated,
    /// A position is published with the cells of the one before.
    PublishesTooEarly,
    /// Sums of numerics pass through a double.
    AddsDoubles,
    /// A filling that was interrupted is taken for a whole one.
    KeepsHalfAFilling,
    /// The coarser levels are not told of rows that go away.
    RollsUpInsertsOnly,
    /// What was written is taken for durable, and never synced. Only a power cut shows it.
    AcknowledgesUnsynced,
    /// A registration is answered before it is synced. Only a power cut shows it.
    AnswersUnsynced,
    /// The rows to fill an aggregate from are those of now, not those of its registration.
    FillsFromNow,
    /// Cells leave memory before they are committed.
    EvictsUncommitted,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 15] = [
        Bug::AcknowledgesReceived,
        Bug::CursorAhead,
        Bug::KeepsTheOldRow,
        Bug::ForgetsGroupsInFlight,
        Bug::SplitsTransactions,
        Bug::KeepsEmptyCells,
        Bug::KeepsTruncated,
        Bug::PublishesTooEarly,
        Bug::AddsDoubles,
        Bug::KeepsHalfAFilling,
        Bug::RollsUpInsertsOnly,
        Bug::AcknowledgesUnsynced,
        Bug::AnswersUnsynced,
        Bug::FillsFromNow,
        Bug::EvictsUncommitted,
    ];
}

/// Told of every failpoint that is reached; one of a process.
#[cfg(feature = "torture")]
type Witness = Box<dyn FnMut(Failpoint) + Send>;

#[cfg(feature = "torture")]
static WITNESS: std::sync::Mutex<Option<Witness>> = std::sync::Mutex::new(None);

/// From here on this is told of every failpoint that is reached, on the thread that reaches it.
#[cfg(feature = "torture")]
pub fn witness(witness: impl FnMut(Failpoint) + Send + 'static) {
    *WITNESS.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Box::new(witness));
}

/// `TIDEMARK_FAILPOINT=BatchWritten:3`: the third time, the process aborts.
#[cfg(feature = "torture")]
pub fn reached(point: Failpoint) {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{OnceLock, PoisonError};

    if let Some(witness) = WITNESS.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        witness(point);
    }

    static SET: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);
    let set = SET.get_or_init(|| {
        let text = std::env::var("TIDEMARK_FAILPOINT").ok()?;
        let (name, nth) = text.split_once(':')?;
        Some((name.to_owned(), nth.parse().ok()?))
    });
    if let Some((name, nth)) = set
        && *name == format!("{point:?}")
        && HITS.fetch_add(1, Ordering::Relaxed) + 1 == *nth
    {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "torture"))]
#[inline(always)]
pub fn reached(_: Failpoint) {}

/// `TIDEMARK_PLANTED=CursorAhead`: whether the mistake is made.
#[cfg(feature = "torture")]
pub fn planted(bug: Bug) -> bool {
    use std::sync::OnceLock;

    static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();
    let named = || {
        let name = std::env::var("TIDEMARK_PLANTED").ok()?;
        Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    };
    *PLANTED.get_or_init(named) == Some(bug)
}

/// Never.
#[cfg(not(feature = "torture"))]
#[inline(always)]
#[must_use]
pub const fn planted(_: Bug) -> bool {
    false
}

/// What is left of a sum that was kept in a double.
#[must_use]
pub fn through_a_double(sum: i128) -> i128 {
    sum as f64 as i128
}
