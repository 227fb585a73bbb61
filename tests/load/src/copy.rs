//! The snapshot's reading alone: the connector into an engine that throws the rows away, beside `psql \copy` that does too.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use connectors::postgres::throwaway::ThrowawayPostgres;
use connectors::{ConnectorConfig, PostgresConfig};
use engine::change::Lsn;
use engine::source::{ResumePoint, SourceContext, SourceEvent, SourceStatus};
use tokio::sync::{mpsc, watch};

use crate::Scale;
use crate::figures::{Table, median, rate};
use crate::process::{children, cpu_seconds, reaped_cpu_seconds, timed};
use crate::{payments, sql};

const SLOT: &str = "tidemark_copy";

/// Sessions that the connector reads over.
const READERS: [usize; 3] = [1, 2, 4];

/// As many as the engine's own channel holds.
const EVENTS: usize = 64;

/// Seconds of one run.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    wall: f64,
    /// From the first rows to the last: without connecting, checks and the creation of the slot.
    reading: f64,
    client_cpu: f64,
    server_cpu: f64,
}

/// Runs it.
pub async fn measure(postgres: &ThrowawayPostgres, scale: Scale) -> anyhow::Result<Table> {
    let admin = sql::connect(&postgres.url()).await?;
    sql::run(&admin, "CREATE DATABASE copying").await?;
    let url = postgres.url_of("copying");
    let client = sql::connect(&url).await?;
    println!("copy: writing {} rows", scale.snapshot_rows);
    payments::create(&client, scale.snapshot_rows).await?;
    payments::insert(&client, 1, scale.snapshot_rows).await?;
    sql::run(&client, "VACUUM ANALYZE payments").await?;
    let server = Server::of(postgres)?;

    let (mut copies, mut snapshots) = (Vec::new(), vec![Vec::new(); READERS.len()]);
    for round in 1..=scale.rounds {
        let before = server.cpu_seconds().await;
        let mut psql = Command::new(postgres.program("psql"));
        psql.args(["-X", "-U", "postgres", "-d", "copying", "-h"]).arg(postgres.socket_directory());
        psql.args(["-c", "\\copy (select * from payments) to '/dev/null' (format binary)"]);
        let (wall, client_cpu, said) = timed(&mut psql).await?;
        ensure!(said.trim() == format!("COPY {}", scale.snapshot_rows), "psql said {said:?}");
        let server_cpu = server.cpu_seconds().await - before;
        copies.push(Run { wall, reading: wall, client_cpu, server_cpu });

        for (readers, runs) in READERS.iter().zip(&mut snapshots) {
            let config = PostgresConfig::new(&url, &["public.payments".to_owned()], SLOT)?;
            let before = (server.cpu_seconds().await, cpu_seconds(std::process::id()));
            let (wall, reading) = snapshot(config.with_snapshot_readers(*readers)?, scale.snapshot_rows).await?;
            let client_cpu = cpu_seconds(std::process::id()) - before.1;
            sql::drop_slot(&client, SLOT).await?;
            sql::run(&client, &format!("DROP PUBLICATION {SLOT}")).await?;
            let server_cpu = server.cpu_seconds().await - before.0;
            runs.push(Run { wall, reading, client_cpu, server_cpu });
        }
        let last = |of: fn(&Run) -> f64| snapshots.iter().filter_map(|runs| runs.last().map(of)).collect::<Vec<_>>();
        let (walls, reading) = (last(|run| run.wall), last(|run| run.reading));
        println!("copy {round}: psql {wall:.2} s, connector {walls:.2?} s, of which reading {reading:.2?} s");
    }
    drop(client);
    sql::run(&admin, "DROP DATABASE copying WITH (FORCE)").await?;

    let mut table = Table::new(
        &format!("reading {} rows, nothing kept", scale.snapshot_rows),
        &["", "wall s", "reading s", "rows", "wall, ratio to psql", "client cpu s", "server cpu s", "walls"],
    );
    let mut add = |name: &str, runs: &[Run]| {
        let middle = |of: fn(&Run) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
        let ratios: Vec<f64> = runs.iter().zip(&copies).map(|(run, copy)| copy.wall / run.wall).collect();
        let walls: Vec<String> = runs.iter().map(|run| format!("{:.2}", run.wall)).collect();
        table.row(&[
            name,
            &format!("{:.2}", middle(|run| run.wall)),
            &format!("{:.2}", middle(|run| run.reading)),
            &rate(scale.snapshot_rows, middle(|run| run.wall)),
            &format!("{:.2}", median(&ratios)),
            &format!("{:.2}", middle(|run| run.client_cpu)),
            &format!("{:.2}", middle(|run| run.server_cpu)),
            &walls.join(" "),
        ]);
    };
    add("psql \\copy binary to /dev/null", &copies);
    for (readers, runs) in READERS.iter().zip(&snapshots) {
        add(&format!("connector, {readers} reader(s)"), runs);
    }
    table.remark(
        "the connector's wall includes its checks, publication and slot; its cpu is that of the whole process"
            .to_owned(),
    );
    Ok(table)
}

/// Wall seconds until the end of the snapshot, and from the first rows on.
async fn snapshot(config: PostgresConfig, rows: i64) -> anyhow::Result<(f64, f64)> {
    let (events, mut received) = mpsc::channel(EVENTS);
    let (_durable, durable) = watch::channel(Lsn::ZERO);
    let (status, seen) = watch::channel(SourceStatus::default());
    let (context, _commands) = SourceContext::new(ResumePoint::Fresh, events, durable, status);
    let started = Instant::now();
    let source = tokio::spawn(connectors::run(ConnectorConfig::Postgres(config), context));
    let (mut count, mut first) = (0, None);
    loop {
        match received.recv().await {
            Some(SourceEvent::Tables { .. }) => first = Some(started.elapsed()),
            Some(SourceEvent::SnapshotRows(changes)) => count += changes.len(),
            Some(SourceEvent::SnapshotDone { .. }) => break,
            Some(_) => {}
            None => bail!("the source ended: {:?}", seen.borrow().state),
        }
    }
    let (wall, first) = (started.elapsed(), first.unwrap_or_default());
    drop(received);
    source.await?;
    ensure!(i64::try_from(count) == Ok(rows), "{count} rows came");
    Ok((wall.as_secs_f64(), (wall - first).as_secs_f64()))
}

/// The server's CPU, as far as its sessions have ended.
struct Server {
    postmaster: u32,
    /// Those that do not end.
    resident: Vec<u32>,
}

impl Server {
    fn of(postgres: &ThrowawayPostgres) -> anyhow::Result<Server> {
        let file = std::fs::read_to_string(postgres.socket_directory().join("data/postmaster.pid"))?;
        let postmaster = file.lines().next().context("no postmaster")?.parse()?;
        Ok(Server { postmaster, resident: children(postmaster) })
    }

    /// Waits until all others have ended: only then does the kernel count them.
    async fn cpu_seconds(&self) -> f64 {
        while children(self.postmaster).iter().any(|child| !self.resident.contains(child)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reaped_cpu_seconds(self.postmaster)
    }
}
