//! What keeps something from starting, by what it takes to go on. The surprise: it is told by where it was met, never by its
//! words; a supervisor that tries again builds on it.

/// Whether the same start may succeed later with nothing changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hindrance {
    /// Somebody has to put something right first.
    #[default]
    Standing,
    /// It may pass by itself: a server that is starting up, a process that is still ending, a disk that is full.
    Passing,
}
