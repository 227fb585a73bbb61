//! `tidemark explain NAME`: what is read for a question, and why not something else.

use serde_json::Value;

use crate::cli::{ExplainArguments, OutputFormat};
use crate::client::Client;
use crate::document::{field, list, parse};
use crate::failure::Failure;
use crate::output::{say, say_document};
use crate::table::{Table, harmless};

/// Asks and prints.
pub fn run(arguments: &ExplainArguments) -> Result<(), Failure> {
    let text = Client::new(&arguments.server)?.explain(&arguments.question, arguments.analyze)?;
    match arguments.printing.output {
        OutputFormat::Json => say_document(&text),
        OutputFormat::Csv => {
            let document = parse(&text)?;
            let names = ["level", "from", "to", "min_key", "min_inclusive", "max_key", "max_inclusive"];
            ranges(&document, &names).print_csv()
        }
        OutputFormat::Table => report(&parse(&text)?),
    }
}

/// What is read. Keys are for programs.
fn ranges(document: &Value, names: &[&str]) -> Table {
    let mut table = Table::new(names);
    for range in list(document, "ranges") {
        table.row(names.iter().map(|name| field(range, name)));
    }
    table
}

fn report(document: &Value) -> Result<(), Failure> {
    let of = |name: &str| field(document, name);
    let how = match of("access").as_str() {
        "points" => "cells found one by one",
        _ => "runs of neighbouring cells",
    };
    say(&format!("{} answers, by {} in {}: {how}", harmless(&of("aggregate")), of("granularity"), of("time_zone")))?;
    say(&format!("at most {} cells", of("cells_estimated")))?;
    if document.get("cells_read").is_some() {
        say(&format!("{} cells read, {} rows answered in {} us", of("cells_read"), of("rows"), of("took_us")))?;
    }
    say("")?;
    ranges(document, &["level", "from", "to"]).print()?;
    let mut reasons = Table::new(&["not read", "because"]);
    for level in list(document, "levels").filter(|level| level.get("used") == Some(&Value::Bool(false))) {
        reasons.row([field(level, "level"), field(level, "reason")]);
    }
    for other in list(document, "alternatives") {
        let because = format!("it would read {} cells", field(other, "cells_estimated"));
        reasons.row([field(other, "aggregate"), because]);
    }
    for other in list(document, "why_not") {
        reasons.row([field(other, "aggregate"), format!("{} [{}]", field(other, "reason"), field(other, "code"))]);
    }
    say("")?;
    reasons.print()
}
