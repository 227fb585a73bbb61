//! Who asks, and what they are shown. A token that is pinned sees the aggregates of its pins only; of any other it hears that
//! there is none, as of one that does not exist.

use std::sync::Arc;

use super::scope::Scope;
use super::token::Token;
use crate::query::QueryRequest;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// There are no tokens: whoever reaches us may do everything.
    Anyone,
    /// Tokens are needed, and none was sent.
    Nobody,
    /// Whoever holds this token.
    Holder(Arc<Token>),
}

impl Caller {
    /// Whether the caller's scope includes this one.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        match self {
            Caller::Anyone => true,
            Caller::Nobody => false,
            Caller::Holder(token) => token.scope >= scope,
        }
    }

    /// Whether it sees a part of the data only.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        matches!(self, Caller::Holder(token) if !token.pins.is_empty())
    }

    /// Whether it sees anything of an aggregate.
    #[must_use]
    pub fn sees(&self, aggregate: &str) -> bool {
        match self {
            Caller::Anyone => true,
            Caller::Nobody => false,
            Caller::Holder(token) => token.pins.is_empty() || token.pins.iter().any(|pin| pin.aggregate == aggregate),
        }
    }

    /// The question as this caller may ask it of an aggregate; `None` where it does not see that.
    #[must_use]
    pub fn restrict(&self, aggregate: &str, request: &QueryRequest) -> Option<QueryRequest> {
        if !self.sees(aggregate) {
            return None;
        }
        let mut request = request.clone();
        request.pinned = match self {
            Caller::Holder(token) => {
                let pins = token.pins.iter().filter(|pin| pin.aggregate == aggregate);
                pins.flat_map(|pin| pin.fixed.iter().cloned()).collect()
            }
            Caller::Anyone | Caller::Nobody => Vec::new(),
        };
        Some(request)
    }

    /// How the log names it.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Caller::Anyone => "anyone",
            Caller::Nobody => "nobody",
            Caller::Holder(token) => &token.id,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pin::Pin;
    use super::*;

    #[test]
    fn a_pinned_caller_sees_its_part_and_nothing_else() {
        let pins = vec![Pin::parse("monthly=currency:EUR").unwrap(), Pin::parse("daily").unwrap()];
        let (_, token) = Token::create(Scope::Read, pins, String::new(), 0, None).unwrap();
        let caller = Caller::Holder(Arc::new(token));
        let pinned = |name| caller.restrict(name, &QueryRequest::default()).map(|request| request.pinned);
        assert_eq!(pinned("monthly"), Some(vec![("currency".to_owned(), Some("EUR".to_owned()))]));
        assert_eq!(pinned("daily"), Some(Vec::new()));
        for other in ["monthly+next", "Monthly", "", "yearly"] {
            assert_eq!(pinned(other), None, "{other}");
        }
        assert!(caller.may(Scope::Read) && !caller.may(Scope::Register) && !Caller::Nobody.may(Scope::Read));
    }
}
