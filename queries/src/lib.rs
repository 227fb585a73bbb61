//! Stored cells -> answers over HTTP.
//!
//! The modules stand in the order of the flow: a question becomes an [`query::AggregateQuery`], the planner chooses what
//! to read, the reader merges it from one Snapshot, `api` writes it down, `http` speaks the protocol.

/// Who may do what.
pub mod access;
/// Answers, descriptions and problems as they are written down.
pub mod api;
/// The page at `/`.
pub mod dashboard;
/// What others may do with files that we read.
pub mod exposure;
/// The HTTP face. Only here, and in the page's routes, is the web framework named.
pub mod http;
/// Where change events are posted.
pub mod inlet;
/// Questions, and what to read for them.
pub mod query;
/// Reads cells of one Snapshot and merges them into rows.
pub mod read;
/// What is read from files anew when they change.
pub mod reloading;
/// Registration in SQL, there and back.
pub mod sql;
/// Cells compared with what they should be.
pub mod verify;
