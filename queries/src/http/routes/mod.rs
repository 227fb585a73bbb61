//! The handlers, one file per noun of the URL.

pub(super) mod aggregates;
pub(super) mod backfill;
pub(super) mod data;
pub(super) mod events;
pub(super) mod health;
pub(super) mod metrics;
pub(super) mod sources;
