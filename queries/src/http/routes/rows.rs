//! `/v1/aggregates/{name}/rows`: the rows of the table that a total is made of, newest first.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::materialization::Aggregate;
use serde::Serialize;

use crate::access::Caller;
use crate::api::answer::{AsOfBody, PageBody};
use crate::api::column::ColumnBody;
use crate::api::table_rows::{TableRows, columns_left_out};
use crate::api::{AnswerView, Problem, Warning};
use crate::http::asking::{Asked, ask_at, expired, in_turn, page_of};
use crate::http::extract::{Name, Parameters};
use crate::http::pages::Pages;
use crate::http::seal::Seal;
use crate::http::state::{AppState, now_us};
use crate::query::{AggregateQuery, QueryError, QueryRequest};
use crate::read::{can_follow, rows_behind};

/// Rows of one page, unless asked otherwise.
const DEFAULT_LIMIT: usize = 100;
/// The parameters there are: those that say which rows, and which page.
const PARAMETERS: [&str; 9] = ["from", "to", "where", "filter", "time_zone", "limit", "cursor", "min_lsn", "wait"];

pub(in crate::http) async fn rows(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
    Parameters(mut parameters): Parameters,
) -> Result<Response, Problem> {
    if let Some((wrong, _)) = parameters.iter().find(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
        let wrong: String = wrong.chars().take(64).collect();
        return Err(QueryError::malformed(&wrong, format!("there is no parameter {wrong:?}"))
            .code("unknown_parameter")
            .hint(format!("known: {}", PARAMETERS.join(", ")))
            .into());
    }
    let cursor = parameters.iter().position(|(name, _)| name == "cursor").map(|at| parameters.remove(at).1);
    let mut request = QueryRequest::from_parameters(&parameters)?;
    request.limit.get_or_insert(DEFAULT_LIMIT);
    let place = cursor.map(|text| Place::decode(&text, &state.pages.seal).ok_or_else(bad_cursor)).transpose()?;
    let asked_us = place.as_ref().map_or_else(now_us, |place| place.asked_us);
    let mut asked = ask_at(&state, &caller, &name, &request, asked_us).await?;
    check_kept(&asked.aggregate)?;
    if let Some(place) = &place {
        place.check(&asked.aggregate, &asked.query)?;
        let (which, reads) = ((place.sequence, asked.query.min_lsn), std::iter::once(&asked.reads));
        (asked.snapshot, asked.aggregate) = page_of(&state, &caller, &asked.snapshot, &asked.aggregate, which, reads)?;
    }
    let pages = Arc::clone(&state.pages);
    in_turn(&state, false, move || respond(&asked, place.map(|place| place.entry), &pages)).await
}

#[derive(Serialize)]
struct Body<'a> {
    aggregate: &'a str,
    table: String,
    columns: Vec<ColumnBody>,
    data: TableRows<'a>,
    as_of: AsOfBody,
    page: PageBody,
    warnings: Vec<Warning>,
}

/// Refuses an aggregate without the index.
pub(in crate::http) fn check_kept(aggregate: &Aggregate) -> Result<(), Problem> {
    if aggregate.definition.drill_through {
        return Ok(());
    }
    let name = &aggregate.name;
    Err(Problem::new(422, "no_drill_through", format!("{name} keeps no index of the rows behind its totals"))
        .hint("register it with \"drill_through\": true"))
}

fn respond(asked: &Asked, after: Option<Vec<u8>>, pages: &Pages) -> Result<Response, Problem> {
    let behind = rows_behind(&asked.snapshot, &asked.aggregate, &asked.query, after).map_err(Problem::from)?;
    let announced = || Problem::new(503, "building", "the table is not announced yet").retry_after(1);
    let table = asked.table().ok_or_else(announced)?;
    let rows = TableRows { schema: &table.schema, rows: &behind.rows, calendar: &asked.query.calendar };
    let as_of = asked.snapshot.as_of();
    if behind.next.is_some() {
        asked.keep(pages);
    }
    let cursor = |entry: &[u8]| {
        Place::encode(&asked.query, as_of.sequence, entry, &pages.seal)
            .ok_or_else(|| Problem::new(500, "internal_error", "the system gives no random numbers"))
    };
    let next = behind.next.as_deref().map(cursor).transpose()?;
    let body = Body {
        aggregate: &asked.aggregate.name,
        table: asked.aggregate.definition.qualified_table(),
        columns: rows.columns(),
        data: rows,
        as_of: AnswerView::as_of_body(as_of),
        page: PageBody { next },
        warnings: columns_left_out(&table.schema).into_iter().collect(),
    };
    let body =
        serde_json::to_vec(&body).map_err(|_| Problem::new(500, "internal_error", "the rows cannot be written"))?;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(lsn) = HeaderValue::try_from(as_of.lsn.to_string()) {
        headers.insert("tidemark-lsn", lsn);
    }
    Ok(response)
}

/// Where the next page goes on.
#[derive(Debug, PartialEq)]
struct Place {
    /// Fingerprint of the question.
    question: u64,
    /// Number of the commit that the first page showed.
    sequence: u64,
    /// When it was asked for, microseconds since 2000-01-01 UTC.
    asked_us: i64,
    /// The last entry of the page before.
    entry: Vec<u8>,
    /// Whether it was sealed by this process.
    ours: bool,
}

