//! A collector of traces, as OTLP over HTTP in JSON has it: where it is, by the standard's variables, and how spans are written.
//!
//! Two surprises. It is written here because the crate that does it brings macros for which all of RocksDB would be compiled
//! once more. And it blocks: the exporter has a thread of its own, and its client is the one of the command line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use percent_encoding::percent_decode_str;
use serde_json::{Value as Json, json};
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::failure::Failure;

/// How long one export may take, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Takes spans.
#[derive(Debug)]
pub struct Collector {
    url: String,
    /// OTEL_EXPORTER_OTLP_HEADERS: where hosted collectors want their keys.
    headers: Vec<(String, String)>,
    agent: ureq::Agent,
    resource: Json,
}

impl Collector {
    /// The one that the environment names; `first_set` has the value of the first variable that is set.
    pub fn from_environment(first_set: &dyn Fn(&[&str]) -> Option<String>) -> Result<Option<Collector>, Failure> {
        let own = first_set(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]);
        let general = first_set(&["OTEL_EXPORTER_OTLP_ENDPOINT"]);
        // The standard: the general one gets the path of the signal, the other is taken as it is.
        let general = general.map(|url| format!("{}/v1/traces", url.trim_end_matches('/')));
        let Some(url) = own.or(general) else { return Ok(None) };
        let refused =
            |why: &str, remedy: &str| Failure::Usage(format!("spans cannot be exported: {why}\n  remedy: {remedy}"));
        if !url
            .parse::<Uri>()
            .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        {
            return Err(refused("their endpoint is no URL", "OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318"));
        }
        let protocol = first_set(&["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        if let Some(protocol) = protocol.filter(|protocol| !protocol.starts_with("http/")) {
            return Err(refused(
                &format!("{protocol:?} is not spoken"),
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/json, and the collector's port for HTTP, usually 4318",
            ));
        }
        let timeout = first_set(&["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"]);
        let timeout = timeout.and_then(|ms| ms.parse().ok()).map_or(TIMEOUT, Duration::from_millis);
        let headers = first_set(&["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]);
        let headers = headers.as_deref().map(headers_of).unwrap_or_default();
        let agent = agent(url.starts_with("https://"), timeout);
        Ok(Some(Collector { url, headers, agent, resource: Json::Null }))
    }

    /// Where spans are posted to.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn post(&self, spans: &[SpanData]) -> Result<(), String> {
        let spans: Vec<Json> = spans.iter().map(span).collect();
        let scope = json!({"scope": {"name": "tidemark"}, "spans": spans});
        let body = json!({"resourceSpans": [{"resource": self.resource, "scopeSpans": [scope]}]});
        let request = self.agent.post(&self.url).content_type("application/json");
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        let answer = request.send(body.to_string()).map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("the collector answered {}", answer.status())) }
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.post(&batch).map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        let attributes = resource.iter().map(|(key, value)| attribute(key.as_str(), value)).collect::<Vec<_>>();
        self.resource = json!({"attributes": attributes});
    }
}

fn agent(encrypted: bool, timeout: Duration) -> ureq::Agent {
    // Looking for them takes time that a collector in clear does not need.
    let system = if encrypted { rustls_native_certs::load_native_certs().certs } else { Vec::new() };
    let certificates =
        system.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect::<Vec<_>>();
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(timeout))
        .tls_config(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build());
    config.build().into()
}

/// `name=value,name=value`, percent-encoded.
fn headers_of(text: &str) -> Vec<(String, String)> {
    let decoded = |value: &str| percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), decoded(value))).collect()
}

fn span(span: &SpanData) -> Json {
    let events = span.events.events.iter().map(|event| {
        json!({"name": event.name, "timeUnixNano": nanoseconds(event.timestamp), "attributes": attributes(&event.attributes)})
    });
    let mut body = json!({
        "traceId": span.span_context.trace_id().to_string(),
        "spanId": span.span_context.span_id().to_string(),
        "flags": span.span_context.trace_flags().to_u8(),
        "name": span.name,
        "kind": kind(&span.span_kind),
        "startTimeUnixNano": nanoseconds(span.start_time),
        "endTimeUnixNano": nanoseconds(span.end_time),
        "attributes": attributes(&span.attributes),
        "events": events.collect::<Vec<_>>(),
        "droppedEventsCount": span.events.dropped_count,
        "status": status(&span.status),
    });
    if span.parent_span_id != SpanId::INVALID
        && let Some(body) = body.as_object_mut()
    {
        body.insert("parentSpanId".to_owned(), json!(span.parent_span_id.to_string()));
    }
    body
}

/// 64-bit numbers are strings in JSON of protobuf.
fn nanoseconds(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attributes(attributes: &[KeyValue]) -> Vec<Json> {
    attributes.iter().map(|pair| attribute(pair.key.as_str(), &pair.value)).collect()
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Bool(value) => json!({"boolValue": value}),
        Value::I64(value) => json!({"intValue": value.to_string()}),
        Value::F64(value) => json!({"doubleValue": value}),
        other => json!({"stringValue": other.as_str()}),
    };
    json!({"key": key, "value": value})
}

/// As the protocol numbers them.
fn kind(kind: &SpanKind) -> u8 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn status(status: &Status) -> Json {
    match status {
        Status::Unset => json!({}),
        Status::Ok => json!({"code": 1}),
        Status::Error { description } => json!({"code": 2, "message": description}),
    }
}
