//! `tidemark list`: the aggregates of a running server, a line each.

use crate::cli::{ListArguments, OutputFormat};
use crate::client::Client;
use crate::document::{field, joined, list, parse};
use crate::failure::Failure;
use crate::output::{remark, say_document};
use crate::table::Table;

/// Asks and prints.
pub fn run(arguments: &ListArguments) -> Result<(), Failure> {
    let text = Client::new(&arguments.server)?.list()?;
    if arguments.printing.output == OutputFormat::Json {
        return say_document(&text);
    }
    let document = parse(&text)?;
    let mut table = Table::new(&["name", "state", "table", "levels", "time_zone", "dimensions", "measures"]);
    for entry in list(&document, "data") {
        let [name, state, of, zone] = ["name", "state", "table", "time_zone"].map(|name| field(entry, name));
        let [levels, dimensions, measures] = ["levels", "dimensions", "measures"].map(|name| joined(entry, name));
        table.row([name, state, of, levels, zone, dimensions, measures]);
    }
    if arguments.printing.output == OutputFormat::Csv {
        return table.print_csv();
    }
    if list(&document, "data").next().is_none() {
        remark("there are no aggregates yet; `tidemark register FILE` makes one");
    }
    table.print()
}