impl Place {
    /// As text, sealed. `None` where nothing can be sealed.
    fn encode(query: &AggregateQuery, sequence: u64, entry: &[u8], seal: &Seal) -> Option<String> {
        let head = [query.fingerprint.to_be_bytes(), sequence.to_be_bytes(), query.asked_us.to_be_bytes()].concat();
        Some(URL_SAFE_NO_PAD.encode(seal.close([head.as_slice(), entry].concat())?))
    }

    fn decode(text: &str, seal: &Seal) -> Option<Place> {
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bytes, ours) = seal.open(&sealed)?;
        let (question, rest) = bytes.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (asked_us, entry) = rest.split_first_chunk::<8>()?;
        Some(Place {
            question: u64::from_be_bytes(*question),
            sequence: u64::from_be_bytes(*sequence),
            asked_us: i64::from_be_bytes(*asked_us),
            entry: entry.to_vec(),
            ours,
        })
    }

    /// Refuses what is no place in the answer to this question, whoever sealed it: an entry says which keys of the store are read.
    fn check(&self, aggregate: &Aggregate, query: &AggregateQuery) -> Result<(), Problem> {
        if self.question != query.fingerprint || !can_follow(aggregate, query, &self.entry) {
            return Err(bad_cursor());
        }
        // Of a process before this one, whose Snapshots are gone; or of nobody, who is told no more than that.
        if self.ours { Ok(()) } else { Err(expired()) }
    }
}

fn bad_cursor() -> Problem {
    QueryError::malformed("cursor", "the cursor does not belong to this question")
        .code("bad_cursor")
        .hint("take it from `page.next` and change nothing else")
        .into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::ValueRef;
    use engine::materialization::{AggregateId, group_key};

    use super::*;
    use crate::query::fixture::{daily, parse};

    /// The entry of a payment of 2000-01-01.
    fn entry(aggregate: &Aggregate, country: &str) -> Vec<u8> {
        let row = [
            ValueRef::Int(1),
            ValueRef::Text(country),
            ValueRef::Int(5),
            ValueRef::Null,
            ValueRef::Null,
            ValueRef::Timestamp(7),
        ];
        // Kind and table, then the primary key.
        let mut row_key = vec![0x10, 0, 0, 0, 1];
        group_key::push_primary(&mut row_key, ValueRef::Int(1)).unwrap();
        let mut entry = Vec::new();
        assert!(engine::drill::encode(&mut entry, aggregate.id, &aggregate.plan, &row, &row_key));
        entry
    }

    /// What is read in a cursor that is sent with a question, or how it is refused.
    fn read(question: &str, text: &str, seal: &Seal) -> Result<(u64, Vec<u8>), (u16, String)> {
        let aggregate = daily();
        let query = parse(question, &aggregate).unwrap();
        let place = Place::decode(text, seal).ok_or_else(bad_cursor);
        let checked = place.and_then(|place| place.check(&aggregate, &query).map(|()| (place.sequence, place.entry)));
        checked.map_err(|problem| (problem.status, problem.code.clone()))
    }

    /// By one dimension of two, by both, by a condition: each fixes what a token may be pinned to.
    const QUESTIONS: [&str; 4] =
        ["where=country:EUR", "where=country:EUR,merchant:5", "where=merchant:5", "filter=country in ('EUR','CHF')"];

    #[test]
    fn a_cursor_of_ours_is_believed_for_its_own_question() {
        let (aggregate, seal) = (daily(), Seal::default());
        let entry = entry(&aggregate, "EUR");
        for question in QUESTIONS {
            let query = parse(question, &aggregate).unwrap();
            let text = Place::encode(&query, 3, &entry, &seal).unwrap();
            assert_eq!(read(question, &text, &seal), Ok((3, entry.clone())), "{question}");
            assert_eq!(read("where=country:USD", &text, &seal), Err((400, "bad_cursor".to_owned())));
            let of_another_process = Seal::default();
            assert_eq!(read(question, &text, &of_another_process), Err((410, "page_expired".to_owned())));
        }
        for none in ["", "abc", "é", "AAAA"] {
            assert_eq!(read("where=country:EUR", none, &seal), Err((400, "bad_cursor".to_owned())), "{none}");
        }
    }

    /// Even where the seal is right: it is not what keeps one reader from the rows of another.
    #[test]
    fn a_cursor_that_is_no_place_in_the_answer_is_refused() {
        let (aggregate, seal) = (daily(), Seal::default());
        let own = entry(&aggregate, "EUR");
        let another = Aggregate { id: AggregateId(8), ..daily() };
        let of_aggregate = own.get(..5).unwrap();
        let forged = [
            [of_aggregate, &[0xFF; 8]].concat(),
            [of_aggregate, &[0xFF; 64]].concat(),
            vec![0xFF; 40],
            of_aggregate.to_vec(),
            Vec::new(),
            own.get(..own.len() - 1).unwrap().to_vec(),
            [own.as_slice(), &[0xFF]].concat(),
            entry(&another, "EUR"),
        ];
        for question in QUESTIONS {
            let query = parse(question, &aggregate).unwrap();
            let refused = |entry: &[u8]| {
                let text = Place::encode(&query, 3, entry, &seal).unwrap();
                assert_eq!(read(question, &text, &seal), Err((400, "bad_cursor".to_owned())), "{question}: {entry:?}");
            };
            for entry in &forged {
                refused(entry);
            }
            if question != "where=merchant:5" {
                refused(&entry(&aggregate, "USD"));
            }
        }
    }
}
