//! Who recomputes totals upstream, and keeps its log: what a source that can be asked offers. Whoever starts the source
//! hands it to the HTTP face.

use std::future::Future;
use std::pin::Pin;

use engine::change::{Lsn, TableSchema};
use engine::source::SourceError;
use tokio::sync::mpsc;

/// A row as text; NULL is `None`.
pub type TextRow = Vec<Option<String>>;

/// A future that a trait object returns.
pub type Boxed<'a, R> = Pin<Box<dyn Future<Output = R> + Send + 'a>>;

/// A source that can be asked.
pub trait Upstream: Send + Sync {
    /// Makes these tables readable as of one position that nobody had reached before.
    fn open(&self, tables: Vec<TableSchema>) -> Boxed<'_, Result<Box<dyn Recounting>, SourceError>>;

    /// Keeps the log from what is durable now on, for a backup of this name; returns what keeps it.
    fn hold_log(&self, backup: String) -> Boxed<'_, Result<String, SourceError>>;

    /// Lets it go again.
    fn release_log(&self, held: String) -> Boxed<'_, Result<(), SourceError>>;
}

/// Tables as of one position.
pub trait Recounting: Send + Sync {
    /// The position.
    fn lsn(&self) -> Lsn;

    /// Asks; rows go into the channel, some at a time, until nobody takes more.
    fn rows(&self, sql: String, into: mpsc::Sender<Vec<TextRow>>) -> Boxed<'_, Result<(), SourceError>>;
}
