//! Somebody who looks at the demo's books while nobody writes: sessions of the workload share a gate, which a bookkeeper
//! closes. So the total that Postgres adds up is that of one position, and whoever follows the log can be held to it.

use tokio_postgres::Client;

use super::workload::{GATE, Workload, WorkloadError, connect};

/// A session for which the others wait, until it is dropped.
#[derive(Debug)]
pub struct Bookkeeper {
    client: Client,
}

/// What Postgres says a month's settled payments of one currency add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookedTotal {
    /// Its digits.
    pub total: String,
    /// All that is counted was committed at or before it.
    pub lsn: String,
}

const TOTAL: &str = "SELECT coalesce((SELECT sum(amount) FROM payments
        WHERE status = 'settled' AND created_at >= $2::text::timestamptz
          AND created_at < $2::text::timestamptz + interval '1 month'
        GROUP BY currency HAVING currency = $1::text), 0)::text, pg_current_wal_insert_lsn()::text";

const MONTH: &str = "SELECT to_char(date_trunc('month', now()) - make_interval(months => $1), 'YYYY-MM')";

const PAYMENT: &str = "SELECT min(id) FROM payments WHERE status = 'settled' AND currency = $1::text
        AND created_at >= $2::text::timestamptz AND created_at < $2::text::timestamptz + interval '1 month'";

impl Bookkeeper {
    /// Waits until the transactions that are under way have ended.
    pub async fn open(workload: &Workload) -> Result<Bookkeeper, WorkloadError> {
        let client = connect(workload.url()).await?;
        client.execute("SELECT pg_advisory_lock($1)", &[&GATE]).await?;
        Ok(Bookkeeper { client })
    }

    /// The month so many before this one, as `2026-08`.
    pub async fn month(&self, ago: i32) -> Result<String, WorkloadError> {
        Ok(self.client.query_one(MONTH, &[&ago]).await?.try_get(0)?)
    }

    /// A month's total by Postgres' own `GROUP BY`.
    pub async fn total(&self, currency: &str, month: &str) -> Result<BookedTotal, WorkloadError> {
        let row = self.client.query_one(TOTAL, &[&currency, &first_of(month)]).await?;
        Ok(BookedTotal { total: row.try_get(0)?, lsn: row.try_get(1)? })
    }

    /// A refund in this month; the statement.
    pub async fn refund(&self, currency: &str) -> Result<String, WorkloadError> {
        let statement = format!(
            "INSERT INTO payments (merchant, currency, amount, status, created_at)\nVALUES ('merchant-1', '{currency}', -49.90, 'settled', now())"
        );
        self.client.batch_execute(&statement).await?;
        Ok(statement)
    }

    /// Ten more for a payment of a month; the statement.
    pub async fn correct(&self, currency: &str, month: &str) -> Result<String, WorkloadError> {
        let id: Option<i64> = self.client.query_one(PAYMENT, &[&currency, &first_of(month)]).await?.try_get(0)?;
        let statement = format!("UPDATE payments SET amount = amount + 10.00 WHERE id = {}", id.unwrap_or_default());
        self.client.batch_execute(&statement).await?;
        Ok(statement)
    }
}

fn first_of(month: &str) -> String {
    format!("{month}-01 00:00:00Z")
}
