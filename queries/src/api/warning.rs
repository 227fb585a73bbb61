//! A remark beside an answer or a description: nothing is wrong, but the reader should know.

use serde::Serialize;

/// One remark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Stable name.
    pub code: &'static str,
    /// In words.
    pub message: String,
}

impl Warning {
    /// A remark.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Warning { code, message: message.into() }
    }
}
