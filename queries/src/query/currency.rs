//! Which columns say in what money an amount is, and the refusal to add different ones together.
//!
//! Recognised by name only: a total of dollars and euros is never meant, and a column wrongly recognised costs its user
//! one more word in the question.

use engine::aggregate::Function;
use engine::change::Value;
use engine::materialization::Plan;
use engine::materialization::filter::Filter;
use engine::materialization::plan::DimensionPlan;

use super::refusal::QueryError;

const NAMES: [&str; 6] = ["currency", "currency_code", "ccy", "curr", "currency_id", "iso_currency"];

/// Whether a column's name says that it holds a currency.
#[must_use]
pub fn is_currency(column: &str) -> bool {
    let column = column.to_lowercase();
    NAMES.contains(&column.as_str()) || column.ends_with("_currency")
}

/// Whether a measure adds amounts.
#[must_use]
pub fn adds_amounts(function: Function) -> bool {
    !matches!(function, Function::CountRows | Function::CountValues)
}

/// Refuses a sum over groups of different currencies: each currency dimension is fixed or in the answer. `parameter` is what of the
/// question adds the groups up.
pub(super) fn refuse_mixing(
    plan: &Plan,
    fixed: &[Option<Value>],
    (parameter, group_by): (&'static str, &[usize]),
    measures: impl Iterator<Item = usize>,
) -> Result<(), QueryError> {
    let is_mixed = |at: usize, dimension: &DimensionPlan| {
        is_currency(&dimension.name)
            && !group_by.contains(&at)
            && fixed.get(at).is_none_or(Option::is_none)
            && !is_of_one_value(plan.filter.as_ref(), dimension.column)
    };
    let dimensions = plan.dimensions.iter().enumerate();
    let mixed: Vec<&DimensionPlan> =
        dimensions.filter(|(at, dimension)| is_mixed(*at, dimension)).map(|(_, dimension)| dimension).collect();
    let wrong =
        measures.filter_map(|at| plan.measures.get(at)).filter(|measure| adds_amounts(measure.function)).find_map(
            |sum| Some((sum, mixed.iter().find(|currency| !is_of_one_value(sum.filter.as_ref(), currency.column))?)),
        );
    let Some((sum, currency)) = wrong else { return Ok(()) };
    let (sum, currency) = (&sum.name, &currency.name);
    let detail = format!("{sum} would add up amounts of different {currency}");
    let hint = match parameter {
        "group_by" => format!("add {currency} to group_by, or fix it: where={currency}:EUR"),
        _ => format!("fix it: where={currency}:EUR"),
    };
    Err(QueryError::refused(parameter, "currencies_mixed", detail).hint(hint))
}

/// Whether a condition fixes a column.
#[must_use]
pub fn is_of_one_value(condition: Option<&Filter>, column: usize) -> bool {
    let conjuncts = condition.cloned().map(Filter::into_conjuncts).unwrap_or_default();
    conjuncts.iter().any(|condition| matches!(condition.equals(), Some((at, [_])) if at == column))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{Column, ColumnType, TableId, TableSchema};
    use engine::materialization::Definition;

    use super::*;

    #[test]
    fn different_currencies_are_never_added() {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![
                column("id", ColumnType::Int8),
                column("settlement_currency", ColumnType::Char),
                column("merchant", ColumnType::Text),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let definition: Definition = serde_json::from_str(
            r#"{"table":"payments","dimensions":["merchant","settlement_currency"],
                "measures":[{"name":"ids","sum":"id"},{"name":"n","count":"*"},
                            {"name":"eur","sum":"id","where":"settlement_currency = 'EUR' and id > 0"}]}"#,
        )
        .unwrap();
        let plan = Plan::resolve(&definition, &schema).unwrap();
        let euro = Some(Value::Text("EUR".to_owned()));
        let code = |fixed: &[Option<Value>], group_by: &[usize], measures: &[usize]| {
            refuse_mixing(&plan, fixed, ("group_by", group_by), measures.iter().copied()).map_err(|error| error.code)
        };
        assert_eq!(code(&[None, None], &[0], &[0, 1]), Err("currencies_mixed"));
        assert_eq!(code(&[None, None], &[], &[0]), Err("currencies_mixed"));
        assert_eq!(code(&[None, None], &[0], &[1]), Ok(()), "rows may be counted");
        assert_eq!(code(&[None, None], &[0], &[2]), Ok(()), "the measure itself is of one currency");
        assert_eq!(code(&[None, None], &[0, 1], &[0]), Ok(()));
        assert_eq!(code(&[None, euro], &[0], &[0]), Ok(()));
        let share = |group_by: &[usize]| refuse_mixing(&plan, &[None, None], ("share", group_by), [0].into_iter());
        assert_eq!(share(&[]).map_err(|error| (error.parameter, error.hint)), {
            Err(("share".to_owned(), "fix it: where=settlement_currency:EUR".to_owned()))
        });
        let of_euros = Definition { filter: Some("settlement_currency = 'EUR'".to_owned()), ..definition };
        let plan = Plan::resolve(&of_euros, &schema).unwrap();
        assert_eq!(
            refuse_mixing(&plan, &[None, None], ("group_by", &[]), [0].into_iter()),
            Ok(()),
            "there is one only"
        );
    }
}
