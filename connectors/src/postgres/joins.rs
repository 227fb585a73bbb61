//! Tables that are to be read while the source runs: who waits, who is being read, who can be taken over.

use std::collections::VecDeque;

use engine::change::Lsn;

use super::config::{TableName, Wanted};
use super::joiner::{Joiner, Main, Told};

/// See the module. One table at a time: each takes a slot and a walsender.
#[derive(Debug, Default)]
pub(super) struct Joins {
    waiting: VecDeque<Wanted>,
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
        if self.running.is_some() { None } else { self.waiting.front().cloned() }
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
