//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

/// A command that failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server or the engine failed, or could not be reached.
    Failed(String),
    /// The usage or the configuration is wrong, or something needed to start is not there.
    Usage(String),
}

impl Failure {
    /// 1 where something failed, 2 where something has to be put right first.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Failed(_) => ExitCode::from(1),
            Failure::Usage(_) => ExitCode::from(2),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(message) | Failure::Usage(message) => f.write_str(message),
        }
    }
}
