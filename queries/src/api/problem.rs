//! Problems (RFC 9457): what went wrong, a stable code to program against, and what to do about it.

use std::ops::{Deref, DerefMut};

use serde::Serialize;

use engine::engine::{BuildProgress, NotJoined, Unavailable};
use engine::materialization::DefinitionError;
use engine::source::SourceError;

use super::description::Progress;
use super::explanation::Unanswered;
use super::problem_codes::PROBLEMS_PAGE;
use crate::inlet::Taken;
use crate::query::{Fault, QueryError};
use crate::read::ReadFailure;

/// One problem. Boxed, because it is what nearly every function here may fail with.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<ProblemBody>);

impl Deref for Problem {
    type Target = ProblemBody;

    fn deref(&self) -> &ProblemBody {
        &self.0
    }
}

impl DerefMut for Problem {
    fn deref_mut(&mut self) -> &mut ProblemBody {
        &mut self.0
    }
}

/// One problem, as its body is written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProblemBody {
    /// Where the kind of problem is explained; relative to the server that said it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, in a few words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// Stable name of the reason.
    pub code: String,
    /// What to do; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// The parts of the request that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<WrongPart>,
    /// What was taken before the refused part of a body of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// How far an aggregate is that cannot answer yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What an aggregate that is being filled answers already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// Why no aggregate answers a question to a table.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Unanswered>,
    /// Names the request in our log.
    pub request_id: String,
    /// Seconds after which to try again.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

/// The times that an aggregate answers while it is being filled: from an instant on, without end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// First instant, RFC 3339.
    pub from: String,
}

/// A part of a request that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WrongPart {
    /// JSON pointer into the body (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Line of the body, or place in its array; from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Character in the line; from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The line, and under it a caret at the character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
    /// Parameter of the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// A problem without hint.
    #[must_use]
    pub fn new(status: u16, code: impl Into<String>, detail: impl Into<String>) -> Self {
        let code = code.into();
        Problem(Box::new(ProblemBody {
            kind: format!("{PROBLEMS_PAGE}#{code}"),
            title: title(status),
            status,
            detail: detail.into(),
            code,
            hint: String::new(),
            errors: Vec::new(),
            taken: None,
            progress: None,
            coverage: None,
            unanswered: None,
            request_id: String::new(),
            retry_after_s: None,
        }))
    }

    /// With what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// With the part of the body that is wrong.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        let detail = self.detail.clone();
        self.errors.push(WrongPart { pointer: Some(pointer.into()), detail, ..WrongPart::default() });
        self
    }

    /// With the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// An aggregate that is being filled.
    #[must_use]
    pub fn building(name: &str, progress: Option<BuildProgress>) -> Self {
        Problem::new(503, "building", format!("{name} is being filled and does not answer yet"))
            .hint(format!("see /v1/aggregates/{name}/backfill"))
            .while_filled(progress)
    }

    /// A question about times that an aggregate is not filled with yet.
    #[must_use]
    pub fn not_covered(name: &str, from: String, progress: Option<BuildProgress>) -> Self {
        let detail = format!("{name} is being filled, newest first, and answers from {from} on");
        let mut problem = Problem::new(409, "not_covered", detail)
            .hint(format!("ask with from={from} or later, or wait: /v1/aggregates/{name}/backfill"))
            .while_filled(progress);
        problem.coverage = Some(Coverage { from });
        problem
    }

    fn while_filled(self, progress: Option<BuildProgress>) -> Self {
        let progress = progress.map(Progress::from);
        // Not longer than it takes, not so often that it hurts.
        let wait = progress.as_ref().and_then(|p| p.eta_seconds).map_or(1.0, |eta| eta.clamp(1.0, 30.0));
        let mut problem = self.retry_after(wait as u32);
        problem.progress = progress;
        problem
    }
}

/// Words for a status.
fn title(status: u16) -> &'static str {
    match status {
        400 => "The request is not written correctly",
        401 => "A token is needed",
        403 => "Not allowed",
        404 => "Not found",
        405 => "Method not allowed",
        409 => "Conflict",
        413 => "The request is too large",
        421 => "Not meant for this server",
        415 => "Unsupported media type",
        429 => "Too many requests",
        410 => "Not kept any more",
        422 => "The request is understood and refused",
        503 => "No answer now",
        _ => "Internal error",
    }
}

