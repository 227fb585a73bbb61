//! Everything that can be known before starting, and goes on being known: one list of checks, each with what repairs it.
//! Nothing here changes anything upstream.
//!
//! The order is the one in which things would stop a source, so that the first failure is what a start refuses with. A
//! check that cannot be made because an earlier one failed is left out.

mod capacity;
mod finding;
mod overlap;
mod provider;
mod publication;
mod server;
mod session;
mod setting;
mod table;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

use engine::change::{ColumnType, Lsn, TableSchema};
use engine::source::{Check, CheckOutcome, ResumePoint, SourceError, SourceStatus};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::catalog::{CatalogTable, shape};
use super::config::{PostgresConfig, Wanted};
use super::connect::sql_session;
use super::error::{Failure, source_error};
use crate::NotStarted;
use capacity::OurSlot;
use server::ServerFacts;
use table::{Generated, TableFacts};

pub use finding::Finding;

/// How long all checks together may take; they are some twenty small queries.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running source looks again this often.
const INTERVAL: Duration = Duration::from_secs(300);

/// And sooner while something is wrong, or only about to be made.
const SOON: Duration = Duration::from_secs(15);

/// What there is to lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is stored: slot and publication are made at the start, leftovers replaced.
    Fresh,
    /// Stored totals continue at the slot.
    InUse,
    /// Asked from outside: whether there is a slot tells.
    Unknown,
}

/// Refuses what a new source could not start with.
pub(super) async fn preflight(config: &PostgresConfig) -> Result<(), NotStarted> {
    finding::hindered(&look(config, Stage::Fresh).await).map_or(Ok(()), Err)
}

/// All checks, failed ones first.
pub async fn check(config: &PostgresConfig, stage: Stage) -> Vec<Finding> {
    let mut findings = look(config, stage).await;
    finding::failed_first(&mut findings);
    findings
}

/// What the server and the role must be able to do, also looked at before every new slot.
pub(super) async fn check_server(client: &Client, config: &PostgresConfig) -> Result<(), Failure> {
    let found = ServerFacts::read(client).await?.judge(config);
    finding::first_failure(&found).map_or(Ok(()), |error| Err(error.into()))
}

/// Runs one statement of a finding's `repair`. It gives up soon where a table is in use: what waits for a lock holds up
/// everyone behind it.
pub async fn repair(config: &PostgresConfig, statement: &str) -> Result<(), SourceError> {
    let run = async {
        let client = sql_session(config).await?;
        client.batch_execute("SET lock_timeout = '3s'").await?;
        client.batch_execute(statement).await?;
        Ok::<_, Failure>(())
    };
    run.await.map_err(|failure| match failure {
        Failure::Definite(error) => error,
        Failure::Transient(said) => source_error("repair_failed", said, "run the statement by hand"),
        Failure::Closed => source_error("repair_failed", "the session was closed", "try again"),
    })
}

/// What a table must be before it is published and followed.
pub(super) async fn check_table(client: &Client, config: &PostgresConfig, wanted: &Wanted) -> Result<(), Failure> {
    let server = ServerFacts::read(client).await?;
    let mut findings = Vec::new();
    look_at_table(client, config, &server, wanted, &mut findings).await?;
    finding::first_failure(&findings).map_or(Ok(()), |error| Err(error.into()))
}

/// What a table and its partitions must be in themselves, whatever the server makes of them. Nothing is said of a table
/// that does not exist.
pub(super) async fn check_relations(client: &Client, config: &PostgresConfig, wanted: &Wanted) -> Result<(), Failure> {
    let Some((facts, partitions)) = TableFacts::read(client, &wanted.name).await? else { return Ok(()) };
    let findings = table::judge(config, wanted, &facts, &partitions, None);
    finding::first_failure(&findings).map_or(Ok(()), |error| Err(error.into()))
}

/// Whether the publication is there. One that is must carry exactly these tables, whole, with every operation: more would
/// be ignored, less would be missing without a sign.
pub(super) async fn check_publication(
    client: &Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
) -> Result<bool, Failure> {
    match publication::judge(client, config, tables).await? {
        None => Ok(false),
        Some(findings) => finding::first_failure(&findings).map_or(Ok(true), |error| Err(error.into())),
    }
}

