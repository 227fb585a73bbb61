//! What a statement registers: the same canonical [`Definition`] that a JSON body is.

use engine::change::ColumnType;
use engine::materialization::{
    Calendar, DateCodec, Definition, DefinitionError, Granularity, MeasureDefinition, TimeDefinition, condition,
};
use sqlparser::ast::{
    DataType, DuplicateTreatment, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    Value,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Location, Token, Tokenizer};

use super::error::{Place, SqlError};
use super::plain::plain;
use super::statement::{self, Grouping, Item, Statement, StatementOption};
use super::time::{BucketWords, Refusal, TimeItem, column, fields_together, modulo_words, time_item, tumble, zones};
use crate::api::Warning;
use crate::query::instant::format_instant;
use crate::query::suggestion::did_you_mean;

/// What a statement may look up about the table it names.
pub trait Look {
    /// The type of a column; `None` where there is none.
    fn column_type(&self, table: &str, column: &str) -> Option<ColumnType>;

    /// As which codecs the numbers of a column are dates, in words; `None` where nothing can be said.
    fn dates(&self, table: &str, column: &str) -> Option<String>;
}

/// What a statement registers.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The name of the aggregate.
    pub name: String,
    /// One that is there already is left as it is, whatever its definition.
    pub if_not_exists: bool,
    /// In canonical words.
    pub definition: Definition,
    /// What was read and has no effect.
    pub warnings: Vec<Warning>,
    /// Where the parts of the definition stand, by JSON pointer.
    places: Vec<(String, Place)>,
}

const OPTIONS: [&str; 5] = ["timezone", "assume_timezone", "codec", "rollups", "drill_through"];

impl Registration {
    /// Reads one statement.
    pub fn parse(text: &str, look: &dyn Look) -> Result<Registration, SqlError> {
        let text = statement::without_mark(text);
        let mut statement = statement::read(text)?;
        let table = statement.table.name.clone();
        statement
            .expressions()
            .for_each(|expression| plain(expression, &|column: &str| look.column_type(&table, column)));
        Reading { text, look, statement }.registration()
    }

    /// Where a part of the definition stands in the statement.
    #[must_use]
    pub fn place(&self, error: &DefinitionError) -> Option<&Place> {
        let holds = |part: &String| {
            error.pointer.strip_prefix(part.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let parts = self.places.iter().filter(|(part, _)| holds(part));
        parts.max_by_key(|(part, _)| part.len()).map(|(_, place)| place)
    }
}

/// A statement and what it is read with.
struct Reading<'a> {
    text: &'a str,
    look: &'a dyn Look,
    statement: Statement,
}

#[derive(Default)]
struct Options {
    timezone: Option<String>,
    assume_timezone: Option<String>,
    codec: Option<DateCodec>,
    rollups: Vec<Granularity>,
    rollups_at: Option<Location>,
    drill_through: bool,
}

impl Reading<'_> {
    fn refused(&self, at: Location, code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError::refused(self.text, at, code, message)
    }

    fn time_refused(&self, at: Location, (code, message, hint): Refusal) -> SqlError {
        self.refused(at, code, message).hint(hint)
    }

    fn registration(self) -> Result<Registration, SqlError> {
        let options = self.options()?;
        let groups = self.groups()?;
        let (mut places, mut times, mut dimensions) = (Vec::new(), Vec::new(), Vec::new());
        for group in &groups {
            match self.time_of(group)? {
                Some(time) => times.push((time, group.at)),
                None => {
                    places.push((format!("/dimensions/{}", dimensions.len()), self.place(group.at)));
                    dimensions.push(self.dimension(group)?);
                }
            }
        }
        let mut measures: Vec<MeasureDefinition> = Vec::new();
        for item in self.statement.items.iter().filter(|item| self.is_measure(item)) {
            places.push((format!("/measures/{}", measures.len()), self.place(item.at)));
            measures.push(self.measure(item, &measures)?);
        }
        let (time, mut rollups) = self.time(&times, &options)?;
        rollups.extend(&options.rollups);
        let at = |pointer: &str, at: Location| (pointer.to_owned(), self.place(at));
        places.extend(times.first().map(|(_, place)| at("/time", *place)));
        places.extend(self.statement.filter.as_ref().map(|(_, place)| at("/where", *place)));
        places.extend(options.rollups_at.map(|place| at("/rollups", place)));
        places.push(at("/table", self.statement.table.at));
        let warnings = self.warnings(&groups, &times)?;
        let definition = Definition {
            table: self.statement.table.name.clone(),
            measures,
            dimensions,
            time,
            rollups,
            filter: self.statement.filter.as_ref().map(|(filter, at)| self.condition(filter, *at)).transpose()?,
            drill_through: options.drill_through,
        };
        let (name, if_not_exists) = (self.statement.name, self.statement.if_not_exists);
        Ok(Registration { name, if_not_exists, definition: definition.canonical(), warnings, places })
    }

    fn condition(&self, filter: &Expr, at: Location) -> Result<String, SqlError> {
        condition::write(filter).map_err(|error| self.refused(at, "bad_filter", format!("where: {error}")))
    }

    fn place(&self, at: Location) -> Place {
        Place::of(self.text, at)
    }

