//! What all lives share: Postgres, those who write to it, and the data directory that one life leaves to the next.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use connectors::postgres::throwaway::{Stop, ThrowawayPostgres};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::bundle;
use crate::process::{End, Fate, Life};
use crate::support::shop::{RESTS, Shop};
use crate::support::sql;

/// The replication slot of all lives.
pub const SLOT: &str = "torture";
/// Of its Postgres.
pub const SETTINGS: [&str; 3] = ["wal_sender_timeout=5s", "deadlock_timeout=20ms", "autovacuum=off"];
/// Many times longer than a life takes to acknowledge.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Sums of these leave the 53 bits of a double.
const LARGE: &str = "INSERT INTO payments (grp, amount, weight, status, at)
    SELECT 'large', 999999999999.99 - i * 0.01, 0.5, 's1', timestamptz '2024-02-02 UTC' FROM generate_series(1, 150) AS i";

/// Postgres under load, and a data directory.
pub struct Bench {
    pub rng: ChaCha8Rng,
    postgres: ThrowawayPostgres,
    client: Client,
    shop: Shop,
    data: TempDir,
    /// Whether a life of this data directory answered that the aggregates are registered.
    registered: bool,
}

impl Bench {
    /// Starts Postgres and the writers.
    pub async fn open(seed: u64) -> Bench {
        let postgres = sql::postgres(&SETTINGS);
        let client = sql::connect(&postgres.url()).await;
        let shop = Shop::open(&postgres.url(), seed).await;
        Bench {
            rng: ChaCha8Rng::seed_from_u64(seed),
            postgres,
            client,
            shop,
            data: tempfile::tempdir().unwrap(),
            registered: false,
        }
    }

    /// Keeps both sides as they are, Postgres as after a crash; the writers are not asked.
    pub fn keep(mut self) {
        bundle::keep("data", &self.data());
        self.postgres.stop(Stop::Immediate);
        bundle::keep("postgres", self.postgres.socket_directory());
    }

    /// Ends the writers.
    pub async fn close(self) {
        self.shop.close().await;
    }

    /// Forgets everything that lives have left: the next one begins with an initial snapshot, and the writers have their usual pace.
    pub async fn begin_anew(&mut self) {
        self.shop.rest(RESTS[0]);
        sql::drop_slot(&self.client, SLOT).await;
        // Each truncation leaves rows in the catalog, which the slot held.
        self.sql("VACUUM").await;
        self.data = tempfile::tempdir().unwrap();
        self.registered = false;
    }

    /// What the writers rest after each transaction from here on.
    pub fn rest(&self, time: Duration) {
        self.shop.rest(time);
    }

    /// A life with what the one before left.
    pub fn life(&self, fate: &Fate) -> Life {
        Life::start(&self.data(), &self.postgres.url(), fate.clone())
    }

    /// The data directory, by the name that the kernel has for it.
    pub fn data(&self) -> PathBuf {
        self.data.path().canonicalize().unwrap()
    }

    /// A statement beside those of the writers.
    pub async fn sql(&self, statement: &str) {
        sql::run(&self.client, statement).await;
    }

    /// What every life does first: it starts, registers, and is compared, which looks at what the one before left. Returns how
    /// many cells there were.
    pub async fn begin(&mut self, life: &mut Life) -> Result<u64, End> {
        life.hears("started")?;
        self.register(life)?;
        self.compare(life).await
    }

    /// A life to which nothing happens: whether the one before is survived.
    pub async fn survives(&mut self) -> Result<(), End> {
        let mut life = self.life(&Fate::default());
        self.begin(&mut life).await?;
        life.kill();
        Ok(())
    }

    /// Registers the aggregates. What a life before answered is not new to this one.
    fn register(&mut self, life: &mut Life) -> Result<(), End> {
        let line = life.ask("register", "done")?;
        if self.registered && !line.ends_with(" 0") {
            return Err(End::Violated(format!("registrations are lost: {line}")));
        }
        self.registered = true;
        Ok(())
    }

    /// Waits until what is committed now is acknowledged upstream: a life that is quick would otherwise end before it had
    /// acknowledged anything.
    pub async fn acknowledged(&self, life: &mut Life) -> Result<(), End> {
        let lsn = sql::current_lsn(&self.client).await;
        let asked = format!(
            "SELECT COALESCE(bool_or(confirmed_flush_lsn >= '{lsn}'), false) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        );
        let deadline = Instant::now() + ACKNOWLEDGED_WITHIN;
        while sql::value(&self.client, &asked).await != "t" {
            if life.aborts_within(POLL).map_err(End::Violated)? {
                return Err(End::Aborted);
            }
            if Instant::now() > deadline {
                return Err(End::Violated(format!("{lsn} is not acknowledged")));
            }
        }
        Ok(())
    }

    /// Compares every cell, with the writers at rest. Returns how many there were.
    pub async fn compare(&self, life: &mut Life) -> Result<u64, End> {
        self.sql(LARGE).await;
        self.shop.pause().await;
        let lsn = sql::current_lsn(&self.client).await;
        let compared = life.ask(&format!("compare {lsn}"), "equal");
        self.shop.go_on();
        compared.map(|line| line.split(' ').nth(1).and_then(|cells| cells.parse().ok()).unwrap_or_default())
    }
}
