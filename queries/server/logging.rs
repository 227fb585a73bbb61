//! The log: to standard error, filtered by RUST_LOG. Who changed what (`audit`) is written whatever that says. Beside it the
//! spans of requests, to a collector where one is stated.
//!
//! The surprise: libraries log what they are given. At its lower levels the SQL parser writes the conditions of questions, which
//! hold values of rows, so nobody can ask for these lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::spans;

/// What counts whatever RUST_LOG says.
const FIXED: [&str; 2] = ["audit=info", "sqlparser=info"];

/// Starts logging. Once per process; a second call changes nothing. Spans are exported until what is returned is dropped.
pub fn start(format: LogFormat) -> Result<spans::Exporting, Failure> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = FIXED.iter().filter_map(|directive| directive.parse().ok()).fold(filter, EnvFilter::add_directive);
    let exporting = spans::Exporting::start()?;
    // What is exported has a filter of its own, which only the bare registry can hold.
    let registry = tracing_subscriber::registry().with(exporting.layer()).with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => registry.with(lines.json()).try_init(),
        LogFormat::Pretty => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    exporting.tell();
    Ok(exporting)
}
