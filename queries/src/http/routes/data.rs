//! `/v1/aggregates/{name}/data`: the answers. Everything in one answer comes from one Snapshot.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::access::Caller;
use crate::api::Problem;
use crate::http::asking::{Asked, ask_at, in_turn};
use crate::http::extract::{Name, Parameters};
use crate::http::format::Format;
use crate::http::pages::Pages;
use crate::http::state::{AppState, now_us};
use crate::query::QueryRequest;

pub(in crate::http) async fn negotiated(
    state: State<AppState>,
    caller: Caller,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let format = Format::accepted(&headers);
    answer(state.0, caller, name.0, headers, parameters.0, format).await
}

pub(in crate::http) async fn json(
    state: State<AppState>,
    caller: Caller,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, caller, name.0, headers, parameters.0, Format::Json).await
}

pub(in crate::http) async fn ndjson(
    state: State<AppState>,
    caller: Caller,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, caller, name.0, headers, parameters.0, Format::NdJson).await
}

pub(in crate::http) async fn csv(
    state: State<AppState>,
    caller: Caller,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, caller, name.0, headers, parameters.0, Format::Csv).await
}

pub(in crate::http) async fn arrow(
    state: State<AppState>,
    caller: Caller,
    name: Name,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Problem> {
    answer(state.0, caller, name.0, headers, parameters.0, Format::Arrow).await
}

async fn answer(
    state: AppState,
    caller: Caller,
    name: String,
    headers: HeaderMap,
    parameters: Vec<(String, String)>,
    format: Format,
) -> Result<Response, Problem> {
    let request = QueryRequest::from_parameters(&parameters)?;
    let asked = ask_at(&state, &caller, &name, &request, now_us()).await?;
    format.check(&asked.query)?;
    let known = headers.get(header::IF_NONE_MATCH).cloned();
    let pages = Arc::clone(&state.pages);
    in_turn(&state, asked.is_short(), move || respond(&asked, format, known.as_ref(), &pages)).await
}

fn respond(asked: &Asked, format: Format, known: Option<&HeaderValue>, pages: &Pages) -> Result<Response, Problem> {
    let tag = |hash: u64| format!("\"{hash:016x}-{}\"", format.suffix());
    let unchanged = |tag: &str| known.is_some_and(|known| matches(known, tag));
    // Others' cells are in a Partition's, so who is pinned is shown a tag of the own rows only, and each time they are read.
    let of_partitions = if asked.query.pinned { None } else { asked.tag_of_partitions()? };
    for tag in of_partitions.into_iter().flat_map(|hash| [hash, asked.with_commit(hash)]).map(tag) {
        if unchanged(&tag) {
            return Ok(describe(StatusCode::NOT_MODIFIED.into_response(), asked, &tag));
        }
    }
    let answered = asked.answer()?;
    let hash = of_partitions.unwrap_or_else(|| asked.tag_of_rows(&answered));
    // Further pages are those of one commit, and not kept for long: an answer with such is never another commit's.
    let tag = tag(if answered.answer.next.is_some() { asked.with_commit(hash) } else { hash });
    if unchanged(&tag) {
        return Ok(describe(StatusCode::NOT_MODIFIED.into_response(), asked, &tag));
    }
    if answered.answer.next.is_some() {
        asked.keep(pages);
    }
    let view = asked.view(&answered);
    let body = format.write(&view)?;
    let mut response = describe(([(header::CONTENT_TYPE, format.content_type())], body).into_response(), asked, &tag);
    if let Some(Ok(next)) = view.next().map(HeaderValue::try_from) {
        response.headers_mut().insert("tidemark-next-cursor", next);
    }
    Ok(response)
}

/// Headers, for clients that look at nothing else.
fn describe(mut response: Response, asked: &Asked, tag: &str) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    headers.insert("tidemark-lag-ms", asked.lag_ms.into());
    for (name, text) in [("tidemark-lsn", asked.snapshot.as_of().lsn.to_string()), ("etag", tag.to_owned())] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    response
}

/// Whether an `If-None-Match` header names the tag. Weak comparison, as the RFC wants it here.
fn matches(known: &HeaderValue, tag: &str) -> bool {
    let known = known.to_str().unwrap_or_default();
    known.split(',').map(|one| one.trim()).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tags_are_compared_weakly() {
        let known = |text: &'static str| matches(&HeaderValue::from_static(text), "\"1-a\"");
        assert!(known("\"1-a\"") && known("W/\"1-a\"") && known("\"x\", \"1-a\"") && known("*"));
        assert!(!known("\"1-b\"") && !known("1-a"));
    }
}
