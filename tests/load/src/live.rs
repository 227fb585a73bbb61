//! A running product over a table with rows, for what is measured while it runs.

use connectors::postgres::throwaway::ThrowawayPostgres;
use tempfile::TempDir;

use crate::Scale;
use crate::tidemark::Tidemark;
use crate::{payments, sql};

/// Transactions per second that go on.
pub const RATE: u64 = 1_000;

/// The product, its data and its database.
#[derive(Debug)]
pub struct Stage {
    /// The database.
    pub url: String,
    /// The product.
    pub tidemark: Tidemark,
    _directory: TempDir,
}

impl Stage {
    /// Three aggregates over some rows, live.
    pub async fn set(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Self> {
        let admin = sql::connect(&postgres.url()).await?;
        sql::run(&admin, "CREATE DATABASE live").await?;
        let url = postgres.url_of("live");
        let client = sql::connect(&url).await?;
        payments::create(&client, scale.preloaded_rows).await?;
        payments::insert(&client, 1, scale.preloaded_rows).await?;
        // A year for the series: a row in each month.
        sql::run(
            &client,
            "INSERT INTO payments SELECT -g - 1000 * m, 'merchant-1', 'EUR', 12.34, 'settled',
                 timestamptz '2024-01-10 00:00:00+00' + m * interval '1 month'
             FROM generate_series(0, 11) AS m, generate_series(1, 100) AS g",
        )
        .await?;
        let directory = tempfile::tempdir()?;
        let tidemark = Tidemark::start(&directory.path().join("data"), &url)?;
        tidemark.ready().await?;
        for (name, _) in payments::aggregates() {
            tidemark.register(name).await?;
        }
        Ok(Stage { url, tidemark, _directory: directory })
    }

    /// Ends the product.
    pub async fn end(self) -> anyhow::Result<()> {
        let took = self.tidemark.terminate().await?;
        println!("live: tidemark ended {:.2} s after SIGTERM", took.as_secs_f64());
        Ok(())
    }
}
