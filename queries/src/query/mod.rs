//! A question, typed and checked against the aggregate it is asked of, and the plan of what to read for it. Pure: nothing
//! here reads a cell or a clock.

/// The question.
pub mod aggregate_query;
/// Which aggregate answers a question to a table.
pub mod candidate;
/// The same range some time earlier.
pub mod comparison;
/// `where` of a question.
pub mod condition;
/// Which columns say in what money an amount is.
pub mod currency;
/// Where the next page begins.
pub mod cursor;
/// Stable hashes.
pub mod fingerprint;
/// An aggregate to ask in tests.
#[cfg(test)]
pub(crate) mod fixture;
/// `having` of a question.
pub mod having;
/// Instants as text and back.
pub mod instant;
/// The measures of an answer.
pub mod output;
/// Which cells to read.
pub mod planner;
/// What tells this process from every other.
pub mod process;
/// Why a question has no answer.
pub mod refusal;
/// A question as it was sent.
pub mod request;
/// The nearest known name.
pub mod suggestion;

pub use aggregate_query::{AggregateQuery, Fill, Layout, Order, OrderBy};
pub use candidate::{Candidate, NotThis};
pub use cursor::Cursor;
pub use output::{Output, OutputSource, OutputType};
pub use planner::{Access, LevelScan, ReadPlan};
pub use refusal::{Fault, QueryError};
pub use request::QueryRequest;
