//! `tidemark query NAME`: an aggregate's answer. CSV is the server's own, so that its rules about spreadsheets are one.

use serde_json::Value;

use crate::cli::{OutputFormat, QueryArguments, Question};
use crate::client::Client;
use crate::document::{field, list, parse, plain};
use crate::failure::Failure;
use crate::output::{remark, say, say_document};
use crate::table::{Column, Table, harmless};

/// Asks and prints.
pub fn run(arguments: &QueryArguments) -> Result<(), Failure> {
    let output = arguments.printing.output;
    let client = Client::new(&arguments.server)?;
    if output == OutputFormat::Csv {
        return write_csv(&client, &arguments.question);
    }
    let text = client.data(&arguments.question, "data.json")?.into_success()?;
    if output == OutputFormat::Json { say_document(&text) } else { report(&text) }
}

/// All rows, under one head: what reads them would not notice that there are more. One page where one was asked for.
fn write_csv(client: &Client, question: &Question) -> Result<(), Failure> {
    let one_page = question.parameters.iter().any(|(key, _)| key == "limit" || key == "cursor");
    let mut question = question.clone();
    let mut pages = 0;
    loop {
        let reply = client.data(&question, "data.csv")?;
        let next = reply.next.clone();
        let text = reply.into_success()?;
        let rows = if pages == 0 { text.as_str() } else { text.split_once("\r\n").map_or("", |(_, rows)| rows) };
        say(rows.trim_end_matches("\r\n"))?;
        pages += 1;
        question.parameters.retain(|(key, _)| key != "cursor");
        match next {
            Some(next) if one_page => {
                remark(&format!("there are more: cursor={next}"));
                return Ok(());
            }
            Some(next) => question.parameters.push(("cursor".to_owned(), next)),
            None => return Ok(()),
        }
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
    let (lsn, time, state) = (field(as_of, "lsn"), field(as_of, "commit_time"), field(as_of, "state"));
    // While upstream is away nobody knows how far behind.
    let behind = match state.as_str() {
        "live" | "catching_up" => format!("{} ms behind", field(as_of, "lag_ms")),
        _ => format!("the source is {state}"),
    };
    say(&format!("{} rows at {lsn} of {time}, {behind}", rows.len()))?;
    match document.pointer("/page/next").and_then(Value::as_str) {
        Some(next) => say(&format!("there are more: cursor={next}")),
        None => Ok(()),
    }
}
