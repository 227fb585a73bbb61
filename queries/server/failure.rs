//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

use connectors::NotStarted;
use engine::hindrance::Hindrance;
use engine::store::OpenError;

/// A command that failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server or the engine failed, or could not be reached.
    Failed(String),
    /// What was verified is not as it should be.
    Differs(String),
    /// A verification had no outcome: the server failed, or could not be reached.
    Unanswered(String),
    /// A backup is not what was written.
    Damaged(String),
    /// The usage or the configuration is wrong, or something needed to start is not there.
    Usage(String),
    /// What a start needs is not to be had now. It may be the next time, with nothing changed.
    NotNow(String),
}

impl Failure {
    /// 1 where something failed or differs, 2 where something has to be put right first, 3 where it is not known whether
    /// anything differs, or where what there is is damaged, 4 where trying again may be enough. The unit that comes with
    /// Tidemark tries again after all but 2.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Failed(_) | Failure::Differs(_) => ExitCode::from(1),
            Failure::Unanswered(_) | Failure::Damaged(_) => ExitCode::from(3),
            Failure::Usage(_) => ExitCode::from(2),
            Failure::NotNow(_) => ExitCode::from(4),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(message)
            | Failure::Differs(message)
            | Failure::Unanswered(message)
            | Failure::Damaged(message)
            | Failure::Usage(message)
            | Failure::NotNow(message) => f.write_str(message),
        }
    }
}

/// A start that was refused.
fn hindered(hindrance: Hindrance, error: &dyn fmt::Display) -> Failure {
    match hindrance {
        Hindrance::Standing => Failure::Usage(error.to_string()),
        Hindrance::Passing => Failure::NotNow(error.to_string()),
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        hindered(error.hindrance, &error)
    }
}

impl From<NotStarted> for Failure {
    fn from(error: NotStarted) -> Self {
        hindered(error.hindrance, &error)
    }
}
