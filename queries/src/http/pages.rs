//! Snapshots that answers with further pages were read from, so that all their pages show one position. A Snapshot costs
//! the store old versions of what changes meanwhile: few are kept, not for long after the last page, and none for ever.
//!
//! The surprise is who makes room where there are too many: whoever has asked for most of them, so that one reader who begins
//! answer after answer takes the pages of nobody else.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::Snapshot;
use engine::change::Lsn;
use engine::snapshot::AsOf;

use super::seal::Seal;
use crate::access::Caller;

/// Snapshots kept at most. Of those of whoever has most, the one unused longest goes first.
const MAX_KEPT: usize = 64;
/// How long one is kept after it was last used.
const KEPT: Duration = Duration::from_secs(60);
/// How long one is kept at most, however often it is used: what it costs grows with its age, and one cursor sent again and
/// again would otherwise hold it for ever.
const GREATEST_AGE: Duration = Duration::from_secs(600);

/// What is kept: a Snapshot, or in tests what stands in for one.
pub(super) trait Moment {
    /// What it is true of.
    fn as_of(&self) -> AsOf;
}

impl Moment for Snapshot {
    fn as_of(&self) -> AsOf {
        Snapshot::as_of(self)
    }
}

struct Kept<M> {
    moment: Arc<M>,
    since: Instant,
    /// Who has further pages of it, and last asked for one when; somebody does.
    holders: Vec<(Caller, Instant)>,
}

impl<M> Kept<M> {
    fn touch(&mut self, caller: &Caller, now: Instant) {
        match self.holders.iter_mut().find(|(holder, _)| holder.id() == caller.id()) {
            Some((_, used)) => *used = now,
            None => self.holders.push((caller.clone(), now)),
        }
    }
}

/// The Snapshots of answers that have further pages.
pub(super) struct Pages<M = Snapshot> {
    shelf: Mutex<Shelf<M>>,
    /// Of the cursors that lead to them.
    pub(super) seal: Seal,
}

impl<M> Default for Pages<M> {
    fn default() -> Self {
        Pages { shelf: Mutex::new(Shelf { kept: Vec::new(), newest: 0, outlived: None }), seal: Seal::default() }
    }
}

impl<M: Moment> Pages<M> {
    /// Keeps a Snapshot for further pages of this caller's.
    pub(super) fn keep(&self, moment: &Arc<M>, caller: &Caller) {
        self.with(|shelf, now| shelf.keep(moment, caller, now));
    }

    /// The Snapshot of a commit: the newest, or one that was kept.
    pub(super) fn get(&self, newest: &Arc<M>, sequence: u64, caller: &Caller) -> Option<Arc<M>> {
        self.with(|shelf, now| shelf.get(newest, sequence, caller, now))
    }

    /// The Snapshot of a position: the newest, or one that was kept.
    pub(super) fn at(&self, newest: &Arc<M>, lsn: Lsn, caller: &Caller) -> Option<Arc<M>> {
        self.with(|shelf, now| shelf.at(newest, lsn, caller, now))
    }

    /// Forgets what was not used for a while, and what is too old.
    pub(super) fn forget_old(&self) {
        self.with(|_, _| ());
    }

    fn with<R>(&self, work: impl FnOnce(&mut Shelf<M>, Instant) -> R) -> R {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        shelf.forget_old(now);
        work(&mut shelf, now)
    }
}

struct Shelf<M> {
    kept: Vec<Kept<M>>,
    /// The newest commit seen.
    newest: u64,
    /// The newest commit that was let go for its age.
    outlived: Option<u64>,
}

impl<M: Moment> Shelf<M> {
    fn keep(&mut self, moment: &Arc<M>, caller: &Caller, now: Instant) {
        let sequence = moment.as_of().sequence;
        self.newest = self.newest.max(sequence);
        if let Some(known) = self.kept.iter_mut().find(|known| known.moment.as_of().sequence == sequence) {
            known.touch(caller, now);
            return;
        }
        // A page that was being read when its Snapshot was let go would begin its age anew. The newest may: it costs nothing.
        if self.outlived >= Some(sequence) && sequence < self.newest {
            return;
        }
        self.kept.push(Kept { moment: Arc::clone(moment), since: now, holders: vec![(caller.clone(), now)] });
        while self.kept.len() > MAX_KEPT {
            self.make_room();
        }
    }