    fn options(&self) -> Result<Options, SqlError> {
        let mut options = Options::default();
        let named = |option: &StatementOption| option.name.replace("time_zone", "timezone");
        for (at, option) in self.statement.options.iter().enumerate() {
            if self.statement.options.iter().take(at).any(|before| named(before) == named(option)) {
                return Err(self
                    .refused(option.at, "bad_option", format!("{} is stated twice", option.name))
                    .hint("leave one of them out"));
            }
            let value = option.value.clone();
            match option.name.as_str() {
                "timezone" | "time_zone" => options.timezone = Some(value),
                "assume_timezone" | "assume_time_zone" => options.assume_timezone = Some(value),
                "codec" => {
                    let names = DateCodec::ALL.map(DateCodec::name);
                    let codec = DateCodec::of_name(&value.to_lowercase()).ok_or_else(|| {
                        self.refused(option.at, "unknown_codec", format!("{value:?} is no way to write dates"))
                            .hint(format!("there are {}", names.join(", ")))
                    })?;
                    options.codec = Some(codec);
                }
                "drill_through" => {
                    options.drill_through = value.to_lowercase().parse().map_err(|_| {
                        self.refused(option.at, "bad_option", format!("drill_through is true or false, not {value}"))
                    })?;
                }
                "rollups" => {
                    options.rollups_at = Some(option.at);
                    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                        let granularity = name.parse();
                        options.rollups.push(granularity.map_err(
                            |error: engine::materialization::bucket::ParseGranularityError| {
                                self.refused(option.at, "unknown_granularity", error.to_string())
                            },
                        )?);
                    }
                }
                other => {
                    let message = format!("there is no option {other}");
                    return Err(self.refused(option.at, "unknown_option", message).hint(did_you_mean(other, OPTIONS)));
                }
            }
        }
        Ok(options)
    }

    /// What rows are grouped by.
    fn groups(&self) -> Result<Vec<Item>, SqlError> {
        let entries = match &self.statement.grouping {
            Grouping::Listed(groups) => return Ok(groups.clone()),
            Grouping::Selected(entries) => entries,
        };
        let mut groups: Vec<&Item> = Vec::new();
        for entry in entries {
            let item = self.selected(entry)?;
            if self.is_measure(item) {
                return Err(self.refused(entry.at, "grouped_by_measure", "rows cannot be grouped by a measure"));
            }
            groups.push(item);
        }
        let loose = self
            .statement
            .items
            .iter()
            .find(|item| !self.is_measure(item) && !groups.iter().any(|group| std::ptr::eq(*group, *item)));
        match loose {
            None => Ok(groups.into_iter().cloned().collect()),
            Some(item) if let Some(error) = self.computed(item) => Err(error),
            Some(item) => Err(self
                .refused(
                    item.at,
                    "not_grouped",
                    format!("{} is selected and neither grouped by nor summed", item.expression),
                )
                .hint("add it to GROUP BY")),
        }
    }

    /// The selected item that an entry of GROUP BY means.
    fn selected(&self, entry: &Item) -> Result<&Item, SqlError> {
        let items = &self.statement.items;
        if let Expr::Value(value) = &entry.expression
            && let Value::Number(digits, _) = &value.value
        {
            let position = digits.parse::<usize>().ok().and_then(|position| items.get(position.checked_sub(1)?));
            return position.ok_or_else(|| {
                let message = format!("GROUP BY {digits}: there are {} selected items", items.len());
                self.refused(entry.at, "group_position", message)
            });
        }
        let name = column(&entry.expression);
        let is_column =
            name.as_ref().is_some_and(|name| self.look.column_type(&self.statement.table.name, name).is_some());
        let same = |item: &&Item| {
            item.expression.to_string().eq_ignore_ascii_case(&entry.expression.to_string())
                || name.is_some() && item.alias == name
        };
        if let Some(taken) = items.iter().find(same).filter(|item| is_column && column(&item.expression) != name) {
            let message = format!(
                "GROUP BY {} is by the column of that name in Postgres, and not by {}",
                entry.expression, taken.expression
            );
            return Err(self.refused(entry.at, "not_selected", message).hint("write the position: GROUP BY 1"));
        }
        items.iter().find(same).ok_or_else(|| {
            let message = format!("{} is grouped by and not selected", entry.expression);
            self.refused(entry.at, "not_selected", message).hint("add it after SELECT")
        })
    }

    fn is_measure(&self, item: &Item) -> bool {
        match self.statement.grouping {
            Grouping::Listed(_) => true,
            Grouping::Selected(_) => matches!(&item.expression, Expr::Function(function)
                if is_aggregate(&function.name.to_string())),
        }
    }

    fn time_of(&self, group: &Item) -> Result<Option<TimeItem>, SqlError> {
        let refuse = |refusal| self.time_refused(group.at, refusal);
        let Some((time, length)) = &self.statement.table.tumble else {
            return time_item(&group.expression).map_err(refuse);
        };
        match column(&group.expression).as_deref() {
            Some("window_start") => {
                tumble(time, length).map(Some).map_err(|refusal| self.time_refused(self.statement.table.at, refusal))
            }
            Some("window_end") => Err(self
                .refused(group.at, "window_end", "the end of a window says no more than its start")
                .hint("group by window_start")),
            _ => time_item(&group.expression).map_err(refuse),
        }
    }

    fn dimension(&self, group: &Item) -> Result<String, SqlError> {
        let Some(name) = column(&group.expression) else {
            let message = format!("{} is neither a column nor a bucket of time", group.expression);
            return Err(self.refused(group.at, "group_expression", message).hint(
                "group by columns, and by one of date_trunc, date_bin, time_bucket, CTUMBLE, EXTRACT; keep other expressions \
                 in a column that is written; generated ones are not in the log",
            ));
        };
        match &group.alias {
            Some(alias) if *alias != name => Err(self
                .refused(group.at, "renamed_dimension", "a dimension has the name of its column")
                .hint(format!("write {name} without AS {alias}"))),
            _ => Ok(name),
        }
    }

    /// Refuses what is computed on a measure: `coalesce(sum(amount), 0)`.
    fn computed(&self, item: &Item) -> Option<SqlError> {
        let measure = measure_within(&item.expression.to_string())?;
        let message = format!("{} is computed on a measure, and measures are kept as they are", item.expression);
        let error = self.refused(item.at, "not_a_measure", message);
        Some(error.hint(format!("write {measure} alone, and compute on the answer")))
    }

    fn measure(&self, item: &Item, before: &[MeasureDefinition]) -> Result<MeasureDefinition, SqlError> {
        if !matches!(&item.expression, Expr::Function(function) if is_aggregate(&function.name.to_string()))
            && let Some(error) = self.computed(item)
        {
            return Err(error);
        }
        let Expr::Function(function) = &item.expression else {
            return Err(self
                .refused(item.at, "not_a_measure", format!("{} is no measure", item.expression))
                .hint("measures are SUM(column) and COUNT(*) or COUNT(column); what they are grouped by stands after GROUP BY"));
        };
        let function_name = function.name.to_string().to_lowercase();
        let (column, scale) = self.argument(function, &function_name, item.at)?;
        let named = item.alias.is_some();
        let name = item.alias.clone().unwrap_or_else(|| function_name.clone());
        if !named && before.iter().any(|other| other.name == name) {
            return Err(self
                .refused(item.at, "duplicate_name", format!("there are two measures {name}"))
                .hint(format!("name them: {} AS total", item.expression)));
        }
        let (sum, count) = if function_name == "sum" { (Some(column), None) } else { (None, Some(column)) };
        let filter = function.filter.as_ref().map(|filter| self.condition(filter, item.at)).transpose()?;
        Ok(MeasureDefinition { name, sum, count, scale, filter })
    }

    /// The column of a measure, and how many digits after the point its sum keeps.
    fn argument(&self, function: &Function, name: &str, at: Location) -> Result<(String, Option<u16>), SqlError> {
        match name {
            "sum" | "count" => {}
            "avg" => {
                return Err(self
                    .refused(at, "avg_not_kept", "an average is not kept: it cannot be put together from averages")
                    .hint("keep SUM(x) AS x and COUNT(x) AS n, and ask for measures=avg(x)"));
            }
            other => {
                return Err(self
                    .refused(at, "unsupported_measure", format!("{other} is not supported"))
                    .hint("there are SUM and COUNT, each also with FILTER (WHERE ...)"));
            }
        }
        let FunctionArguments::List(list) = &function.args else {
            return Err(self.refused(at, "not_a_measure", format!("{name} takes a column")));
        };
        if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) {
            return Err(self
                .refused(at, "distinct", format!("{name} over DISTINCT values is not supported"))
                .hint("group by the column: each group is one value"));
        }
        if function.over.is_some() || !function.within_group.is_empty() || !list.clauses.is_empty() {
            return Err(self.refused(at, "not_a_measure", "a measure has no window and no order"));
        }
        let count = name == "count";
        match list.args.as_slice() {
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if count => Ok(("*".to_owned(), None)),
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))]
                if count && matches!(value.value, Value::Number(..)) =>
            {
                Ok(("*".to_owned(), None))
            }
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(expression))] => match (column(expression), expression) {
                (Some(column), _) => Ok((column, None)),
                (None, Expr::Cast { expr, data_type, .. }) if !count => match (column(expr), digits(data_type)) {
                    (Some(column), Some(scale)) => Ok((column, Some(scale))),
                    _ => Err(self.measured_expression(name, at)),
                },
                _ => Err(self.measured_expression(name, at)),
            },
            _ => Err(self.measured_expression(name, at)),
        }
    }

    fn measured_expression(&self, name: &str, at: Location) -> SqlError {
        self.refused(at, "measured_expression", format!("{name} is over one column of the table")).hint(
            "for a condition write SUM(x) FILTER (WHERE ...), for a scale SUM(x::numeric(38,2)); keep other expressions in a \
             column that is written; generated ones are not in the log",
        )
    }

    /// The time bucket, and the coarser ones that are grouped by beside it.
    fn time(
        &self,
        times: &[(TimeItem, Location)],
        options: &Options,
    ) -> Result<(Option<TimeDefinition>, Vec<Granularity>), SqlError> {
        let Some((first, at)) = times.first() else { return self.no_time(options) };
        if let Some((_, other)) =
            times.iter().find(|(item, _)| item.operand != first.operand || item.zone != first.zone)
        {
            return Err(self
                .refused(*other, "two_times", "rows are put into buckets by one time")
                .hint("group by one column's time; make another aggregate for the other"));
        }
        let codec = first.operand.codec.or(options.codec);
        if let (Some(own), Some(stated)) = (first.operand.codec, options.codec)
            && own != stated
        {
            let message = format!("the dates are {} here and {} after WITH", own.name(), stated.name());
            return Err(self.refused(*at, "two_codecs", message));
        }
        let refuse = |refusal| self.time_refused(*at, refusal);
        let column = &first.operand.column;
        let (granularities, origin) = self.granularities(times, codec)?;
        let column_type = self.look.column_type(&self.statement.table.name, column);
        let (time_zone, assume_time_zone) =
            zones(first, column_type.as_ref(), options.timezone.as_deref(), options.assume_timezone.as_deref())
                .map_err(refuse)?;
        let (Some(granularity), coarser) = (granularities.first().copied(), granularities.get(1..).unwrap_or_default())
        else {
            return Ok((None, Vec::new()));
        };
        let origin = matches!(granularity, Granularity::Step(_)).then(|| format_instant(origin, &Calendar::UTC));
        let time = TimeDefinition { column: column.clone(), codec, granularity, time_zone, assume_time_zone, origin };
        Ok((Some(time), coarser.to_vec()))
    }

    fn no_time(&self, options: &Options) -> Result<(Option<TimeDefinition>, Vec<Granularity>), SqlError> {
        let table = &self.statement.table;
        if table.tumble.is_some() {
            return Err(self
                .refused(table.at, "window_not_grouped", "the windows of TUMBLE are not grouped by")
                .hint("add window_start to SELECT and GROUP BY"));
        }
        let timed = self.statement.options.iter().find(|option| option.name != "rollups");
        match timed
            .filter(|_| options.timezone.is_some() || options.assume_timezone.is_some() || options.codec.is_some())
        {
            None => Ok((None, Vec::new())),
            Some(option) => Err(self
                .refused(
                    option.at,
                    "no_time",
                    format!("{} is about a time, and rows are not grouped by one", option.name),
                )
                .hint("group by date_trunc('month', ts), or leave it out")),
        }
    }

    /// What all time items make together, finest first, and the origin of a step.
    fn granularities(
        &self,
        times: &[(TimeItem, Location)],
        codec: Option<DateCodec>,
    ) -> Result<(Vec<Granularity>, i64), SqlError> {
        let mut granularities = Vec::new();
        let mut origin = 0;
        // Length and origin of each.
        let mut steps: Vec<(i64, i64)> = Vec::new();
        let mut fields = Vec::new();
        let mut fields_at = None;
        for (item, at) in times {
            let column = &item.operand.column;
            match &item.bucket {
                BucketWords::Granularity(granularity, from) => {
                    granularities.push(*granularity);
                    if let Granularity::Step(step) = *granularity {
                        let begins_elsewhere =
                            |known: &&(i64, i64)| known.1.saturating_sub(*from).rem_euclid(known.0.min(step)) != 0;
                        if steps.iter().find(begins_elsewhere).is_some() {
                            let message = "steps of two lengths begin at different instants";
                            return Err(self
                                .refused(*at, "length", message)
                                .hint("give them one origin, or register two aggregates"));
                        }
                        // That of the longest is one of the others', too.
                        if steps.iter().all(|known| known.0 < step) {
                            origin = *from;
                        }
                        steps.push((step, *from));
                    }
                }
                BucketWords::Field(field) => {
                    fields.push(field.clone());
                    fields_at = Some(*at);
                }
                BucketWords::Modulo(unit) => {
                    let codec = codec.ok_or_else(|| self.codec_needed(column, *at))?;
                    let granularity = modulo_words(*unit, codec, column);
                    granularities.push(granularity.map_err(|refusal| self.time_refused(*at, refusal))?);
                }
            }
        }
        if let Some(fields_at) = fields_at {
            let column = times.first().map(|(item, _)| item.operand.column.as_str()).unwrap_or_default();
            let together = fields_together(&fields, column);
            granularities.push(together.map_err(|refusal| self.time_refused(fields_at, refusal))?);
        }
        granularities.sort_unstable();
        granularities.dedup();
        Ok((granularities, origin))
    }

    fn codec_needed(&self, column: &str, at: Location) -> SqlError {
        let message = format!("{column} is a number: say how its numbers are dates");
        let seen =
            self.look.dates(&self.statement.table.name, column).map(|seen| format!("{seen}; ")).unwrap_or_default();
        self.refused(at, "codec_needed", message).hint(format!(
            "{seen}add WITH (codec = 'yyyymmdd') at the end, or another of {}",
            DateCodec::ALL.map(DateCodec::name).join(", ")
        ))
    }

    fn warnings(&self, groups: &[Item], times: &[(TimeItem, Location)]) -> Result<Vec<Warning>, SqlError> {
        let mut warnings = Vec::new();
        let fields: Vec<&str> = groups
            .iter()
            .filter(|group| times.len() > 1 && times.iter().any(|(_, at)| *at == group.at))
            .filter_map(|group| group.alias.as_deref())
            .collect();
        if !fields.is_empty() {
            let message =
                format!("{} are answered as one column, time, which is their beginning", fields.join(" and "));
            warnings.push(Warning::new("time_is_one_column", message));
        }
        let Some((dimension, at)) = &self.statement.partition else { return Ok(warnings) };
        let known = |group: &Item| {
            group.alias.as_ref() == Some(dimension) || column(&group.expression).as_ref() == Some(dimension)
        };
        let Some(partitioned) = groups.iter().find(|group| known(group)) else {
            let names = groups.iter().filter_map(|group| group.alias.clone().or_else(|| column(&group.expression)));
            let names: Vec<String> = names.collect();
            return Err(self
                .refused(*at, "unknown_dimension", format!("{dimension} is not grouped by"))
                .hint(did_you_mean(dimension, names.iter().map(String::as_str))));
        };
        warnings.push(if times.iter().any(|(_, at)| *at == partitioned.at) {
            let message = "PARTITION BY has no effect and need not have one: cells are kept by bucket of time, so that a range of times \
                           reads its own cells and no others";
            Warning::new("partition_not_needed", message)
        } else {
            // Of another dimension it would have had one: not to be told that nothing is missing.
            let message = format!(
                "PARTITION BY has no effect: cells are kept by bucket of time and then by group, so that a range of {dimension} reads \
                 the cells of all its groups in the times asked for"
            );
            Warning::new("partition_ignored", message)
        });
        Ok(warnings)
    }
}

