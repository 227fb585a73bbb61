//! The integration tests of the root package: one binary, so that everything is linked once. `tests/README.md` says how
//! to add a case and what runs when.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

/// Throwaway servers, a running Tidemark, SQL answers.
mod support;

/// Random histories against Postgres' own GROUP BY.
mod oracle;
/// The money-transfer workload.
mod transfers;

/// pgbench against its own balances.
mod pgbench;

/// The real binary killed at random moments.
mod crash;

/// Network, server and Tidemark broken under load.
mod faults;

/// Totals over tables that change shape.
mod tables;

/// Tables as an engine is told of them, by hand.
mod table_events;
/// What changes upstream without a row.
mod unsaid;

/// What Tidemark costs the primary.
mod primary;
mod row_image;

/// Standbys that are promoted.
mod failover;

/// Very many rows, transactions and bytes.
mod bulk;
mod clients;

/// The guide: its commands, and what they print.
mod docs;

/// The payments tables of the LeanXcale guide, over HTTP.
mod guide;

/// Random questions against Postgres' own GROUP BY.
mod questions;

/// One answer in every format.
mod formats;

/// Answers and their changes, as they happen.
mod live;

/// The payments behind a total.
mod drill;

/// The page, in a browser.
mod dashboard;

/// Aggregates that get another definition.
mod rebuild;

/// Aggregates that answer what they are filled with already.
mod newest_first;

/// Own writes, and pages of one moment.
mod visibility;

/// Definitions in SQL and JSON, their previews, and directories of them.
mod registration;

/// Debezium's change events, posted and recorded.
mod debezium;

/// Mistakes, and the answers they get.
mod mistakes;

/// What an operator does with a shell.
mod operator;

/// What those who run it build on: metrics, alerts, the supervisor, the log.
mod operations;

/// Backups, and what is restored of them.
mod backup;
/// The commands that read, for people and for programs.
mod command_line;

/// A disk that fills up.
mod disk;

/// What is stored damaged, and found.
mod scrub;

/// Cells compared with Postgres while everyone writes.
mod verify;

/// Clock readings without a zone, and the instants that they are.
mod clocks;

/// Who may do what.
mod access;

/// More than it is made for.
mod overload;

/// Requests that mean harm, and secrets.
mod hostile;

/// Every answer, in the contract.
mod contract;

/// Every problem code, in the sources and in the guide.
mod problems;

/// Spans at a collector.
mod traces;

/// The layer rules.
mod tidy;
