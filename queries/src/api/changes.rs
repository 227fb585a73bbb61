//! What is different between two answers to one question: the rows to put in place, and those that are gone.
//!
//! `old` with `changes(old, new)` applied is `new`, as sets of rows; the order is the reader's to keep.

use std::collections::BTreeMap;

use engine::aggregate::MeasureValue;
use engine::materialization::Bucket;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::answer::{AnswerView, AsOfBody, Object};
use crate::read::Row;

/// The rows that a reader has, by bucket and group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known(BTreeMap<(Bucket, Vec<u8>), (Vec<MeasureValue>, bool)>);

/// What a reader of [`Known`] has to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Rows of the new answer, by position, that are new or different.
    pub upsert: Vec<usize>,
    /// Rows of the old one that are gone.
    pub delete: Vec<Row>,
}

impl Known {
    /// The rows of an answer; a row that became complete is a different one.
    #[must_use]
    pub fn of(view: &AnswerView<'_>) -> Known {
        let row = |row: &Row| ((row.bucket, row.key.clone()), (row.values.clone(), view.complete(row.bucket)));
        Known(view.answer.rows.iter().map(row).collect())
    }

    /// What makes these rows those of a later answer.
    #[must_use]
    pub fn changes_to(&self, view: &AnswerView<'_>) -> Changes {
        let later = Known::of(view);
        let differs = |row: &Row| {
            let key = (row.bucket, row.key.clone());
            self.0.get(&key) != later.0.get(&key)
        };
        let upsert = view.answer.rows.iter().enumerate().filter(|(_, row)| differs(row)).map(|(at, _)| at).collect();
        let gone = self.0.iter().filter(|(key, _)| !later.0.contains_key(*key));
        let delete =
            gone.map(|((bucket, key), (values, _))| Row { bucket: *bucket, key: key.clone(), values: values.clone() });
        Changes { upsert, delete: delete.collect() }
    }
}

impl Changes {
    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upsert.is_empty() && self.delete.is_empty()
    }
}

/// `{"as_of":{...},"lag_ms":5,"upsert":[...],"delete":[...]}`: where it leads to; whole rows to put in place; time and dimensions of
/// rows to take away.
#[derive(Serialize)]
pub struct ChangesBody<'a> {
    as_of: AsOfBody,
    lag_ms: u64,
    upsert: Upserts<'a>,
    delete: Deletes<'a>,
}

impl<'a> ChangesBody<'a> {
    /// The changes that lead to this answer.
    #[must_use]
    pub fn new(view: &'a AnswerView<'a>, changes: &'a Changes) -> Self {
        ChangesBody {
            as_of: AnswerView::as_of_body(view.as_of),
            lag_ms: view.lag_ms,
            upsert: Upserts(view, &changes.upsert),
            delete: Deletes(view, &changes.delete),
        }
    }
}

struct Upserts<'a>(&'a AnswerView<'a>, &'a [usize]);

impl Serialize for Upserts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = self.0.columns();
        let mut list = serializer.serialize_seq(None)?;
        for (at, row) in self.1.iter().filter_map(|at| Some((*at, self.0.answer.rows.get(*at)?))) {
            list.serialize_element(&Object { columns: &columns, fields: &self.0.fields(at, row) })?;
        }
        list.end()
    }
}

struct Deletes<'a>(&'a AnswerView<'a>, &'a [Row]);

impl Serialize for Deletes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut columns = self.0.columns();
        columns.retain(|column| matches!(column.role, "time" | "dimension"));
        let mut list = serializer.serialize_seq(Some(self.1.len()))?;
        for row in self.1 {
            list.serialize_element(&Object { columns: &columns, fields: &self.0.key_fields(row) })?;
        }
        list.end()
    }
}