/// Functions that are measures, or that people take for such.
#[rustfmt::skip]
const AGGREGATES: [&str; 22] = [
    "sum", "count", "avg", "min", "max", "stddev", "stddev_pop", "stddev_samp", "variance", "var_pop", "var_samp", "array_agg",
    "string_agg", "json_agg", "jsonb_agg", "count_distinct", "bool_and", "bool_or", "every", "bit_and", "bit_or", "any_value",
];

fn is_aggregate(function: &str) -> bool {
    AGGREGATES.iter().any(|aggregate| function.eq_ignore_ascii_case(aggregate))
}

/// The first measure in an expression: `sum(amount)` of `round(sum(amount) / 100, 2)`.
fn measure_within(expression: &str) -> Option<String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, expression).tokenize().ok()?;
    let begins = tokens.windows(2).position(|pair| {
        matches!(pair, [Token::Word(word), Token::LParen] if word.quote_style.is_none() && is_aggregate(&word.value))
    })?;
    let (mut measure, mut open) = (String::new(), 0);
    for token in tokens.get(begins..)? {
        measure.push_str(&token.to_string());
        match token {
            Token::LParen => open += 1,
            Token::RParen if open == 1 => return Some(measure),
            Token::RParen => open -= 1,
            _ => {}
        }
    }
    None
}