impl From<Unavailable> for Problem {
    fn from(why: Unavailable) -> Self {
        Problem::new(503, why.code, why.message).hint(why.remedy).retry_after(1)
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let status = match error.fault {
            Fault::Malformed => 400,
            Fault::Refused => 422,
        };
        let mut problem = Problem::new(status, error.code, error.to_string()).hint(error.hint);
        problem.errors.push(WrongPart {
            parameter: Some(error.parameter),
            detail: error.detail,
            ..WrongPart::default()
        });
        problem
    }
}

impl From<DefinitionError> for Problem {
    fn from(error: DefinitionError) -> Self {
        Problem::new(422, error.code, error.message).hint(error.hint).at(error.pointer)
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        // Upstream out of reach is nobody's mistake.
        let (status, retry) = if error.code == "cannot_connect" { (503, Some(1)) } else { (422, None) };
        let mut problem = Problem::new(status, error.code, error.message).hint(error.remedy);
        problem.retry_after_s = retry;
        problem
    }
}

impl From<NotJoined> for Problem {
    fn from(why: NotJoined) -> Self {
        match why {
            NotJoined::Joining(why) => why.into(),
            NotJoined::Refused(error) => Problem::from(error).at("/table"),
        }
    }
}

impl From<ReadFailure> for Problem {
    fn from(failure: ReadFailure) -> Self {
        let detail = failure.to_string();
        match failure {
            ReadFailure::Store(_) => Problem::new(503, "store_corrupt", detail).hint(
                "it is being checked: where it is damaged, POST /v1/aggregates/{name}/backfill:rebuild builds it anew",
            ),
            ReadFailure::TooManyRows => {
                Problem::new(422, "too_many_rows", detail).hint("fix all dimensions with where, or shorten the range")
            }
            ReadFailure::TooWide => Problem::new(422, "query_too_wide", detail),
            ReadFailure::TooLarge => Problem::new(422, "query_too_wide", detail)
                .hint("ask with a lower limit and follow page.next, for fewer measures, or in several requests"),
            ReadFailure::OutOfTime => Problem::new(503, "timeout", detail).retry_after(1),
            ReadFailure::Overflow(_) => Problem::new(422, "sum_overflow", detail).hint("ask for a shorter range"),
            ReadFailure::Straddles { .. } => Problem::new(422, "does_not_nest", detail)
                .hint("give a range (from, to) in which the clocks agree, or ask in the aggregate's own time zone"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refused_question_names_its_parameter() {
        let error = QueryError::refused("granularity", "does_not_nest", "a week can lie in two").hint("use day");
        assert_eq!(
            serde_json::to_value(Problem::from(error)).unwrap(),
            json!({
                "type": "/docs/problems#does_not_nest",
                "title": "The request is understood and refused",
                "status": 422,
                "detail": "granularity: a week can lie in two",
                "code": "does_not_nest",
                "hint": "use day",
                "errors": [{"parameter": "granularity", "detail": "a week can lie in two"}],
                "request_id": "",
            })
        );
    }

    #[test]
    fn what_a_source_refuses_carries_its_remedy() {
        let error =
            |code| SourceError { code, message: "table a.b does not exist".into(), remedy: "did you mean a.c?".into() };
        let problem = Problem::from(error("table_missing")).at("/table");
        assert_eq!((problem.status, problem.code.as_str()), (422, "table_missing"));
        assert_eq!(problem.hint, "did you mean a.c?");
        assert_eq!(Problem::from(error("cannot_connect")).status, 503);
    }

    #[test]
    fn a_refused_definition_points_into_the_body() {
        let error = DefinitionError {
            pointer: "/measures/0/sum".to_owned(),
            code: "unknown_column",
            message: "no such column".to_owned(),
            hint: String::new(),
        };
        let problem = Problem::from(error);
        assert_eq!((problem.status, problem.code.as_str()), (422, "unknown_column"));
        assert_eq!(problem.errors.first().unwrap().pointer.as_deref(), Some("/measures/0/sum"));
    }

    #[test]
    fn a_building_aggregate_says_how_far_it_is_and_when_to_come_back() {
        let progress = BuildProgress {
            rows_done: 25,
            rows_estimated: 100,
            rows_per_second: 10.0,
            eta_s: Some(7.5),
            ..BuildProgress::default()
        };
        let problem = Problem::building("monthly", Some(progress));
        assert_eq!((problem.status, problem.retry_after_s), (503, Some(7)));
        assert_eq!(problem.progress.as_ref().unwrap().fraction, Some(0.25));
    }
}
