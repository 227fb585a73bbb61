//! The grammar: the clauses around the expressions, which sqlparser reads.
//!
//! Names without quotes fold to lower case, as in Postgres. sqlparser's own reading of a list item would take the `PARTITION`
//! after it for an alias; here an expression is read alone, and then its `AS`.

use std::ops::Range;

use engine::materialization::condition::{self, folded, quote_identifier};
use sqlparser::ast::{Expr, ObjectName, ObjectNamePart, Value};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Word};

use super::error::SqlError;

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 64;
/// Most tokens of a statement, further items of its lists not counted: a chain of operators is as deep as it is long.
const MAX_TOKENS: usize = 2_500;
/// Most items of a list.
const MAX_ITEMS: usize = 256;

/// What may follow a table in its statement, so that it is no name for it.
const CLAUSES: [&str; 11] =
    ["where", "group", "partition", "with", "having", "order", "limit", "union", "create", "offset", "window"];
/// How other statements begin.
const STATEMENTS: [&str; 11] =
    ["select", "with", "insert", "update", "delete", "merge", "drop", "alter", "truncate", "refresh", "explain"];
const JOINS: [&str; 7] = ["join", "inner", "left", "right", "full", "cross", "natural"];

/// A statement as it is written.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) name: String,
    pub(super) if_not_exists: bool,
    pub(super) options: Vec<StatementOption>,
    pub(super) table: TableExpression,
    /// What is computed: measures, and in a view what they are grouped by.
    pub(super) items: Vec<Item>,
    pub(super) filter: Option<(Expr, Location)>,
    pub(super) grouping: Grouping,
    /// The dimension of `PARTITION BY DIMENSION`.
    pub(super) partition: Option<(String, Location)>,
}

impl Statement {
    /// All its expressions, but those of its options.
    pub(super) fn expressions(&mut self) -> impl Iterator<Item = &mut Expr> {
        let (Grouping::Listed(groups) | Grouping::Selected(groups)) = &mut self.grouping;
        let items = self.items.iter_mut().chain(groups).map(|item| &mut item.expression);
        let filter = self.filter.iter_mut().map(|(filter, _)| filter);
        items.chain(filter).chain(self.table.tumble.iter_mut().flat_map(|(time, length)| [time, length]))
    }
}

/// What rows are grouped by.
#[derive(Debug)]
pub(super) enum Grouping {
    /// `ONLINE AGGREGATE`: its own list of expressions.
    Listed(Vec<Item>),
    /// `MATERIALIZED VIEW`: positions, names or repetitions of selected items.
    Selected(Vec<Item>),
}

/// One item of a list.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) expression: Expr,
    pub(super) alias: Option<String>,
    pub(super) at: Location,
}

/// `FROM payments`, `FROM TUMBLE(payments, ts, INTERVAL '1 day')`
#[derive(Debug)]
pub(super) struct TableExpression {
    pub(super) name: String,
    /// What the statement calls it.
    pub(super) alias: Option<String>,
    pub(super) at: Location,
    /// Column and length of the windows.
    pub(super) tumble: Option<(Expr, Expr)>,
}

/// One of `WITH (...)`.
#[derive(Debug)]
pub(super) struct StatementOption {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) at: Location,
}

/// A statement of a file, and the name of what it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What it registers.
    pub name: String,
    /// Its text, after as many empty lines as stand before it in the file, so that lines keep their numbers.
    pub text: String,
}

