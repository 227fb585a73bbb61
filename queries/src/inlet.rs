//! Where change events are posted: what a source that takes them offers to the HTTP face. Whoever starts both gives the
//! one to the other.

use std::future::Future;
use std::pin::Pin;

use engine::change::Lsn;
use serde::Serialize;

/// A source that takes events.
pub trait EventInlet: Send + Sync {
    /// Takes the events of a body; returns once those that were taken survive a crash. `snapshot_done` says that after them
    /// the initial snapshot is complete.
    fn post(
        &self,
        body: Vec<u8>,
        snapshot_done: bool,
    ) -> Pin<Box<dyn Future<Output = Result<Taken, NotTaken>> + Send + '_>>;
}

/// What became of the events of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// New ones.
    pub accepted: u64,
    /// Seen before, and skipped.
    pub duplicates: u64,
    /// Nothing that concerns rows of our tables.
    pub ignored: u64,
    /// Events, of earlier requests too, that are visible once their transaction's end comes.
    pub waiting: u64,
    /// Position of all that has ended: what to ask for with `min_lsn`.
    pub lsn: Lsn,
}

/// Why a request was not taken, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Too many wait already.
    Busy(String),
    /// The source has ended.
    Stopped,
    /// An event is refused.
    Refused {
        /// What was taken before it.
        taken: Taken,
        /// Line of the event in the body, or its place in the array; from 1.
        line: u64,
        /// Stable name of the reason.
        code: String,
        /// JSON pointer into the event, or into the body where that is an array.
        pointer: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
}
