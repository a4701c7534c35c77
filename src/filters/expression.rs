//! Conditions and keys as expressions of the Common Expression Language (CEL), over a request and who it is from.
//!
//! | variable | value |
//! | --- | --- |
//! | `request.id` `request.method` `request.protocol` `request.scheme` `request.host` `request.path` | texts; the path is the canonical one |
//! | `request.headers` | by name in lower case; several lines are joined by `, ` |
//! | `request.query` | by name: the list of all values, decoded |
//! | `client.address` | the client's IP address, behind trusted proxies |
//! | `consumer` `consumer.name` `consumer.team` | who calls, or `null` |
//! | `consumer.labels` `consumer.scopes` | of the consumer; empty if there is none |
//! | `scopes` | all scopes of the caller, its token's too |
//! | `claims` | what its token says: `claims.sub`, `claims["https://example.com/role"]` |
//! | `credential` `credential.kind` `anonymous` | `"api_key:…"` and `"api_key"`, or `null`; whether nothing was presented |
//! | `path` | what the route's path captured: `path.id` |
//! | `service` `route` `listener` | their names |
//! | `time.unix` `time.year` `time.month` `time.day` `time.weekday` `time.hour` `time.minute` | now, in UTC; Monday is 1 |
//!
//! On the hot path: an expression is parsed once, its variables are read only when it gets to them, and its patterns
//! are compiled beforehand; a comparison takes about 0.2 µs, a pattern 0.6 (`a_condition_takes`). It is written by who
//! runs the gateway, so what it may do is bounded when it is read: its length, its depth; no loop is in a loop, and no
//! pattern may come from a request.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::traits::{Container, Indexer, Iterable, Iterator as Elements, Sizer};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, MAP_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value, extensions};
use http::HeaderMap;
use regex::Regex;
use serde_json::Value as Json;

use super::authenticate::credentials::decoded;
use crate::config::nearest;
use crate::routing::Captures;
use crate::telemetry::redact::parameters;
use crate::variables::{Scope, protocol, split_target, write_address};

/// Longest text of an expression.
const LONGEST: usize = 2048;
/// How deep an expression may be nested; each level takes a piece of the stack.
const DEEPEST: usize = 48;
/// A larger pattern takes too long for every request.
const PATTERN_SIZE: usize = 256 << 10;
/// Stands for `matches` where the pattern is compiled already.
const MATCHES: &str = "matches_compiled";

/// What is not a map is a variable by its whole name.
const VARIABLES: &[&str] = &[
    "request.id",
    "request.method",
    "request.protocol",
    "request.scheme",
    "request.host",
    "request.path",
    "request.headers",
    "request.query",
    "client.address",
    "consumer",
    "consumer.name",
    "consumer.team",
    "consumer.labels",
    "consumer.scopes",
    "scopes",
    "claims",
    "credential",
    "credential.kind",
    "anonymous",
    "path",
    "service",
    "route",
    "listener",
    "time.unix",
    "time.year",
    "time.month",
    "time.day",
    "time.weekday",
    "time.hour",
    "time.minute",
];

/// Those whose fields are whatever a request has.
const MAPS: &[&str] = &["request.headers", "request.query", "consumer.labels", "claims", "path"];

/// What may be called. None makes a text much longer than those it is given.
const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "lowerAscii",
    "upperAscii",
    "trim",
    "split",
    "join",
    "indexOf",
    "substring",
    "charAt",
];

/// A compiled expression.
pub struct Expression {
    tree: IdedExpr,
    /// The functions; variables come from the request.
    context: Context<'static, 'static>,
}

/// Why an expression has no value, for the log. Never what a request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It asks for a header, claim or other entry that this request does not have.
    Missing,
    /// It combines or compares what cannot be, such as a text and a number, or `null`.
    Mismatch,
    /// It is not the truth value that it has to be.
    NoTruth,
    Other,
}

impl Fault {
    pub fn cause(self) -> &'static str {
        match self {
            Fault::Missing => "the condition asks for what the request does not have",
            Fault::Mismatch => "the condition combines what does not fit together",
            Fault::NoTruth => "the condition is neither true nor false",
            Fault::Other => "the condition could not be evaluated",
        }
    }
}