/// The digits after the point of `numeric(38,2)`.
fn digits(data_type: &DataType) -> Option<u16> {
    match data_type {
        DataType::Numeric(ExactNumberInfo::PrecisionAndScale(_, scale))
        | DataType::Decimal(ExactNumberInfo::PrecisionAndScale(_, scale)) => u16::try_from(*scale).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Payments;

    impl Look for Payments {
        fn column_type(&self, _: &str, name: &str) -> Option<ColumnType> {
            Some(match name {
                "ts" => ColumnType::TimestampTz,
                "pmt_ts" => ColumnType::Timestamp,
                "ymd" => ColumnType::Int8,
                "status" | "vc" => ColumnType::Text,
                "c" => ColumnType::Char,
                "fee" => ColumnType::Numeric { scale: None },
                "r" => ColumnType::Float4,
                "d" => ColumnType::Float8,
                _ => return None,
            })
        }

        fn dates(&self, _: &str, _: &str) -> Option<String> {
            Some("its numbers, such as 20261231, are dates as yyyymmdd".to_owned())
        }
    }

    fn read(text: &str) -> Result<Registration, SqlError> {
        Registration::parse(text, &Payments)
    }

    /// On half of the stack that a thread has.
    #[test]
    fn no_statement_is_too_deep() {
        const PIECES: [&str; 8] =
            ["n = 1 OR ", "1 + ", "n || ", "NOT ", "- ", "f(", "n IS NULL AND ", "CASE WHEN n = 1 THEN 1 ELSE "];
        const TAILS: [&str; 6] = [" IS NULL", "::int", "[1]", " COLLATE c", " AT TIME ZONE 'x'", " IN (1)"];
        let look = || {
            for times in [10, 60, 300, 600, 800, 1_200, 5_000, 100_000] {
                let before = PIECES.iter().map(|piece| format!("{}n", piece.repeat(times)));
                let behind = TAILS.iter().map(|tail| format!("n{}", tail.repeat(times)));
                for deep in before.chain(behind) {
                    for text in [
                        format!("CREATE MATERIALIZED VIEW a AS SELECT count(*) FROM payments WHERE {deep}"),
                        format!("CREATE MATERIALIZED VIEW a AS SELECT count(*) FILTER (WHERE {deep}) FROM payments"),
                        format!("CREATE MATERIALIZED VIEW a AS SELECT {deep}, count(*) FROM payments GROUP BY 1"),
                        format!("CREATE MATERIALIZED VIEW a AS SELECT count(*) FROM payments GROUP BY {deep}"),
                        format!("CREATE ONLINE AGGREGATE a AS COUNT(*) AS n FROM payments GROUP BY {deep}"),
                        format!("CREATE MATERIALIZED VIEW a AS SELECT count(*) FROM payments HAVING {deep}"),
                        format!("CREATE MATERIALIZED VIEW a WITH (timezone = {deep}) AS SELECT count(*) FROM payments"),
                    ] {
                        assert!(read(&text).is_err() || times < 1_000, "{times}");
                    }
                }
            }
        };
        std::thread::Builder::new().stack_size(1 << 20).spawn(look).unwrap().join().unwrap();
    }

    /// The definition that a statement comes to, without table and measures.
    fn by(groups: &str) -> String {
        let text = format!("CREATE ONLINE AGGREGATE a AS COUNT(*) AS n FROM payments {groups}");
        match read(&text) {
            Ok(registration) => {
                let definition = registration.definition;
                let mut rest = serde_json::to_value(&definition).unwrap();
                let rest = rest.as_object_mut().unwrap();
                rest.retain(|name, value| {
                    !["table", "measures"].contains(&name.as_str()) && *value != serde_json::json!([])
                });
                serde_json::to_string(rest).unwrap().replace('"', "")
            }
            Err(error) => format!("{} {}:{}", error.code, error.place.line, error.place.column),
        }
    }

    #[test]
    fn the_guides_words() {
        let oa = read(
            "CREATE ONLINE AGGREGATE PAYMENTS5_OA AS SUM(amount) AS amount FROM payments5
             GROUP BY EXTRACT(YEAR FROM pmt_ts) AS y,
             EXTRACT(MONTH FROM pmt_ts) AS m,
             dst_acct;",
        )
        .unwrap();
        assert_eq!((oa.name.as_str(), oa.if_not_exists), ("payments5_oa", false));
        assert_eq!(
            serde_json::to_value(&oa.definition).unwrap(),
            serde_json::json!({
                "table": "public.payments5", "measures": [{"name": "amount", "sum": "amount"}], "dimensions": ["dst_acct"],
                "time": {"column": "pmt_ts", "granularity": "month", "time_zone": "UTC"}, "rollups": [],
            })
        );
        assert_eq!(oa.warnings.first().map(|warning| warning.code), Some("time_is_one_column"));
        let oa = read(
            "CREATE ONLINE AGGREGATE PAYMENTS1_OA AS SUM(amount), COUNT(*) FROM PAYMENTS1
             GROUP BY CTUMBLE(pmt_ts, INTERVAL '1' day, TIMESTAMP '1970-01-01 00:00:00') AS pmt_day
             PARTITION BY DIMENSION pmt_day EVERY INTERVAL '1' month;",
        )
        .unwrap();
        let names: Vec<&str> = oa.definition.measures.iter().map(|measure| measure.name.as_str()).collect();
        assert_eq!(names, ["sum", "count"]);
        assert_eq!(oa.definition.time.map(|time| time.granularity), Some(Granularity::Day));
        assert_eq!(oa.warnings.first().map(|warning| warning.code), Some("partition_not_needed"));
        let oa = read(
            "CREATE ONLINE AGGREGATE by_acct AS COUNT(*) FROM payments5
             GROUP BY dst_acct PARTITION BY DIMENSION dst_acct EVERY 100",
        )
        .unwrap();
        assert_eq!(oa.warnings.first().map(|warning| warning.code), Some("partition_ignored"));
    }

    #[test]
    fn buckets_of_time_in_many_words() {
        let month = "{time:{column:ts,granularity:month,time_zone:UTC}}";
        for groups in [
            "GROUP BY date_trunc('month', ts)",
            "GROUP BY time_bucket('1 month', ts)",
            "GROUP BY CTUMBLE(ts, INTERVAL '1' month)",
            "GROUP BY EXTRACT(YEAR FROM ts), EXTRACT(MONTH FROM ts) AS m",
            "GROUP BY date_part('month', ts), date_part('year', ts) AS y",
        ] {
            assert_eq!(by(groups), month, "{groups}");
        }
        let madrid = "{time:{column:ts,granularity:day,time_zone:Europe/Madrid}}";
        for groups in [
            "GROUP BY date_trunc('day', ts, 'Europe/Madrid')",
            "GROUP BY date_trunc('day', ts AT TIME ZONE 'Europe/Madrid')",
            "GROUP BY time_bucket('1 day', ts, 'Europe/Madrid')",
            "GROUP BY CTUMBLE(ts, INTERVAL '1' day, TIMESTAMP '1970-01-01') AS d PARTITION BY DIMENSION d EVERY 100 \
             WITH (timezone = 'Europe/Madrid')",
            "GROUP BY EXTRACT(YEAR FROM ts AT TIME ZONE 'Europe/Madrid'), EXTRACT(DOY FROM ts AT TIME ZONE 'Europe/Madrid')",
        ] {
            assert_eq!(by(groups), madrid, "{groups}");
        }
        for (groups, time) in [
            (
                "GROUP BY date_bin('15 minutes', ts, timestamptz '2001-01-01')",
                "{column:ts,granularity:PT15M,time_zone:UTC}",
            ),
            (
                "GROUP BY time_bucket('15 minutes', ts, timestamptz '2001-01-01 00:05:00')",
                "{column:ts,granularity:PT15M,origin:2001-01-01T00:05:00Z,time_zone:UTC}",
            ),
            ("GROUP BY time_bucket('1 week', ts)", "{column:ts,granularity:week,time_zone:UTC}"),
            ("GROUP BY EXTRACT(ISOYEAR FROM ts), EXTRACT(WEEK FROM ts)", "{column:ts,granularity:week,time_zone:UTC}"),
            (
                "GROUP BY EXTRACT(YEAR FROM ts), EXTRACT(QUARTER FROM ts)",
                "{column:ts,granularity:quarter,time_zone:UTC}",
            ),
            (
                "GROUP BY ymd - mod(ymd, 100) WITH (codec = 'yyyymmdd')",
                "{codec:yyyymmdd,column:ymd,granularity:month,time_zone:UTC}",
            ),
            (
                "GROUP BY ymd - ymd % 10000 WITH (codec = yymmdd)",
                "{codec:yymmdd,column:ymd,granularity:year,time_zone:UTC}",
            ),
            (
                "GROUP BY date_trunc('week', ymd) WITH (codec = 'ddmmyy')",
                "{codec:ddmmyy,column:ymd,granularity:week,time_zone:UTC}",
            ),
            (
                "GROUP BY date_trunc('day', pmt_ts AT TIME ZONE 'UTC', 'Asia/Tokyo')",
                "{assume_time_zone:UTC,column:pmt_ts,granularity:day,time_zone:Asia/Tokyo}",
            ),
            (
                "GROUP BY date_trunc('day', pmt_ts AT TIME ZONE 'UTC' AT TIME ZONE 'Asia/Tokyo')",
                "{assume_time_zone:UTC,column:pmt_ts,granularity:day,time_zone:Asia/Tokyo}",
            ),
        ] {
            assert_eq!(by(groups), format!("{{time:{time}}}"), "{groups}");
        }
        let both = "{rollups:[month,year],time:{column:ts,granularity:day,time_zone:UTC}}";
        assert_eq!(
            by("GROUP BY EXTRACT(YEAR FROM ts) AS y, date_trunc('day', ts) WITH (rollups = 'month')").as_str(),
            both
        );
    }

    #[test]
    fn an_origin_is_read_as_postgres_reads_it() {
        let mut wrong = Vec::new();
        for (origin, expected) in [
            ("timestamptz '2000-01-01 00:00:00+01'", "1999-12-31T23:00:00Z"),
            ("'2000-01-01 00:00:00+01'::timestamptz", "1999-12-31T23:00:00Z"),
            ("'2000-01-01 01:00'::timestamp without time zone", "2000-01-01T01:00:00Z"),
            ("'2000-01-01T01:00:00Z'", "2000-01-01T01:00:00Z"),
            ("timestamp '2000-01-01 00:00:00.250001'", "2000-01-01T00:00:00.250001Z"),
            ("timestamp '2000-01-01 00:00:00+01'", ""),
            ("'2000-01-01 00:00:00+01'::timestamp", ""),
            ("'2000-01-01 00:00:00+01'", ""),
            ("date '2000-01-01 13:00:00'", ""),
            ("'2000-01-01 13:00:00'::date", ""),
            ("timestamp(0) '2000-01-01 00:00:00.7'", ""),
            ("'2000-01-01 00:00:00.7'::timestamp(0)", ""),
            ("'2000-01-01 00:00:00.7'::timestamptz(0)", ""),
            ("timestamp '2000-01-01 00:00:00.1234567'", ""),
            ("timestamptz '0000-01-01'", ""),
            ("timestamptz '+2000-01-01'", ""),
        ] {
            for function in ["date_bin('7 days', ts, O)", "time_bucket('5 days', ts, O)", "CTUMBLE(ts, '5 days', O)"] {
                let groups = format!("GROUP BY {}", function.replace('O', origin));
                let found = by(&groups);
                let right = match expected {
                    "" => found.starts_with("time_expression"),
                    origin => found.contains(&format!("origin:{origin},")),
                };
                wrong.extend((!right).then(|| format!("{groups}: {found}")));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn the_same_in_postgres_words() {
        let view = |text: &str| read(text).map(|registration| registration.definition);
        let monthly = view(
            "create materialized view if not exists monthly with (rollups = 'year') as
             select date_trunc('month', ts) m, dst_acct, sum(amount) as amount, count(*) filter (where status='ok') as n
             from public.payments where status = 'settled' group by m, dst_acct",
        )
        .unwrap();
        let positions = view(
            "CREATE MATERIALIZED VIEW monthly WITH (rollups = year) AS SELECT date_trunc('month', ts), dst_acct, sum(amount) AS amount,
             count(1) FILTER (WHERE status = 'ok') AS n FROM payments WHERE (status = 'settled') GROUP BY 1, payments.dst_acct, payments.status;",
        );
        assert_eq!(positions.unwrap_err().code, "not_selected");
        let positions = view(
            "CREATE MATERIALIZED VIEW monthly WITH (rollups = year) AS SELECT date_trunc('month', ts), dst_acct, sum(amount) AS amount,
             count(1) FILTER (WHERE status = 'ok') AS n FROM payments WHERE status='settled' GROUP BY 1, 2;",
        );
        assert_eq!(positions.unwrap(), monthly);
        let aliased = view(
            "CREATE MATERIALIZED VIEW monthly AS (SELECT date_trunc('month', p.ts), p.dst_acct, sum(p.amount) AS amount, count(*) AS n \
             FROM payments p WHERE p.status = 'settled' GROUP BY 1, 2) WITH DATA",
        );
        let alone = view(
            "CREATE MATERIALIZED VIEW monthly AS SELECT date_trunc('month', ts), dst_acct, sum(amount) AS amount, count(*) AS n \
             FROM payments WHERE status = 'settled' GROUP BY 1, 2",
        );
        assert_eq!(aliased.unwrap(), alone.unwrap());
        let yearly = |from: &str, by: &str, table: &str| {
            let select = format!(
                "SELECT extract(year from {from}) y, p.user, p.current_date, count(*) FROM {table} GROUP BY {by}"
            );
            view(&format!("CREATE MATERIALIZED VIEW v AS {select}")).map_err(|error| error.code)
        };
        let alone = view(
            "CREATE MATERIALIZED VIEW v AS SELECT extract(year from ts), \"user\", \"current_date\", count(*) FROM payments GROUP BY 1, 2, 3",
        )
        .unwrap();
        assert_eq!(yearly("p.ts", "extract(year from ts), p.user, p.current_date", "payments p"), Ok(alone.clone()));
        assert_eq!(yearly("ts", "1, p.\"user\", 3", "public.payments p"), Ok(alone));
        assert_eq!(yearly("other.ts", "1, 2, 3", "payments p"), Err("unknown_qualifier"));
        let schema = "CREATE MATERIALIZED VIEW v AS SELECT sum(public.payments.x) x FROM public.payments";
        assert_eq!(view(schema), view("CREATE MATERIALIZED VIEW v AS SELECT sum(x) x FROM payments"));
        assert_eq!(view(&schema.replace("public.payments.x", "public.pay.x")).unwrap_err().code, "unknown_qualifier");
        let windows = view(
            "CREATE MATERIALIZED VIEW hourly AS SELECT window_start, count(*) AS n FROM TUMBLE(payments, ts, INTERVAL '1 hour') \
             GROUP BY window_start",
        );
        assert_eq!(windows.unwrap().time.map(|time| time.granularity), Some(Granularity::Hour));
    }

    /// Each as `pg_get_viewdef` of Postgres 15 shows it, and as it was written.
    #[test]
    fn what_postgres_shows_of_a_view_is_read_as_it_was_written() {
        let view = |text: &str| {
            let read = read(&format!("CREATE MATERIALIZED VIEW v AS {text}"));
            read.map(|registration| registration.definition).map_err(|error| format!("{text}: {error}"))
        };
        for (shown, written) in [
            (
                " SELECT date_trunc('day'::text, payments.ts) AS d,\n    payments.status,\n    sum(payments.amount) AS amount,\n    count(*) AS n\n   FROM payments
  WHERE ((payments.status = ANY (ARRAY['s1'::text, 's2'::text])) AND ((payments.vc)::text <> 'x'::text) AND ((payments.vc)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))
  GROUP BY (date_trunc('day'::text, payments.ts)), payments.status;",
                "SELECT date_trunc('day', ts) d, status, sum(amount) amount, count(*) n FROM payments
                 WHERE status IN ('s1', 's2') AND vc <> 'x' AND vc IN ('a', 'b') GROUP BY date_trunc('day', ts), status",
            ),
            (
                " SELECT date_trunc('month'::text, p.ts, 'Europe/Madrid'::text) AS d,\n    sum(p.amount) FILTER (WHERE (p.amount > (0)::numeric)) AS amount,\n    count(p.fee) AS n\n   FROM payments p
  WHERE ((p.ts >= '2026-01-01 00:00:00+00'::timestamp with time zone) AND (p.pmt_ts < '2026-01-01 00:00:00'::timestamp without time zone) AND (p.day > '2025-01-01'::date) AND (p.ymd = ANY (ARRAY[1, 2])) AND (p.r > (1.5)::double precision) AND (p.d < (2)::double precision) AND p.b AND (NOT (p.ymd = 3)) AND (p.c = 'abc'::bpchar) AND (p.u <> 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid) AND ((p.fee >= ('-1'::integer)::numeric) AND (p.fee <= (5)::numeric)) AND (p.\"Order\" IS NOT NULL) AND ((p.vc)::text <> ALL ((ARRAY['a'::character varying, 'b'::character varying])::text[])) AND ((p.ymd)::numeric > 1.5) AND (p.b = true))
  GROUP BY (date_trunc('month'::text, p.ts, 'Europe/Madrid'::text));",
                "SELECT date_trunc('month', ts, 'Europe/Madrid') d, sum(amount) FILTER (WHERE amount > 0) amount, count(fee) n FROM payments p
                 WHERE ts >= TIMESTAMPTZ '2026-01-01 00:00:00+00' AND pmt_ts < TIMESTAMP '2026-01-01 00:00:00' AND day > DATE '2025-01-01' AND ymd IN (1, 2) AND r > 1.5 AND d < 2
                 AND b AND NOT (ymd = 3) AND c = 'abc' AND u <> 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' AND fee >= -1 AND fee <= 5 AND \"Order\" IS NOT NULL
                 AND vc NOT IN ('a', 'b') AND ymd > 1.5 AND b = true GROUP BY 1",
            ),
            (
                " SELECT date_bin('00:15:00'::interval, payments.ts, '2001-01-01 00:00:00+00'::timestamp with time zone) AS q,\n    sum((payments.fee)::numeric(38,2)) AS f\n   FROM payments
  GROUP BY (date_bin('00:15:00'::interval, payments.ts, '2001-01-01 00:00:00+00'::timestamp with time zone));",
                "SELECT date_bin('15 minutes', ts, timestamptz '2001-01-01') q, sum(fee::numeric(38,2)) f FROM payments GROUP BY 1",
            ),
            (
                " SELECT EXTRACT(year FROM payments.ts) AS y,\n    date_part('month'::text, payments.ts) AS m,\n    count(*) AS count\n   FROM payments
  GROUP BY (EXTRACT(year FROM payments.ts)), (date_part('month'::text, payments.ts));",
                "SELECT EXTRACT(year FROM ts) y, date_part('month', ts) m, count(*) FROM payments GROUP BY 1, 2",
            ),
            (
                " SELECT (payments.ts)::date AS d,\n    count(*) AS n\n   FROM payments\n  GROUP BY ((payments.ts)::date);",
                "SELECT ts::date d, count(*) n FROM payments GROUP BY 1",
            ),
            (
                " SELECT date_trunc('day'::text, (payments.ts AT TIME ZONE 'Europe/Madrid'::text)) AS d,\n    count(*) AS n\n   FROM payments
  GROUP BY (date_trunc('day'::text, (payments.ts AT TIME ZONE 'Europe/Madrid'::text)));",
                "SELECT date_trunc('day', ts AT TIME ZONE 'Europe/Madrid') d, count(*) n FROM payments GROUP BY 1",
            ),
            (
                " SELECT date_trunc('month'::text, (to_date((payments.ymd)::text, 'YYYYMMDD'::text))::timestamp without time zone) AS m,\n    count(*) AS n\n   FROM payments
  GROUP BY (date_trunc('month'::text, (to_date((payments.ymd)::text, 'YYYYMMDD'::text))::timestamp without time zone));",
                "SELECT date_trunc('month', to_date(ymd::text, 'YYYYMMDD')::timestamp) m, count(*) n FROM payments GROUP BY 1",
            ),
            (
                " SELECT date_trunc('day'::text, to_timestamp((((payments.ymd)::numeric / 1000.0))::double precision)) AS d,\n    count(*) AS n\n   FROM payments
  GROUP BY (date_trunc('day'::text, to_timestamp((((payments.ymd)::numeric / 1000.0))::double precision)));",
                "SELECT date_trunc('day', to_timestamp(ymd / 1000.0)) d, count(*) n FROM payments GROUP BY 1",
            ),
            (" SELECT count(*) AS n\n   FROM payments\n HAVING (count(*) > 0);", "SELECT count(*) n FROM payments"),
        ] {
            assert_eq!(view(shown), view(written));
            assert!(view(shown).is_ok());
        }
        for changed in [
            "n = 1::real",
            "ymd = 1.5::integer",
            "ymd = 40000::smallint",
            "vc = 'abc'::varchar(2)",
            "c::text = 'abc '",
            "c = 'abc '::bpchar",
            "c = 'abc '::text",
            "c = 'abc'::bpchar(2)",
            "c = ANY (ARRAY['abc ', 'x'])",
            "c <> ALL (ARRAY['abc '::text])",
            "vc = 'a'::bpchar",
            "r IN (0.1::double precision, 0.2::double precision)",
            "r = ANY (ARRAY[1.5, 2.5])",
            "status = ANY (other)",
            "status <> ANY (ARRAY['a'])",
            "fee > 2::double precision",
            "vc = 'x'::citext",
            "ymd::numeric(5,2) = 2",
        ] {
            assert!(view(&format!("SELECT count(*) FROM payments WHERE {changed}")).is_err(), "{changed}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_where_it_stands() {
        let mut wrong = Vec::new();
        for (groups, answer) in [
            ("GROUP BY EXTRACT(MONTH FROM ts) AS m", "month_of_year 1:67"),
            ("GROUP BY dst_acct,\n EXTRACT(YEAR FROM ts), EXTRACT(DAY FROM ts)", "month_of_year 2:25"),
            ("GROUP BY EXTRACT(YEAR FROM ts), EXTRACT(WEEK FROM ts)", "extract_field 1:90"),
            ("GROUP BY EXTRACT(HOUR FROM ts)", "extract_field 1:67"),
            ("GROUP BY ymd - mod(ymd, 100)", "codec_needed 1:67"),
            ("GROUP BY ymd - mod(ymd, 100) WITH (codec = 'ddmmyy')", "month_of_year 1:67"),
            ("GROUP BY ymd - mod(ymd, 7) WITH (codec = 'yyyymmdd')", "modulo 1:67"),
            ("GROUP BY ymd - mod(ymd, 3600) WITH (codec = 'epoch_s')", "modulo 1:67"),
            ("GROUP BY ymd - ymd % 900000 WITH (codec = 'epoch_ms')", "modulo 1:67"),
            ("GROUP BY date_trunc('day', pmt_ts AT TIME ZONE 'UTC')", "time_zones 1:67"),
            ("GROUP BY date_trunc('day', ts, 'UTC') WITH (timezone = 'Asia/Tokyo')", "time_zones 1:67"),
            ("GROUP BY date_trunc('fortnight', ts)", "date_trunc_unit 1:67"),
            ("GROUP BY date_bin('1 month', ts, timestamptz '2000-01-01')", "length 1:67"),
            ("GROUP BY date_trunc(ts)", "time_expression 1:67"),
            ("GROUP BY date_trunc('hour', ts::date)", "finer_than_a_date 1:67"),
            ("GROUP BY date_bin('15 minutes', date(ts), timestamptz '2000-01-01')", "time_expression 1:67"),
            ("GROUP BY date_trunc('day', ts::date, 'Europe/Madrid')", "finer_than_a_date 1:67"),
            ("GROUP BY date_trunc('day', ts::date AT TIME ZONE 'UTC')", "time_expression 1:67"),
            ("GROUP BY date_bin('1 day', ts AT TIME ZONE 'Europe/Madrid', timestamp '2000-01-01')", "time_zones 1:67"),
            ("GROUP BY time_bucket('6 hours', ts, 'Europe/Madrid')", "time_zones 1:67"),
            ("GROUP BY date_trunc('day', ts::timestamp AT TIME ZONE 'UTC')", "time_expression 1:67"),
            ("GROUP BY date_trunc('day', ts::timestamp(0))", "time_expression 1:67"),
            ("GROUP BY date_trunc('day', to_timestamp(id / 1000), 'UTC')", "time_expression 1:67"),
            ("GROUP BY date_trunc('month', to_date(ymd::text, 'YYMMDD')::timestamp)", "time_expression 1:67"),
            ("GROUP BY date_trunc('month', to_date(ymd::varchar(4), 'YYYYMMDD')::timestamp)", "time_expression 1:67"),
            (
                "GROUP BY date_trunc('month', to_date(lpad(ymd::text, 8, '0'), 'YYMMDD')::timestamp)",
                "time_expression 1:67",
            ),
            (
                "GROUP BY date_trunc('month', to_date(lpad(ymd::text, 6, '1'), 'YYMMDD')::timestamp)",
                "time_expression 1:67",
            ),
            (
                "GROUP BY date_trunc('minute', ts), date_bin('5 minutes', ts, timestamptz '2000-01-01 00:00:30+00')",
                "length 1:93",
            ),
            ("GROUP BY other.dst_acct", "unknown_qualifier 1:67"),
            ("WHERE payments.status = 'x' GROUP BY date_trunc('day', accounts.ts)", "unknown_qualifier 1:113"),
            ("GROUP BY lower(dst_acct)", "group_expression 1:67"),
            ("GROUP BY dst_acct AS account", "renamed_dimension 1:67"),
            ("GROUP BY date_trunc('day', ts), date_trunc('day', pmt_ts)", "two_times 1:90"),
            ("GROUP BY ROLLUP (dst_acct)", "grouping_sets 1:67"),
            ("GROUP BY dst_acct WITH (tiemzone = 'UTC')", "unknown_option 1:82"),
            ("GROUP BY dst_acct WITH (timezone = 'UTC')", "no_time 1:82"),
            ("GROUP BY date_trunc('day', ts) WITH (timezone = 'Europe/Madrid', time_zone = 'UTC')", "bad_option 1:123"),
            ("GROUP BY EXTRACT(YEAR FROM other.ts)", "unknown_qualifier 1:85"),
            ("GROUP BY other.payments.ts", "unknown_qualifier 1:67"),
            ("GROUP BY dst_acct PARTITION BY DIMENSION d EVERY INTERVAL '1' month", "unknown_dimension 1:99"),
            ("GROUP BY dst_acct HAVING count(*) > 1", "having 1:76"),
            ("GROUP BY dst_acct ORDER BY 1", "order_by 1:76"),
            ("JOIN merchants ON true", "join 1:58"),
            ("WHERE", "malformed_sql 1:63"),
            ("GROUP BY", "malformed_sql 1:66"),
            ("GROUP BY dst_acct nonsense", "malformed_sql 1:76"),
            ("; CREATE ONLINE AGGREGATE b AS COUNT(*) FROM payments", "several_statements 1:60"),
            ("; SELECT 1", "several_statements 1:60"),
        ] {
            let found = by(groups);
            wrong.extend((found != answer).then(|| format!("{groups}: {found}, expected {answer}")));
        }
        for (text, answer) in [
            ("CREATE TABLE t (x int)", "not_an_aggregate 1:8"),
            ("CREATE OR REPLACE MATERIALIZED VIEW v AS SELECT 1", "replace_not_supported 1:8"),
            ("SELECT 1", "not_an_aggregate 1:1"),
            ("drop materialized view v", "not_an_aggregate 1:1"),
            ("SELEKT 1", "malformed_sql 1:1"),
            ("", "malformed_sql 1:1"),
            ("CREATE ONLINE AGGREGATE a AS AVG(x) FROM t", "avg_not_kept 1:30"),
            ("CREATE ONLINE AGGREGATE a AS SUM(x), SUM(y) FROM t", "duplicate_name 1:38"),
            ("CREATE ONLINE AGGREGATE a AS SUM(x + y) FROM t", "measured_expression 1:30"),
            ("CREATE ONLINE AGGREGATE a AS COUNT(DISTINCT x) FROM t", "distinct 1:30"),
            ("CREATE ONLINE AGGREGATE a AS SUM(u.x) FROM s.t", "unknown_qualifier 1:34"),
            ("CREATE ONLINE AGGREGATE a AS MAX(x) FROM t", "unsupported_measure 1:30"),
            ("CREATE ONLINE AGGREGATE a AS SUM(x) FROM (SELECT 1)", "subquery 1:42"),
            ("CREATE ONLINE AGGREGATE a AS SUM(x FROM t", "malformed_sql 1:36"),
            ("CREATE ONLINE AGGREGATE a AS SUM('x", "malformed_sql 1:34"),
            ("CREATE ONLINE AGGREGATE s.a AS SUM(x) FROM t", "name_with_schema 1:26"),
            ("CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM t", "not_grouped 1:38"),
            ("CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM t GROUP BY 3", "group_position 1:66"),
            (
                "CREATE MATERIALIZED VIEW v AS SELECT date_trunc('day', ts) AS ts, count(*) FROM t GROUP BY ts",
                "not_selected 1:92",
            ),
            ("CREATE MATERIALIZED VIEW v AS SELECT * FROM t", "star 1:38"),
            ("CREATE MATERIALIZED VIEW v AS SELECT count(*) FROM t WITH NO DATA", "no_data 1:59"),
            ("CREATE MATERIALIZED VIEW v AS (SELECT count(*) FROM t", "malformed_sql 1:54"),
            ("CREATE MATERIALIZED VIEW v AS SELECT sum(t.x) FROM t AS p", "unknown_qualifier 1:42"),
        ] {
            let error = read(text).unwrap_err();
            let found = format!("{} {}:{}", error.code, error.place.line, error.place.column);
            wrong.extend((found != answer).then(|| format!("{text}: {found}, expected {answer}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let codec = read("CREATE ONLINE AGGREGATE a AS COUNT(*) FROM t GROUP BY ymd - mod(ymd, 100)").unwrap_err();
        assert!(
            codec.hint.starts_with("its numbers, such as 20261231, are dates as yyyymmdd; add WITH"),
            "{}",
            codec.hint
        );
    }

    #[test]
    fn what_is_computed_on_a_measure_is_told_from_what_is_not_grouped() {
        for (selected, measure) in [
            ("coalesce(sum(amount), 0)", "sum(amount)"),
            ("round(SUM(x) / 100, 2)", "SUM(x)"),
            ("sum(x)::float8", "sum(x)"),
            ("100 * count(*) FILTER (WHERE f(y) = 'sum(') ", "count(*)"),
        ] {
            let hint = format!("write {measure} alone, and compute on the answer");
            for text in [
                format!("CREATE MATERIALIZED VIEW v AS SELECT {selected} FROM t"),
                format!("CREATE MATERIALIZED VIEW v AS SELECT a, {selected} AS c FROM t GROUP BY a"),
                format!("CREATE ONLINE AGGREGATE v AS {selected} FROM t"),
            ] {
                let error = read(&text).unwrap_err();
                assert_eq!((error.code, error.hint), ("not_a_measure", hint.clone()), "{text}");
            }
        }
        let hint = |text: &str| read(text).unwrap_err().hint;
        assert_eq!(hint("CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM t"), "add it to GROUP BY");
        assert!(hint("CREATE MATERIALIZED VIEW v AS SELECT bool_or(b) FROM t").starts_with("there are SUM and COUNT"));
        assert_eq!(hint("CREATE MATERIALIZED VIEW v AS SELECT sum(x) FROM ONLY t"), "leave ONLY out: FROM payments");
        assert!(read("CREATE MATERIALIZED VIEW v AS SELECT ALL a, sum(x) FROM t GROUP BY 1").is_ok());
    }

    #[test]
    fn mistakes_in_the_definition_are_found_in_the_statement() {
        let text = "CREATE ONLINE AGGREGATE a AS COUNT(*),\n SUM(amont) FROM payments\n WHERE x = 1 GROUP BY dst_acct";
        let registration = read(text).unwrap();
        let place = |pointer: &str| {
            let error =
                DefinitionError { pointer: pointer.to_owned(), code: "", message: String::new(), hint: String::new() };
            registration.place(&error).map(|place| (place.line, place.column))
        };
        assert_eq!(place("/measures/1/sum"), Some((2, 2)));
        assert_eq!(place("/dimensions/0"), Some((3, 23)));
        assert_eq!(place("/where"), Some((3, 8)));
        assert_eq!(place("/table"), Some((2, 18)));
        assert_eq!(place("/time/column"), None);
    }

    #[test]
    fn a_file_holds_several_statements() {
        let text = "-- monthly\nCREATE ONLINE AGGREGATE One AS COUNT(*) FROM t WHERE x = ';';\n\n;  CREATE MATERIALIZED VIEW two\n AS SELECT sum(ł) FROM t";
        let sources = statement::split(text).unwrap();
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        let place = |text: &str| read(text).unwrap_err().place;
        assert_eq!(sources.last().unwrap().text, "\n\n\n   CREATE MATERIALIZED VIEW two\n AS SELECT sum(ł) FROM t");
        let broken = format!("{} t t", sources.last().unwrap().text);
        assert_eq!((place(&broken).line, place(&broken).column), (5, 28));
        assert_eq!(statement::split(" ;; -- nothing\n").unwrap(), []);
        let marked = "\u{feff}CREATE ONLINE AGGREGATE École AS COUNT(*) FROM Straße";
        assert_eq!(statement::split(marked).unwrap().first().map(|source| source.name.as_str()), Some("École"));
        let registration = read(marked).unwrap();
        assert_eq!(registration.definition.table, "public.straße");
        assert_eq!(place(&format!("{marked} t t")).column, 57);
    }

    proptest::proptest! {
        /// Whatever is sent is understood or refused.
        #[test]
        fn no_text_breaks_it(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "CREATE", "ONLINE", "AGGREGATE", "MATERIALIZED", "VIEW", "a", "AS", "SELECT", "SUM(x)", "COUNT(*)", "FROM", "t", "WHERE",
                "x = 1", "GROUP", "BY", "EXTRACT(YEAR FROM ts)", "date_bin('1 day', ts, 'x')", "INTERVAL '1' day", "(", ")", ",",
                "PARTITION BY DIMENSION", "EVERY", "WITH", "codec", "=", "'ż'", "\n", ";", "1", "window_start", "TUMBLE(t, ts,", "99999999999999999999",
            ]), 0..24),
            noise in ".{0,6}", at in 0usize..24,
        ) {
            let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            words.insert(at.min(words.len()), noise);
            let text = words.join(" ");
            let whole = format!("CREATE ONLINE AGGREGATE a AS COUNT(*) FROM t GROUP BY {text}");
            for text in [text, whole] {
                let _ = read(&text);
                let _ = statement::split(&text);
            }
        }
    }
}
