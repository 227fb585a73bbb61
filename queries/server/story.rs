//! The demo's story: a refund, a correction of a closed month, a database that is killed. Each says what our answer was
//! before and after, and what Postgres' own GROUP BY says while the other sessions wait.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use connectors::postgres::bookkeeper::{BookedTotal, Bookkeeper};
use connectors::postgres::workload::Workload;
use queries::dashboard::story::{Moment, Teller, Telling, Told};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::cli::{Question, ServerAddress};
use crate::client::Client;

/// The aggregate that is looked at, and whose total of it.
const AGGREGATE: &str = "payments_daily";
const CURRENCY: &str = "EUR";
/// Months ago of the closed month that is corrected.
const CLOSED: i32 = 3;
/// How long Postgres may take to come back, and we to follow it again.
const RECOVERY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Asks the thread that started Postgres to kill and restart it; answered once it is back.
pub type Kill = oneshot::Sender<Result<(), String>>;

/// Tells the story over the demo's payments.
pub struct Storyteller {
    /// The server that the page talks to, asked as anybody would.
    address: SocketAddr,
    workload: Workload,
    kills: mpsc::Sender<Kill>,
    /// One step at a time: each closes the gate.
    turn: Mutex<()>,
}

impl Storyteller {
    /// A teller for the server at an address.
    pub fn new(address: SocketAddr, workload: Workload, kills: mpsc::Sender<Kill>) -> Storyteller {
        Storyteller { address, workload, kills, turn: Mutex::new(()) }
    }

    async fn refund(&self) -> Result<Told> {
        let books = Bookkeeper::open(&self.workload).await?;
        let month = books.month(0).await?;
        let before = self.moment(&books, &month).await?;
        let statement = books.refund(CURRENCY).await?;
        told(statement, month.clone(), before, self.moment(&books, &month).await?)
    }

    async fn correction(&self) -> Result<Told> {
        let books = Bookkeeper::open(&self.workload).await?;
        let month = books.month(CLOSED).await?;
        let before = self.moment(&books, &month).await?;
        let statement = books.correct(CURRENCY, &month).await?;
        told(statement, month.clone(), before, self.moment(&books, &month).await?)
    }

    async fn kill(&self) -> Result<Told> {
        let books = Bookkeeper::open(&self.workload).await?;
        let month = books.month(0).await?;
        let before = self.moment(&books, &month).await?;
        drop(books);
        let (done, killed) = oneshot::channel();
        self.kills.send(done).await.context("the demo is ending")?;
        killed.await.context("the demo is ending")?.map_err(|error| anyhow!(error))?;
        let books = self.reopened().await?;
        let after = self.moment(&books, &month).await?;
        told("-- pg_ctl stop -m immediate; pg_ctl start".to_owned(), month, before, after)
    }

    async fn reopened(&self) -> Result<Bookkeeper> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            match Bookkeeper::open(&self.workload).await {
                Ok(books) => return Ok(books),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// What both say of a month, at one position.
    async fn moment(&self, books: &Bookkeeper, month: &str) -> Result<Moment> {
        let BookedTotal { total: postgres, lsn } = books.total(CURRENCY, month).await?;
        let (total, lsn) = self.answer(month.to_owned(), lsn).await?;
        Ok(Moment { lsn, total, postgres })
    }

    /// Our answer at or past a position: total and the position that it shows.
    async fn answer(&self, month: String, min_lsn: String) -> Result<(String, String)> {
        let address = ServerAddress { url: format!("http://{}", self.address), ..ServerAddress::default() };
        let deadline = Instant::now() + RECOVERY;
        let asking = move || loop {
            let selection = format!("currency:{CURRENCY}");
            // Without an end: the first bucket is the month's.
            let parameters = [
                ("granularity", "month"),
                ("from", month.as_str()),
                ("group_by", ""),
                ("where", selection.as_str()),
                ("measures", "amount"),
                ("limit", "1"),
                ("min_lsn", min_lsn.as_str()),
                ("wait", "5s"),
            ];
            let parameters = parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let question = Question { name: AGGREGATE.to_owned(), parameters };
            let reply = Client::new(&address).and_then(|client| client.data(&question, "data"));
            let reply = reply.map_err(|error| anyhow!("{error}"))?;
            if reply.status != 503 || Instant::now() > deadline {
                let body = reply.into_success().map_err(|error| anyhow!("{error}"))?;
                return total_of(&month, &body).context("the answer has no total of that month");
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        tokio::task::spawn_blocking(asking).await?
    }
}

fn total_of(month: &str, body: &str) -> Option<(String, String)> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let text = |pointer: &str| Some(answer.pointer(pointer)?.as_str()?.to_owned());
    text("/data/0/time")?.starts_with(month).then_some(())?;
    Some((text("/data/0/amount")?, text("/as_of/lsn")?))
}

fn told(statement: String, month: String, before: Moment, after: Moment) -> Result<Told> {
    let equal = before.is_equal() && after.is_equal();
    let (aggregate, currency) = (AGGREGATE.to_owned(), CURRENCY.to_owned());
    Ok(Told { statement, aggregate, currency, month, before, after, equal })
}

impl Teller for Storyteller {
    fn tell(&self, step: &str) -> Telling<'_> {
        let step = step.to_owned();
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            let told = match step.as_str() {
                "refund" => self.refund().await,
                "correction" => self.correction().await,
                "kill" => self.kill().await,
                _ => return None,
            };
            Some(told.map_err(|error| format!("{error:#}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_comes_with_its_position() {
        let body = r#"{"data":[{"time":"2026-08-01T00:00:00Z","amount":"12.30"}],"as_of":{"lsn":"0/10"}}"#;
        assert_eq!(total_of("2026-08", body), Some(("12.30".to_owned(), "0/10".to_owned())));
        assert_eq!(total_of("2026-07", body), None);
        assert_eq!(total_of("2026-08", r#"{"data":[],"as_of":{"lsn":"0/10"}}"#), None);
    }
}
