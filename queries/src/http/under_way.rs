//! The requests of each token that are under way, reading its body and waiting for a position included. One token takes a part of
//! the places that all connections have: who waits with all of them would keep everybody else from connecting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counts::Counts;
use crate::access::Caller;
use crate::api::Problem;

/// Requests of one token at once. Live answers have a limit of their own.
const MAX_OF_TOKEN: usize = 256;

/// The requests that are under way, by the id of their token; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<Counts<String>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct One {
    token: String,
    of: UnderWay,
}

impl UnderWay {
    /// One more; none is counted where there are no tokens.
    pub(super) fn begin(&self, caller: &Caller) -> Result<Option<One>, Problem> {
        let Caller::Holder(token) = caller else { return Ok(None) };
        let mut counts = self.lock();
        if counts.of(&token.id) >= MAX_OF_TOKEN {
            let detail = format!("{MAX_OF_TOKEN} requests of token {} are under way", token.id);
            return Err(Problem::new(429, "overloaded", detail)
                .hint("ask again when some of them have their answers; to follow totals, read one live answer")
                .retry_after(1));
        }
        counts.add(token.id.clone());
        Ok(Some(One { token: token.id.clone(), of: self.clone() }))
    }

    fn lock(&self) -> MutexGuard<'_, Counts<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.of.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::access::{Scope, Token};

    fn holder() -> Caller {
        let (_, token) = Token::create(Scope::Read, Vec::new(), String::new(), 0, None).unwrap();
        Caller::Holder(Arc::new(token))
    }

    #[test]
    fn a_token_has_its_part_and_gives_it_back() {
        let (under_way, greedy, other) = (UnderWay::default(), holder(), holder());
        let begun: Vec<_> = (0..MAX_OF_TOKEN).map(|_| under_way.begin(&greedy).unwrap()).collect();
        let told = under_way.begin(&greedy).unwrap_err();
        assert_eq!((told.status, told.code.as_str(), told.retry_after_s), (429, "overloaded", Some(1)));
        assert!(under_way.begin(&other).unwrap().is_some());
        assert!(under_way.begin(&Caller::Anyone).unwrap().is_none());
        drop(begun);
        assert!(under_way.begin(&greedy).is_ok());
        assert!(under_way.lock().is_empty(), "counts of nothing are kept");
    }
}
