//! What simulated histories did: counted, handed from process to process as a line, and shown.

use std::fmt;

/// What was done, for all seeds of a process together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub steps: u64,
    pub crashes: u64,
    pub at_failpoints: u64,
    pub power_cuts: u64,
    pub restarts: u64,
    pub cells: u64,
    /// Positions within the stream whose Snapshot was asked for, and found.
    pub moments: u64,
    /// Of all choices and all positions, to compare two runs of one seed.
    pub trace: u64,
}

impl Done {
    pub fn add(&mut self, other: Done) {
        self.steps += other.steps;
        self.crashes += other.crashes;
        self.at_failpoints += other.at_failpoints;
        self.power_cuts += other.power_cuts;
        self.restarts += other.restarts;
        self.cells += other.cells;
        self.moments += other.moments;
        self.trace ^= other.trace;
    }

    /// For the process that started this one.
    pub fn print(&self) -> String {
        let Done { steps, crashes, at_failpoints, power_cuts, restarts, cells, moments, trace } = self;
        format!("{steps} {crashes} {at_failpoints} {power_cuts} {restarts} {cells} {moments} {trace}")
    }

    /// From what the other process printed.
    pub fn parse(text: &str) -> Option<Done> {
        let mut numbers = text.split(' ').map_while(|number| number.parse().ok());
        let mut next = || numbers.next();
        Some(Done {
            steps: next()?,
            crashes: next()?,
            at_failpoints: next()?,
            power_cuts: next()?,
            restarts: next()?,
            cells: next()?,
            moments: next()?,
            trace: next()?,
        })
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done { steps, crashes, at_failpoints, power_cuts, restarts, cells, moments, .. } = self;
        write!(
            f,
            "{steps} steps, {crashes} crashes ({at_failpoints} at failpoints, {power_cuts} without power), {restarts} orderly \
             restarts; {cells} cells and {moments} moments of the stream compared"
        )
    }
}
