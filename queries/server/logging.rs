//! The log: to standard error, filtered by RUST_LOG. Who changed what (`audit`) is written whatever that says.
//!
//! The surprise: libraries log what they are given. At its lower levels the SQL parser writes the conditions of questions, which
//! hold values of rows, so nobody can ask for these lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// What counts whatever RUST_LOG says.
const FIXED: [&str; 2] = ["audit=info", "sqlparser=info"];

/// Starts logging. Once per process; a second call changes nothing.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = FIXED.iter().filter_map(|directive| directive.parse().ok()).fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Pretty => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
