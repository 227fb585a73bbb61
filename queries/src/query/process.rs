//! What tells this process from every other. Commits are numbered anew where a store is begun anew, put back, or lost the last ones
//! with the power: a number means something only to the process that it came from.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// A random number, the same as long as this process runs.
#[must_use]
pub fn this_process() -> u64 {
    static NUMBER: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("process"));
    *NUMBER
}
