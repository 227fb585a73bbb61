//! The vocabulary of what happened upstream. Connectors speak it, the engine consumes it; nothing here knows
//! Postgres' wire format, the store, or a clock.

/// Change events and transactions.
pub mod event;
/// The position in the source's log.
pub mod lsn;
/// A row, encoded.
pub mod row;
/// The shape of an upstream table.
pub mod schema;
/// One value of one column.
pub mod value;

pub use event::{Change, Changes, OldImage, Transaction};
pub use lsn::Lsn;
pub use row::{MalformedRow, RowRef, RowWriter};
pub use schema::{Column, ColumnType, TableId, TableSchema};
pub use value::{Numeric, Value, ValueRef};
