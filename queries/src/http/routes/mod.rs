//! The handlers, one file per noun of the URL.

pub(super) mod aggregates;
pub(super) mod backfill;
pub(super) mod checkpoints;
pub(super) mod data;
pub(super) mod docs;
pub(super) mod events;
pub(super) mod health;
pub(super) mod live;
pub(super) mod metrics;
pub(super) mod preview;
pub(super) mod query;
pub(super) mod rows;
pub(super) mod sources;
pub(super) mod verify;
