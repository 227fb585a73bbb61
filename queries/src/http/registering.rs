//! From a body, in JSON or in SQL, to the definition it asks for, and from a refusal back to the place in the body.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use engine::change::{ColumnType, ValueRef};
use engine::engine::RegisterError;
use engine::materialization::bucket::days_from_civil;
use engine::materialization::{Calendar, DateCodec, Definition, DefinitionError};
use engine::source::FollowedTable;

use super::extract::{MediaType, media_type, parse_definition, unreadable};
use super::routes::aggregates::refusal;
use super::state::AppState;
use crate::api::problem::WrongPart;
use crate::api::{Problem, Warning};
use crate::query::instant::format_instant;
use crate::query::suggestion::did_you_mean;
use crate::sql::{Look, Registration, SqlError};

/// Rows looked at to find out how numbers are dates.
const LOOK_ROWS: u64 = 1_000;
const DAY_US: i64 = 86_400_000_000;

/// A definition as it was sent, and the tables it may be about.
pub(super) struct Wanted {
    pub(super) definition: Definition,
    /// What SQL says beside the definition.
    pub(super) registration: Option<Registration>,
    tables: Vec<Arc<FollowedTable>>,
}

impl FromRequest<AppState> for Wanted {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let media_type = media_type(request.headers())?;
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        let wanted = Wanted::read(state, media_type, &body, state.engine.tables_when_known().await)?;
        if wanted.table().is_some() {
            return Ok(wanted);
        }
        state.engine.wait_for_join(&wanted.definition.qualified_table()).await?;
        // What SQL means depends on the types of columns: it is read again, as the table is there now.
        Wanted::read(state, media_type, &body, state.engine.tables())
    }
}

impl Wanted {
    fn read(
        state: &AppState,
        media_type: MediaType,
        body: &[u8],
        tables: Vec<Arc<FollowedTable>>,
    ) -> Result<Wanted, Problem> {
        match media_type {
            MediaType::Json => Ok(Wanted { definition: parse_definition(body)?, registration: None, tables }),
            MediaType::Sql => {
                let text = std::str::from_utf8(body)
                    .map_err(|_| Problem::new(400, "malformed_sql", "the statement is not UTF-8"))?;
                let look = TableLook { state, tables: &tables };
                let registration = Registration::parse(text, &look)?;
                Ok(Wanted { definition: registration.definition.clone(), registration: Some(registration), tables })
            }
        }
    }

    /// Refuses a statement that names another aggregate than the URL.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Problem> {
        match &self.registration {
            Some(registration) if registration.name != name => Err(Problem::new(
                422,
                "name_differs",
                format!("the statement is of {:?}, the URL of {name:?}", registration.name),
            )
            .hint(format!("PUT /v1/aggregates/{}; names without quotes are in lower case", registration.name))),
            _ => Ok(()),
        }
    }

    /// An aggregate that is there already is left as it is.
    pub(super) fn leaves_existing(&self) -> bool {
        self.registration.as_ref().is_some_and(|registration| registration.if_not_exists)
    }

    /// The table it is over, where there is such.
    pub(super) fn table(&self) -> Option<&Arc<FollowedTable>> {
        let name = self.definition.qualified_table();
        self.tables.iter().find(|table| table.schema.qualified_name() == name)
    }

    /// What SQL said without effect.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        self.registration.as_ref().map(|registration| registration.warnings.clone()).unwrap_or_default()
    }

    /// A definition that does not fit its table, with its place in the body.
    pub(super) fn invalid(&self, state: &AppState, error: DefinitionError) -> Problem {
        let place = self.registration.as_ref().and_then(|registration| registration.place(&error)).cloned();
        let seen = match (&self.definition.time, error.code) {
            (Some(time), "codec_needed" | "codec_too_long") => {
                let look = TableLook { state, tables: &self.tables };
                look.dates(&self.definition.qualified_table(), &time.column)
            }
            _ => None,
        };
        let mut problem = Problem::from(error);
        if let Some(seen) = seen {
            problem.hint = format!("{seen}; {}", problem.hint);
        }
        if let (Some(part), Some(place)) = (problem.errors.first_mut(), place) {
            (part.line, part.column, part.excerpt) = (Some(place.line), Some(place.column), Some(place.excerpt));
        }
        problem
    }

    /// There is no such table.
    pub(super) fn unknown_table(&self, state: &AppState) -> Problem {
        let table = self.definition.qualified_table();
        let known = self.tables.iter().map(|table| table.schema.qualified_name()).collect();
        self.refusal(state, "", RegisterError::UnknownTable { table, known })
    }

    /// Why it was not registered.
    pub(super) fn refusal(&self, state: &AppState, name: &str, error: RegisterError) -> Problem {
        let message = error.to_string();
        match error {
            RegisterError::UnknownTable { table, known } => {
                let near = did_you_mean(&table, known.iter().map(String::as_str));
                let follow = format!("to have another one followed: POST /v1/sources/{}/tables", state.source_name);
                let hint = if near.is_empty() { follow } else { format!("{near}; {follow}") };
                self.invalid(
                    state,
                    DefinitionError { pointer: "/table".to_owned(), code: "unknown_table", message, hint },
                )
            }
            RegisterError::Invalid(error) => self.invalid(state, error),
            other => refusal(name, other),
        }
    }
}

