//! The Postgres source against real servers, with a stand-in for the engine that knows every row.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod changes;
mod checks;
mod connecting;
mod engine;
mod halting;
mod payments;
mod resuming;
mod server;
mod slot_and_snapshot;
mod standing_still;
mod tables;
mod tls;
mod transport;
