//! What lives have said to others, and whoever comes after them has to keep: positions that upstream may forget, and answers to
//! those who registered and dropped aggregates.

use std::collections::BTreeSet;

/// By the lines of the lives of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promises {
    /// The newest position that was durable.
    pub durable: u64,
    /// Answered: registered.
    registered: BTreeSet<String>,
    /// Answered: dropped.
    dropped: BTreeSet<String>,
}

impl Promises {
    /// Takes a line of a life.
    pub fn hear(&mut self, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "durable" => self.durable = self.durable.max(rest.parse().unwrap()),
            // From here on until it is answered, both are right.
            "registering" => drop(self.dropped.remove(rest)),
            "dropping" => drop(self.registered.remove(rest)),
            "registered" => drop(self.registered.insert(rest.to_owned())),
            "dropped" => drop(self.dropped.insert(rest.to_owned())),
            _ => {}
        }
    }

    /// Whether a line, by which a life says what the store holds, breaks one; it does not where it says anything else.
    pub fn broken_by(&self, line: &str) -> Option<String> {
        let mut words = line.split_whitespace();
        let at: u64 = match words.next() {
            Some("fresh") => 0,
            Some("resume") => words.next()?.parse().unwrap(),
            _ => return None,
        };
        if at < self.durable {
            return Some(format!("{line}, and {} was durable", self.durable));
        }
        let has: BTreeSet<String> = words.map(str::to_owned).collect();
        let lost: Vec<_> = self.registered.difference(&has).collect();
        let back: Vec<_> = self.dropped.intersection(&has).collect();
        (!lost.is_empty() || !back.is_empty())
            .then(|| format!("{line}: registered, and gone {lost:?}, dropped, and there {back:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_kept_and_what_was_not_may_be_either() {
        let mut promises = Promises::default();
        let lines =
            ["durable 7", "registered a", "registering b", "registered c", "dropping c", "dropping d", "dropped d"];
        lines.iter().for_each(|line| promises.hear(line));
        for kept in ["resume 7 a", "resume 9 a b c", "halted store_failed"] {
            assert_eq!(promises.broken_by(kept), None);
        }
        for broken in ["resume 6 a", "fresh", "resume 7 b", "resume 7 a d"] {
            assert!(promises.broken_by(broken).is_some(), "{broken}");
        }
    }
}