    /// Whoever holds most lets go of what they used longest ago; it stays where somebody else holds it, too.
    fn make_room(&mut self) {
        let holds = || self.kept.iter().flat_map(|kept| &kept.holders);
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for (holder, _) in holds() {
            *held.entry(holder.id()).or_default() += 1;
        }
        let dispensable = holds().max_by_key(|(holder, used)| (held.get(holder.id()), Reverse(*used)));
        let Some((holder, used)) = dispensable.cloned() else { return };
        for kept in &mut self.kept {
            kept.holders.retain(|(other, at)| (other.id(), *at) != (holder.id(), used));
        }
        self.kept.retain(|kept| !kept.holders.is_empty());
    }

    fn get(&mut self, newest: &Arc<M>, sequence: u64, caller: &Caller, now: Instant) -> Option<Arc<M>> {
        self.newest = self.newest.max(newest.as_of().sequence);
        if newest.as_of().sequence == sequence {
            return Some(Arc::clone(newest));
        }
        let found = self.kept.iter_mut().find(|kept| kept.moment.as_of().sequence == sequence)?;
        found.touch(caller, now);
        Some(Arc::clone(&found.moment))
    }

    fn at(&mut self, newest: &Arc<M>, lsn: Lsn, caller: &Caller, now: Instant) -> Option<Arc<M>> {
        self.newest = self.newest.max(newest.as_of().sequence);
        if newest.as_of().lsn == lsn {
            return Some(Arc::clone(newest));
        }
        let at_lsn = self.kept.iter_mut().filter(|kept| kept.moment.as_of().lsn == lsn);
        let found = at_lsn.max_by_key(|kept| kept.moment.as_of().sequence)?;
        found.touch(caller, now);
        Some(Arc::clone(&found.moment))
    }

