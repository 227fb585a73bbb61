//! A reader in the middle of a step: at every failpoint that a thread of the engine reaches, what others are told and what they
//! find is looked at, as a thread of theirs might at that very moment.

use engine::Engine;
use engine::change::Lsn;

#[derive(Default)]
pub struct Peek {
    engine: Option<Engine>,
    seen: Lsn,
    wrong: Option<String>,
}

impl Peek {
    /// At this engine from now on.
    pub fn at(&mut self, engine: Engine) {
        *self = Peek { engine: Some(engine), ..Peek::default() };
    }

    /// At nothing: what it held of the engine is gone.
    pub fn close(&mut self) {
        *self = Peek::default();
    }

    /// Whoever is told of a position finds a Snapshot of it or of a later one, and nobody is taken back.
    pub fn look(&mut self) {
        let Some(engine) = &self.engine else { return };
        let told = engine.applied().borrow().lsn;
        let Ok(snapshot) = engine.snapshot() else { return };
        let found = snapshot.as_of().lsn;
        if found < told || found < self.seen {
            self.wrong = Some(format!("in a step: told of {told}, seen {}, found {found}", self.seen));
        }
        self.seen = found;
    }

    /// What was not as it should be.
    pub fn verdict(&mut self) -> Result<(), String> {
        self.wrong.take().map_or(Ok(()), Err)
    }
}