impl Expression {
    /// Compiles an expression. The error says what is wrong and, where one is near, which name was meant.
    pub fn compile(text: &str) -> Result<Expression, String> {
        if text.len() > LONGEST {
            return Err(format!("the expression is longer than {LONGEST} bytes"));
        }
        // The parser is not ours: should it panic, the configuration is at fault and not the process at its end.
        let compiled = catch_unwind(AssertUnwindSafe(|| compile(text)));
        compiled.unwrap_or_else(|_| Err("the expression cannot be read".to_owned()))
    }

    /// Whether the condition holds.
    pub fn evaluate_bool(&self, scope: &Scope<'_>) -> Result<bool, Fault> {
        self.evaluate(scope, |value| value.downcast_ref::<CelBool>().map(|truth| *truth.inner()))
            .and_then(|truth| truth.ok_or(Fault::NoTruth))
    }

    /// The value as a text: of texts, whole numbers and truth values. `None` for anything else, such as what the
    /// request does not have.
    pub fn evaluate_text(&self, scope: &Scope<'_>) -> Option<String> {
        self.evaluate(scope, |value| {
            let text = value.downcast_ref::<CelString>().map(|text| text.inner().to_owned());
            let number = || value.downcast_ref::<CelInt>().map(|number| number.inner().to_string());
            let natural = || value.downcast_ref::<CelUInt>().map(|number| number.inner().to_string());
            let truth = || value.downcast_ref::<CelBool>().map(|truth| truth.inner().to_string());
            text.or_else(number).or_else(natural).or_else(truth)
        })
        .ok()
        .flatten()
    }

    fn evaluate<T>(&self, scope: &Scope<'_>, read: impl FnOnce(&dyn Val) -> T) -> Result<T, Fault> {
        let variables = Variables { scope, query: OnceLock::new() };
        let evaluated = catch_unwind(AssertUnwindSafe(|| {
            let mut context = child(&self.context);
            context.set_variable_resolver(&variables);
            Value::resolve_val(&self.tree, &context).map(|value| read(&*value)).map_err(|error| fault(&error))
        }));
        evaluated.unwrap_or(Err(Fault::Other))
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Expression")
    }
}

/// A scope within the lasting one, whose values may live as short as a request.
fn child<'p, 'v>(context: &'p Context<'p, 'v>) -> Context<'p, 'v> {
    context.new_inner_scope()
}

fn fault(error: &ExecutionError) -> Fault {
    match error {
        ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_) => Fault::Missing,
        ExecutionError::NoSuchOverload(_)
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::ValuesNotComparable(..) => Fault::Mismatch,
        _ => Fault::Other,
    }
}

fn compile(text: &str) -> Result<Expression, String> {
    let mut env = Env::stdlib();
    env.add_extension(extensions::strings).map_err(|error| error.to_string())?;
    let program = env.compile(text).map_err(|errors| {
        // The first is the cause of most others.
        let first = errors.errors.first();
        first.map_or_else(
            || "this is no expression".to_owned(),
            |error| format!("this is no expression: column {}: {}", error.pos.1, error.msg),
        )
    })?;
    let mut tree = program.expression().clone();
    let mut reader = Reader { bound: Vec::new(), patterns: Vec::new(), in_loop: false };
    reader.read(&mut tree, 0)?;
    let patterns = reader.patterns;
    let mut context = Context::with_env(Arc::new(env));
    let matches = move |text: Arc<String>, pattern: i64| -> bool {
        usize::try_from(pattern).ok().and_then(|at| patterns.get(at)).is_some_and(|pattern| pattern.is_match(&text))
    };
    context.add_function(MATCHES, matches).map_err(|error| error.to_string())?;
    Ok(Expression { tree, context })
}

/// Checks an expression, and writes into it what can be found out beforehand.
struct Reader {
    /// Names that the loops around have given.
    bound: Vec<String>,
    patterns: Vec<Regex>,
    in_loop: bool,
}

