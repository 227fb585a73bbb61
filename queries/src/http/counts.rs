//! How many there are of each key. Of none nothing is kept: keys are addresses and tokens, and come without an end.

use std::collections::HashMap;
use std::hash::Hash;

/// Numbers by key.
#[derive(Debug)]
pub(super) struct Counts<K>(HashMap<K, usize>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// How many there are.
    pub(super) fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// One more.
    pub(super) fn add(&mut self, key: K) {
        let count = self.0.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    /// One less.
    pub(super) fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }

    /// Whether there is none of any.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
