//! A question as it was sent: text and lists, the same from a URL and from a body. Names are not known to exist yet.

use serde::Deserialize;
use serde_json::Value as Json;

use super::refusal::QueryError;
use super::suggestion::did_you_mean;

/// Most measures of one question, and most dimensions that it names in one list: an aggregate has at most 32 of each.
pub const MAX_LISTED: usize = 64;

/// What is asked. Times, conditions and measures are text; see `queries/README.md` for each.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueryRequest {
    /// The aggregate to ask; in a URL it stands in the path.
    pub aggregate: Option<String>,
    /// Or the table: the cheapest aggregate over it that can answer is asked.
    pub table: Option<String>,
    /// The column that `from`, `to` and `granularity` are about, of a table.
    pub time: Option<String>,
    /// First instant inside.
    pub from: Option<String>,
    /// First instant after.
    pub to: Option<String>,
    /// Length of the answer's buckets.
    pub granularity: Option<String>,
    /// Zone in which buckets begin.
    pub time_zone: Option<String>,
    /// `monday`, `saturday` or `sunday`.
    pub week_start: Option<String>,
    /// Number of the month in which years begin.
    pub year_start: Option<u8>,
    /// Where fixed steps start counting.
    pub origin: Option<String>,
    /// Dimensions fixed to a value each: an object, or in a URL `dimension:value,...`, which may be repeated.
    #[serde(rename = "where")]
    pub fixed: Option<Fixed>,
    /// A SQL condition over the dimensions.
    pub filter: Option<String>,
    /// Dimensions in the answer.
    pub group_by: Option<Vec<String>>,
    /// Measures in the answer: names, or `sum(amount)`, `avg(amount)`, `count(*)`, with `as name`.
    pub measures: Option<Vec<String>>,
    /// A SQL condition over the answer's columns.
    pub having: Option<String>,
    /// Columns to order by; `-` before a name for the largest first.
    pub order: Option<Vec<String>>,
    /// Most rows.
    pub limit: Option<usize>,
    /// One more row that holds everything not shown.
    pub others: bool,
    /// One more column: the part of the whole that a row's first ordered measure is.
    pub share: bool,
    /// So many of the newest rows of the table behind each row of the answer.
    pub rows: Option<usize>,
    /// `previous`, or a period such as `P1Y`: the same range so much earlier, beside each row.
    pub compare: Option<String>,
    /// What to answer for buckets without rows.
    pub fill: Option<String>,
    /// Where this page begins.
    pub cursor: Option<String>,
    /// The answer must show this position.
    pub min_lsn: Option<String>,
    /// How long to wait for it.
    pub wait: Option<String>,
    /// `rows` or `columns`.
    pub layout: Option<String>,
    /// Dimensions that the asker's token fixes, whatever is asked; `None` is NULL.
    #[serde(skip)]
    pub pinned: Vec<(String, Option<String>)>,
}

/// Dimensions fixed to a value each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Fixed {
    /// `{"currency":"EUR","merchant":42,"note":null}`
    Values(serde_json::Map<String, Json>),
    /// `currency:'EUR',merchant:42`, each to be read.
    Texts(Vec<String>),
    /// One such text.
    Text(String),
}

/// The parameters of a URL, with their kind (`text`, `number`, `flag`) and what they say. `aggregate`, `table` and `time` are
/// for bodies.
pub const PARAMETERS: [(&str, &str, &str); 23] = [
    ("from", "text", "First instant inside: 2026, 2026-03, 2026-03-01, RFC 3339, now, -30d"),
    ("to", "text", "First instant after, written as from"),
    ("granularity", "text", "Length of the answer's buckets: hour, day, week, month, quarter, year, all, PT15M"),
    ("time_zone", "text", "IANA zone in which buckets begin; the aggregate's own unless given"),
    ("week_start", "text", "monday, saturday or sunday"),
    ("year_start", "number", "Number of the month in which years begin"),
    ("origin", "text", "Where fixed steps start counting"),
    ("where", "text", "Dimensions fixed to a value each: currency:EUR,merchant:42"),
    ("filter", "text", "A SQL condition over the dimensions"),
    ("group_by", "text", "Dimensions in the answer, separated by commas; all that are not fixed unless given"),
    ("measures", "text", "Measures in the answer: names, sum(x), count(*), avg(x), each with `as name`"),
    ("having", "text", "A SQL condition over the answer's columns"),
    ("order", "text", "Columns to order by, - before a name for the largest first"),
    ("limit", "number", "Most rows, 10,000 unless given, at most 100,000"),
    ("others", "flag", "One more row that holds everything not shown"),
    ("share", "flag", "One more column: the part of the whole"),
    ("compare", "text", "The same range so much earlier beside each row: previous, P1Y, P3M, P1W, P7D"),
    ("rows", "number", "So many of the newest rows of the table behind each row"),
    ("fill", "text", "What to answer for buckets without rows: none, zero, null, previous"),
    ("cursor", "text", "The next page, from page.next"),
    ("min_lsn", "text", "The answer must show this position"),
    ("wait", "text", "How long to wait for it: 500ms, 2s, at most 30s"),
    ("layout", "text", "rows or columns"),
];

