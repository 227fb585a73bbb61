//! The log: to standard error, filtered by RUST_LOG. Who changed what (`audit`) is written whatever that says. Beside it the
//! spans of requests, to a collector where one is stated.
//!
//! The surprises: libraries log what they are given. At its lower levels the SQL parser writes the conditions of questions, which
//! hold values of rows, so nobody can ask for these lines. And names come from Postgres, where they may hold line breaks: one event
//! is one line whatever it says, or whoever names a table could write lines of ours.

use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::spans;
use crate::table::harmless;

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
        LogFormat::Pretty => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal()).fmt_fields(OneLine)).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    exporting.tell();
    Ok(exporting)
}

/// What events and spans say, with nothing in it that ends a line or that a terminal obeys.
struct OneLine;

impl<'writer> FormatFields<'writer> for OneLine {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut said = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut said), fields)?;
        writer.write_str(&harmless(&said))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_names_are_in_it() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).fmt_fields(OneLine);
        let registry = tracing_subscriber::registry().with(lines.with_writer(move || writer.clone()));
        tracing::subscriber::with_default(registry, || {
            let name = "v\n2026-11-30T17:00:00Z  INFO audit: admin action token=\u{1b}[2J\u{9b}2J\u{202e}";
            let span = tracing::info_span!("request", aggregate = %name);
            span.in_scope(|| tracing::info!(table = %name, "renamed to {name}"));
        });
        let said = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let line = said.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
        assert_eq!(line.matches(r"v\n2026").count(), 3, "{line:?}");
    }
}
