//! What a pinned token hears where there is no answer: the kind of problem, in the words of the table of all of them. The words
//! of the moment are about everybody's rows: they hold the value that halted an aggregate, and names of aggregates and tables
//! that this token does not know of.

use std::sync::Arc;

use engine::engine::BuildProgress;
use engine::materialization::{Aggregate, AggregateState};

use crate::access::Caller;
use crate::api::{Problem, problem_codes};

/// The problem as this caller hears it. One that is an answer passes here by itself (`authority`); who writes one into an
/// answer sends it here.
pub(super) fn told(caller: &Caller, mut problem: Problem) -> Problem {
    if !caller.is_pinned() {
        return problem;
    }
    problem.progress = None;
    match problem.status {
        // The nearest name may be one that it does not see.
        404 => problem.hint.clear(),
        503 => (problem.detail, problem.hint) = words(&problem.code),
        _ => {}
    }
    problem
}

/// The aggregate as this caller hears of it.
pub(super) fn told_of(caller: &Caller, aggregate: Arc<Aggregate>) -> Arc<Aggregate> {
    match &aggregate.state {
        AggregateState::Halted { code, .. } if caller.is_pinned() => {
            let (message, remedy) = words(code);
            let state = AggregateState::Halted { code: code.clone(), message, remedy };
            Arc::new(Aggregate { state, ..aggregate.as_ref().clone() })
        }
        _ => aggregate,
    }
}

/// How far an aggregate is filled, as this caller hears of it: how many rows there are is about everybody's.
pub(super) fn told_progress(caller: &Caller, progress: Option<BuildProgress>) -> Option<BuildProgress> {
    progress.filter(|_| !caller.is_pinned())
}

/// What is said of every problem with this code, and what to do.
fn words(code: &str) -> (String, String) {
    let (meaning, remedy) = problem_codes::find(code)
        .map_or(("there is no answer at the moment", ""), |problem| (problem.meaning, problem.remedy));
    (meaning.to_owned(), remedy.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::materialization::{AggregateId, Plan};

    use super::*;
    use crate::access::{Pin, Scope, Token};

    fn pinned() -> Caller {
        let pins = vec![Pin::parse("monthly=currency:EUR").unwrap()];
        let (_, token) = Token::create(Scope::Read, pins, String::new(), 0, None).unwrap();
        Caller::Holder(Arc::new(token))
    }

    #[test]
    fn who_is_pinned_hears_the_kind_of_problem_and_no_value() {
        let halted =
            || Problem::new(503, "time_misfit", "monthly is halted: the time of a row, 20261399").hint("see 7");
        let heard = told(&pinned(), halted());
        assert_eq!((heard.status, heard.code.as_str()), (503, "time_misfit"));
        assert_eq!(heard.detail, "The time of a row, an integer, is no date under the codec.");
        assert!(!heard.hint.contains('7'), "{}", heard.hint);
        assert_eq!(told(&Caller::Anyone, halted()), halted());
        let unknown =
            || Problem::new(404, "unknown_aggregate", "there is no aggregate \"monthly\"").hint("known: secret");
        assert_eq!((told(&pinned(), unknown()).hint.as_str(), told(&Caller::Anyone, unknown())), ("", unknown()));
        // Also where nobody has put it into the table.
        let other = told(&pinned(), Problem::new(503, "no_such_code", "table secret").hint("secret"));
        assert!(!format!("{other:?}").contains("secret"), "{other:?}");
    }

    #[test]
    fn who_is_pinned_hears_no_numbers_of_rows_that_are_read() {
        let progress = || Some(BuildProgress { rows_done: 25, rows_estimated: 100, ..BuildProgress::default() });
        for problem in
            [Problem::building("monthly", progress()), Problem::not_covered("monthly", "2026".into(), progress())]
        {
            assert!(told(&Caller::Anyone, problem.clone()).progress.is_some());
            assert_eq!(told(&pinned(), problem).progress, None);
        }
        assert!(told_progress(&Caller::Anyone, progress()).is_some() && told_progress(&pinned(), progress()).is_none());
    }

    #[test]
    fn a_halted_aggregate_is_described_in_the_same_words() {
        let (message, remedy) = ("the time of a row, 20261399".to_owned(), "see 7".to_owned());
        let aggregate = Arc::new(Aggregate {
            id: AggregateId(1),
            name: "monthly".to_owned(),
            version: 1,
            definition: serde_json::from_str(r#"{"table":"t","measures":[{"name":"n","count":"*"}]}"#).unwrap(),
            plan: Arc::new(Plan::unresolved()),
            state: AggregateState::Halted { code: "time_misfit".to_owned(), message, remedy },
        });
        assert_eq!(told_of(&Caller::Anyone, Arc::clone(&aggregate)), aggregate);
        let heard = format!("{:?}", told_of(&pinned(), aggregate).state);
        assert!(heard.contains("time_misfit") && !heard.contains("20261399") && !heard.contains("see 7"), "{heard}");
    }
}