impl Reader {
    fn read(&mut self, tree: &mut IdedExpr, depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("the expression is nested deeper than {DEEPEST} levels"));
        }
        let depth = depth + 1;
        if let Some(name) = qualified(&tree.expr) {
            let root = name.split('.').next().unwrap_or_default();
            if !self.bound.iter().any(|bound| bound == root) {
                return self.variable(tree, &name);
            }
        }
        match &mut tree.expr {
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Select(select) => self.read(&mut select.operand, depth),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.read(element, depth)),
            Expr::Call(call) => self.call(call, depth),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.read(&mut entry.key, depth)?;
                    self.read(&mut entry.value, depth)
                }
                EntryExpr::StructField(field) => self.read(&mut field.value, depth),
            }),
            Expr::Struct(_) => Err("there are no structures to make here".to_owned()),
            Expr::Comprehension(each) => {
                self.read(&mut each.iter_range, depth)?;
                // The work would be the square of what a request may send.
                if self.in_loop {
                    return Err("a loop within a loop takes too long for large requests".to_owned());
                }
                self.in_loop = true;
                let before = self.bound.len();
                self.bound.extend([each.iter_var.clone(), each.accu_var.clone()]);
                self.bound.extend(each.iter_var2.clone());
                let parts = [&mut each.accu_init, &mut each.loop_cond, &mut each.loop_step, &mut each.result];
                parts.into_iter().try_for_each(|part| self.read(part, depth))?;
                self.bound.truncate(before);
                self.in_loop = false;
                Ok(())
            }
        }
    }

    /// Turns `request.path` from a field of something into the variable that it is.
    fn variable(&mut self, tree: &mut IdedExpr, name: &str) -> Result<(), String> {
        if VARIABLES.contains(&name) {
            tree.expr = Expr::Ident(name.to_owned());
            return Ok(());
        }
        // Below a map anything may stand; below a text nothing.
        if let Expr::Select(select) = &mut tree.expr
            && MAPS.iter().any(|map| name.strip_prefix(map).is_some_and(|rest| rest.starts_with('.')))
        {
            let operand = qualified(&select.operand.expr).unwrap_or_default();
            return self.variable(&mut select.operand, &operand);
        }
        let meant = nearest(name, VARIABLES.iter().copied()).map(|known| known.to_owned()).or_else(|| {
            let inside = |known: &&&str| known.starts_with(&format!("{name}."));
            VARIABLES.iter().find(inside).map(|known| (*known).to_owned())
        });
        Err(match meant {
            Some(meant) => format!("there is no variable `{name}` (did you mean `{meant}`?)"),
            None => format!("there is no variable `{name}`"),
        })
    }

    fn call(&mut self, call: &mut CallExpr, depth: usize) -> Result<(), String> {
        let name = call.func_name.as_str();
        let is_word = name.starts_with(|first: char| first.is_ascii_alphabetic());
        if is_word && !FUNCTIONS.contains(&name) {
            return Err(match nearest(name, FUNCTIONS.iter().copied()) {
                Some(meant) => format!("there is no function `{name}` (did you mean `{meant}`?)"),
                None => format!("there is no function `{name}`"),
            });
        }
        if name == "matches" {
            self.pattern(call)?;
        }
        let target = call.target.as_deref_mut().into_iter();
        target.chain(&mut call.args).try_for_each(|part| self.read(part, depth))
    }

    /// `text.matches("…")` and `matches(text, "…")` as a call with the compiled pattern.
    fn pattern(&mut self, call: &mut CallExpr) -> Result<(), String> {
        let written = match call.args.last().map(|last| &last.expr) {
            Some(Expr::Literal(LiteralValue::String(pattern))) => pattern.inner().to_owned(),
            // Compiling one takes long, and a request could choose one that takes longest.
            _ => return Err("the pattern of `matches` has to be written out as a text".to_owned()),
        };
        let pattern = regex::RegexBuilder::new(&written).size_limit(PATTERN_SIZE).build();
        let pattern = pattern.map_err(|error| format!("`{written}` is not a pattern: {error}"))?;
        call.func_name = MATCHES.to_owned();
        if let Some(last) = call.args.last_mut() {
            last.expr = Expr::Literal(LiteralValue::Int(CelInt::from(self.patterns.len() as i64)));
        }
        if let Some(target) = call.target.take() {
            call.args.insert(0, *target);
        }
        self.patterns.push(pattern);
        Ok(())
    }
}

/// The name with dots that an expression is, if it is one.
fn qualified(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", qualified(&select.operand.expr)?, select.field)),
        _ => None,
    }
}

