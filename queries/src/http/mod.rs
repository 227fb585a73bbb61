//! The HTTP face: routes, what is extracted from requests, how problems and metrics leave. Handlers read a Snapshot and
//! never wait on the dataflow, except where the caller asked for `min_lsn`.

mod error;
mod extract;
mod layers;
/// Counters and gauges of the server and the engine.
pub mod metrics;
/// All routes.
pub mod router;
mod routes;
/// The accept loop.
pub mod serve;
/// What handlers share.
pub mod state;

pub use router::router;
pub use serve::{ListenError, check_listen_address, serve};
pub use state::AppState;
