//! Why a question has no answer, in words for whoever asked it.

use super::request::MAX_LISTED;

/// Whether a question could not be read or was understood and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not written correctly.
    Malformed,
    /// It is written correctly and has no exact, affordable answer.
    Refused,
}

/// A question without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {detail}")]
pub struct QueryError {
    /// Malformed or refused.
    pub fault: Fault,
    /// Stable name of the reason.
    pub code: &'static str,
    /// The parameter to change.
    pub parameter: String,
    /// What is wrong.
    pub detail: String,
    /// What to do instead; may be empty.
    pub hint: String,
}

impl QueryError {
    /// The parameter is not written correctly.
    #[must_use]
    pub fn malformed(parameter: &str, detail: impl Into<String>) -> Self {
        QueryError {
            fault: Fault::Malformed,
            code: "bad_parameter",
            parameter: parameter.to_owned(),
            detail: detail.into(),
            hint: String::new(),
        }
    }

    /// The parameter asks for what cannot be answered.
    #[must_use]
    pub fn refused(parameter: &str, code: &'static str, detail: impl Into<String>) -> Self {
        QueryError { fault: Fault::Refused, code, ..QueryError::malformed(parameter, detail) }
    }

    /// The parameter lists more than a question may.
    #[must_use]
    pub fn too_many(parameter: &str) -> Self {
        QueryError::refused(parameter, "too_many", format!("more than {MAX_LISTED} are listed"))
            .hint("ask several questions")
    }

    /// With another stable name.
    #[must_use]
    pub fn code(self, code: &'static str) -> Self {
        QueryError { code, ..self }
    }

    /// With what to do instead.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        QueryError { hint: hint.into(), ..self }
    }
}
