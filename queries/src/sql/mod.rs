//! Registration in SQL, there and back.
//!
//! Two spellings, LeanXcale's and Postgres', come to the one canonical `Definition`:
//!
//! ```sql
//! CREATE ONLINE AGGREGATE monthly AS SUM(amount) AS amount, COUNT(*) AS n FROM payments
//!   GROUP BY EXTRACT(YEAR FROM pmt_ts) AS y, EXTRACT(MONTH FROM pmt_ts) AS m, dst_acct;
//! CREATE MATERIALIZED VIEW monthly AS SELECT date_trunc('month', pmt_ts) AS m, dst_acct, sum(amount) AS amount, count(*) AS n
//!   FROM payments WHERE status = 'settled' GROUP BY 1, 2;
//! ```
//!
//! Expressions are sqlparser's; the statement around them is read here, because the first is nobody's SQL and the second is
//! narrower than Postgres'. [`write`] prints the second, and what it prints reads back as the definition it was printed of.

/// Why a statement was not understood, and where.
pub mod error;
/// Lengths of buckets.
mod interval;
/// A statement as Postgres shows it.
mod plain;
/// What a statement registers.
pub mod registration;
/// The grammar.
mod statement;
/// Expressions that put a time into buckets.
mod time;
/// A definition as SQL.
pub mod write;

pub use error::SqlError;
pub use registration::{Look, Registration};
pub use statement::{Source, split};
pub use write::create_statement;