/// Splits a text into its statements.
pub fn split(text: &str) -> Result<Vec<Source>, SqlError> {
    let text = without_mark(text);
    let tokens = tokens(text)?;
    let mut sources = Vec::new();
    let mut pieces: Vec<&[TokenWithSpan]> = tokens.split(|token| token.token == Token::SemiColon).collect();
    pieces.retain(|piece| piece.iter().any(|token| !matches!(token.token, Token::Whitespace(_))));
    for piece in pieces {
        let mut words = piece.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        let Some(first) = words.next() else { continue };
        let last = words.next_back().unwrap_or(first);
        let (start, end) = (offset(text, first.span.start), offset(text, last.span.end));
        let statement = text.get(start..end).unwrap_or_default();
        let lines = usize::try_from(first.span.start.line.saturating_sub(1)).unwrap_or_default();
        let columns = usize::try_from(first.span.start.column.saturating_sub(1)).unwrap_or_default();
        let text = format!("{}{}{statement}", "\n".repeat(lines), " ".repeat(columns));
        let mut grammar = Grammar::new(&text)?;
        let (name, ..) = grammar.head()?;
        sources.push(Source { name, text });
    }
    Ok(sources)
}

/// A text without the mark that some editors put before it.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location();
    tokens.map_err(|error| SqlError::malformed(text, error.location, error.message))
}

/// Bytes before a place.
fn offset(text: &str, at: Location) -> usize {
    let (mut line, mut column) = (1, 1);
    for (offset, c) in text.char_indices() {
        if (line, column) >= (at.line, at.column) {
            return offset;
        }
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    text.len()
}

/// Reads one statement.
pub(super) fn read(text: &str) -> Result<Statement, SqlError> {
    let statement = parse(text)?;
    let qualifiers = qualifiers(text, &statement.table)?;
    // A definition names columns alone, also within its conditions.
    if qualifiers.is_empty() { Ok(statement) } else { parse(&without(text, &qualifiers)) }
}

fn parse(text: &str) -> Result<Statement, SqlError> {
    let mut grammar = Grammar::new(text)?;
    let (name, kind, if_not_exists) = grammar.head()?;
    match kind {
        Kind::OnlineAggregate => grammar.online_aggregate(name, if_not_exists),
        Kind::MaterializedView => grammar.materialized_view(name, if_not_exists),
    }
}

/// A column that is named with its table, in bytes.
struct Qualified {
    /// `payments.`, `p.`
    qualifier: Range<usize>,
    /// What follows, where it is a column only because of that: `p.user`.
    reserved: Option<Range<usize>>,
}

/// Columns that are named with their table. Refuses `other.amount`: there is one table, and a column of another must not be taken for
/// its own.
fn qualifiers(text: &str, table: &TableExpression) -> Result<Vec<Qualified>, SqlError> {
    let tokens = tokens(text)?;
    let own = table.alias.as_deref().unwrap_or_else(|| table.name.rsplit('.').next().unwrap_or_default());
    let words: Vec<_> = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).collect();
    let begins_table =
        |at: Option<usize>| at.and_then(|at| words.get(at)).is_some_and(|word| word.span.start == table.at);
    let mut qualified = Vec::new();
    let mut at = 0;
    while let Some(first) = words.get(at) {
        let start = at;
        let mut parts: Vec<(&TokenWithSpan, &Word)> = Vec::new();
        while let Some(token) = words.get(at)
            && let Token::Word(word) = &token.token
        {
            parts.push((token, word));
            let goes_on = words.get(at + 1).is_some_and(|token| token.token == Token::Period);
            at += if goes_on { 2 } else { 1 };
            if !goes_on {
                break;
            }
        }
        at = at.max(start + 1);
        // The table itself may be named with its schema: after FROM, or as the first argument of TUMBLE.
        let Some(((column, word), qualifier)) = parts.split_last() else { continue };
        if qualifier.is_empty()
            || begins_table(Some(start))
            || table.tumble.is_some() && begins_table(start.checked_sub(2))
        {
            continue;
        }
        let name = |word: &Word| folded(&word.to_ident(Span::empty()));
        let names = qualifier.iter().map(|(_, word)| name(word)).collect::<Vec<_>>().join(".");
        if names != own && !(table.alias.is_none() && names == table.name) {
            let message = format!("there is no table {names} in this statement");
            return Err(SqlError::refused(text, first.span.start, "unknown_qualifier", message)
                .hint(format!("an aggregate is over one table: write the column alone, or {own}.column")));
        }
        let begin = offset(text, column.span.start);
        let qualifier = offset(text, first.span.start)..begin;
        let on_one_line = text.get(qualifier.clone()).is_some_and(|text| !text.contains('\n'));
        let needs_quotes =
            word.quote_style.is_none() && word.value.is_ascii() && quote_identifier(&name(word)) != name(word);
        let reserved = (on_one_line && needs_quotes).then(|| begin..begin.saturating_add(word.value.len()));
        qualified.push(Qualified { qualifier, reserved });
    }
    Ok(qualified)
}

