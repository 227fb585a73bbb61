//! The Postgres that is followed, as the HTTP face asks it for its own totals, and to keep its log.

use connectors::PostgresConfig;
use connectors::postgres::{Recount, hold_log, release_log};
use engine::change::{Lsn, TableSchema};
use engine::source::SourceError;
use queries::verify::upstream::Boxed;
use queries::verify::{Recounting, TextRow, Upstream};
use tokio::sync::mpsc;

/// Asks the Postgres of a source.
pub struct PostgresRecount(pub PostgresConfig);

impl Upstream for PostgresRecount {
    fn open(&self, tables: Vec<TableSchema>) -> Boxed<'_, Result<Box<dyn Recounting>, SourceError>> {
        Box::pin(async move {
            let recount = Recount::open(&self.0, &tables).await?;
            Ok(Box::new(AsOf(recount)) as Box<dyn Recounting>)
        })
    }

    fn hold_log(&self, backup: String) -> Boxed<'_, Result<String, SourceError>> {
        Box::pin(async move { hold_log(&self.0, &backup).await })
    }

    fn release_log(&self, held: String) -> Boxed<'_, Result<(), SourceError>> {
        Box::pin(async move { release_log(&self.0, &held).await })
    }
}

struct AsOf(Recount);

impl Recounting for AsOf {
    fn lsn(&self) -> Lsn {
        self.0.lsn()
    }

    fn rows(&self, sql: String, into: mpsc::Sender<Vec<TextRow>>) -> Boxed<'_, Result<(), SourceError>> {
        Box::pin(async move { self.0.rows(&sql, into).await })
    }
}
