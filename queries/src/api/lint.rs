//! Things a finance user should be told about a definition that is correct and perhaps not meant.

use engine::aggregate::Function;
use engine::change::{ColumnType, TableSchema};
use engine::materialization::{Definition, Plan};

use super::warning::Warning;
use crate::query::currency::{adds_amounts, is_currency, is_of_one_value};

/// What to remark about a definition.
#[must_use]
pub fn warnings(definition: &Definition, plan: &Plan, schema: Option<&TableSchema>) -> Vec<Warning> {
    let Some(schema) = schema else { return Vec::new() };
    [
        sum_across_currencies(definition, plan, schema),
        time_zone_assumed(definition, schema),
        sum_of_doubles(plan, schema),
        one_row_per_group(plan, schema),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A `timestamp` is some clock's reading, and nothing says whose.
fn time_zone_assumed(definition: &Definition, schema: &TableSchema) -> Option<Warning> {
    let time = definition.time.as_ref().filter(|time| time.assume_time_zone.is_none())?;
    let column = schema.columns.get(schema.column_index(&time.column)?)?;
    (column.column_type == ColumnType::Timestamp).then(|| {
        Warning::new(
            "timezone_assumed",
            format!(
                "{} is a timestamp without zone and is read as UTC: say whose clock it shows with `assume_time_zone`",
                time.column
            ),
        )
    })
}

/// Doubles cannot hold cents.
fn sum_of_doubles(plan: &Plan, schema: &TableSchema) -> Option<Warning> {
    let sum = plan.measures.iter().find(|measure| measure.function == Function::SumFloat)?;
    let column = schema.columns.get(sum.column?)?;
    Some(Warning::new(
        "sum_of_doubles",
        format!(
            "{} adds up {}, which is {}: the sum is exact and rounded once, but amounts such as 0.10 are not exact in it, and \
             Postgres' own sum depends on the order of rows. For money use numeric",
            sum.name,
            column.name,
            column.column_type.name()
        ),
    ))
}

/// Whether rows of different values of a column are never in one group.
fn is_told_apart(plan: &Plan, column: usize) -> bool {
    plan.dimensions.iter().any(|dimension| dimension.column == column) || is_of_one_value(plan.filter.as_ref(), column)
}

/// With the whole primary key among dimensions, or fixed by the filter, nothing is added up.
fn one_row_per_group(plan: &Plan, schema: &TableSchema) -> Option<Warning> {
    schema.primary_key.iter().all(|column| is_told_apart(plan, *column)).then(|| {
        let key = schema.primary_key.iter().filter_map(|at| schema.columns.get(*at)).map(|column| column.name.as_str());
        let key = key.collect::<Vec<_>>().join(", ");
        Warning::new(
            "one_row_per_group",
            format!(
                "each group is a single row of the table: its primary key ({key}) is grouped by or fixed by `where`"
            ),
        )
    })
}

/// A sum over a table with a currency that neither groups by it nor is of one value of it adds dollars to euros.
fn sum_across_currencies(definition: &Definition, plan: &Plan, schema: &TableSchema) -> Option<Warning> {
    let currencies =
        schema.columns.iter().enumerate().filter(|(at, column)| is_currency(&column.name) && !is_told_apart(plan, *at));
    let sums = || plan.measures.iter().filter(|measure| adds_amounts(measure.function));
    let mixed = |at: usize| sums().find(|sum| !is_of_one_value(sum.filter.as_ref(), at));
    let (sum, currency) = currencies.filter_map(|(at, currency)| Some((mixed(at)?, currency))).next()?;
    Some(Warning::new(
        "sum_across_currencies",
        format!(
            "{} adds up amounts of different {}: add it to `dimensions`, or one value of it to `where` (table {})",
            sum.name,
            currency.name,
            definition.qualified_table()
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::change::{Column, ColumnType, TableId};

    use super::*;

    fn codes(rest: &str) -> Vec<&'static str> {
        let column = |name: &str, column_type| Column { name: name.to_owned(), column_type };
        let schema = TableSchema {
            id: TableId(1),
            namespace: "public".to_owned(),
            name: "payments".to_owned(),
            columns: vec![
                column("id", ColumnType::Int8),
                column("amount", ColumnType::Int8),
                column("ccy", ColumnType::Text),
                column("at", ColumnType::Timestamp),
                column("weight", ColumnType::Float8),
            ],
            primary_key: vec![0],
            keeps_row_image: true,
        };
        let definition: Definition = serde_json::from_str(&format!(r#"{{"table":"payments",{rest}}}"#)).unwrap();
        let plan = Plan::resolve(&definition, &schema).unwrap();
        warnings(&definition, &plan, Some(&schema)).into_iter().map(|warning| warning.code).collect()
    }

    #[test]
    fn dollars_are_not_added_to_euros_in_silence() {
        let sum = r#""measures":[{"name":"total","sum":"amount"}]"#;
        assert_eq!(codes(sum), ["sum_across_currencies"]);
        assert!(codes(&format!(r#"{sum},"dimensions":["ccy"]"#)).is_empty());
        assert!(codes(&format!(r#"{sum},"where":"ccy = 'EUR'""#)).is_empty());
        for of_several in ["ccy <> 'JPY'", "ccy IN ('EUR', 'USD')"] {
            assert_eq!(codes(&format!(r#"{sum},"where":"{of_several}""#)), ["sum_across_currencies"]);
            let measure = format!(r#""measures":[{{"name":"some","sum":"amount","where":"{of_several}"}}]"#);
            assert_eq!(codes(&measure), ["sum_across_currencies"]);
        }
        assert!(codes(r#""measures":[{"name":"n","count":"*"}]"#).is_empty());
        assert!(codes(r#""measures":[{"name":"eur","sum":"amount","where":"ccy = 'EUR'"}]"#).is_empty());
    }

    #[test]
    fn what_is_correct_and_perhaps_not_meant() {
        let count = r#""measures":[{"name":"n","count":"*"}]"#;
        assert_eq!(codes(&format!(r#"{count},"time":{{"column":"at","granularity":"day"}}"#)), ["timezone_assumed"]);
        let stated = r#""time":{"column":"at","granularity":"day","assume_time_zone":"UTC"}"#;
        assert!(codes(&format!("{count},{stated}")).is_empty());
        assert_eq!(codes(r#""measures":[{"name":"w","sum":"weight"}],"dimensions":["ccy"]"#), ["sum_of_doubles"]);
        assert_eq!(codes(&format!(r#"{count},"dimensions":["id","ccy"]"#)), ["one_row_per_group"]);
        assert_eq!(codes(&format!(r#"{count},"where":"id = 5 and ccy = 'EUR'""#)), ["one_row_per_group"]);
        assert!(codes(&format!(r#"{count},"where":"id in (5, 6)""#)).is_empty());
    }
}
