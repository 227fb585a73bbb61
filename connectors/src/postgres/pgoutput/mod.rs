//! The logical replication messages of Postgres' own output plugin: bytes in, borrowed messages out.
//!
//! Pure: no socket, no clock, no allocation but for RELATION. Any bytes decode or are refused; nothing panics.

mod decode;
mod message;
pub(crate) mod value;

pub(crate) use decode::{Malformed, decode};
pub(crate) use message::{Cell, CellKind, Message, OldTuple, RelationMessage, Tuple};