/// The values of one request, read when they are asked for.
struct Variables<'s> {
    scope: &'s Scope<'s>,
    /// One for all places that name it: whoever loops over it looks into it again and again.
    query: OnceLock<Table<'s>>,
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let Scope { exchange, request, .. } = self.scope;
        let consumer = exchange.consumer();
        let identity = exchange.identity.as_ref();
        Some(match variable {
            "request.id" => bytes(exchange.request_id.as_bytes()),
            "request.method" => text(request.method.as_str()),
            "request.protocol" => text(protocol(request.version)),
            "request.scheme" => text(exchange.scheme.as_str()),
            "request.host" => text(&exchange.host),
            "request.path" => bytes(split_target(request.raw_path()).0),
            "request.headers" => table(Source::Headers(&request.headers)),
            "request.query" => {
                let query = || split_target(request.raw_path()).1.unwrap_or_default();
                CowVal::Borrowed(self.query.get_or_init(|| Table::new(Source::Query(query()))))
            }
            "client.address" => {
                let mut address = String::new();
                write_address(exchange.client, &mut address);
                text(address)
            }
            "consumer" | "consumer.name" => optional(consumer.map(|consumer| consumer.name())),
            "consumer.team" => optional(consumer.and_then(|consumer| Some(&*consumer.team.as_ref()?.name))),
            "consumer.labels" => table(Source::Pairs(consumer.map_or(&[], |consumer| &consumer.profile.labels))),
            "consumer.scopes" => {
                let scopes = consumer.into_iter().flat_map(|consumer| &consumer.profile.scopes);
                list(scopes.map(String::as_str))
            }
            "scopes" => {
                let own = consumer.into_iter().flat_map(|consumer| &consumer.profile.scopes).map(String::as_str);
                let claims = identity.and_then(|identity| identity.claims.as_ref());
                list(own.chain(claims.into_iter().flat_map(|claims| claims.scopes())))
            }
            "claims" => match identity.and_then(|identity| identity.claims.as_ref()) {
                Some(claims) => table(Source::Json(claims.as_map())),
                None => table(Source::Pairs(&[])),
            },
            "credential" => match identity.filter(|identity| !identity.credential.kind.is_empty()) {
                Some(identity) => text(identity.credential.to_string()),
                None => CowVal::owned(CelNull),
            },
            "credential.kind" => {
                optional(identity.map(|identity| identity.credential.kind).filter(|kind| !kind.is_empty()))
            }
            "anonymous" => CowVal::owned(CelBool::from(identity.is_none_or(|identity| identity.anonymous))),
            "path" => table(Source::Captures(&exchange.captures)),
            "service" => text(exchange.names().0),
            "route" => text(exchange.names().1),
            "listener" => text(&*exchange.listener),
            _ => CowVal::owned(CelInt::from(time(variable.strip_prefix("time.")?)?)),
        })
    }
}

fn time(part: &str) -> Option<i64> {
    let now = jiff::Timestamp::try_from(SystemTime::now()).ok()?;
    if part == "unix" {
        return Some(now.as_second());
    }
    let now = jiff::tz::TimeZone::UTC.to_datetime(now);
    Some(match part {
        "year" => now.year().into(),
        "month" => now.month().into(),
        "day" => now.day().into(),
        "weekday" => now.weekday().to_monday_one_offset().into(),
        "hour" => now.hour().into(),
        "minute" => now.minute().into(),
        _ => return None,
    })
}

fn text<'b>(text: impl Into<Cow<'b, str>>) -> CowVal<'b, 'b> {
    CowVal::owned(CelString::from(text.into()))
}

/// What is not UTF-8 becomes U+FFFD.
fn bytes<'b>(bytes: &'b [u8]) -> CowVal<'b, 'b> {
    text(String::from_utf8_lossy(bytes))
}

fn optional<'b>(value: Option<&'b str>) -> CowVal<'b, 'b> {
    value.map_or(CowVal::owned(CelNull), text)
}

fn list<'b>(items: impl Iterator<Item = &'b str>) -> CowVal<'b, 'b> {
    let items: Vec<Box<dyn Val + 'b>> = items.map(|item| Box::new(CelString::from(item)) as _).collect();
    CowVal::owned(CelList::from(items))
}

fn table<'b>(source: Source<'b>) -> CowVal<'b, 'b> {
    CowVal::owned(Table::new(source))
}

/// A map over something that a request has, which looks for one entry without making the others.
#[derive(Debug)]
struct Table<'v> {
    source: Source<'v>,
    /// Made for those who want all entries.
    whole: OnceLock<CelMap<'v>>,
}