    fn forget_old(&mut self, now: Instant) {
        let outlived = &mut self.outlived;
        self.kept.retain_mut(|kept| {
            let old = now.saturating_duration_since(kept.since) >= GREATEST_AGE;
            if old {
                *outlived = (*outlived).max(Some(kept.moment.as_of().sequence));
            }
            kept.holders.retain(|(_, used)| now.saturating_duration_since(*used) < KEPT);
            !old && !kept.holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::access::{Scope, Token};

    const ANYONE: Caller = Caller::Anyone;

    fn reader() -> Caller {
        Caller::Holder(Arc::new(Token::create(Scope::Read, Vec::new(), String::new(), 0, None).unwrap().1))
    }

    impl Moment for AsOf {
        fn as_of(&self) -> AsOf {
            *self
        }
    }

    fn moment(sequence: u64) -> Arc<AsOf> {
        Arc::new(AsOf { lsn: Lsn(sequence * 10), commit_time_us: 0, sequence })
    }

    /// A shelf, and the time on it.
    struct Tried {
        shelf: Shelf<AsOf>,
        now: Instant,
    }

    impl Tried {
        fn new() -> Tried {
            Tried { shelf: Shelf { kept: Vec::new(), newest: 0, outlived: None }, now: Instant::now() }
        }

        /// So much later.
        fn later(&mut self, time: Duration) -> &mut Shelf<AsOf> {
            self.now += time;
            self.shelf.forget_old(self.now);
            &mut self.shelf
        }

        /// Asks for the pages of a commit every half minute for so long; how often there was one.
        fn ask(&mut self, sequence: u64, time: Duration) -> u32 {
            let newest = moment(1_000);
            let mut answered = 0;
            for _ in 0..time.as_secs() / 30 {
                let now = self.now + Duration::from_secs(30);
                let Some(page) = self.later(Duration::from_secs(30)).get(&newest, sequence, &ANYONE, now) else {
                    continue;
                };
                self.shelf.keep(&page, &ANYONE, now);
                answered += 1;
            }
            answered
        }
    }

    #[test]
    fn a_page_that_is_used_is_kept_and_one_that_is_not_is_let_go() {
        let mut tried = Tried::new();
        tried.shelf.keep(&moment(1), &ANYONE, tried.now);
        tried.shelf.keep(&moment(2), &ANYONE, tried.now);
        assert_eq!(tried.ask(2, Duration::from_secs(120)), 4);
        assert_eq!(tried.ask(1, Duration::from_secs(30)), 0);
        assert_eq!(tried.shelf.at(&moment(3), Lsn(20), &ANYONE, tried.now), Some(moment(2)));
        let now = tried.now + KEPT;
        assert_eq!(tried.later(KEPT).at(&moment(3), Lsn(20), &ANYONE, now), None);
    }

    #[test]
    fn no_page_is_kept_for_ever_however_often_it_is_used() {
        let mut tried = Tried::new();
        tried.shelf.keep(&moment(1), &ANYONE, tried.now);
        assert_eq!(tried.ask(1, 3 * GREATEST_AGE), 19);
        assert!(tried.shelf.kept.is_empty());
        // Nor by an answer that began when it still was there.
        tried.shelf.keep(&moment(1), &ANYONE, tried.now);
        assert!(tried.shelf.kept.is_empty());
    }

    #[test]
    fn what_is_still_the_newest_is_kept_anew() {
        let mut tried = Tried::new();
        tried.shelf.keep(&moment(7), &ANYONE, tried.now);
        tried.shelf.keep(&moment(8), &ANYONE, tried.now);
        tried.later(GREATEST_AGE);
        let now = tried.now;
        tried.shelf.keep(&moment(8), &ANYONE, now);
        assert_eq!(tried.shelf.get(&moment(9), 8, &ANYONE, now), Some(moment(8)));
        // As is one that was read while others came.
        tried.shelf.keep(&moment(10), &ANYONE, now);
        tried.shelf.keep(&moment(9), &ANYONE, now);
        assert_eq!(tried.shelf.get(&moment(10), 9, &ANYONE, now), Some(moment(9)));
    }

    #[test]
    fn the_one_unused_longest_makes_room() {
        let mut tried = Tried::new();
        for sequence in 1..=MAX_KEPT as u64 {
            let now = tried.now;
            tried.later(Duration::from_millis(1)).keep(&moment(sequence), &ANYONE, now);
        }
        let now = tried.now + Duration::from_millis(1);
        assert!(tried.shelf.get(&moment(100), 1, &ANYONE, now).is_some());
        tried.shelf.keep(&moment(100), &ANYONE, now);
        assert_eq!(tried.shelf.kept.len(), MAX_KEPT);
        let found = [1, 2, 3].map(|sequence| tried.shelf.get(&moment(101), sequence, &ANYONE, now).is_some());
        assert_eq!(found, [true, false, true]);
    }

    #[test]
    fn who_begins_answer_after_answer_makes_room_for_the_others() {
        let mut tried = Tried::new();
        let (greedy, patient, late) = (reader(), reader(), reader());
        tried.shelf.keep(&moment(1), &patient, tried.now);
        for sequence in 2..=3 * MAX_KEPT as u64 {
            let now = tried.now;
            tried.later(Duration::from_millis(1)).keep(&moment(sequence), &greedy, now);
        }
        let (now, newest) = (tried.now, moment(1_000));
        // Asking for what another one has does not take it away, nor does it stay for who lets go of it.
        assert!(tried.shelf.get(&newest, 1, &greedy, now).is_some());
        tried.shelf.keep(&moment(200), &late, now);
        assert_eq!(tried.shelf.kept.len(), MAX_KEPT);
        for sequence in 201..=200 + 2 * MAX_KEPT as u64 {
            let now = tried.now;
            tried.later(Duration::from_millis(1)).keep(&moment(sequence), &greedy, now);
        }
        let now = tried.now;
        assert_eq!(tried.shelf.kept.len(), MAX_KEPT);
        let found = [1, 200, 3 * MAX_KEPT as u64].map(|at| tried.shelf.get(&newest, at, &patient, now).is_some());
        assert_eq!(found, [true, true, false]);
    }
}
