//! Medians, quantiles, and the tables that are printed.

use std::fmt;
use std::time::Duration;

/// The middle value; of an even number the lower one; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Durations of one kind of thing.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Sorts them.
    pub fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort();
        Latencies(durations)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that this share does not exceed, as text.
    pub fn quantile(&self, share: f64) -> String {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1).min(self.0.len().saturating_sub(1))).map_or("-".to_owned(), |d| short(*d))
    }
}

/// `870 us`, `12.3 ms`, `4.56 s`.
pub fn short(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Thousands per second.
pub fn rate(count: i64, seconds: f64) -> String {
    format!("{:.0} k/s", count as f64 / seconds / 1e3)
}

/// A table with a title, and remarks below.
#[derive(Debug)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
    remarks: Vec<String>,
}

impl Table {
    /// With this first row.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let mut table = Table { title: title.to_owned(), rows: Vec::new(), remarks: Vec::new() };
        table.row(columns);
        table
    }

    /// One more row.
    pub fn row(&mut self, fields: &[&str]) {
        self.rows.push(fields.iter().map(|field| (*field).to_owned()).collect());
    }

    /// One more line below the rows.
    pub fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}", self.title)?;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| Some(row.get(column)?.len())).max().unwrap_or_default())
            .collect();
        for row in self.rows.iter().filter(|row| row.iter().any(|field| !field.is_empty())) {
            let fields = row.iter().zip(&widths).map(|(field, width)| format!("{field:width$}"));
            writeln!(f, "  {}", fields.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "  - {remark}"))
    }
}