#[derive(Clone, Copy)]
enum Source<'v> {
    Headers(&'v HeaderMap),
    Query(&'v [u8]),
    Pairs(&'v [(String, String)]),
    Captures(&'v Captures),
    Json(&'v serde_json::Map<String, Json>),
}

/// Errors of the language may show values, and values of requests are secrets.
impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{…}")
    }
}

impl<'v> Source<'v> {
    fn find(self, name: &str) -> Option<Box<dyn Val + 'v>> {
        match self {
            Source::Headers(headers) => {
                let mut lines = headers.get_all(name).iter();
                let mut value = String::from_utf8_lossy(lines.next()?.as_bytes());
                for line in lines {
                    let all = value.to_mut();
                    all.push_str(", ");
                    all.push_str(&String::from_utf8_lossy(line.as_bytes()));
                }
                Some(Box::new(CelString::from(value)))
            }
            Source::Query(query) => {
                let values = parameters(query).filter(|(known, _)| *decoded(known) == *name.as_bytes());
                let values: Vec<Box<dyn Val + 'v>> =
                    values.map(|(_, value)| Box::new(parameter(value_of(value))) as _).collect();
                (!values.is_empty()).then(|| Box::new(CelList::from(values)) as _)
            }
            Source::Pairs(pairs) => {
                let (_, value) = pairs.iter().find(|(known, _)| known == name)?;
                Some(Box::new(CelString::from(value.as_str())))
            }
            Source::Captures(captures) => Some(Box::new(CelString::from(captures.get(name)?))),
            Source::Json(map) => map.get(name).map(json),
        }
    }

    /// All entries, in one pass.
    fn entries(self) -> HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> {
        let named = |name: &'v str| (CelMapKey::String(CelString::from(name)), self.find(name));
        let found = |(name, value): (_, Option<_>)| Some((name, value?));
        match self {
            Source::Headers(headers) => headers.keys().map(|name| named(name.as_str())).filter_map(found).collect(),
            Source::Pairs(pairs) => pairs.iter().map(|(name, _)| named(name)).filter_map(found).collect(),
            Source::Captures(captures) => captures.0.iter().map(|(name, _)| named(name)).filter_map(found).collect(),
            Source::Json(map) => map.keys().map(|name| named(name)).filter_map(found).collect(),
            Source::Query(query) => {
                let mut lists: HashMap<CelMapKey<'v>, Vec<Box<dyn Val + 'v>>> = HashMap::new();
                for (name, value) in parameters(query) {
                    lists
                        .entry(CelMapKey::String(parameter(name)))
                        .or_default()
                        .push(Box::new(parameter(value_of(value))));
                }
                lists.into_iter().map(|(name, values)| (name, Box::new(CelList::from(values)) as _)).collect()
            }
        }
    }
}

fn value_of(value: Option<&[u8]>) -> &[u8] {
    value.unwrap_or_default()
}

/// A part of a query, decoded.
fn parameter(part: &[u8]) -> CelString<'_> {
    match decoded(part) {
        Cow::Borrowed(part) => CelString::from(String::from_utf8_lossy(part)),
        Cow::Owned(part) => CelString::from(String::from_utf8_lossy(&part).into_owned()),
    }
}

fn json<'v>(value: &'v Json) -> Box<dyn Val + 'v> {
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(truth) => Box::new(CelBool::from(*truth)),
        Json::String(text) => Box::new(CelString::from(text.as_str())),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Box::new(CelInt::from(number)),
            (None, Some(number)) => Box::new(CelUInt::from(number)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::Array(items) => Box::new(CelList::from(items.iter().map(json).collect::<Vec<_>>())),
        Json::Object(map) => Box::new(Table::new(Source::Json(map))),
    }
}

impl<'v> Table<'v> {
    fn new(source: Source<'v>) -> Self {
        Table { source, whole: OnceLock::new() }
    }

    fn whole(&self) -> &CelMap<'v> {
        self.whole.get_or_init(|| CelMap::from(self.source.entries()))
    }

    fn entry(&self, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError> {
        let Some(name) = key.downcast_ref::<CelString>() else {
            return Err(ExecutionError::UnexpectedType { got: key.get_type().name().into(), want: "string".into() });
        };
        match self.whole.get() {
            Some(whole) => Indexer::get(whole, key).map(CowVal::into_owned),
            None => self.source.find(name.inner()).ok_or_else(|| ExecutionError::no_such_key(name.inner())),
        }
    }
}

impl<'v> Val for Table<'v> {
    fn get_type(&self) -> &Type {
        <Self as Val>::cel_type()
    }

