//! What a user asked us to keep, and the shape of its result.

/// Times that mean the same in every session.
mod any_zone;
/// Granularities, time buckets, and which nest in which.
pub mod bucket;
/// The aggregates that exist, and their state.
pub mod catalog;
/// Conditions as text: read within bounds, written in our own words.
pub mod condition;
/// Times that a table keeps as integers.
pub mod date_codec;
/// The definition as the user wrote it.
pub mod definition;
/// The `where` of a definition.
pub mod filter;
/// The dimensions of one group as order-preserving bytes.
pub mod group_key;
/// A definition resolved against the table's schema.
pub mod plan;

pub use bucket::{Bucket, Calendar, Granularity};
pub use catalog::{Aggregate, AggregateId, AggregateState, Catalog, ClockReading, Registration};
pub use date_codec::DateCodec;
pub use definition::{Definition, MeasureDefinition, TimeDefinition};
pub use plan::{DefinitionError, Plan};
