//! What the tests share: a throwaway Postgres with SQL in and text out, and Tidemark over it, in this process or as the
//! real binary.

/// Tidemark in this process.
pub mod embedded;
/// SQL in, text out.
pub mod sql;

/// Tidemark as the real binary.
pub mod server;
