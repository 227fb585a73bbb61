//! `tidemark verify`: has a running server compare its cells, and prints what differs.

use serde_json::{Value, json};

use crate::cli::{OutputFormat, VerifyArguments};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::say;

/// Fails with [`Failure::Differs`] where a cell does.
pub fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    // Exit code 1 says that something differs, and nothing else.
    compare(arguments).map_err(|failure| match failure {
        Failure::Failed(message) => Failure::Unanswered(message),
        other => other,
    })
}

fn compare(arguments: &VerifyArguments) -> Result<(), Failure> {
    let VerifyArguments { name, from, to, against, output, server } = arguments;
    let request = json!({"aggregate": name, "from": from, "to": to, "against": against});
    let text = Client::new(server)?.verify(&request)?.into_success()?;
    let found: Value =
        serde_json::from_str(&text).map_err(|error| Failure::Failed(format!("the answer cannot be read: {error}")))?;
    match output {
        OutputFormat::Text => report(&found)?,
        OutputFormat::Json => say(&text)?,
    }
    if found.get("equal") == Some(&Value::Bool(true)) {
        return Ok(());
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
            say(&format!("         {key}"))?;
            say(&format!("           stored    {}", stored.unwrap_or_default()))?;
            say(&format!("           expected  {}", expected.unwrap_or_default()))?;
        }
    }
    for skipped in list(found, "skipped") {
        say(&format!("{:<8} {:<30} {}", "skipped", field(skipped, "aggregate"), field(skipped, "message")))?;
    }
    say(&format!(
        "{} cells compared with {} at {} in {} ms",
        field(found, "cells"),
        field(found, "against"),
        field(found, "lsn"),
        field(found, "took_ms")
    ))
}

fn list<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// A field as people read it.
fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