/// A text with spaces where qualifiers were, so that everything else keeps its place. A column that needs them is quoted instead, in
/// their room.
fn without(text: &str, qualified: &[Qualified]) -> String {
    let (mut alone, mut done) = (String::with_capacity(text.len()), 0);
    for Qualified { qualifier, reserved } in qualified {
        alone.push_str(text.get(done..qualifier.start).unwrap_or_default());
        let blanks = text.get(qualifier.clone()).unwrap_or_default().chars().map(|c| if c == '\n' { c } else { ' ' });
        let mut blanks: String = blanks.collect();
        done = qualifier.end;
        if let Some(column) = reserved {
            blanks.truncate(blanks.len().saturating_sub(2));
            let name = text.get(column.clone()).unwrap_or_default().to_ascii_lowercase();
            blanks.push_str(&quote_identifier(&name));
            done = column.end;
        }
        alone.push_str(&blanks);
    }
    alone.push_str(text.get(done..).unwrap_or_default());
    alone
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OnlineAggregate,
    MaterializedView,
}

struct Grammar<'t> {
    text: &'t str,
    parser: Parser<'t>,
}

impl<'t> Grammar<'t> {
    fn new(text: &'t str) -> Result<Self, SqlError> {
        let dialect = &PostgreSqlDialect {};
        let tokens = tokens(text)?;
        condition::bounded(tokens.iter().map(|token| &token.token), MAX_TOKENS).map_err(|error| {
            SqlError::malformed(text, Location { line: 1, column: 1 }, format!("a statement is too long: {error}"))
        })?;
        Ok(Grammar {
            text,
            parser: Parser::new(dialect).with_recursion_limit(MAX_DEPTH).with_tokens_with_locations(tokens),
        })
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut Parser<'t>) -> Result<T, ParserError>) -> Result<T, SqlError> {
        read(&mut self.parser).map_err(|error| SqlError::of_parser(self.text, &error))
    }

    fn here(&self) -> Location {
        self.parser.peek_token_ref().span.start
    }

    /// What stands here is not what belongs here.
    fn expected<T>(&self, what: &str) -> Result<T, SqlError> {
        let found = self.parser.peek_token();
        let message = format!("expected {what}, found {}", found.token);
        Err(SqlError::malformed(self.text, found.span.start, message))
    }

    fn refused(&self, code: &'static str, message: &str) -> SqlError {
        SqlError::refused(self.text, self.here(), code, message)
    }

    /// A word, whether sqlparser knows it or not.
    fn is_word(&self, word: &str) -> bool {
        matches!(&self.parser.peek_token_ref().token, Token::Word(found)
            if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.parser.next_token();
        }
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), SqlError> {
        if self.word(word) { Ok(()) } else { self.expected(word) }
    }

    fn not_an_aggregate(&self, begin: &str) -> SqlError {
        self.refused("not_an_aggregate", "only aggregates are registered").hint(format!("write {begin}"))
    }

    fn name(&mut self) -> Result<String, SqlError> {
        self.read(Parser::parse_identifier).map(|name| folded(&name))
    }

