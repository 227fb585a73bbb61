//! The HTTP face: routes, what is extracted from requests, how problems and metrics leave. Handlers read a Snapshot and
//! never wait on the dataflow, except where the caller asked for `min_lsn`.

/// From a question to its answer.
mod asking;
/// Who may use a route.
mod authority;
/// How many connections there may be.
pub mod connections;
/// How many there are of each key.
mod counts;
mod error;
mod extract;
/// How answers are written down.
mod format;
/// Names that are ours.
pub mod hosts;
mod layers;
mod lingering;
#[cfg(test)]
mod malformed;
/// Counters and gauges of the server and the engine.
pub mod metrics;
mod named_once;
/// The contract as a document.
pub mod openapi;
mod pages;
mod refreshing;
/// From a body to the definition it asks for.
mod registering;
/// All routes.
pub mod router;
mod routes;
/// Verification that nobody asks for.
mod sampler;
mod scan_threads;
/// The shapes in the contract.
mod schemas;
/// What shows that a cursor is one of ours.
mod seal;
/// The accept loop.
pub mod serve;
mod stalling;
/// What handlers share.
pub mod state;
mod subscription;
/// Encryption of our own.
pub mod tls;
/// What a pinned token hears where there is no answer.
mod told;
#[cfg(feature = "otel")]
mod trace_context;
mod turns;
mod under_way;

pub use connections::ConnectionLimits;
pub use hosts::Hosts;
pub use router::router;
pub use serve::{Front, ListenError, Protection, check_listen_address, serve};
pub use state::AppState;
pub use tls::Tls;
