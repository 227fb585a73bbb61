//! `/v1/aggregates/{name}/data`: the answers. Everything in one answer comes from one Snapshot.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::Snapshot;
use engine::change::Lsn;
use engine::materialization::{Aggregate, AggregateState, Granularity};
use engine::snapshot::AsOf;

use crate::api::source::freshness;
use crate::api::{AnswerView, Problem, Warning};
use crate::http::extract::{Name, Parameters};
use crate::http::layers::REQUEST_TIMEOUT;
use crate::http::state::{AppState, now_us};
use crate::query::fingerprint::Fingerprint;
use crate::query::planner::coarser;
use crate::query::{Access, AggregateQuery, ReadPlan};
use crate::read::{Answer, ReadFailure, read};

/// So many point reads are done on the spot: they take microseconds, and a change of threads takes as long.
const MAX_INLINE_POINTS: usize = 64;

/// How an answer is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    NdJson,
    Csv,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::NdJson => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8",
        }
    }

    /// The first format of an `Accept` header that there is; JSON for everything else.
    fn accepted(headers: &HeaderMap) -> Format {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_types = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
        media_types
            .filter_map(|media_type| match media_type {
                "application/json" => Some(Format::Json),
                "application/x-ndjson" => Some(Format::NdJson),
                "text/csv" => Some(Format::Csv),
                _ => None,
            })
            .next()
            .unwrap_or(Format::Json)
    }
}

pub(in crate::http) async fn negotiated(
    state: State<AppState>,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let format = Format::accepted(&headers);
    answer(state.0, name.0, headers, parameters.0, format).await
}

pub(in crate::http) async fn json(
    state: State<AppState>,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, name.0, headers, parameters.0, Format::Json).await
}

pub(in crate::http) async fn ndjson(
    state: State<AppState>,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, name.0, headers, parameters.0, Format::NdJson).await
}

pub(in crate::http) async fn csv(
    state: State<AppState>,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, name.0, headers, parameters.0, Format::Csv).await
}

async fn answer(
    state: AppState,
    name: String,
    headers: HeaderMap,
    parameters: Vec<(String, String)>,
    format: Format,
) -> Result<Response, Problem> {
    let (mut snapshot, mut aggregate) = find(&state, &name)?;
    let query = AggregateQuery::parse(&parameters, &aggregate, now_us())?;
    if let Some(min_lsn) = query.min_lsn.filter(|min_lsn| snapshot.as_of().lsn < *min_lsn) {
        wait_for(&state, min_lsn, query.wait).await?;
        let id = aggregate.id;
        (snapshot, aggregate) = find(&state, &name)?;
        if snapshot.as_of().lsn < min_lsn || aggregate.id != id {
            return Err(not_yet_visible(min_lsn, snapshot.as_of().lsn));
        }
    }
    let reads = ReadPlan::choose(&query, &aggregate.plan)?;
    let status = state.engine.status();
    let question = Question {
        as_of: snapshot.as_of(),
        lag_ms: status.lag_ms,
        state: freshness(&status.source.state),
        format,
        aggregate,
        query,
        reads,
    };
    let tag = question.entity_tag();
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| matches(known, &tag)) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        question.describe(&mut response, &tag);
        return Ok(response);
    }
    question.answer(&state, snapshot, &tag).await
}

/// A Snapshot, and the aggregate as of it.
fn find(state: &AppState, name: &str) -> Result<(Arc<Snapshot>, Arc<Aggregate>), Problem> {
    let snapshot = match state.engine.snapshot() {
        Ok(snapshot) => snapshot,
        // A name that is wrong stays wrong: say so rather than "try again".
        Err(why) => return state.aggregate(name).and(Err(why.into())),
    };
    let Some(aggregate) = snapshot.catalog().aggregates.get(name).cloned() else {
        // Registered after the Snapshot was taken, or not at all.
        let aggregate = state.aggregate(name)?;
        return Err(Problem::building(name, state.engine.build_progress(aggregate.id)));
    };
    match &aggregate.state {
        AggregateState::Live => Ok((snapshot, aggregate)),
        AggregateState::Building => Err(Problem::building(name, state.engine.build_progress(aggregate.id))),
        AggregateState::Halted { code, message, remedy } => {
            Err(Problem::new(503, code.clone(), format!("{name} is halted: {message}")).hint(remedy.clone()))
        }
    }
}

async fn wait_for(state: &AppState, min_lsn: Lsn, wait: Duration) -> Result<(), Problem> {
    // So that the caller hears "not yet" and not "timeout".
    let wait = wait.min(REQUEST_TIMEOUT.saturating_sub(Duration::from_secs(1)));
    if state.engine.wait_for(min_lsn, wait).await {
        return Ok(());
    }
    Err(not_yet_visible(min_lsn, state.engine.status().applied_lsn))
}

fn not_yet_visible(min_lsn: Lsn, visible: Lsn) -> Problem {
    Problem::new(503, "not_yet_visible", format!("{min_lsn} was asked for, answers show {visible}"))
        .hint("ask again, or wait longer with wait=2s")
        .retry_after(1)
}

