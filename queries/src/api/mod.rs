//! What is written down: answers, descriptions of aggregates and sources, problems. Nothing here knows a request.

/// Answers as JSON, NDJSON and CSV.
pub mod answer;
/// Descriptions of aggregates.
pub mod description;
/// One value of an answer.
pub mod field;
/// Things a finance user should be told about a definition.
pub mod lint;
/// Problems.
pub mod problem;
/// Descriptions of sources.
pub mod source;
/// Definitions as SQL.
pub mod sql;
/// A remark beside an answer.
pub mod warning;

pub use answer::AnswerView;
pub use problem::Problem;
pub use warning::Warning;
