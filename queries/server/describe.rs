//! `tidemark describe NAME`: one aggregate of a running server, what it means and how far it is.

use serde_json::Value;

use crate::cli::{DescribeArguments, OutputFormat};
use crate::client::Client;
use crate::document::{field, joined, list, parse};
use crate::failure::Failure;
use crate::output::{say, say_document};
use crate::table::{Table, harmless};

/// Asks and prints.
pub fn run(arguments: &DescribeArguments) -> Result<(), Failure> {
    let text = Client::new(&arguments.server)?.describe(&arguments.name)?;
    match arguments.printing.output {
        OutputFormat::Json => say_document(&text),
        OutputFormat::Csv => columns(&parse(&text)?).print_csv(),
        OutputFormat::Table => report(&parse(&text)?),
    }
}

/// The columns of its answers.
fn columns(document: &Value) -> Table {
    let names = ["name", "type", "role", "granularity", "time_zone", "scale"];
    let mut table = Table::new(&names);
    for column in list(document, "columns") {
        table.row(names.map(|name| field(column, name)));
    }
    table
}

fn report(document: &Value) -> Result<(), Failure> {
    let line = |name: &str, text: &str| {
        if text.is_empty() { Ok(()) } else { say(&format!("{name:<11} {}", harmless(text))) }
    };
    line("name", &field(document, "name"))?;
    line("version", &field(document, "version"))?;
    line("state", &field(document, "state"))?;
    if let Some(halted) = document.get("halted") {
        line("halted", &format!("{} [{}]", field(halted, "message"), field(halted, "code")))?;
        line("remedy", &field(halted, "remedy"))?;
    }
    line("progress", &progress(document.get("progress")))?;
    if let Some(next) = document.get("next") {
        let next = format!("{} is {} {}", field(next, "version"), field(next, "state"), progress(next.get("progress")));
        line("next", next.trim_end())?;
    }
    line("levels", &joined(document, "levels"))?;
    for warning in list(document, "warnings") {
        line("warning", &format!("{} [{}]", field(warning, "message"), field(warning, "code")))?;
    }
    say("")?;
    field(document, "sql").lines().try_for_each(|sql| say(&harmless(sql)))?;
    say("")?;
    columns(document).print()
}

fn progress(progress: Option<&Value>) -> String {
    let Some(progress) = progress.filter(|progress| !progress.is_null()) else { return String::new() };
    let mut text = format!("{} of about {} rows", field(progress, "rows_done"), field(progress, "rows_estimated"));
    if let Some(seconds) = progress.get("eta_seconds").and_then(Value::as_f64) {
        text.push_str(&format!(", {seconds:.0} s to go"));
    }
    text
}
