//! The front end alone: from the socket to typed rows, in a process of its own, into an engine that only counts them;
//! beside `pg_recvlogical`, which reads the same and makes nothing of it.

use std::process::Command;

use anyhow::{Context, bail, ensure};
use connectors::postgres::throwaway::ThrowawayPostgres;
use connectors::{ConnectorConfig, PostgresConfig};
use engine::change::{Lsn, TableSchema};
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceIdentity, SourceStatus};
use tokio::sync::{mpsc, watch};

use crate::Scale;
use crate::backlog::{Backlog, Reading};
use crate::figures::{Table, median, rate};
use crate::process::{Walsender, timed};
use crate::{payments, sql};

/// The argument that makes this program such a front end; URL, start, end, identity and tables follow.
pub const COMMAND: &str = "front-end";

const SLOT: &str = "tidemark_front";

/// As many as the engine's own channel holds.
const EVENTS: usize = 64;

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE front").await?;
    let url = postgres.url_of("front");
    let client = sql::connect(&url).await?;
    payments::create(&client, scale.preloaded_rows + Backlog::inserts(scale)).await?;
    payments::insert(&client, 1, scale.preloaded_rows).await?;
    let begun = begin(&url).await?;
    println!("front: writing the backlog");
    let backlog = Backlog::write(&client, "front", SLOT, scale).await?;

    let (mut reference, mut connector) = (Vec::new(), Vec::new());
    for round in 1..=scale.rounds {
        reference.push(backlog.reference(postgres, &client).await?);
        backlog.rewind(&client).await?;
        connector.push(read(&url, &begun, &backlog).await?);
        println!("front {round}: {:.2?} {:.2?}", reference.last(), connector.last());
    }
    backlog.end(&client).await?;
    drop(client);
    sql::run(&admin, "DROP DATABASE front WITH (FORCE)").await?;

    let mut table = Table::new(
        "front end: socket to typed row",
        &["", "wall s", "rows", "cpu us/row", "walsender us/row", "cpu s of the rounds"],
    );
    for (name, readings) in [("pg_recvlogical to /dev/null", &reference), ("connector, rows counted", &connector)] {
        let middle = |of: fn(&Reading) -> f64| median(&readings.iter().map(of).collect::<Vec<_>>());
        let each = |seconds: f64| format!("{:.2}", seconds * 1e6 / backlog.changes as f64);
        let cpus: Vec<String> = readings.iter().map(|reading| format!("{:.2}", reading.cpu)).collect();
        table.row(&[
            name,
            &format!("{:.2}", middle(|reading| reading.wall)),
            &rate(backlog.changes, middle(|reading| reading.wall)),
            &each(middle(|reading| reading.cpu)),
            &each(middle(|reading| reading.walsender_cpu)),
            &cpus.join(" "),
        ]);
    }
    let ratios: Vec<f64> = connector.iter().zip(&reference).map(|(b, a)| b.wall / a.wall).collect();
    table.remark(format!("ratio connector / pg_recvlogical, wall, median of rounds: {:.2}", median(&ratios)));
    table.remark(backlog.description);
    Ok(table)
}

/// Makes publication and slot and reads what is there; where that left off.
async fn begin(url: &str) -> anyhow::Result<(Lsn, SourceIdentity, Vec<TableSchema>)> {
    let mut front = Front::start(url, ResumePoint::Fresh)?;
    let mut begun = None;
    loop {
        match front.next().await? {
            SourceEvent::Tables { identity, tables } => begun = Some((identity, tables)),
            SourceEvent::SnapshotDone { lsn, .. } => {
                front.end().await?;
                let (identity, tables) = begun.context("rows before their tables")?;
                return Ok((lsn, identity, tables));
            }
            _ => {}
        }
    }
}

async fn read(
    url: &str,
    (start, identity, tables): &(Lsn, SourceIdentity, Vec<TableSchema>),
    backlog: &Backlog,
) -> anyhow::Result<Reading> {
    let walsender = Walsender::watch(url, SLOT).await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([COMMAND, url, &start.to_string(), &backlog.end]);
    command.args([serde_json::to_string(identity)?, serde_json::to_string(tables)?]).env_remove("RUST_BACKTRACE");
    let (wall, cpu, said) = timed(&mut command).await?;
    ensure!(said.trim().parse() == Ok(backlog.changes), "{said:?} rows came, {} were written", backlog.changes);
    Ok(Reading { wall, cpu, walsender_cpu: walsender.end() })
}

/// Reads to the end and prints the number of rows.
pub async fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [url, start, end, identity, tables] = arguments else { bail!("five arguments are needed") };
    let resume = ResumePoint::live(start.parse()?, serde_json::from_str(identity)?, serde_json::from_str(tables)?);
    let end: Lsn = end.parse()?;
    let mut front = Front::start(url, resume)?;
    let mut rows = 0;
    loop {
        let reached = match front.next().await? {
            SourceEvent::Transaction(transaction) => {
                // The one after the end is not part of it.
                if transaction.end_lsn <= end {
                    rows += transaction.changes.len();
                }
                transaction.end_lsn
            }
            SourceEvent::Progress { lsn, .. } => lsn,
            _ => continue,
        };
        front.durable.send_replace(reached);
        if reached >= end {
            break;
        }
    }
    println!("{rows}");
    front.end().await
}

/// A connector, and in place of the engine its channels' ends.
struct Front {
    events: mpsc::Receiver<SourceEvent>,
    durable: watch::Sender<Lsn>,
    status: watch::Receiver<SourceStatus>,
    task: tokio::task::JoinHandle<()>,
}

impl Front {
    fn start(url: &str, resume: ResumePoint) -> anyhow::Result<Self> {
        let config = PostgresConfig::new(url, &["public.payments".to_owned()], SLOT)?;
        let (sender, events) = mpsc::channel(EVENTS);
        let (durable, acknowledged) = watch::channel(Lsn::ZERO);
        let (shown, status) = watch::channel(SourceStatus::default());
        let (context, _) = SourceContext::new(resume, sender, acknowledged, shown);
        let task = tokio::spawn(connectors::run(ConnectorConfig::Postgres(config), context));
        Ok(Front { events, durable, status, task })
    }

    async fn next(&mut self) -> anyhow::Result<SourceEvent> {
        let event = self.events.recv().await;
        event.with_context(|| format!("the source ended: {:?}", self.status.borrow().state))
    }

    async fn end(self) -> anyhow::Result<()> {
        drop(self.events);
        Ok(self.task.await?)
    }
}
