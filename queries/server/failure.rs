//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

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
}

impl Failure {
    /// 1 where something failed or differs, 2 where something has to be put right first, 3 where it is not known whether
    /// anything differs, or where what there is is damaged.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Failed(_) | Failure::Differs(_) => ExitCode::from(1),
            Failure::Unanswered(_) | Failure::Damaged(_) => ExitCode::from(3),
            Failure::Usage(_) => ExitCode::from(2),
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
            | Failure::Usage(message) => f.write_str(message),
        }
    }
}
