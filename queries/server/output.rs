//! Lines for whoever reads standard output. A pipe that was closed, as by `| head`, is no failure.

use std::io::{ErrorKind, Write};

use serde_json::Value;

use crate::failure::Failure;

/// Prints a line.
pub fn say(line: &str) -> Result<(), Failure> {
    still_read(line).map(drop)
}

/// Prints a line, and says whether there is anybody left to read the next one.
pub fn still_read(line: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

/// Prints a server's document; one that is no JSON as it is.
pub fn say_document(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Ok(());
    }
    let pretty = serde_json::from_str::<Value>(text).and_then(|value| serde_json::to_string_pretty(&value));
    say(pretty.as_deref().unwrap_or(text))
}

/// Prints a remark for people where programs do not read it. Nobody may be left to hear it.
pub fn remark(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