impl QueryRequest {
    /// From the parameters of a URL. Unknown ones are refused, because a misspelt `granularty` that is ignored is a wrong
    /// answer.
    pub fn from_parameters(parameters: &[(String, String)]) -> Result<QueryRequest, QueryError> {
        let mut request = QueryRequest::default();
        let mut fixed = Vec::new();
        for (index, (name, value)) in parameters.iter().enumerate() {
            if name != "where" && parameters.iter().take(index).any(|(other, _)| other == name) {
                return Err(QueryError::malformed(name, "it is given twice"));
            }
            let text = || Some(value.clone());
            match name.as_str() {
                "from" => request.from = text(),
                "to" => request.to = text(),
                "granularity" => request.granularity = text(),
                "time_zone" => request.time_zone = text(),
                "week_start" => request.week_start = text(),
                "year_start" => {
                    let month = value.parse().map_err(|_| QueryError::malformed(name, "use a month's number, 1 to 12"));
                    request.year_start = Some(month?);
                }
                "origin" => request.origin = text(),
                "where" => fixed.push(value.clone()),
                "filter" => request.filter = text(),
                "group_by" => request.group_by = Some(list(value)),
                "measures" => request.measures = Some(list(value)),
                "having" => request.having = text(),
                "order" => request.order = Some(list(value)),
                "limit" => request.limit = Some(value.parse().unwrap_or(0)),
                "others" => request.others = flag(name, value)?,
                "share" => request.share = flag(name, value)?,
                "rows" => request.rows = Some(value.parse().unwrap_or(0)),
                "compare" => request.compare = text(),
                "fill" => request.fill = text(),
                "cursor" => request.cursor = text(),
                "min_lsn" => request.min_lsn = text(),
                "wait" => request.wait = text(),
                "layout" => request.layout = text(),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    return Err(QueryError::malformed(&name, format!("there is no parameter {name:?}"))
                        .code("unknown_parameter")
                        .hint(did_you_mean(&name, PARAMETERS.map(|(known, _, _)| known))));
                }
            }
        }
        request.fixed = (!fixed.is_empty()).then_some(Fixed::Texts(fixed));
        Ok(request)
    }

    /// Bytes of its conditions, which may list thousands of values: it takes the longer to be understood the more they are.
    #[must_use]
    pub fn condition_bytes(&self) -> usize {
        [&self.filter, &self.having].into_iter().flatten().map(String::len).sum()
    }

    /// Refuses long lists before anybody looks through them, as for each name at all others. Of columns to order by there are
    /// fewer anyway.
    pub fn check_lists(&self) -> Result<(), QueryError> {
        let fixed = match &self.fixed {
            None | Some(Fixed::Text(_)) => 0,
            Some(Fixed::Texts(texts)) => texts.len(),
            Some(Fixed::Values(values)) => values.len(),
        };
        let named = |names: &Option<Vec<String>>| names.as_ref().map_or(0, Vec::len);
        let lists = [("measures", named(&self.measures)), ("group_by", named(&self.group_by)), ("where", fixed)];
        match lists.iter().find(|(_, listed)| *listed > MAX_LISTED) {
            None => Ok(()),
            Some((parameter, _)) => Err(QueryError::too_many(parameter)),
        }
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn flag(name: &str, text: &str) -> Result<bool, QueryError> {
    match text {
        "true" | "" => Ok(true),
        "false" => Ok(false),
        _ => Err(QueryError::malformed(name, "use true or false")),
    }
}