/// Whether an `If-None-Match` header names the tag. Weak comparison, as the RFC wants it here.
fn matches(known: &HeaderValue, tag: &str) -> bool {
    let known = known.to_str().unwrap_or_default();
    known.split(',').map(|one| one.trim()).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

/// A question with all that its answer depends on but the cells.
struct Question {
    aggregate: Arc<Aggregate>,
    query: AggregateQuery,
    reads: ReadPlan,
    as_of: AsOf,
    lag_ms: u64,
    state: &'static str,
    format: Format,
}

impl Question {
    /// Equal tags mean equal rows. The position may have moved on in between; the headers tell.
    fn entity_tag(&self) -> String {
        let query = &self.query;
        // Buckets become complete as time passes, without a change of any cell.
        let open = match query.granularity {
            Granularity::All => 0,
            other => self.aggregate.plan.calendar.interval(other, self.as_of.commit_time_us).start,
        };
        let shape = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {open} {:?} {}",
            query.from,
            query.to,
            query.measures,
            query.order,
            query.limit,
            query.cursor,
            query.layout,
            query.fill,
            self.format,
            self.state
        );
        let hash = Fingerprint::default().with(query.fingerprint.to_be_bytes()).with(shape).finish();
        format!("\"{:x}-{hash:016x}\"", self.as_of.sequence)
    }

    async fn answer(self, state: &AppState, snapshot: Arc<Snapshot>, tag: &str) -> Result<Response, Problem> {
        let few = matches!(&self.reads.access, Access::Points { points, .. } if points.len() <= MAX_INLINE_POINTS);
        if few {
            return self.write(&snapshot, tag);
        }
        let stopped = |_| Problem::new(500, "internal_error", "the read was interrupted");
        let turn = Arc::clone(&state.scans)
            .acquire_owned()
            .await
            .map_err(|_| Problem::new(503, "stopping", "the server is stopping"))?;
        let tag = tag.to_owned();
        let work = move || {
            let response = self.write(&snapshot, &tag);
            drop(turn);
            response
        };
        tokio::task::spawn_blocking(work).await.map_err(stopped)?
    }

    fn write(&self, snapshot: &Snapshot, tag: &str) -> Result<Response, Problem> {
        let answer =
            read(snapshot, &self.aggregate, &self.query, &self.reads).map_err(|failure| self.failed(failure))?;
        let view = AnswerView {
            aggregate: &self.aggregate,
            query: &self.query,
            reads: &self.reads,
            answer: &answer,
            as_of: self.as_of,
            lag_ms: self.lag_ms,
            state: self.state,
            warnings: self.warnings(&answer),
        };
        let unwritten = |_| Problem::new(500, "internal_error", "the answer cannot be written");
        let body = match self.format {
            Format::Json => view.to_json().map_err(unwritten)?,
            Format::NdJson => view.to_ndjson().map_err(unwritten)?,
            Format::Csv => view.to_csv().into_bytes(),
        };
        let mut response = ([(header::CONTENT_TYPE, self.format.content_type())], body).into_response();
        self.describe(&mut response, tag);
        if let Some(Ok(next)) = view.next().map(HeaderValue::try_from) {
            response.headers_mut().insert("tidemark-next-cursor", next);
        }
        Ok(response)
    }

    /// Headers, for clients that look at nothing else.
    fn describe(&self, response: &mut Response, tag: &str) {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        headers.insert("tidemark-lag-ms", self.lag_ms.into());
        for (name, text) in [("tidemark-lsn", self.as_of.lsn.to_string()), ("etag", tag.to_owned())] {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        }
    }

    fn failed(&self, failure: ReadFailure) -> Problem {
        if let ReadFailure::Store(error) = &failure {
            tracing::error!(aggregate = self.aggregate.name, %error, "a read failed");
        }
        let too_wide = failure == ReadFailure::TooWide;
        let problem = Problem::from(failure);
        if !too_wide {
            return problem;
        }
        let coarser = coarser(self.query.granularity, &self.aggregate.plan);
        let coarser = coarser.map(|coarser| format!("granularity={coarser}, ")).unwrap_or_default();
        problem.hint(format!("ask with {coarser}a shorter range, or fix a dimension with where"))
    }

    fn warnings(&self, answer: &Answer) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if answer.truncated {
            let more = match &answer.next {
                Some(_) => "follow page.next for the rest",
                None => "raise limit for the rest: answers in this order have no pages",
            };
            warnings.push(Warning::new("truncated", format!("there are more than {} rows; {more}", self.query.limit)));
        }
        if self.cuts_a_bucket() {
            let granularity = self.query.granularity;
            let message = format!("the range begins or ends inside a {granularity}; that row holds the part inside");
            warnings.push(Warning::new("partial_bucket", message));
        }
        if self.state != "live" {
            let message = format!("the source is {}: the answer is exact as of its position, not of now", self.state);
            warnings.push(Warning::new("source_not_streaming", message));
        }
        warnings
    }

    fn cuts_a_bucket(&self) -> bool {
        let granularity = self.query.granularity;
        let inside = |edge: i64| self.aggregate.plan.calendar.interval(granularity, edge).start != edge;
        granularity != Granularity::All && (self.query.from.is_some_and(inside) || self.query.to.is_some_and(inside))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
        assert_eq!(accepted("*/*"), Format::Json);
    }

    #[test]
    fn tags_are_compared_weakly() {
        let known = |text: &'static str| matches(&HeaderValue::from_static(text), "\"1-a\"");
        assert!(known("\"1-a\"") && known("W/\"1-a\"") && known("\"x\", \"1-a\"") && known("*"));
        assert!(!known("\"1-b\"") && !known("1-a"));
    }
}