    /// `CREATE ONLINE AGGREGATE IF NOT EXISTS name`
    fn head(&mut self) -> Result<(String, Kind, bool), SqlError> {
        let begin = "CREATE ONLINE AGGREGATE name AS ... or CREATE MATERIALIZED VIEW name AS SELECT ...";
        if !self.word("create") {
            if STATEMENTS.iter().any(|word| self.is_word(word)) {
                return Err(self.not_an_aggregate(begin));
            }
            return self
                .expected("CREATE")
                .map_err(|error: SqlError| error.hint(format!("a statement begins {begin}")));
        }
        if self.is_word("or") {
            return Err(self
                .refused("replace_not_supported", "an aggregate is not replaced in place")
                .hint("leave OR REPLACE out and PUT with ?on_change=rebuild: what there is answers until the new one is filled"));
        }
        let kind = if self.word("online") {
            self.expect("aggregate")?;
            Kind::OnlineAggregate
        } else if self.word("materialized") {
            self.expect("view")?;
            Kind::MaterializedView
        } else if self.is_word("view") || self.is_word("table") {
            return Err(self.not_an_aggregate(begin));
        } else {
            return self.expected("ONLINE AGGREGATE or MATERIALIZED VIEW");
        };
        let mut if_not_exists = false;
        if self.word("if") {
            self.expect("not")?;
            self.expect("exists")?;
            if_not_exists = true;
        }
        let name = self.name()?;
        if self.parser.peek_token_ref().token == Token::Period {
            return Err(self
                .refused("name_with_schema", "the name of an aggregate has no schema")
                .hint("the schema belongs to the table: FROM public.payments"));
        }
        Ok((name, kind, if_not_exists))
    }

    fn online_aggregate(mut self, name: String, if_not_exists: bool) -> Result<Statement, SqlError> {
        let mut options = self.options()?;
        self.expect("as")?;
        if self.is_word("select") {
            return Err(self
                .refused("select_in_aggregate", "an ONLINE AGGREGATE lists its measures without SELECT")
                .hint("write CREATE ONLINE AGGREGATE name AS SUM(x) AS x FROM ... or CREATE MATERIALIZED VIEW name AS SELECT ..."));
        }
        let items = self.items(true)?;
        let table = self.table()?;
        let filter = self.filter()?;
        let groups = if self.group_by()? { self.items(false)? } else { Vec::new() };
        let partition = self.partition()?;
        options.extend(self.options()?);
        self.end()?;
        Ok(Statement {
            name,
            if_not_exists,
            options,
            table,
            items,
            filter,
            grouping: Grouping::Listed(groups),
            partition,
        })
    }

    fn materialized_view(mut self, name: String, if_not_exists: bool) -> Result<Statement, SqlError> {
        let options = self.options()?;
        self.expect("as")?;
        let enclosed = self.parser.consume_token(&Token::LParen);
        self.expect("select")?;
        if self.is_word("distinct") {
            return Err(self
                .refused("distinct", "DISTINCT is not needed: each group has one row")
                .hint("leave it out"));
        }
        // What is selected unless DISTINCT is written.
        self.word("all");
        let items = self.items(true)?;
        let table = self.table()?;
        let filter = self.filter()?;
        let grouped = self.group_by()?;
        let groups = if grouped { self.items(false)? } else { Vec::new() };
        self.having(grouped)?;
        if enclosed {
            self.punctuation(&Token::RParen, ")")?;
        }
        self.filled()?;
        self.end()?;
        Ok(Statement {
            name,
            if_not_exists,
            options,
            table,
            items,
            filter,
            grouping: Grouping::Selected(groups),
            partition: None,
        })
    }

    /// Expressions with their aliases. `implicit` ones, without AS, are taken before FROM only.
    fn items(&mut self, implicit: bool) -> Result<Vec<Item>, SqlError> {
        let mut items = Vec::new();
        loop {
            let at = self.here();
            if self.parser.peek_token_ref().token == Token::Mul {
                return Err(self
                    .refused("star", "every column of an aggregate is named")
                    .hint("write the measures, such as sum(amount) AS amount, and what they are grouped by"));
            }
            let expression = self.read(Parser::parse_expr)?;
            let named = self.word("as")
                || implicit
                    && matches!(&self.parser.peek_token_ref().token, Token::Word(word) if word.keyword != Keyword::FROM);
            let alias = if named { Some(self.name()?) } else { None };
            items.push(Item { expression, alias, at });
            if items.len() > MAX_ITEMS {
                return Err(self.refused("too_many", "the list is too long"));
            }
            if !self.parser.consume_token(&Token::Comma) {
                return Ok(items);
            }
        }
    }

