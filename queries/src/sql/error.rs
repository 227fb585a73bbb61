//! Why a statement was not understood: what is wrong, in which line and column, what to write instead.

use std::fmt;

use sqlparser::parser::ParserError;
use sqlparser::tokenizer::Location;

/// Longest part of a line that is shown, in characters.
const MAX_EXCERPT: usize = 120;

/// Why a statement was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SqlError {
    /// Stable name of the reason.
    pub code: &'static str,
    /// It is no statement at all, rather than one that is refused.
    pub malformed: bool,
    /// What is wrong.
    pub message: String,
    /// What to write instead; may be empty.
    pub hint: String,
    /// Where.
    pub place: Place,
}

/// A place in a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Character in the line, from 1.
    pub column: u64,
    /// The line, and under it a caret at the character.
    pub excerpt: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (line {}, column {})", self.message, self.place.line, self.place.column)
    }
}

impl SqlError {
    /// What cannot be read.
    pub(super) fn malformed(text: &str, at: Location, message: impl Into<String>) -> SqlError {
        SqlError { malformed: true, ..SqlError::refused(text, at, "malformed_sql", message) }
    }

    /// What can be read and is refused.
    pub(super) fn refused(text: &str, at: Location, code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError { code, malformed: false, message: message.into(), hint: String::new(), place: Place::of(text, at) }
    }

    /// With what to write instead.
    pub(super) fn hint(self, hint: impl Into<String>) -> SqlError {
        SqlError { hint: hint.into(), ..self }
    }

    /// What sqlparser could not read. It tells the place as part of its message.
    pub(super) fn of_parser(text: &str, error: &ParserError) -> SqlError {
        let message = match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.as_str(),
            ParserError::RecursionLimitExceeded => "the expression is nested too deeply",
        };
        let (message, at) = match message.split_once(" at Line: ") {
            Some((message, place)) => (message, location(place)),
            None => (message, None),
        };
        SqlError::malformed(text, at.unwrap_or_else(|| end(text)), message)
    }
}

/// `1, Column: 5`
fn location(place: &str) -> Option<Location> {
    let (line, column) = place.split_once(", Column: ")?;
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    Some(Location { line: line.parse().ok()?, column: column.parse().ok()? }).filter(|at| at.line > 0)
}

/// Behind the last character.
fn end(text: &str) -> Location {
    let text = text.trim_end();
    let last = text.rsplit('\n').next().unwrap_or_default();
    Location { line: text.matches('\n').count() as u64 + 1, column: last.chars().count() as u64 + 1 }
}

impl Place {
    pub(super) fn of(text: &str, at: Location) -> Place {
        // The end of the text has no place of its own in sqlparser.
        let at = if at.line == 0 { end(text) } else { at };
        let line = text.lines().nth(usize::try_from(at.line - 1).unwrap_or_default()).unwrap_or_default();
        let column = usize::try_from(at.column.max(1) - 1).unwrap_or_default();
        let skipped = column.saturating_sub(MAX_EXCERPT / 2);
        let shown: String = line.chars().skip(skipped).take(MAX_EXCERPT).collect();
        // Tabs stay tabs, so that the caret stands where the character does.
        let before = line.chars().skip(skipped).take(column - skipped);
        let padding: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        Place { line: at.line, column: column as u64 + 1, excerpt: format!("{shown}\n{padding}^") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_under_its_line() {
        let place = Place::of("SELECT 1\n\tFORM t", Location { line: 2, column: 2 });
        assert_eq!((place.line, place.column, place.excerpt.as_str()), (2, 2, "\tFORM t\n\t^"));
        let place = Place::of("SELECT 1\nFROM", Location { line: 0, column: 0 });
        assert_eq!((place.line, place.column, place.excerpt.as_str()), (2, 5, "FROM\n    ^"));
        let long = format!("{}x", " ".repeat(500));
        let place = Place::of(&long, Location { line: 1, column: 501 });
        assert_eq!((place.column, place.excerpt.len()), (501, 60 + 1 + 1 + 60 + 1));
        assert_eq!(Place::of("", Location { line: 9, column: 9 }).excerpt, "\n^");
    }

    #[test]
    fn what_sqlparser_says_keeps_its_place() {
        let error = ParserError::ParserError("Expected: ), found: EOF at Line: 3, Column: 7".to_owned());
        let error = SqlError::of_parser("a\nb\nccccccc", &error);
        assert_eq!((error.place.line, error.place.column, error.message.as_str()), (3, 7, "Expected: ), found: EOF"));
    }
}
