//! `tidemark query NAME`: an aggregate's answer. CSV is the server's own, so that its rules about spreadsheets are one.

use serde_json::Value;

use crate::cli::{OutputFormat, QueryArguments};
use crate::client::Client;
use crate::document::{field, list, parse, plain};
use crate::failure::Failure;
use crate::output::{say, say_document};
use crate::table::{Column, Table, harmless};

/// Asks and prints.
pub fn run(arguments: &QueryArguments) -> Result<(), Failure> {
    let output = arguments.printing.output;
    let form = if output == OutputFormat::Csv { "data.csv" } else { "data.json" };
    let text = Client::new(&arguments.server)?.data(&arguments.question, form)?.into_success()?;
    match output {
        OutputFormat::Json => say_document(&text),
        OutputFormat::Csv => say(text.trim_end_matches("\r\n")),
        OutputFormat::Table => report(&text),
    }
}

/// The rows, and of which position they are true.
fn report(text: &str) -> Result<(), Failure> {
    let document = parse(text)?;
    let Some(rows) = document.get("data").and_then(Value::as_array) else {
        // As columns of arrays, as they were asked for.
        return say_document(text);
    };
    let columns: Vec<Column> = list(&document, "columns").map(Column::of_answer).collect();
    let names: Vec<String> = columns.iter().map(|column| column.name().to_owned()).collect();
    let mut table = Table::with_columns(columns);
    for row in rows {
        table.row(names.iter().map(|name| row.get(name).map_or_else(String::new, plain)));
    }
    table.print()?;
    for warning in list(&document, "warnings") {
        say(&format!("warning: {}", harmless(&field(warning, "message"))))?;
    }
    let as_of = document.get("as_of").unwrap_or(&Value::Null);
    let (lsn, time, lag_ms) = (field(as_of, "lsn"), field(as_of, "commit_time"), field(as_of, "lag_ms"));
    say(&format!("{} rows at {lsn} of {time}, {lag_ms} ms behind", rows.len()))?;
    match document.pointer("/page/next").and_then(Value::as_str) {
        Some(next) => say(&format!("there are more: cursor={next}")),
        None => Ok(()),
    }
}