    fn table(&mut self) -> Result<TableExpression, SqlError> {
        self.expect("from")?;
        if self.is_word("only") {
            return Err(self
                .refused("table_name", "ONLY is not read: an aggregate is of the rows of its table")
                .hint("leave ONLY out: FROM payments"));
        }
        let at = self.here();
        let table = if self.word("tumble") {
            self.punctuation(&Token::LParen, "(")?;
            if self.is_word("table") {
                return Err(self
                    .refused("calcite_tumble", "TUMBLE(TABLE ..., DESCRIPTOR(...), ...) is not read")
                    .hint("write TUMBLE(payments, ts, INTERVAL '1 day')"));
            }
            let name = self.table_name()?;
            self.punctuation(&Token::Comma, ",")?;
            let column = self.read(Parser::parse_expr)?;
            self.punctuation(&Token::Comma, ",")?;
            let length = self.read(Parser::parse_expr)?;
            self.punctuation(&Token::RParen, ")")?;
            TableExpression { name, alias: self.table_alias()?, at, tumble: Some((column, length)) }
        } else {
            TableExpression { name: self.table_name()?, alias: self.table_alias()?, at, tumble: None }
        };
        let joined = self.parser.peek_token_ref().token == Token::Comma || JOINS.iter().any(|word| self.is_word(word));
        if joined {
            return Err(self
                .refused("join", "an aggregate is over one table")
                .hint("keep the other table's column in this one, or make an aggregate over each"));
        }
        Ok(table)
    }

    fn table_name(&mut self) -> Result<String, SqlError> {
        if self.parser.peek_token_ref().token == Token::LParen {
            return Err(self
                .refused("subquery", "an aggregate is over a table, not over a query")
                .hint("name the table, and write its conditions after WHERE"));
        }
        let ObjectName(parts) = self.read(|parser| parser.parse_object_name(false))?;
        let parts: Vec<String> = parts
            .iter()
            .filter_map(|part| match part {
                ObjectNamePart::Identifier(part) => Some(folded(part)),
                ObjectNamePart::Function(_) => None,
            })
            .collect();
        match parts.as_slice() {
            [table] => Ok(format!("public.{table}")),
            [schema, table] => Ok(format!("{schema}.{table}")),
            _ => Err(self.refused("table_name", "a table is named schema.table")),
        }
    }

    /// `payments p`, `payments AS p`
    fn table_alias(&mut self) -> Result<Option<String>, SqlError> {
        let follows = CLAUSES.iter().chain(&JOINS).any(|word| self.is_word(word));
        let named = self.word("as") || !follows && matches!(self.parser.peek_token_ref().token, Token::Word(_));
        if named { self.name().map(Some) } else { Ok(None) }
    }

    /// `WITH DATA`, which is how an aggregate always is.
    fn filled(&mut self) -> Result<(), SqlError> {
        if !self.word("with") {
            return Ok(());
        }
        if self.is_word("no") {
            return Err(self
                .refused("no_data", "an aggregate is filled from the table's rows as soon as it is registered")
                .hint("leave WITH NO DATA out; the filling can be held: POST /v1/aggregates/{name}/backfill:pause"));
        }
        self.expect("data")
    }

    fn punctuation(&mut self, token: &Token, name: &str) -> Result<(), SqlError> {
        if self.parser.consume_token(token) { Ok(()) } else { self.expected(name) }
    }

    fn filter(&mut self) -> Result<Option<(Expr, Location)>, SqlError> {
        if !self.word("where") {
            return Ok(None);
        }
        let at = self.here();
        Ok(Some((self.read(Parser::parse_expr)?, at)))
    }

