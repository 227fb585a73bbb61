//! One thing looked at upstream: how it stands, and what puts it right.
//!
//! The surprise: what repairs a check and what may be run without asking are two things. `remedy` is for people and may
//! need a decision; `repair` holds statements that lose nothing, and is empty where there are none.

use engine::hindrance::Hindrance;
use engine::source::{Check, CheckOutcome, SourceError};

use super::super::error::source_error;
use crate::NotStarted;

/// A check, and what only this connector knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// As it is shown.
    pub check: Check,
    /// Stable name of the mistake, such as `wal_level_not_logical`; empty unless the check failed.
    pub code: &'static str,
    /// Statements that put it right and lose nothing; empty where someone has to decide.
    pub repair: Vec<String>,
    /// The repair counts only once Postgres was restarted.
    pub needs_restart: bool,
    /// Of one that failed: whether it may pass by itself.
    pub hindrance: Hindrance,
}

impl Finding {
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, CheckOutcome::Ok, "", message.into())
    }

    pub(super) fn warning(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, CheckOutcome::Warning, "", message.into())
    }

    pub(super) fn failed(name: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, CheckOutcome::Failed, code, message.into())
    }

    /// What stops the source, told by another part of it.
    pub(super) fn of(name: &'static str, error: SourceError) -> Self {
        Self::failed(name, error.code, error.message).remedy(error.remedy)
    }

    fn new(name: &'static str, outcome: CheckOutcome, code: &'static str, message: String) -> Self {
        let check = Check { name, outcome, message, remedy: String::new() };
        Finding { check, code, repair: Vec::new(), needs_restart: false, hindrance: Hindrance::Standing }
    }

    /// It may pass by itself.
    pub(super) fn passing(mut self) -> Self {
        self.hindrance = Hindrance::Passing;
        self
    }

    /// What someone has to do.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.check.remedy = remedy.into();
        self
    }

    /// Statements to paste, after a decision that is not ours.
    pub(super) fn statements(self, statements: &[String]) -> Self {
        let remedy = paste(statements);
        self.remedy(remedy)
    }

    /// Statements to paste that lose nothing.
    pub(super) fn repaired_by(self, statements: Vec<String>) -> Self {
        let mut finding = self.statements(&statements);
        finding.repair = statements;
        finding
    }

    /// The statements are not enough.
    pub(super) fn then_restart(mut self, or: &str) -> Self {
        self.check.remedy.push_str(" -- then restart Postgres");
        self.check.remedy.push_str(or);
        self.needs_restart = !self.repair.is_empty();
        self
    }

    /// It keeps a source from running.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.check.outcome == CheckOutcome::Failed
    }

    fn error(&self) -> SourceError {
        source_error(self.code, self.check.message.clone(), self.check.remedy.clone())
    }
}

fn paste(statements: &[String]) -> String {
    let ended: Vec<String> = statements.iter().map(|statement| format!("{statement};")).collect();
    ended.join(" ")
}

/// What a source refuses to start with: the first thing that failed, in the order looked at.
pub(super) fn first_failure(findings: &[Finding]) -> Option<SourceError> {
    findings.iter().find(|finding| finding.is_failed()).map(Finding::error)
}

/// What keeps a source from starting, where somebody has to do something before all else: what passes by itself is no reason to
/// try again while that is so.
pub(super) fn hindered(findings: &[Finding]) -> Option<NotStarted> {
    let first = findings.iter().filter(|finding| finding.is_failed()).min_by_key(|finding| finding.hindrance)?;
    Some(NotStarted { error: first.error(), hindrance: first.hindrance })
}

/// As they are shown: failed ones first, then warnings.
pub(super) fn failed_first(findings: &mut [Finding]) {
    findings.sort_by_key(|finding| match finding.check.outcome {
        CheckOutcome::Failed => 0,
        CheckOutcome::Warning => 1,
        CheckOutcome::Ok => 2,
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_first_failure_stops_and_failures_are_shown_first() {
        let mut findings = vec![
            Finding::ok("a", ""),
            Finding::warning("b", "").remedy("x"),
            Finding::failed("c", "c_wrong", "c is wrong").repaired_by(vec!["ALTER A".into(), "ALTER B".into()]),
            Finding::failed("d", "d_wrong", "").statements(&["SET d".into()]).then_restart(", or not"),
        ];
        let error = first_failure(&findings).unwrap();
        assert_eq!((error.code, error.message.as_str()), ("c_wrong", "c is wrong"));
        assert_eq!(error.remedy, "ALTER A; ALTER B;");
        assert_eq!(findings[3].check.remedy, "SET d; -- then restart Postgres, or not");
        assert!(!findings[3].needs_restart, "nothing is run for it");
        failed_first(&mut findings);
        let names: Vec<&str> = findings.iter().map(|finding| finding.check.name).collect();
        assert_eq!(names, ["c", "d", "b", "a"]);
        assert_eq!(first_failure(&[Finding::warning("b", "")]), None);
    }

    #[test]
    fn what_somebody_has_to_mend_comes_before_what_passes() {
        let told = |findings: &[Finding]| hindered(findings).map(|told| (told.error.code, told.hindrance));
        let (passing, standing) = (Finding::failed("a", "full", "").passing(), Finding::failed("b", "wrong", ""));
        assert_eq!(told(&[passing.clone(), standing.clone()]), Some(("wrong", Hindrance::Standing)));
        assert_eq!(told(&[passing]), Some(("full", Hindrance::Passing)));
        assert_eq!(told(&[Finding::warning("c", "")]), None);
    }
}
