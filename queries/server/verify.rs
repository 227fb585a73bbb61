//! `tidemark verify`: has a running server compare its cells, and prints what differs.

use serde_json::{Value, json};

use crate::cli::{OutputFormat, VerifyArguments};
use crate::client::Client;
use crate::document::{field, list, parse, plain};
use crate::failure::Failure;
use crate::output::{remark, say};
use crate::progress;
use crate::table::{Table, harmless};

/// Fails with [`Failure::Differs`] where a cell does.
pub fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    // Exit code 1 says that something differs, and nothing else.
    compare(arguments).map_err(|failure| match failure {
        Failure::Failed(message) => Failure::Unanswered(message),
        other => other,
    })
}

fn compare(arguments: &VerifyArguments) -> Result<(), Failure> {
    let VerifyArguments { name, from, to, against, printing, server } = arguments;
    let request = json!({"aggregate": name, "from": from, "to": to, "against": against});
    let client = Client::new(server)?;
    let text = progress::waiting("comparing", || client.verify(&request))?.into_success()?;
    let found = parse(&text)?;
    match printing.output {
        OutputFormat::Table => report(&found)?,
        OutputFormat::Json => say(&text)?,
        OutputFormat::Csv => differences(&found).print_csv()?,
    }
    let (skipped, compared) = (list(&found, "skipped").count(), list(&found, "aggregates").count());
    if skipped > 0 {
        remark(&format!("{skipped} of {} aggregates were not compared", skipped + compared));
    }
    if found.get("equal") == Some(&Value::Bool(true)) {
        // Nothing differs in nothing.
        return if skipped > 0 && compared == 0 {
            Err(Failure::Unanswered("nothing was compared".to_owned()))
        } else {
            Ok(())
        };
    }
    Err(Failure::Differs(format!("{} of {} cells differ", field(&found, "differing"), field(&found, "cells"))))
}

/// The document for people: a line per aggregate, then the keys that differ.
fn report(found: &Value) -> Result<(), Failure> {
    for aggregate in list(found, "aggregates") {
        let levels: Vec<String> = list(aggregate, "levels")
            .map(|level| format!("{} cells by {}", field(level, "cells"), field(level, "granularity")))
            .collect();
        let word = if aggregate.get("equal") == Some(&Value::Bool(true)) { "equal" } else { "differs" };
        say(&format!("{word:<8} {:<30} {}", field(aggregate, "aggregate"), levels.join(", ")))?;
        for difference in list(aggregate, "differences") {
            let mut key = difference.clone();
            let sides = key.as_object_mut().map(|key| (key.remove("stored"), key.remove("expected")));
            let (stored, expected) = sides.unwrap_or_default();
            let shown = |value: Option<Value>| harmless(&value.unwrap_or_default().to_string());
            say(&format!("         {}", shown(Some(key))))?;
            say(&format!("           stored    {}", shown(stored)))?;
            say(&format!("           expected  {}", shown(expected)))?;
        }
    }
    for skipped in list(found, "skipped") {
        let why = harmless(&field(skipped, "message"));
        say(&format!("{:<8} {:<30} {why}", "skipped", field(skipped, "aggregate")))?;
    }
    if found.get("cells").and_then(Value::as_u64) == Some(0) {
        return say(&format!("nothing was compared: there is no cell at {}", field(found, "lsn")));
    }
    say(&format!(
        "{} cells compared with {} at {} in {} ms",
        field(found, "cells"),
        field(found, "against"),
        field(found, "lsn"),
        field(found, "took_ms")
    ))
}

/// The keys that differ, a line each; none where everything is equal.
fn differences(found: &Value) -> Table {
    let mut table = Table::new(&["aggregate", "granularity", "time", "key", "stored", "expected"]);
    for aggregate in list(found, "aggregates") {
        for difference in list(aggregate, "differences") {
            let mut key = difference.clone();
            let mut take = |name: &str| {
                key.as_object_mut().and_then(|key| key.remove(name)).as_ref().map_or_else(String::new, plain)
            };
            let [granularity, time, stored, expected] = ["granularity", "time", "stored", "expected"].map(&mut take);
            table.row([field(aggregate, "aggregate"), granularity, time, plain(&key), stored, expected]);
        }
    }
    table
}
