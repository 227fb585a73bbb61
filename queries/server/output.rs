//! Lines for whoever reads standard output. A pipe that was closed, as by `| head`, is no failure.

use std::io::{ErrorKind, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// Whether nobody can read standard output any more: a pipe's other end is closed, a terminal is gone. A line that is
/// written finds out as well, where there is one to write.
pub fn nobody_reads() -> bool {
    let out = std::io::stdout();
    // What is asked for is nothing: these are told all the same.
    let mut told = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    poll(&mut told, Some(&now)).is_ok() && told.iter().any(|out| out.revents().intersects(gone))
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
