//! In place of `spans` in a binary that was built without the feature `otel`: nothing is exported, and who asked for it is told.

use tracing_subscriber::layer::Identity;

use crate::failure::Failure;

/// The variable that names a collector.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Nothing is.
pub struct Exporting;

impl Exporting {
    #[allow(clippy::unnecessary_wraps, missing_docs)]
    pub fn start() -> Result<Exporting, Failure> {
        Ok(Exporting)
    }

    /// Adds nothing.
    pub fn layer(&self) -> Identity {
        Identity::new()
    }

    /// Says so where it was asked for.
    pub fn tell(&self) {
        if std::env::var_os(ENDPOINT).is_some_and(|value| !value.is_empty()) {
            tracing::warn!("{ENDPOINT} has no effect: this binary was built without the feature otel");
        }
    }
}
