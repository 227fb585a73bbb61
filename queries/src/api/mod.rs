//! What is written down: answers, descriptions of aggregates and sources, problems. Nothing here knows a request.

/// Answers as JSON, NDJSON and CSV.
pub mod answer;
/// Answers as Apache Arrow.
pub mod arrow;
/// What is different between two answers.
pub mod changes;
/// A backup that was taken.
pub mod checkpoint;
/// The columns of an answer.
pub mod column;
/// Descriptions of aggregates.
pub mod description;
/// What is read for an answer, and why not something else.
pub mod explanation;
/// One value of an answer.
pub mod field;
/// Things a finance user should be told about a definition.
pub mod lint;
/// What an aggregate would be.
pub mod preview;
/// Problems.
pub mod problem;
/// Every problem there is.
pub mod problem_codes;
/// Descriptions of sources.
pub mod source;
/// Rows of a table.
pub mod table_rows;
/// What a verification found.
pub mod verification;
/// A remark beside an answer.
pub mod warning;
/// A numeric beyond 128 bits.
mod wide_numeric;

pub use answer::AnswerView;
pub use problem::Problem;
pub use warning::Warning;
