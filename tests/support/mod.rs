//! What the tests share: a throwaway Postgres with SQL in and text out, and Tidemark over it, in this process or as the
//! real binary.

/// Cells as rows of text.
pub mod cells;
/// A private Postgres without a runtime around it.
pub mod database;
/// Tidemark in this process.
pub mod embedded;
/// A network that breaks on demand.
pub mod proxy;
/// A shop under load, and what must be true of it.
pub mod shop;
/// SQL in, text out.
pub mod sql;
/// What is stored, altered as no code of ours would.
pub mod tamper;

/// Tidemark as the real binary.
pub mod server;
