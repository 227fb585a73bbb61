//! A live answer drawn as bars, one row each, for a terminal. It is drawn again in place, so no line may be wider than the
//! terminal and no picture higher: what does not fit is left out, the oldest first.
//!
//! Bars are of the rows that are shown, from zero. Numbers are the server's text: they are turned into floats only to be drawn.

use serde_json::Value;

use crate::document::plain;
use crate::table::harmless;

/// Smallest room for a bar.
const MIN_BAR: usize = 8;
/// Widest label.
const MAX_LABEL: usize = 40;
/// Lines that are not bars: the title, and what stands below.
const FRAME: usize = 3;

/// Cells of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// In a line.
    pub columns: usize,
    /// From top to bottom.
    pub lines: usize,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Its time and group.
    pub label: String,
    /// The number as it was sent.
    pub value: String,
    /// It changed since the last picture.
    pub changed: bool,
    /// Its time is not over.
    pub open: bool,
}

impl Bar {
    /// Of a row of an answer.
    pub fn of(row: &Value, keys: &[String], measure: &str, changed: bool) -> Bar {
        let label = keys.iter().filter_map(|key| row.get(key)).map(plain).map(|text| harmless(&text));
        Bar {
            label: label.collect::<Vec<_>>().join(" "),
            value: row.get(measure).map_or_else(String::new, plain),
            changed,
            open: row.get("complete") == Some(&Value::Bool(false)),
        }
    }

    /// As it is drawn: NULL and what is not finite as nothing.
    pub fn number(&self) -> f64 {
        self.value.parse::<f64>().ok().filter(|number| number.is_finite()).unwrap_or_default()
    }
}

/// Bars that fit.
pub fn room(size: Size) -> usize {
    size.lines.saturating_sub(FRAME).max(1)
}

/// The picture's lines.
pub fn draw(title: &str, bars: &[Bar], below: &str, size: Size) -> Vec<String> {
    let left_out = bars.len().saturating_sub(room(size));
    let shown = bars.get(left_out..).unwrap_or_default();
    let width = |text: &str| text.chars().count();
    let value_room = size.columns.saturating_sub(1);
    let value_width = shown.iter().map(|bar| width(&bar.value)).max().unwrap_or_default().min(value_room);
    // A number is shown whole or not at all: the label makes room for it.
    let longest = size.columns.saturating_sub(value_width + 1).min(MAX_LABEL);
    let label_width = shown.iter().map(|bar| width(&bar.label)).max().unwrap_or_default().min(longest);
    let bar_width = size.columns.saturating_sub(label_width + value_width + 5).max(MIN_BAR);
    let highest = shown.iter().map(|bar| bar.number().abs()).fold(0.0, f64::max);
    let mut lines = vec![title.to_owned()];
    for bar in shown {
        let filled = filled(bar.number(), highest, bar_width, bar.open);
        let label: String = bar.label.chars().take(label_width).collect();
        let mark = if bar.changed { '*' } else { ' ' };
        let value = if width(&bar.value) <= value_room { bar.value.as_str() } else { "…" };
        lines.push(format!("{label:<label_width$} {value:>value_width$} {mark} {filled}"));
    }
    let older = if left_out > 0 { format!("{left_out} rows before these are not shown; ") } else { String::new() };
    lines.push(format!("{older}{below}"));
    lines.iter().map(|line| line.chars().take(size.columns).collect()).collect()
}

/// A bar in eighths of a cell. What is less than zero, and what is not over, look different.
fn filled(number: f64, highest: f64, width: usize, open: bool) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if highest == 0.0 {
        return String::new();
    }
    let eighths = (number.abs() / highest * width as f64 * 8.0).round() as usize;
    let full = eighths / 8;
    if number < 0.0 {
        return "-".repeat(full.max(1));
    }
    if open {
        return "░".repeat(full.max(usize::from(number > 0.0)));
    }
    format!("{}{}", "█".repeat(full), EIGHTHS.get(eighths % 8).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn bars(values: &[&str]) -> Vec<Bar> {
        let bar = |(at, value): (usize, &&str)| {
            let row = json!({"time": format!("2026-{:02}", at + 1), "currency": "EUR", "n": value, "complete": at + 1 < values.len()});
            Bar::of(&row, &["time".to_owned(), "currency".to_owned()], "n", at == 0)
        };
        values.iter().enumerate().map(bar).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let size = Size { columns: 40, lines: 20 };
        let lines = draw("payments: n", &bars(&["100", "50", "-25", "100"]), "at 0/1", size);
        assert_eq!(lines.len(), 6);
        let length = |line: &str, of: char| line.chars().filter(|c| *c == of).count();
        let full = length(&lines[1], '█');
        assert_eq!(full, 40 - "2026-01 EUR".len() - 3 - 5);
        assert!(lines[1].contains("100 * "), "{lines:?}");
        assert_eq!(length(&lines[2], '█'), full / 2);
        assert_eq!(length(&lines[3].split_off_label(), '-'), full / 4);
        assert_eq!(length(&lines[4], '░'), full, "a month that is not over looks like one that is");
    }

    /// A part of a number is another number.
    #[test]
    fn a_number_is_shown_whole_or_not_at_all() {
        let long = || bars(&["1357519.50", "2"]);
        for columns in 11..60 {
            let lines = draw("t", &long(), "", Size { columns, lines: 20 });
            assert!(lines[1].contains("1357519.50"), "{columns}: {}", lines[1]);
        }
        let lines = draw("t", &long(), "", Size { columns: 10, lines: 20 });
        assert!(lines[1].contains('…') && !lines[1].contains("135"), "{}", lines[1]);
    }

    trait SplitOffLabel {
        fn split_off_label(&self) -> String;
    }

    impl SplitOffLabel for String {
        fn split_off_label(&self) -> String {
            self.chars().skip("2026-01 EUR -25   ".len()).collect()
        }
    }

    #[test]
    fn a_picture_is_never_larger_than_the_terminal() {
        let long = bars(&["1"; 100]);
        for (columns, lines) in [(80, 24), (20, 5), (1, 1), (0, 0)] {
            let drawn = draw(&"t".repeat(200), &long, "below", Size { columns, lines });
            assert!(drawn.len() <= lines.max(FRAME), "{columns} {lines}: {}", drawn.len());
            assert!(drawn.iter().all(|line| line.chars().count() <= columns), "{drawn:?}");
        }
        let drawn = draw("t", &long, "below", Size { columns: 80, lines: 24 });
        assert_eq!(drawn.last().unwrap(), "79 rows before these are not shown; below");
    }
}
