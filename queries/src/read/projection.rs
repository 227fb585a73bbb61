//! From the groups stored to the groups asked for: keys of groups are cut into their values, compared with the fixed ones
//! and put together again, as bytes. Values are only decoded for the rows that are answered.

use engine::change::Value;
use engine::materialization::filter::Filter;
use engine::materialization::group_key;

use crate::query::AggregateQuery;

/// What becomes of a stored group.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Bytes that each dimension has to equal, by position.
    fixed: Vec<Option<Vec<u8>>>,
    /// What else the values have to be.
    condition: Option<Filter>,
    /// Positions of the dimensions that remain, in order.
    kept: Vec<usize>,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The key stays as it is.
    Whole,
    /// Nothing is fixed, nothing remains: one group for all.
    Empty,
    /// The general case.
    Cut,
}

impl Projection {
    /// The projection that a question asks for.
    #[must_use]
    pub fn of(query: &AggregateQuery) -> Projection {
        let fixed: Vec<Option<Vec<u8>>> = query.fixed.iter().map(|value| value.as_ref().map(encode)).collect();
        let nothing_fixed = fixed.iter().all(Option::is_none);
        let all_in_order = query.group_by.iter().copied().eq(0..fixed.len());
        let shape = match (nothing_fixed && query.condition.is_none(), all_in_order, query.group_by.is_empty()) {
            (true, true, _) => Shape::Whole,
            (true, false, true) => Shape::Empty,
            _ => Shape::Cut,
        };
        Projection { fixed, condition: query.condition.clone(), kept: query.group_by.clone(), shape }
    }

    /// Whether different groups stay different and in their order, so that nothing has to be merged or sorted.
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        let free = self.fixed.iter().enumerate().filter(|(_, value)| value.is_none()).map(|(position, _)| position);
        free.eq(self.kept.iter().copied())
    }

    /// Writes the group's key in the answer into `into`. False where the group is not asked for; `None` where the key is
    /// damaged.
    #[must_use]
    pub fn apply(&self, key: &[u8], into: &mut Vec<u8>) -> Option<bool> {
        into.clear();
        match self.shape {
            Shape::Whole => into.extend_from_slice(key),
            Shape::Empty => {}
            Shape::Cut => {
                let edges = group_key::boundaries(key)?;
                let part = |position: usize| key.get(*edges.get(position)?..*edges.get(position + 1)?);
                for (position, value) in self.fixed.iter().enumerate() {
                    let Some(value) = value else { continue };
                    if part(position)? != value.as_slice() {
                        return Some(false);
                    }
                }
                if let Some(condition) = &self.condition {
                    let values = group_key::decode(key)?;
                    if !condition.accepts(&values.iter().map(Value::as_ref).collect::<Vec<_>>()) {
                        return Some(false);
                    }
                }
                for position in &self.kept {
                    into.extend_from_slice(part(*position)?);
                }
            }
        }
        Some(true)
    }
}

fn encode(value: &Value) -> Vec<u8> {
    let mut key = Vec::new();
    // Values of conditions are of types that can name a group.
    let _ = group_key::push(&mut key, value.as_ref());
    key
}
