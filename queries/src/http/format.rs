//! How an answer is written down: what `Accept` or the suffix of a path asks for.

use axum::http::{HeaderMap, header};

use crate::api::{AnswerView, Problem};
use crate::query::{AggregateQuery, Layout};

/// One way of writing an answer down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    NdJson,
    Csv,
    Arrow,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::NdJson => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// Names it in tags: the same rows in another format are another representation.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::NdJson => "ndjson",
            Format::Csv => "csv",
            Format::Arrow => "arrow",
        }
    }

    /// The first format of an `Accept` header that there is; JSON for everything else.
    pub(super) fn accepted(headers: &HeaderMap) -> Format {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_types = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
        media_types
            .filter_map(|media_type| match media_type {
                "application/json" => Some(Format::Json),
                "application/x-ndjson" => Some(Format::NdJson),
                "text/csv" => Some(Format::Csv),
                "application/vnd.apache.arrow.stream" => Some(Format::Arrow),
                _ => None,
            })
            .next()
            .unwrap_or(Format::Json)
    }

    /// Refuses a question whose answer this format would show a part of only.
    pub(super) fn check(self, query: &AggregateQuery) -> Result<(), Problem> {
        let flat = match self {
            Format::Json => query.layout == Layout::Columns,
            Format::NdJson => false,
            Format::Csv | Format::Arrow => true,
        };
        if query.rows.is_none() || !flat {
            return Ok(());
        }
        Err(Problem::new(422, "rows_not_in_format", "this format has no place for the rows of the table behind a row")
            .hint("ask for JSON in the layout of rows, for NDJSON, or without rows"))
    }

    /// The bytes of an answer.
    pub(super) fn write(self, view: &AnswerView<'_>) -> Result<Vec<u8>, Problem> {
        let unwritten = |_| Problem::new(500, "internal_error", "the answer cannot be written");
        match self {
            Format::Json => view.to_json().map_err(unwritten),
            Format::NdJson => view.to_ndjson().map_err(unwritten),
            Format::Csv => Ok(view.to_csv().into_bytes()),
            Format::Arrow => Ok(view.to_arrow()?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_first_known_format_is_taken() {
        let accepted = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            Format::accepted(&headers)
        };
        assert_eq!(accepted("text/html, text/csv;q=0.9, application/json"), Format::Csv);
        assert_eq!(accepted("application/x-ndjson"), Format::NdJson);
        assert_eq!(accepted("application/vnd.apache.arrow.stream, */*"), Format::Arrow);
        assert_eq!(accepted("*/*"), Format::Json);
    }
}