    fn cel_type() -> &'static Type {
        static MAP: Type = MAP_TYPE;
        &MAP
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        self.whole().equals(other)
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(Table::new(self.source))
    }
}

impl Container for Table<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        match self.entry(value) {
            Ok(_) => Ok(true),
            Err(ExecutionError::NoSuchKey(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Indexer for Table<'_> {
    fn get<'b, 'w>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.entry(key).map(CowVal::Owned)
    }

    fn steal<'w>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.entry(key).map(|value| value as _)
    }
}

impl Iterable for Table<'_> {
    fn iter<'b, 'w>(&'b self) -> Box<dyn Elements<'b, 'w> + 'b>
    where
        Self: 'w,
    {
        self.whole().iter()
    }
}

impl Sizer for Table<'_> {
    fn size(&self) -> CelInt {
        self.whole().size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exchange::tests::{exchange, request};

    fn holds(text: &str) -> Result<bool, Fault> {
        let (exchange, request) = (exchange(), request());
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        Expression::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")).evaluate_bool(&scope)
    }

    #[test]
    fn every_variable_has_its_value() {
        for text in [
            "request.id == '0197-id'",
            "request.method == 'GET' && request.protocol == 'HTTP/1.1' && request.scheme == 'https'",
            "request.host == 'api.example.com' && request.path == '/internal/7'",
            "request.headers['user-agent'] == 'curl/8' && request.headers['x-many'] == 'a, b'",
            "has(request.headers.referer) && !has(request.headers.absent) && 'cookie' in request.headers",
            "size(request.headers) == 4 && request.headers.exists(name, name == 'x-many')",
            "request.query.page == ['2'] && !('x' in request.query) && request.query.all(name, name != 'x')",
            "client.address == '2001:db8::1'",
            "consumer == 'mobile' && consumer.name == 'mobile' && consumer.team == 'apps' && consumer != null",
            "consumer.labels.tier == 'paying' && consumer.labels['tier'].startsWith('pay')",
            "'read' in consumer.scopes && 'read' in scopes && !('write' in scopes)",
            "claims.email == 'a@example.com' && claims['email'].endsWith('@example.com')",
            "credential == 'api_key:00000000000000ff' && credential.kind == 'api_key'",
            "anonymous",
            "path.id == '7' && int(path.id) < 8",
            "service == 'shop' && route == 'list' && listener == 'edge'",
            "time.unix > 1700000000 && time.year >= 2024 && time.month in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
            "time.day >= 1 && time.weekday >= 1 && time.weekday <= 7 && time.hour < 24 && time.minute < 60",
            "request.path.matches('^/internal/[0-9]+$') && matches(request.host, 'example')",
            "request.host.lowerAscii().split('.').size() == 3 && ' a '.trim() == 'a' && 'abc'.substring(1) == 'bc'",
            "'A'.upperAscii() == 'A' && ['a', 'b'].join('-') == 'a-b'",
            "'abc'.indexOf('c') == 2 && 'a'.charAt(0) == 'a'",
            "string(1) == '1' && uint(1) == 1u && double(1) == 1.0 && request.path.contains('internal')",
        ] {
            assert_eq!(holds(text), Ok(true), "{text}");
        }
    }

    #[test]
    fn what_a_request_does_not_have_makes_no_condition_true() {
        let (mut exchange, request) = (exchange(), request());
        exchange.identity = None;
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        let holds = |text: &str| Expression::compile(text).unwrap().evaluate_bool(&scope);
        assert_eq!(holds("consumer == null && consumer.team == null && credential == null && anonymous"), Ok(true));
        assert_eq!(holds("consumer.team == 'apps'"), Ok(false));
        assert_eq!(holds("size(scopes) == 0 && size(claims) == 0 && size(consumer.labels) == 0"), Ok(true));
        assert_eq!(holds("has(claims.sub) && claims.sub == 'x'"), Ok(false));
        assert_eq!(holds("claims.sub != 'x'"), Err(Fault::Missing));
        assert_eq!(holds("request.headers['x-absent'] != 'x'"), Err(Fault::Missing));
        assert_eq!(holds("request.query.page[1] != 'x'"), Err(Fault::Missing));
        assert_eq!(holds("consumer.team.startsWith('a')"), Err(Fault::Mismatch));
        assert_eq!(holds("request.path > 1"), Err(Fault::Mismatch));
        assert_eq!(holds("request.path"), Err(Fault::NoTruth));
        assert_eq!(holds("1 / 0 == 1"), Err(Fault::Other));
    }

    #[test]
    fn a_slip_is_found_when_the_expression_is_read() {
        let deep = format!("{}true{}", "!(".repeat(80), ")".repeat(80));
        let long = "1+".repeat(1000) + "1 == 1";
        for (text, words) in [
            ("", "no expression"),
            ("request.path ==", "no expression"),
            ("request.path == 'a", "no expression"),
            ("requst.path == 'a'", "did you mean `request.path`"),
            ("request.pth == 'a'", "did you mean `request.path`"),
            ("request == 'a'", "there is no variable `request`"),
            ("request.path.length == 1", "there is no variable `request.path.length`"),
            ("consumr == 'a'", "did you mean `consumer`"),
            ("has(consumr.labels.tier)", "no variable"),
            ("request.path.startswith('a')", "did you mean `startsWith`"),
            ("request.path.matches(request.query.p[0])", "written out"),
            ("request.path.matches('(')", "not a pattern"),
            ("request.path.matches('(a{1000}){1000}')", "not a pattern"),
            ("[1].all(a, [1].all(b, true))", "loop within a loop"),
            ("'a'.replace('a', 'b') == 'b'", "no function `replace`"),
            ("matches_compiled(request.path, 0)", "no function"),
            ("Message{a: 1} == 1", "no structures"),
            (&deep, "deep"),
            (&long, "deep"),
            (&" ".repeat(5000), "longer than"),
        ] {
            let said = Expression::compile(text).map(drop).expect_err(text);
            assert!(said.contains(words) || (words == "deep" && said.contains("ecursion")), "{text}: {said}");
        }
    }

    #[test]
    fn loops_give_names_of_their_own() {
        assert_eq!(holds("['a', 'b'].exists(request, request == 'b')"), Ok(true));
        assert_eq!(holds("request.query.exists(name, '2' in request.query[name])"), Ok(true));
        assert_eq!(holds("request.query.filter(name, name == 'page').all(name, name == 'page')"), Ok(true));
        assert_eq!(holds("request.query.map(n, request.query[n].size()).all(size, size == 1)"), Ok(true));
    }

    #[test]
    fn the_longest_query_takes_no_quadratic_time() {
        let query: String = (0..8000).map(|n| format!("{n:x}&")).collect();
        let target = format!("/?{query}");
        let request = pingora::http::RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        let exchange = exchange();
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        let condition = Expression::compile("request.query.all(name, request.query[name] == [''])").unwrap();
        let began = std::time::Instant::now();
        assert_eq!(condition.evaluate_bool(&scope), Ok(true));
        // Quadratic, it was a second and more.
        assert!(began.elapsed() < std::time::Duration::from_millis(500), "{:?}", began.elapsed());
    }

    #[test]
    fn a_key_is_a_text() {
        let (exchange, request) = (exchange(), request());
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        let key = |text: &str| Expression::compile(text).unwrap().evaluate_text(&scope);
        assert_eq!(key("consumer.team + ':' + request.method").as_deref(), Some("apps:GET"));
        assert_eq!(key("1 + 1").as_deref(), Some("2"));
        assert_eq!(key("true").as_deref(), Some("true"));
        assert_eq!(key("request.headers['x-absent']"), None);
        assert_eq!(key("null"), None);
        assert_eq!(key("[1]"), None);
    }

    #[test]
    #[ignore = "a measurement: cargo nextest run --release --run-ignored all a_condition_takes --no-capture"]
    fn a_condition_takes() {
        let (exchange, request) = (exchange(), request());
        let scope = Scope { exchange: &exchange, request: &request, response: None };
        for text in [
            "request.method == 'GET'",
            "consumer.labels.tier == 'paying' && request.method == 'GET'",
            "request.headers['user-agent'] == 'curl/8'",
            "request.path.startsWith('/internal/')",
            "request.path.matches('^/internal/[0-9]+$')",
        ] {
            let expression = Expression::compile(text).unwrap();
            let began = std::time::Instant::now();
            for _ in 0..200_000 {
                assert_eq!(std::hint::black_box(&expression).evaluate_bool(&scope), Ok(true));
            }
            eprintln!("{:>6} ns  {text}", began.elapsed().as_nanos() / 200_000);
        }
    }
}
