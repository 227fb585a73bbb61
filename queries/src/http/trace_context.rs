//! What a request's span says to a collector of traces, beside what the log shows of it: whose trace it is part of, and how
//! it ended. Only with the feature `otel`.
//!
//! The surprise: a span's name and kind are fields of it that the log knows as well, and shows once they are stated. So they
//! are declared empty where the span is made, and filled here.

use axum::http::{HeaderMap, Method};
use opentelemetry::trace::Status;
use opentelemetry_http::HeaderExtractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The span is part of the trace that `traceparent` names, where there is one.
pub(super) fn begin(span: &Span, method: &Method, route: &str, headers: &HeaderMap) {
    let caller =
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(headers)));
    // Nobody takes spans, or not this one: there is nothing to be part of.
    let _ = span.set_parent(caller);
    span.record("otel.name", format!("{method} {route}"));
    span.record("otel.kind", "server");
    span.set_attribute("http.request.method", method.as_str().to_owned());
    span.set_attribute("http.route", route.to_owned());
}

/// It was answered with this.
pub(super) fn end(span: &Span, status: u16) {
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(Status::error(""));
    }
}
