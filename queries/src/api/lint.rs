//! Things a finance user should be told about a definition that is correct and perhaps not meant.

use engine::change::TableSchema;
use engine::materialization::{Definition, Plan};

use super::warning::Warning;
use crate::query::currency::{adds_amounts, is_currency};

/// What to remark about a definition.
#[must_use]
pub fn warnings(definition: &Definition, plan: &Plan, schema: Option<&TableSchema>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if let Some(schema) = schema {
        warnings.extend(sum_across_currencies(definition, plan, schema));
    }
    warnings
}

/// A sum over a table with a currency that neither groups by it nor filters on it adds dollars to euros.
fn sum_across_currencies(definition: &Definition, plan: &Plan, schema: &TableSchema) -> Option<Warning> {
    let (at, currency) = schema.columns.iter().enumerate().find(|(_, column)| is_currency(&column.name))?;
    let mut told_apart: Vec<usize> = plan.dimensions.iter().map(|dimension| dimension.column).collect();
    if let Some(filter) = &plan.filter {
        filter.columns(&mut told_apart);
    }
    let sum = plan.measures.iter().find(|measure| adds_amounts(measure.function))?;
    (!told_apart.contains(&at)).then(|| {
        Warning::new(
            "sum_across_currencies",
            format!(
                "{} adds up amounts of different {}: add it to `dimensions` or to `where` (table {})",
                sum.name,
                currency.name,
                definition.qualified_table()
            ),
        )
    })
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
            ],
            primary_key: vec![0],
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
        assert!(codes(r#""measures":[{"name":"n","count":"*"}]"#).is_empty());
    }
}
