//! `tidemark check`: what `serve` would refuse, all of it at once, before it is started; with `--fix` also the repair.
//!
//! The surprise: slot and publication are named after the data directory. One that is named on the command line is
//! claimed here as `serve` would, so that the name in a repair is the one that will be used. Without one nothing is made
//! under a made-up name: `serve` would never use it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use connectors::PostgresConfig;
use connectors::postgres::{Finding, Stage, check, repair};
use engine::source::CheckOutcome;
use engine::store::Cursor;
use engine::store::format::{claim, instance};
use serde_json::{Value, json};

use crate::cli::{CheckArguments, OutputFormat};
use crate::config::UpstreamConfig;
use crate::failure::Failure;
use crate::output::say;
use crate::serve::runtime;
use crate::table::{Table, harmless};

/// A repaired check may uncover another: rights first, then what they let us see.
const MAX_ROUNDS: usize = 3;

/// Stands for the name where there is no data directory yet. It is neither shown nor made.
const UNNAMED: &str = "tidemark_unnamed";

/// What a repair needs that would make something under that name.
const NEEDS_A_NAME: &str = "slot and publication are named after the data directory: name it with --data (as the user that \
                            serves it), or start once, and check again for the statement";

/// A statement that was run, and what Postgres had against it.
struct Repair {
    statement: String,
    refused: Option<String>,
    needs_restart: bool,
}

/// Looks, repairs if asked to, and prints.
pub fn run(arguments: &CheckArguments) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let upstream = UpstreamConfig::resolve(&arguments.upstream)?;
    let tables = if arguments.tables.is_empty() { &upstream.tables } else { &arguments.tables };
    let row_images_off =
        if arguments.no_row_image.is_empty() { &upstream.no_row_image } else { &arguments.no_row_image };
    let of = |url: &str, slot: &str| {
        let config = match tables.as_slice() {
            [] => PostgresConfig::server(url, slot),
            tables => {
                PostgresConfig::new(url, tables, slot).and_then(|config| config.with_row_images_off(row_images_off))
            }
        };
        config
            .map(|config| config.with_failover(upstream.failover_slot).with_backups(&upstream.backup_dir))
            .map_err(|error| usage(&error))
    };
    // What cannot work leaves no data directory behind.
    of(upstream.url.reveal(), UNNAMED)?;
    let slot = match name_of(&upstream)? {
        Some(instance) => format!("tidemark_{instance}"),
        None => UNNAMED.to_owned(),
    };
    let config = of(upstream.url.reveal(), &slot)?;
    let admin = arguments.fix_as.as_deref().map(|url| of(url, &slot)).transpose()?;
    let fix = arguments.fix || admin.is_some();
    let stage = stage_of(&upstream.data);
    let output = arguments.printing.output;
    let shown = output == OutputFormat::Table;

    let (findings, repairs) = runtime()?.block_on(async {
        let mut findings = look(&config, stage).await;
        let mut repairs = Vec::new();
        for _ in 0..MAX_ROUNDS {
            let due = if fix { due(&findings, &repairs) } else { Vec::new() };
            if due.is_empty() {
                break;
            }
            for (statement, needs_restart) in due {
                if shown {
                    say(&format!("running  {statement};"))?;
                }
                let refused = repair(admin.as_ref().unwrap_or(&config), &statement).await.err();
                let refused = refused.map(|error| error.message);
                if let Some(why) = refused.as_ref().filter(|_| shown) {
                    say(&format!("refused  {why}"))?;
                }
                repairs.push(Repair { statement, refused, needs_restart });
            }
            findings = look(&config, stage).await;
        }
        Ok::<_, Failure>((findings, repairs))
    })?;
    match output {
        OutputFormat::Table => print(&findings, &repairs)?,
        OutputFormat::Json => say(&document(&findings, &repairs).to_string())?,
        OutputFormat::Csv => table(&findings).print_csv()?,
    }
    match count(&findings, CheckOutcome::Failed) {
        0 => Ok(()),
        1 => Err(Failure::Usage("1 check failed".to_owned())),
        failed => Err(Failure::Usage(format!("{failed} checks failed"))),
    }
}

/// The instance that names slot and publication; none where there is no data directory and none is named.
fn name_of(upstream: &UpstreamConfig) -> Result<Option<String>, Failure> {
    let data = &upstream.data;
    let known = instance(data).map_err(|error| Failure::Usage(error.to_string()))?;
    if known.is_some() || !upstream.data_named {
        return Ok(known);
    }
    if let Some(owner) = other_owner(data) {
        return Err(Failure::Usage(format!(
            "{} would be root's, and the user with id {owner}, who has what is around it, could not serve it\n  remedy: run this as \
             that user, such as: runuser -u tidemark -- tidemark check ...",
            data.display()
        )));
    }
    claim(data).map(Some).map_err(|error| Failure::Usage(error.to_string()))
}

