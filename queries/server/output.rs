//! Lines for whoever reads standard output. A pipe that was closed, as by `| head`, is no failure.

use std::io::{ErrorKind, Write};

use crate::failure::Failure;

/// Prints a line.
pub fn say(line: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Failed(error.to_string())),
        _ => Ok(()),
    }
}
