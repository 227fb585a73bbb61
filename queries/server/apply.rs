//! `tidemark apply`: makes the aggregates of a running server those of a directory. What is there and differs is never
//! touched: dropping it would lose what the definition says, and answers with it.

use std::io::Write;

use serde_json::Value;

use crate::cli::ApplyArguments;
use crate::client::{Client, Reply};
use crate::definition_file::DefinitionFile;
use crate::failure::Failure;

/// What became of one definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Created,
    Unchanged,
    Differs,
    Refused,
    Pruned,
}

impl Outcome {
    fn words(self, dry: bool) -> &'static str {
        match (self, dry) {
            (Outcome::Created, false) => "created",
            (Outcome::Created, true) => "would be created",
            (Outcome::Unchanged, _) => "unchanged",
            (Outcome::Differs, _) => "differs",
            (Outcome::Refused, _) => "refused",
            (Outcome::Pruned, false) => "pruned",
            (Outcome::Pruned, true) => "would be pruned",
        }
    }
}

/// Registers what the directory defines and, where asked, drops what it does not.
pub fn run(arguments: &ApplyArguments) -> Result<(), Failure> {
    let definitions = DefinitionFile::read_all(&arguments.directory)?;
    if definitions.is_empty() {
        // With --prune, a wrong directory would drop everything.
        return Err(Failure::Usage(format!("there are no .sql or .json files in {}", arguments.directory.display())));
    }
    let client = Client::new(&arguments.server)?;
    let dry = arguments.dry_run;
    let mut wrong = 0;
    for definition in &definitions {
        let (outcome, more) = if dry { foresee(&client, definition)? } else { register(&client, definition)? };
        say(outcome, dry, &definition.name, &more)?;
        wrong += usize::from(matches!(outcome, Outcome::Differs | Outcome::Refused));
    }
    if wrong > 0 {
        let pruned = if arguments.prune { "; nothing was pruned" } else { "" };
        return Err(Failure::Usage(format!(
            "{wrong} of {} definitions are not as in the directory{pruned}",
            definitions.len()
        )));
    }
    if arguments.prune {
        for name in client.names()?.iter().filter(|name| !definitions.iter().any(|one| one.name == **name)) {
            if !dry {
                client.delete(name)?.into_success()?;
            }
            say(Outcome::Pruned, dry, name, "")?;
        }
    }
    Ok(())
}

fn register(client: &Client, definition: &DefinitionFile) -> Result<(Outcome, String), Failure> {
    let reply = client.put(definition)?;
    Ok(match reply.status {
        202 => (Outcome::Created, String::new()),
        200 => (Outcome::Unchanged, String::new()),
        409 => (Outcome::Differs, reply.problem()),
        _ => refused(reply)?,
    })
}

fn foresee(client: &Client, definition: &DefinitionFile) -> Result<(Outcome, String), Failure> {
    let reply = client.preview(definition)?;
    if reply.status != 200 {
        return refused(reply);
    }
    let body: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    let differences: Vec<&str> = body
        .pointer("/registered/differences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match body.pointer("/registered/state").and_then(Value::as_str) {
        Some("absent") => Ok((Outcome::Created, String::new())),
        Some("same") => Ok((Outcome::Unchanged, String::new())),
        _ => Ok((Outcome::Differs, format!("it differs in {}", differences.join(", ")))),
    }
}

/// The server's failure ends it all; the caller's mistake concerns one definition.
fn refused(reply: Reply) -> Result<(Outcome, String), Failure> {
    if reply.status >= 500 {
        return Err(Failure::Failed(reply.problem()));
    }
    Ok((Outcome::Refused, reply.problem()))
}

fn say(outcome: Outcome, dry: bool, name: &str, more: &str) -> Result<(), Failure> {
    let mut text = format!("{:<16} {name}", outcome.words(dry));
    if !more.is_empty() {
        text.push_str(&format!(": {more}"));
    }
    writeln!(std::io::stdout(), "{text}").map_err(|error| Failure::Failed(error.to_string()))
}
