//! Tables that are to be read while the source runs: who waits, who is being read, who can be taken over.

use std::collections::VecDeque;
use std::time::Duration;

use engine::change::Lsn;
use tokio::time::Instant;

use super::config::{TableName, Wanted};
use super::joiner::{Joiner, Main, Told};

/// How long nobody is tried after one that is locked: the stream stands still meanwhile.
const PUT_OFF: Duration = Duration::from_secs(10);

/// See the module. One table at a time: each takes a slot and a walsender.
#[derive(Debug, Default)]
pub(super) struct Joins {
    waiting: VecDeque<Wanted>,
    /// Whose turn it is waits until then.
    not_before: Option<Instant>,
    running: Option<Joiner>,
    /// The running one has caught up.
    near: bool,
}

impl Joins {
    /// Has a table read once its turn has come, as it was wanted last. One that is being read already is begun anew then.
    pub(super) fn wait_for(&mut self, wanted: Wanted) {
        match self.waiting.iter_mut().find(|waiting| waiting.name == wanted.name) {
            Some(waiting) => *waiting = wanted,
            None => self.waiting.push_back(wanted),
        }
    }

    /// The table whose turn it is. It waits until it is [`Joins::started`], or given up.
    pub(super) fn next(&self) -> Option<Wanted> {
        let too_soon = self.not_before.is_some_and(|then| Instant::now() < then);
        if self.running.is_some() || too_soon { None } else { self.waiting.front().cloned() }
    }

    /// One whose turn it is cannot be had now: the others come first, and all of them in a while.
    pub(super) fn put_off(&mut self, name: &TableName) {
        let at = self.waiting.iter().position(|waiting| waiting.name == *name);
        let wanted = at.and_then(|at| self.waiting.remove(at));
        self.waiting.extend(wanted);
        self.not_before = Some(Instant::now() + PUT_OFF);
    }

    pub(super) fn give_up(&mut self, name: &TableName) {
        self.waiting.retain(|waiting| waiting.name != *name);
    }

    pub(super) fn started(&mut self, joiner: Joiner) {
        self.give_up(&joiner.wanted.name);
        self.running = Some(joiner);
        self.near = false;
    }

    /// Ends the running one; what was wanted.
    pub(super) fn end(&mut self) -> Option<Wanted> {
        self.near = false;
        self.running.take().map(|joiner| joiner.wanted)
    }

    /// What the running one has to say; pends where there is none.
    pub(super) async fn told(&mut self) -> Option<Told> {
        match &mut self.running {
            Some(joiner) => joiner.told.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the running one has caught up, so that it is worth waiting for.
    pub(super) fn is_near(&self) -> bool {
        self.near && self.running.is_some()
    }

    pub(super) fn note_near(&mut self, near: bool) {
        self.near = near;
    }

    /// The main stream is here, and waits there or not.
    pub(super) fn note_main(&mut self, position: Lsn, waits: bool) {
        if let Some(joiner) = &self.running {
            joiner.main.send_replace(Main { position, waits });
        }
    }
}
