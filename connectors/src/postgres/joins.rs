//! Tables that are to be read while the source runs: who waits, who is being read, who can be taken over.

use std::collections::VecDeque;

use engine::change::Lsn;

use super::config::TableName;
use super::joiner::{Joiner, Told};

/// See the module. One table at a time: each takes a slot and a walsender.
#[derive(Debug, Default)]
pub(super) struct Joins {
    waiting: VecDeque<TableName>,
    running: Option<Joiner>,
    /// Where the running one has stopped.
    frozen: Option<Lsn>,
}

impl Joins {
    /// Has a table read once its turn has come. One that is being read already is begun anew then.
    pub(super) fn wait_for(&mut self, name: TableName) {
        if !self.waiting.contains(&name) {
            self.waiting.push_back(name);
        }
    }

    /// The table whose turn it is. It waits until it is [`Joins::started`], or given up.
    pub(super) fn next(&self) -> Option<TableName> {
        if self.running.is_some() { None } else { self.waiting.front().cloned() }
    }

    pub(super) fn give_up(&mut self, name: &TableName) {
        self.waiting.retain(|waiting| waiting != name);
    }

    pub(super) fn started(&mut self, joiner: Joiner) {
        self.give_up(&joiner.name.clone());
        self.running = Some(joiner);
        self.frozen = None;
    }

    /// Ends the running one; its name.
    pub(super) fn end(&mut self) -> Option<TableName> {
        self.frozen = None;
        self.running.take().map(|joiner| joiner.name)
    }

    /// What the running one has to say; pends where there is none, or where it has said its last.
    pub(super) async fn told(&mut self) -> Option<Told> {
        match &mut self.running {
            Some(joiner) if self.frozen.is_none() => joiner.told.recv().await,
            _ => std::future::pending().await,
        }
    }

    pub(super) fn frozen_at(&mut self, at: Lsn) {
        self.frozen = Some(at);
    }

    /// The main stream is here.
    pub(super) fn note_main(&mut self, position: Lsn) {
        if let Some(joiner) = &self.running {
            joiner.main.send_replace(position);
        }
    }

    /// The table that can be taken over where everything up to `next` was handed over, and where it stands. It ends.
    pub(super) fn ready(&mut self, next: Lsn) -> Option<(Lsn, TableName)> {
        let at = self.frozen.filter(|at| next >= *at)?;
        self.end().map(|name| (at, name))
    }
}