/// Keeps the checks of a running source in its status, for as long as it lives.
pub(super) struct Lookout {
    config: PostgresConfig,
    status: Arc<watch::Sender<SourceStatus>>,
    fresh: bool,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lookout {
    pub(super) fn start(
        config: &PostgresConfig,
        resume: &ResumePoint,
        status: &Arc<watch::Sender<SourceStatus>>,
    ) -> Self {
        let (config, status) = (config.clone(), Arc::clone(status));
        let fresh = matches!(resume, ResumePoint::Fresh);
        let task = tokio::spawn({
            let (config, status) = (config.clone(), Arc::clone(&status));
            async move {
                loop {
                    let settled = look_and_tell(&config, fresh, &status).await;
                    tokio::time::sleep(if settled { INTERVAL } else { SOON }).await;
                }
            }
        });
        Lookout { config, status, fresh, task }
    }

    /// Once more, when the source has halted: what was found before may be what broke.
    pub(super) async fn look_again(self) {
        self.task.abort();
        look_and_tell(&self.config, self.fresh, &self.status).await;
    }
}

/// False where the next look is likely to find something else.
async fn look_and_tell(config: &PostgresConfig, fresh: bool, status: &watch::Sender<SourceStatus>) -> bool {
    // A source that began fresh has its slot from the first position on.
    let fresh = fresh && status.borrow().received_lsn == Lsn::ZERO;
    let findings = check(config, if fresh { Stage::Fresh } else { Stage::InUse }).await;
    let settled = !fresh && !findings.iter().any(Finding::is_failed);
    let checks: Vec<Check> = findings.into_iter().map(|finding| finding.check).collect();
    for check in new_troubles(&status.borrow().checks, &checks) {
        tracing::warn!(check = check.name, reason = %check.message, remedy = %check.remedy, "something to do upstream");
    }
    // Nobody waits for checks: who wants them looks.
    status.send_if_modified(|status| {
        status.checks = checks;
        false
    });
    settled
}

/// What is not in order and was not said before; a number in a message is no news.
fn new_troubles<'c>(before: &'c [Check], now: &'c [Check]) -> impl Iterator<Item = &'c Check> {
    let known = |check: &Check| {
        before.iter().any(|old| (old.name, old.outcome, &old.remedy) == (check.name, check.outcome, &check.remedy))
    };
    now.iter().filter(move |check| check.outcome != CheckOutcome::Ok && !known(check))
}

/// All checks in the order looked at.
async fn look(config: &PostgresConfig, stage: Stage) -> Vec<Finding> {
    let mut findings = Vec::new();
    let looked = timeout(PATIENCE, look_into(config, stage, &mut findings)).await;
    let took_too_long = || Failure::Transient(format!("the checks took longer than {} s", PATIENCE.as_secs()));
    if let Err(failure) = looked.unwrap_or_else(|_| Err(took_too_long())) {
        findings.push(unreachable(config, failure));
    }
    for finding in &mut findings {
        finding.check.remedy = finding.check.remedy.replace("<slot>", &config.slot);
    }
    findings
}

fn unreachable(config: &PostgresConfig, failure: Failure) -> Finding {
    const NAME: &str = "connection";
    match failure {
        Failure::Definite(error) if error.code == "pooler" => {
            Finding::of(NAME, session::at_pooler(config, &error.message))
        }
        Failure::Definite(error) => Finding::of(NAME, error),
        Failure::Transient(message) => {
            let message = format!("cannot work with Postgres at {}: {message}", config.display());
            Finding::failed(NAME, "cannot_connect", message)
                .remedy("check that Postgres runs there and that host, port and network let this machine in")
                .passing()
        }
        Failure::Closed => session::closed(NAME),
    }
}

async fn look_into(config: &PostgresConfig, stage: Stage, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let client = sql_session(config).await?;
    findings.push(Finding::ok("connection", format!("connected to {}", config.display())));
    let server = ServerFacts::read(&client).await?;
    findings.extend(server.judge(config));
    let slot = OurSlot::read(&client, &config.slot).await?;
    let settled = match (stage, &slot) {
        (Stage::Unknown, Some(_)) => Stage::InUse,
        (Stage::Unknown, None) => Stage::Fresh,
        (known, _) => known,
    };

    let mut wanted = config.wanted_tables();
    if settled == Stage::InUse {
        // Tables that joined later are followed too, named in the configuration or not.
        let members = publication::members(&client, &config.publication).await?;
        let joined = members.into_iter().filter(|member| !config.tables.contains(member));
        wanted.extend(joined.map(|member| config.wanted(member, None)));
    }
    let mut found = Vec::with_capacity(wanted.len());
    for wanted in &wanted {
        found.extend(look_at_table(&client, config, &server, wanted, findings).await?);
    }
    findings.extend(overlap::look(&client, config, &found).await?);
    let schemas: Vec<TableSchema> = found.iter().map(|table| table.schema.clone()).collect();
    let owned: Vec<bool> = found.iter().map(|table| table.owned).collect();
    // Of a publication for a part of the tables nothing useful can be said.
    if !schemas.is_empty() && schemas.len() == wanted.len() {
        note(findings, "publication", publication::look(&client, config, &schemas, &owned, settled).await)?;
    }
    note(findings, "slot", capacity::look(&client, config, &server, slot.as_ref(), stage).await)?;
    note(findings, "session_timeouts", session::look(&client, config, &server).await)?;
    note(findings, "open_transactions", transactions::look(&client, settled).await)?;
    if slot.is_some_and(|slot| slot.is_followed(config)) {
        findings.push(Finding::ok("replication_session", "a replication session of this source is connected"));
    } else if server.may_replicate {
        findings.push(session::try_replication(config).await);
    }
    Ok(())
}

/// One part that cannot be looked at keeps nobody from the others; a broken connection does.
fn note(findings: &mut Vec<Finding>, name: &'static str, looked: Result<Vec<Finding>, Failure>) -> Result<(), Failure> {
    match looked {
        Ok(found) => findings.extend(found),
        Err(Failure::Definite(error)) => findings.push(Finding::of(name, error)),
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Everything about one table; its shape where it can be followed.
async fn look_at_table(
    client: &Client,
    config: &PostgresConfig,
    server: &ServerFacts,
    wanted: &Wanted,
    findings: &mut Vec<Finding>,
) -> Result<Option<CatalogTable>, Failure> {
    let before = findings.len();
    if let Some((facts, partitions)) = TableFacts::read(client, &wanted.name).await? {
        let generated = Generated {
            version: server.version,
            published: publication::publishes_generated(client, &config.publication).await?,
        };
        findings.extend(table::judge(config, wanted, &facts, &partitions, Some(generated)));
    }
    if findings.iter().skip(before).any(Finding::is_failed) {
        return Ok(None);
    }
    match shape(client, wanted).await {
        Ok(table) => {
            findings.extend(useless_columns(&table.schema));
            Ok(Some(table))
        }
        Err(Failure::Definite(error)) => {
            findings.push(Finding::of("table", error));
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// Columns that may exist and can neither be added up nor grouped by.
fn useless_columns(table: &TableSchema) -> Option<Finding> {
    let names: Vec<String> = table
        .columns
        .iter()
        .filter(|column| matches!(column.column_type, ColumnType::Unsupported(_)))
        .map(|column| format!("{} ({})", column.name, column.column_type.name()))
        .collect();
    if names.is_empty() {
        return None;
    }
    let message =
        format!("of {}, these columns cannot be used in aggregates: {}", table.qualified_name(), names.join(", "));
    Some(Finding::ok("columns", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_news_once() {
        let check = |outcome, message: &str, remedy: &str| Check {
            name: "free_slots",
            outcome,
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        };
        let few = check(CheckOutcome::Warning, "9 of 10 are in use", "raise max_replication_slots");
        let fewer = check(CheckOutcome::Warning, "10 of 10 are in use", "raise max_replication_slots");
        let none = check(CheckOutcome::Failed, "none is free", "raise max_replication_slots");
        let fine = check(CheckOutcome::Ok, "0 of 10 are in use", "");
        let news =
            |before: &Check, now: &Check| new_troubles(std::slice::from_ref(before), std::slice::from_ref(now)).count();
        assert_eq!((news(&fine, &few), news(&few, &fewer), news(&fewer, &none), news(&none, &fine)), (1, 0, 1, 0));
    }
}
