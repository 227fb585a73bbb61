//! The spans of requests, to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; none where it names none.
//!
//! The surprise: only requests are exported, with what is logged while they are answered. The span of the source is as long as
//! the process, and a collector would hear of it, and of all that was logged in it, at the end.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanLimits};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::failure::Failure;
use crate::otlp::Collector;

/// How long the last export may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(3);
/// Lines of the log that a span takes along.
const MAX_EVENTS: u32 = 64;

/// Spans are exported until it is dropped, which sends the last ones.
pub struct Exporting {
    to: Option<(String, SdkTracerProvider)>,
}

impl Exporting {
    /// Exports where the environment names a collector.
    pub fn start() -> Result<Exporting, Failure> {
        let Some(collector) = Collector::from_environment(&first_set)? else { return Ok(Exporting { to: None }) };
        let url = collector.url().to_owned();
        let limits = SpanLimits { max_events_per_span: MAX_EVENTS, ..SpanLimits::default() };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(collector)
            .with_span_limits(limits)
            .with_resource(resource())
            .build();
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Exporting { to: Some((url, provider)) })
    }

    /// What hands spans over; nothing where none are exported.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> Option<impl Layer<S> + use<S>> {
        self.to.as_ref().map(|(_, provider)| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("tidemark"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(is_exported))
        })
    }

    /// Says where to.
    pub fn tell(&self) {
        if let Some((url, _)) = &self.to {
            tracing::info!("spans of requests are exported to {}", without_user(url));
        }
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some((_, provider)) = &self.to
            && let Err(error) = provider.shutdown_with_timeout(FAREWELL)
        {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}

/// Requests and what is logged; not the spans around everything else.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() || metadata.name() == "request"
}

/// Who exports: as the environment has it, otherwise by the product's name.
fn resource() -> Resource {
    let named = Resource::builder_empty()
        .with_service_name("tidemark")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match first_set(&["OTEL_SERVICE_NAME"]) {
        Some(name) => named.with_service_name(name).build(),
        None => named.build(),
    }
}

/// The first of these variables that is set; empty is as good as unset.
fn first_set(variables: &[&str]) -> Option<String> {
    variables.iter().filter_map(|variable| std::env::var(variable).ok()).find(|value| !value.is_empty())
}

/// A URL may carry a password.
fn without_user(url: &str) -> String {
    match url.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
        Some((scheme, Some((_, host)))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}