    fn group_by(&mut self) -> Result<bool, SqlError> {
        if !self.word("group") {
            return Ok(false);
        }
        self.expect("by")?;
        if ["rollup", "cube", "grouping", "all", "distinct"].iter().any(|word| self.is_word(word)) {
            return Err(self
                .refused("grouping_sets", "one aggregate has one grouping; coarser ones are put together from it")
                .hint("list the columns; keep coarser times materialized with WITH (rollups = 'month,year')"));
        }
        Ok(true)
    }

    /// `HAVING count(*) > 0` is what makes Postgres answer no row over no rows, as we do; nothing else can be said.
    fn having(&mut self, grouped: bool) -> Result<(), SqlError> {
        if !self.is_word("having") {
            return Ok(());
        }
        let error = self
            .refused("having", "an aggregate keeps every group")
            .hint("ask for some of them: /data?having=..., or write a condition on rows after WHERE");
        self.parser.next_token();
        let mut condition = self.read(Parser::parse_expr)?;
        while let Expr::Nested(inner) = condition {
            condition = *inner;
        }
        if grouped || condition.to_string().to_lowercase() != "count(*) > 0" { Err(error) } else { Ok(()) }
    }

    /// `PARTITION BY DIMENSION day EVERY INTERVAL '1' month`
    fn partition(&mut self) -> Result<Option<(String, Location)>, SqlError> {
        if !self.word("partition") {
            return Ok(None);
        }
        self.expect("by")?;
        if !self.is_word("dimension") {
            return Err(self
                .refused("partition_by", "an aggregate is partitioned by a dimension")
                .hint("write PARTITION BY DIMENSION d EVERY INTERVAL '1' month, or leave it out"));
        }
        self.parser.next_token();
        let at = self.here();
        let dimension = self.name()?;
        self.expect("every")?;
        self.read(Parser::parse_expr)?;
        Ok(Some((dimension, at)))
    }

    fn options(&mut self) -> Result<Vec<StatementOption>, SqlError> {
        let mut options = Vec::new();
        if !self.word("with") {
            return Ok(options);
        }
        self.punctuation(&Token::LParen, "(")?;
        loop {
            let at = self.here();
            let name = self.name()?;
            self.punctuation(&Token::Eq, "=")?;
            let value = match self.read(Parser::parse_expr)? {
                Expr::Value(value) => match value.value {
                    Value::SingleQuotedString(text) | Value::Number(text, _) => text,
                    other => other.to_string(),
                },
                Expr::Identifier(name) => folded(&name),
                other => {
                    let message = format!("{other} is not the value of an option");
                    return Err(
                        SqlError::malformed(self.text, at, message).hint("write it in quotes: timezone = 'UTC'")
                    );
                }
            };
            options.push(StatementOption { name, value, at });
            if !self.parser.consume_token(&Token::Comma) {
                self.punctuation(&Token::RParen, ")")?;
                return Ok(options);
            }
        }
    }

    fn end(&mut self) -> Result<(), SqlError> {
        for (word, code, message, hint) in [
            ("order", "order_by", "an aggregate has no order", "order its answers: /data?order=-amount"),
            ("limit", "limit", "an aggregate keeps every group", "limit its answers: /data?limit=10"),
            ("union", "set_operation", "an aggregate is one query over one table", "make an aggregate of each"),
            ("having", "having", "an aggregate keeps every group", "ask for some of them: /data?having=..."),
        ] {
            if self.is_word(word) {
                return Err(self.refused(code, message).hint(hint));
            }
        }
        let ended = self.parser.consume_token(&Token::SemiColon);
        while self.parser.consume_token(&Token::SemiColon) {}
        if self.parser.peek_token_ref().token == Token::EOF {
            return Ok(());
        }
        if ended || self.is_word("create") {
            return Err(self
                .refused("several_statements", "one statement is registered at a time")
                .hint("send them one by one, or put them in a file: tidemark register FILE.sql"));
        }
        self.expected("the end of the statement")
    }
}
