//! Non-NULL values or rows counted. May be negative while an aggregate is being filled: the removal of a row can arrive
//! before the row.

use serde::{Deserialize, Serialize};

/// A number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Count(pub i64);

impl Count {
    /// Adds another count; `None` past 64 bits.
    #[must_use]
    pub fn merge(self, other: Count) -> Option<Count> {
        self.0.checked_add(other.0).map(Count)
    }
}
