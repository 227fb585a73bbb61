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

/// What Tidemark costs the primary.
mod primary;

/// Standbys that are promoted.
mod failover;

/// Very many rows, transactions and bytes.
mod bulk;

/// The payments tables of the LeanXcale guide, over HTTP.
mod guide;

/// Debezium's change events, posted and recorded.
mod debezium;

/// Mistakes, and the answers they get.
mod mistakes;

/// What an operator does with a shell.
mod operator;

/// The layer rules.
mod tidy;
