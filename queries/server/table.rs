//! Rows for people and for spreadsheets. The surprise: what stands in a cell was written by others. On a terminal it could
//! move the cursor or change what stands elsewhere, in a spreadsheet it could be a formula.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement};
use serde_json::Value;

use crate::failure::Failure;
use crate::output::say;

/// Space between two columns.
const GAP: (u16, u16) = (0, 2);

/// Rows of text under names.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    name: String,
    /// Digits stand below each other.
    is_number: bool,
}

impl Column {
    /// A column of an answer, as the server describes it.
    pub fn of_answer(described: &Value) -> Column {
        let text = |field: &str| described.get(field).and_then(Value::as_str).unwrap_or_default();
        let is_number = matches!(text("type"), "int64" | "decimal" | "float64");
        Column { name: text("name").to_owned(), is_number }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Table {
    /// An empty table with columns of text.
    pub fn new(names: &[&str]) -> Table {
        let columns = names.iter().map(|name| Column { name: (*name).to_owned(), is_number: false });
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    /// An empty table with these columns.
    pub fn with_columns(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it for people; nothing where there are no rows.
    pub fn print(&self) -> Result<(), Failure> {
        if self.rows.is_empty() { Ok(()) } else { self.text().lines().try_for_each(say) }
    }

    /// Prints it as CSV.
    pub fn print_csv(&self) -> Result<(), Failure> {
        self.csv_lines().try_for_each(|line| say(&line))
    }

    fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.columns.iter().map(|column| column.name.to_uppercase()));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| harmless(cell)));
        }
        for (drawn, column) in table.column_iter_mut().zip(&self.columns) {
            drawn.set_padding(GAP);
            drawn.set_cell_alignment(if column.is_number { CellAlignment::Right } else { CellAlignment::Left });
        }
        table.trim_fmt()
    }

    /// The head and a line per row, without what ends them.
    pub fn csv_lines(&self) -> impl Iterator<Item = String> + '_ {
        let head = csv_line(self.columns.iter().map(|column| Some(column.name.as_str())));
        let written =
            |row: &Vec<String>| csv_line(row.iter().map(|cell| Some(cell.as_str()).filter(|cell| !cell.is_empty())));
        std::iter::once(head).chain(self.rows.iter().map(written))
    }
}

/// Fields as a line of CSV (RFC 4180); `None`, which is NULL, is nothing at all, the empty text is quoted.
pub fn csv_line<'t>(fields: impl Iterator<Item = Option<&'t str>>) -> String {
    fields.map(|field| field.map_or_else(String::new, csv_field)).collect::<Vec<_>>().join(",")
}

/// A text that a spreadsheet would run begins with an apostrophe; numbers may begin with a minus.
fn csv_field(text: &str) -> String {
    let runs = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err();
    let text = if runs { format!("'{text}") } else { text.to_owned() };
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// Text that a terminal shows and does not obey: control characters, and those that turn the direction of writing, as
/// they would be written in code.
pub fn harmless(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if obeyed(c) {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cell: &str) -> Table {
        let mut table = Table::with_columns(vec![
            Column { name: "name".to_owned(), is_number: false },
            Column { name: "n".to_owned(), is_number: true },
        ]);
        table.row([cell.to_owned(), "7".to_owned()]);
        table.row(["b".to_owned(), "1200.50".to_owned()]);
        table
    }

    #[test]
    fn columns_stand_below_each_other() {
        assert_eq!(of("payments").text(), "NAME            N\npayments        7\nb         1200.50");
        // Two cells wide each.
        assert_eq!(of("支払").text(), "NAME        N\n支払        7\nb     1200.50");
    }

    #[test]
    fn a_cell_moves_no_cursor_and_runs_nothing() {
        let shown = of("\u{1b}[2Jx\ny\u{202e}z").text();
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown}");
        assert_eq!(shown.lines().count(), 3, "{shown}");
        let lines: Vec<_> = of("=cmd|' /C calc'!A0, \"x\"").csv_lines().collect();
        assert_eq!(lines, ["name,n", "\"'=cmd|' /C calc'!A0, \"\"x\"\"\",7", "b,1200.50"]);
        assert_eq!(csv_line([Some("-12.5"), Some("-x"), None, Some("")].into_iter()), "-12.5,'-x,,\"\"");
    }
}
