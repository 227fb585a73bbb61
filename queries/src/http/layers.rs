//! What happens around every handler: an id, a time limit, metrics, a log line, and the body of problems.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::connections::Place;
use super::error;
use super::hosts::Hosts;
use super::metrics::Metrics;
use crate::api::Problem;
use crate::read::ReadFailure;

/// Longest time a request may take, reading its body and waiting for `min_lsn` included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Of what reads whole tables upstream, or the whole store.
const LONG_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Shorter bodies are sent as they are: they fit one packet.
const MIN_COMPRESSED: u64 = 1_024;

/// Marks an answer that is sent bit by bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed;

/// Bytes of a name that the log shows; the longest that can be registered is shorter.
const MAX_LOGGED_NAME: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Bytes of answers that are on their way at once. A client that reads slowly holds its answer in memory.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Answers and parts of them with fewer bytes than this are not counted: sockets hold that much.
const LARGE_CHUNK: u64 = 16 << 10;

/// What the outermost layer works with.
#[derive(Clone)]
pub(super) struct Around {
    metrics: Arc<Metrics>,
    hosts: Arc<Hosts>,
    /// A permit for each byte of the answers on their way.
    room: Arc<Semaphore>,
}

impl Around {
    pub(super) fn new(metrics: Arc<Metrics>, hosts: Arc<Hosts>) -> Around {
        Around { metrics, hosts, room: Arc::new(Semaphore::new(MAX_ANSWER_BYTES)) }
    }
}

/// The outermost layer.
pub(super) async fn observe(State(around): State<Around>, mut request: Request, next: Next) -> Response {
    let Around { metrics, hosts, room } = around;
    hide_secrets(request.headers_mut());
    let busy = request.extensions().get::<Arc<Place>>().map(|place| Arc::clone(place).busy());
    let started = Instant::now();
    let request_id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    // What is logged on the way stands within it, whatever RUST_LOG leaves. Nothing of the question: it holds values of rows.
    let span = tracing::error_span!(
        "request",
        request_id,
        route,
        aggregate = aggregate_of(&route, request.uri().path()),
        otel.name = tracing::field::Empty,
        otel.kind = tracing::field::Empty,
    );
    #[cfg(feature = "otel")]
    super::trace_context::begin(&span, &method, &route, request.headers());
    let answer = async {
        match hosts.check(request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    }
    .instrument(span.clone());
    let mut response = match tokio::time::timeout(time_limit(&route), answer).await {
        Ok(response) => response,
        Err(_) => Problem::from(ReadFailure::OutOfTime).into_response(),
    };
    let room = room_for(&response, &room).unwrap_or_else(|problem| {
        response = problem.into_response();
        None
    });
    error::write_body(&mut response, &request_id);
    let headers = response.headers_mut();
    protect(headers);
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, value);
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    metrics.count_request(&route, &method, status, took);
    #[cfg(feature = "otel")]
    super::trace_context::end(&span, status);
    if status >= 500 && status != 503 {
        tracing::error!(request_id, route, %method, status, "request failed");
    } else {
        tracing::debug!(request_id, route, %method, status, took_us = took.as_micros() as u64, "request");
    }
    response.map(|body| Body::new(Sent { body, held: Arc::new((busy, room)) }))
}

/// The aggregate that a path names, as it is written there.
fn aggregate_of<'p>(route: &str, path: &'p str) -> Option<&'p str> {
    let name = path.strip_prefix("/v1/aggregates/").filter(|_| route.starts_with("/v1/aggregates/{name}"))?;
    name.split('/').next().and_then(|name| name.get(..name.len().min(MAX_LOGGED_NAME)))
}

/// Keeps what a caller proves itself with out of everything that shows headers.
fn hide_secrets(headers: &mut HeaderMap) {
    for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
        if let Some(value) = headers.get_mut(name) {
            value.set_sensitive(true);
        }
    }
}

/// What a browser has to keep to. Pages say more about themselves; data runs nothing and is shown nowhere else.
fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
}

/// Room for the bytes of an answer; the problem to send in its place where there is none.
fn room_for(response: &Response, room: &Arc<Semaphore>) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let bytes = response.body().size_hint().exact().unwrap_or_default();
    if bytes < LARGE_CHUNK {
        return Ok(None);
    }
    let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(room).try_acquire_many_owned(wanted).map(Some).map_err(|_| {
        Problem::new(503, "overloaded", "too many answers are on their way to clients that read slowly")
            .hint("ask for fewer rows, or again")
            .retry_after(1)
    })
}

/// A body that holds something until its bytes are with the client, not just with the connection.
struct Sent<T> {
    body: Body,
    held: Arc<T>,
}

/// Bytes that hold something.
struct Chunk<T> {
    bytes: Bytes,
    _held: Arc<T>,
}

impl<T> AsRef<[u8]> for Chunk<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Send + Sync + 'static> HttpBody for Sent<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let hold = |bytes: Bytes| match bytes.len() as u64 {
            ..LARGE_CHUNK => bytes,
            _ => Bytes::from_owner(Chunk { bytes, _held: Arc::clone(&self.held) }),
        };
        polled.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn time_limit(route: &str) -> Duration {
    if matches!(route, "/v1/verify" | "/v1/admin/checkpoints") { LONG_TIMEOUT } else { REQUEST_TIMEOUT }
}

/// The caller's id where it can stand in a log, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("process"));
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given
        .filter(usable)
        .map_or_else(|| format!("{:016x}-{:08x}", *PROCESS, NUMBER.fetch_add(1, Ordering::Relaxed)), str::to_owned)
}

/// Bodies that compression makes smaller. Not those that are sent bit by bit: an encoder would hold them back.
pub(super) fn worth_compressing(
    _status: axum::http::StatusCode,
    _version: axum::http::Version,
    headers: &HeaderMap,
    extensions: &axum::http::Extensions,
) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let streamed = extensions.get::<Streamed>().is_some();
    !streamed && length.is_none_or(|length| length >= MIN_COMPRESSED)
}

/// The answer where a handler panicked. The message stays in the log: it may hold data.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    tracing::error!(message, "a request handler panicked");
    Problem::new(500, "internal_error", "the request handler failed; its log has the reason").into_response()
}