/// Whose directory root would make a directory of its own in, or claim.
fn other_owner(data: &Path) -> Option<u32> {
    let data = std::path::absolute(data).ok()?;
    let around = data.ancestors().find_map(|above| std::fs::metadata(above).ok())?;
    (rustix::process::geteuid().is_root() && around.uid() != 0).then(|| around.uid())
}

/// What there is to lose. A directory that was claimed, or served until its source was refused, holds nothing yet; so a store
/// that is there is not enough.
fn stage_of(data: &Path) -> Stage {
    match Cursor::read_beside(data) {
        Some(_) => Stage::InUse,
        None => Stage::Unknown,
    }
}

/// All checks, without the made-up name.
async fn look(config: &PostgresConfig, stage: Stage) -> Vec<Finding> {
    let mut findings = check(config, stage).await;
    findings.iter_mut().for_each(unnamed);
    findings
}

fn unnamed(finding: &mut Finding) {
    let check = &mut finding.check;
    check.message = check.message.replace(UNNAMED, "(named after the data directory)");
    if check.remedy.contains(UNNAMED) {
        finding.repair.retain(|statement| !statement.contains(UNNAMED));
        let first = finding.repair.iter().map(|statement| format!("{statement}; -- then: "));
        check.remedy = first.chain([NEEDS_A_NAME.to_owned()]).collect();
    }
}

/// Statements that were not run yet, each once.
fn due(findings: &[Finding], run: &[Repair]) -> Vec<(String, bool)> {
    let mut due: Vec<(String, bool)> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.check.outcome == CheckOutcome::Failed) {
        for statement in &finding.repair {
            let known = run.iter().any(|repair| repair.statement == *statement);
            if !known && !due.iter().any(|(other, _)| other == statement) {
                due.push((statement.clone(), finding.needs_restart));
            }
        }
    }
    due
}

fn count(findings: &[Finding], outcome: CheckOutcome) -> usize {
    findings.iter().filter(|finding| finding.check.outcome == outcome).count()
}

fn print(findings: &[Finding], repairs: &[Repair]) -> Result<(), Failure> {
    for finding in findings {
        let check = &finding.check;
        say(&format!("{:<8} {:<26} {}", word(check.outcome), check.name, harmless(&check.message)))?;
        if !check.remedy.is_empty() {
            say(&format!("{:<8} {:<26}   {}", "", "", harmless(&check.remedy)))?;
        }
    }
    if repairs.iter().any(|repair| repair.needs_restart && repair.refused.is_none()) {
        say("restart Postgres for the changed settings to count, then check again")?;
    }
    let warnings = count(findings, CheckOutcome::Warning);
    say(&format!(
        "{} failed, {warnings} {}, {} ok",
        count(findings, CheckOutcome::Failed),
        if warnings == 1 { "warning" } else { "warnings" },
        count(findings, CheckOutcome::Ok)
    ))
}

/// The checks for a spreadsheet.
fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["outcome", "name", "code", "message", "remedy"]);
    for Finding { check, code, .. } in findings {
        let [name, code, message, remedy] = [check.name, code, &check.message, &check.remedy].map(str::to_owned);
        table.row([word(check.outcome).to_owned(), name, code, message, remedy]);
    }
    table
}

fn word(outcome: CheckOutcome) -> &'static str {
    match outcome {
        CheckOutcome::Ok => "ok",
        CheckOutcome::Warning => "warning",
        CheckOutcome::Failed => "failed",
    }
}

/// The same for programs.
fn document(findings: &[Finding], repairs: &[Repair]) -> Value {
    let checks: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut check = json!(finding.check);
            if let (Value::Object(check), false) = (&mut check, finding.code.is_empty()) {
                check.insert("code".to_owned(), json!(finding.code));
            }
            check
        })
        .collect();
    let statements: Vec<Value> = repairs
        .iter()
        .map(|repair| {
            json!({"statement": repair.statement, "refused": repair.refused, "needs_restart": repair.needs_restart})
        })
        .collect();
    json!({
        "failed": count(findings, CheckOutcome::Failed),
        "warnings": count(findings, CheckOutcome::Warning),
        "checks": checks,
        "statements": statements,
    })
}
