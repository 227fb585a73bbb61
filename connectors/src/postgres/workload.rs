//! The demo's payments and the life they lead: new payments in three currencies, status changes, refunds, corrections of
//! old months, deletes; each a transaction of its own or a few together, from several sessions at once.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::{Client, NoTls};

/// The payments table and the sessions that write it.
#[derive(Clone, Debug)]
pub struct Workload {
    url: String,
}

/// The workload could not be set up, or a session of it failed.
#[derive(Debug, thiserror::Error)]
#[error("demo workload: {0}")]
pub struct WorkloadError(#[from] tokio_postgres::Error);

/// Transactions share this advisory lock, so that somebody can see to it that there are none.
pub(super) const GATE: i64 = 7171;

const TABLE: &str = "CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    merchant text NOT NULL,
    currency char(3) NOT NULL,
    amount numeric(14,2) NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL
)";

/// Payments of the two years before today, more of them lately.
const HISTORY: &str = "INSERT INTO payments (merchant, currency, amount, status, created_at)
    SELECT 'merchant-' || (1 + floor(power(random(), 2) * 40))::int,
           (ARRAY['EUR','USD','JPY'])[1 + floor(power(random(), 1.5) * 3)::int],
           round((random() * 250 + 1)::numeric, 2),
           (ARRAY['settled','settled','settled','pending','failed'])[1 + floor(random() * 5)::int],
           now() - power(random(), 1.3) * interval '730 days'
    FROM generate_series(1, $1::bigint)";

const INSERT: &str = "INSERT INTO payments (merchant, currency, amount, status, created_at)
    SELECT 'merchant-' || (1 + floor(power(random(), 2) * 40))::int,
           (ARRAY['EUR','USD','JPY'])[1 + floor(power(random(), 1.5) * 3)::int],
           round((random() * 250 + 1)::numeric, 2), 'pending', now()
    FROM generate_series(1, $1::bigint)";

const SETTLE: &str = "UPDATE payments SET status = CASE WHEN random() < 0.95 THEN 'settled' ELSE 'failed' END
    WHERE id IN (SELECT id FROM payments WHERE status = 'pending' ORDER BY id DESC LIMIT $1 FOR UPDATE SKIP LOCKED)";

const REFUND: &str = "INSERT INTO payments (merchant, currency, amount, status, created_at)
    SELECT merchant, currency, -amount, 'settled', now() FROM payments
    WHERE id = (SELECT (random() * max(id))::bigint FROM payments) AND status = 'settled' AND amount > 0";

const CORRECT: &str = "UPDATE payments SET amount = amount + 0.01
    WHERE id = (SELECT (random() * max(id) * 0.5)::bigint FROM payments)";

const DELETE: &str = "DELETE FROM payments
    WHERE id = (SELECT (random() * max(id))::bigint FROM payments) AND status = 'failed'";

impl Workload {
    /// Creates the table with a history of `rows` payments.
    pub async fn create(url: &str, rows: i64) -> Result<Workload, WorkloadError> {
        let client = connect(url).await?;
        client.batch_execute(TABLE).await?;
        client.execute(HISTORY, &[&rows]).await?;
        client.batch_execute("CREATE INDEX ON payments (id) WHERE status = 'pending'; ANALYZE payments").await?;
        Ok(Workload { url: url.to_owned() })
    }

    /// Where the payments are.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// One session's life, about ten transactions a second, until it is dropped or its server goes away.
    pub async fn live(&self, seed: u64) -> Result<(), WorkloadError> {
        let mut client = connect(&self.url).await?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        loop {
            transact(&mut client, &mut random).await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(20..180))).await;
        }
    }
}

async fn transact(client: &mut Client, random: &mut ChaCha8Rng) -> Result<(), WorkloadError> {
    let many: i64 = random.random_range(1..4);
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock_shared($1)", &[&GATE]).await?;
    match random.random_range(0..20) {
        0..=9 => transaction.execute(INSERT, &[&many]).await?,
        10..=14 => transaction.execute(SETTLE, &[&(many * 3)]).await?,
        15..=16 => transaction.execute(REFUND, &[]).await?,
        17..=18 => transaction.execute(CORRECT, &[]).await?,
        _ => transaction.execute(DELETE, &[]).await?,
    };
    if random.random_ratio(1, 30) {
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
    }
    Ok(())
}

pub(super) async fn connect(url: &str) -> Result<Client, WorkloadError> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "demo session ended");
        }
    });
    Ok(client)
}