impl From<SqlError> for Problem {
    fn from(error: SqlError) -> Self {
        let status = if error.malformed { 400 } else { 422 };
        let detail = error.to_string();
        let mut problem = Problem::new(status, error.code, detail).hint(error.hint);
        problem.errors.push(WrongPart {
            line: Some(error.place.line),
            column: Some(error.place.column),
            excerpt: Some(error.place.excerpt),
            detail: error.message,
            ..WrongPart::default()
        });
        problem
    }
}

/// The tables that are followed, and the rows held of them.
struct TableLook<'a> {
    state: &'a AppState,
    tables: &'a [Arc<FollowedTable>],
}

impl TableLook<'_> {
    fn find(&self, table: &str, column: &str) -> Option<(&FollowedTable, usize)> {
        let table = self.tables.iter().find(|followed| followed.schema.qualified_name() == table)?;
        Some((table, table.schema.column_index(column)?))
    }
}

impl Look for TableLook<'_> {
    fn column_type(&self, table: &str, column: &str) -> Option<ColumnType> {
        let (table, at) = self.find(table, column)?;
        Some(table.schema.columns.get(at)?.column_type.clone())
    }

    fn dates(&self, table: &str, column: &str) -> Option<String> {
        let (table, at) = self.find(table, column)?;
        let snapshot = self.state.engine.snapshot().ok()?;
        let mut numbers = Vec::new();
        let looked = snapshot.sample(table, LOOK_ROWS, |_, row| {
            if let Some(ValueRef::Int(number)) = row.get(at) {
                numbers.push(*number);
            }
        });
        looked.ok()?;
        dates_of(&numbers)
    }
}

/// As which codecs all of these numbers are dates that people write, in words.
fn dates_of(numbers: &[i64]) -> Option<String> {
    let example = numbers.last()?;
    let begins = |year| days_from_civil(year, 1, 1) * DAY_US;
    let codecs = DateCodec::ALL.into_iter().filter_map(|codec| {
        let instants: Option<Vec<i64>> = numbers.iter().map(|number| codec.instant(*number)).collect();
        let instants = instants?;
        let (first, last) = (instants.iter().min()?, instants.iter().max()?);
        let day = |us: &i64| format_instant(*us, &Calendar::UTC).chars().take(10).collect::<String>();
        // Numbers that spell dates are seconds too, but of 1970.
        let earliest = if codec.unit_us().is_some() { 1980 } else { 1970 };
        (*first >= begins(earliest) && *last < begins(2100))
            .then(|| format!("{} ({} to {})", codec.name(), day(first), day(last)))
    });
    let codecs: Vec<String> = codecs.collect();
    Some(match codecs.as_slice() {
        [] => format!("its numbers, such as {example}, are dates as none that is known here"),
        codecs => format!("its numbers, such as {example}, are dates as {}", codecs.join(" or ")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_looked_at_and_not_guessed() {
        let said = |numbers: &[i64]| dates_of(numbers).unwrap();
        assert_eq!(
            said(&[20_240_101, 20_261_231]),
            "its numbers, such as 20261231, are dates as yyyymmdd (2024-01-01 to 2026-12-31)"
        );
        assert_eq!(
            said(&[10_203]),
            "its numbers, such as 10203, are dates as yymmdd (2001-02-03 to 2001-02-03) or ddmmyy (2003-02-01 to 2003-02-01)"
        );
        assert_eq!(
            said(&[1_767_225_600]),
            "its numbers, such as 1767225600, are dates as epoch_s (2026-01-01 to 2026-01-01)"
        );
        assert_eq!(said(&[20_241_399]), "its numbers, such as 20241399, are dates as none that is known here");
        assert_eq!(dates_of(&[]), None);
    }
}
