//! An aggregate to ask in tests: payments with a country and a merchant, by day, month and year.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use engine::change::{Column, ColumnType, TableId, TableSchema};
use engine::materialization::{Aggregate, AggregateId, AggregateState, Definition, Plan};

use super::{AggregateQuery, QueryError, QueryRequest};

pub(crate) fn schema() -> TableSchema {
    let column = |(name, column_type): (&str, ColumnType)| Column { name: name.to_owned(), column_type };
    let columns = [
        ("id", ColumnType::Int8),
        ("country", ColumnType::Text),
        ("merchant", ColumnType::Int8),
        ("amount", ColumnType::Numeric { scale: Some(2) }),
        ("units", ColumnType::Int4),
        ("ts", ColumnType::TimestampTz),
    ];
    TableSchema {
        id: TableId(1),
        namespace: "public".to_owned(),
        name: "payments".to_owned(),
        columns: columns.into_iter().map(column).collect(),
        primary_key: vec![0],
        keeps_row_image: true,
    }
}

/// An aggregate with this time, which may be empty.
pub(crate) fn aggregate(time_and_rollups: &str) -> Aggregate {
    let text = format!(
        r#"{{"table":"payments","dimensions":["country","merchant"],{time_and_rollups}
            "measures":[{{"name":"amount","sum":"amount"}},{{"name":"units","sum":"units"}},{{"name":"n","count":"*"}}]}}"#
    );
    let definition: Definition = serde_json::from_str(&text).unwrap();
    let plan = Arc::new(Plan::resolve(&definition, &schema()).unwrap());
    Aggregate {
        id: AggregateId(7),
        name: "payments_by".to_owned(),
        version: 1,
        definition,
        plan,
        state: AggregateState::Live,
    }
}

pub(crate) fn daily() -> Aggregate {
    daily_in("UTC")
}

pub(crate) fn daily_in(zone: &str) -> Aggregate {
    let time = format!(r#""time":{{"column":"ts","granularity":"day","time_zone":"{zone}"}}"#);
    aggregate(&format!(r#"{time},"rollups":["month","year"],"#))
}

/// Parses `from=2026&to=2027`, without escapes.
pub(crate) fn parse(question: &str, aggregate: &Aggregate) -> Result<AggregateQuery, QueryError> {
    let pairs = question.split('&').filter_map(|pair| pair.split_once('='));
    let parameters: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    AggregateQuery::resolve(&QueryRequest::from_parameters(&parameters)?, aggregate, 0)
}
