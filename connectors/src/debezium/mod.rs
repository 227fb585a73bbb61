//! Change events as Debezium's Postgres connector writes them in JSON: one envelope -> one change, and the order in which
//! they count.
//!
//! ```text
//! line of JSON --Decoder--> Message --Ledger--> new, seen before, or refused;  where transactions end --> Assembly
//! ```
//!
//! Nothing here does IO, keeps a clock or panics on any input. What cannot be read exactly is refused with a JSON pointer,
//! a code, and the setting of the upstream connector to change.

/// Messages -> transactions for the engine.
pub mod assembly;
/// One value of one column, in each of Debezium's encodings.
mod column;
/// One envelope -> one change.
pub mod envelope;
/// What was seen, and what follows it.
pub mod ledger;

use serde::Deserialize;

pub use assembly::Assembly;
pub use envelope::{Decoder, Message};

/// What envelopes without a `schema` block leave open; the defaults are those of Debezium.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encoding {
    /// Unit of a `timestamp` that is written as a number; without it microseconds, and refused where another is as likely.
    pub timestamps: Option<TimestampUnit>,
    /// How a `numeric` is written; without it decided by the value, and refused where both are possible.
    pub decimals: Option<DecimalMode>,
    /// What stands for a large value that an update did not touch.
    pub unavailable_value: String,
    /// What becomes of events of tables that are not described.
    pub other_tables: OtherTables,
    /// Digits of a column with decimals are base64 where nothing says how they are written.
    #[serde(skip)]
    digits_are_base64: bool,
}

impl Encoding {
    /// As events were read before the doubtful ones among them were refused: for what was taken then and answered.
    #[must_use]
    pub fn as_they_were_taken(self) -> Self {
        let timestamps = self.timestamps.or(Some(TimestampUnit::Micros));
        Encoding { timestamps, digits_are_base64: true, ..self }
    }
}

impl Default for Encoding {
    fn default() -> Self {
        Encoding {
            timestamps: None,
            decimals: None,
            unavailable_value: "__debezium_unavailable_value".to_owned(),
            other_tables: OtherTables::Refuse,
            digits_are_base64: false,
        }
    }
}

/// Unit of a `timestamp` that is written as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestampUnit {
    /// `time.precision.mode=connect`, and columns of type `timestamp(0)` to `timestamp(3)`
    Millis,
    /// `adaptive` and `microseconds`
    Micros,
    /// `nanoseconds`
    Nanos,
}

/// `decimal.handling.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecimalMode {
    /// Bytes in base64.
    Precise,
    /// Digits.
    String,
}

/// What becomes of events of tables that are not described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherTables {
    /// A misspelt name must not pass for an empty table.
    Refuse,
    /// Their events are counted and left out.
    Ignore,
}

/// Why an event cannot be taken. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {reason}")]
pub struct Refusal {
    /// Stable name of the reason.
    pub code: &'static str,
    /// JSON pointer into the event.
    pub pointer: String,
    /// What is wrong, with the names involved.
    pub reason: String,
    /// What to change, and where.
    pub remedy: String,
}

impl Refusal {
    fn new(
        code: &'static str,
        pointer: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Refusal { code, pointer: pointer.into(), reason: reason.into(), remedy: remedy.into() }
    }
}
