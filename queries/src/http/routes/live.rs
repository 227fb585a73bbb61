//! `/v1/aggregates/{name}/live`: an answer and then its changes, as server-sent events (WHATWG HTML, 9.2) or as lines of
//! JSON where `Accept: application/x-ndjson` asks for them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, unfold};
use serde_json::json;
use serde_json::value::RawValue;

use crate::access::Caller;
use crate::api::Problem;
use crate::http::extract::{Name, Parameters};
use crate::http::layers::Streamed;
use crate::http::state::AppState;
use crate::http::subscription::{LiveEvent, MAX_ROWS, Subscription};
use crate::query::aggregate_query::duration;
use crate::query::{QueryError, QueryRequest};

/// Pause between two changes, unless asked otherwise.
const THROTTLE: Duration = Duration::from_millis(250);
/// Shortest and longest pause that can be asked for.
const THROTTLES: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(10);

pub(in crate::http) async fn live(
    State(state): State<AppState>,
    caller: Caller,
    Name(name): Name,
    headers: HeaderMap,
    Parameters(mut parameters): Parameters,
) -> Result<Response, Problem> {
    let throttle = take(&mut parameters, "throttle").map_or(Ok(THROTTLE), |text| throttle(&text))?;
    let header = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // A browser that connects again keeps the address, and with it a `since` that was the beginning.
    let since = take(&mut parameters, "since");
    let since = header(header::HeaderName::from_static("last-event-id")).or(since);
    let mut request = QueryRequest::from_parameters(&parameters)?;
    let limit = request.limit.unwrap_or(MAX_ROWS);
    if limit > MAX_ROWS {
        return Err(QueryError::malformed("limit", format!("a live answer has at most {MAX_ROWS} rows")).into());
    }
    request.limit = Some(limit);
    let subscription = Subscription::open(state, caller, name, request, throttle, since).await?;
    let lines = header(header::ACCEPT).is_some_and(|accept| accept.contains("application/x-ndjson"));
    let mut response = if lines { json_lines(subscription) } else { server_sent(subscription) };
    response.extensions_mut().insert(Streamed);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that collect answers before they pass them on would collect for ever.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn take(parameters: &mut Vec<(String, String)>, name: &str) -> Option<String> {
    let at = parameters.iter().position(|(other, _)| other == name)?;
    Some(parameters.remove(at).1)
}

fn throttle(text: &str) -> Result<Duration, QueryError> {
    duration(text)
        .filter(|throttle| THROTTLES.contains(throttle))
        .ok_or_else(|| QueryError::malformed("throttle", "use a time from 20ms to 10s, such as 250ms"))
}

fn events(subscription: Subscription) -> impl Stream<Item = LiveEvent> {
    unfold(subscription, async |mut subscription| {
        let event = subscription.next().await?;
        Some((event, subscription))
    })
}

fn server_sent(subscription: Subscription) -> Response {
    use futures::StreamExt;
    let written = events(subscription).map(|event| {
        let written = Event::default().event(event.name).data(event.data);
        Ok::<_, Infallible>(match event.id {
            Some(id) => written.id(id),
            None => written,
        })
    });
    Sse::new(written).into_response()
}

fn json_lines(subscription: Subscription) -> Response {
    use futures::StreamExt;
    let written = events(subscription).map(|event| {
        let data = RawValue::from_string(event.data).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let line = serde_json::to_string(&json!({"event": event.name, "id": event.id})).unwrap_or_default();
        let head = line.strip_suffix('}').unwrap_or_default();
        Ok::<_, Infallible>(format!("{head},\"data\":{data}}}\n"))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(written)).into_response()
}
