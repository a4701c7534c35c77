//! From an `mcp` backend to what its messages run on: tools with their requests, servers with their upstreams, and rules.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Origin;
use crate::ai::mcp::openapi::{Document, Wanted};
use crate::ai::mcp::operation::{Argument, BODY, Body, Encoding, Operation, Place, may_be_argument};
use crate::ai::mcp::pattern;
use crate::ai::mcp::session::{Bounds, Sessions};
use crate::config::mcp::{self as written, ParameterPlace};
use crate::config::upstream::{self, Timeouts};
use crate::config::{Config, Problems, SecretRef, document, units};
use crate::filters::chain::Attached;
use crate::filters::filter::RequestStep;
use crate::filters::registry::Site;
use crate::filters::stage::Stage;
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;

/// What one route offers.
pub struct McpBackend {
    pub name: Box<str>,
    pub instructions: Option<Box<str>>,
    allowed_origins: Box<[String]>,
    /// By name, in the order of names.
    pub tools: BTreeMap<Box<str>, RouteTool>,
    pub servers: Box<[Arc<McpServer>]>,
    rules: Box<[Rule]>,
    pub max_body: u64,
    pub max_answer: usize,
    pub timeout: Duration,
    pub bounds: Bounds,
    pub state: Arc<State>,
    /// Of what is offered: another one means that callers have to ask anew.
    pub fingerprint: u64,
}

/// What outlives a configuration.
pub struct State {
    pub sessions: Sessions,
    /// For messages that are being read, one permit for each [`UNIT`].
    pub memory: Arc<Semaphore>,
    size: u64,
}

/// Bytes of memory that one permit of [`State::memory`] stands for.
pub const UNIT: u64 = 1024;

/// A tool that is a request to this gateway.
pub struct RouteTool {
    pub operation: Operation,
    /// As it stands in lists.
    pub listed: Value,
}

/// Filters for certain tools.
struct Rule {
    tools: Box<[String]>,
    steps: Box<[(Stage, RequestStep)]>,
}

/// A server whose tools, resources and prompts are offered.
pub struct McpServer {
    pub name: Arc<str>,
    pub prefix: Box<str>,
    pub origin: Arc<Origin>,
    pub authority: String,
    pub path: String,
    /// What it is shown: credentials among them.
    pub headers: Box<[(HeaderName, HeaderValue)]>,
    tools: Box<[String]>,
    pub cache: Duration,
    pub lists: Arc<Lists>,
}

/// What a server lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tools,
    Resources,
    Templates,
    Prompts,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Tools, Kind::Resources, Kind::Templates, Kind::Prompts];

    pub fn method(self) -> &'static str {
        match self {
            Kind::Tools => "tools/list",
            Kind::Resources => "resources/list",
            Kind::Templates => "resources/templates/list",
            Kind::Prompts => "prompts/list",
        }
    }

    /// The member of a result that holds the list.
    pub fn member(self) -> &'static str {
        match self {
            Kind::Tools => "tools",
            Kind::Resources => "resources",
            Kind::Templates => "resourceTemplates",
            Kind::Prompts => "prompts",
        }
    }

    /// The capability that a server with such a list has.
    pub fn capability(self) -> &'static str {
        match self {
            Kind::Tools => "tools",
            Kind::Resources | Kind::Templates => "resources",
            Kind::Prompts => "prompts",
        }
    }
}

/// What a server has listed, for a while.
#[derive(Default)]
pub struct Lists([ArcSwapOption<List>; 4]);

pub struct List {
    pub items: Vec<Value>,
    read: Instant,
}

impl Lists {
    /// What was listed, unless it is older than `most` or not known.
    pub fn get(&self, kind: Kind, most: Duration) -> Option<Arc<List>> {
        self.0[kind as usize].load_full().filter(|list| list.read.elapsed() < most)
    }

    /// What was listed last, however long ago.
    pub fn last(&self, kind: Kind) -> Option<Arc<List>> {
        self.0[kind as usize].load_full()
    }

    pub fn put(&self, kind: Kind, items: Vec<Value>) -> Arc<List> {
        let list = Arc::new(List { items, read: Instant::now() });
        self.0[kind as usize].store(Some(list.clone()));
        list
    }

    /// The server says that something has changed.
    pub fn forget(&self, capability: &str) {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.capability() == capability) {
            self.0[kind as usize].store(None);
        }
    }
}

impl McpServer {
    /// Whether a tool of the server, by the server's name for it, is offered.
    pub fn offers(&self, tool: &str) -> bool {
        self.tools.is_empty() || pattern::any(&self.tools, tool)
    }
}

impl McpBackend {
    /// Whether pages of an origin may call.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.allowed_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }

    /// The filters for a tool.
    pub fn steps<'b>(&'b self, tool: &'b str) -> impl Iterator<Item = &'b (Stage, RequestStep)> {
        let rules = self.rules.iter().filter(|rule| pattern::any(&rule.tools, tool));
        rules.flat_map(|rule| rule.steps.iter())
    }

    pub fn server(&self, name: &str) -> Option<&Arc<McpServer>> {
        self.servers.iter().find(|server| *server.name == *name)
    }
}

/// Where a backend is compiled, beside its [`Site`].
pub struct Ground<'g> {
    pub config: &'g Config,
    /// `service/route`.
    pub route: &'g str,
    pub metrics: &'g Metrics,
    pub previous: Option<&'g super::Snapshot>,
    pub origins: &'g mut BTreeMap<String, Arc<Origin>>,
}

/// Compiles the backend of a route; `rules` are the filters of its rules.
pub fn backend(
    mcp: &written::Mcp,
    rules: Vec<Vec<Attached>>,
    ground: &mut Ground<'_>,
    at: &mut Site<'_>,
) -> Option<McpBackend> {
    let before = at.problems.0.len();
    let path = at.path.to_owned();
    if mcp.tools.is_empty() && mcp.openapi.is_empty() && mcp.servers.is_empty() {
        at.problems.add(&path, "nothing is offered: write `tools`, `openapi` or `servers`");
    }
    let mut tools = BTreeMap::new();
    for (name, tool) in &mcp.tools {
        let place = format!("{path}.tools.{name}");
        if let Some(tool) = route_tool(ground.config, name, tool, &place, at.problems) {
            tools.insert(name.as_str().into(), tool);
        }
    }
    for (i, document) in mcp.openapi.iter().enumerate() {
        operations(document, &format!("{path}.openapi[{i}]"), &mut tools, at);
    }
    let servers: Box<[Arc<McpServer>]> = mcp
        .servers
        .iter()
        .filter_map(|(name, server)| self::server(name, server, &format!("{path}.servers.{name}"), ground, at))
        .map(Arc::new)
        .collect();
    let prefixes = |server: &McpServer| servers.iter().filter(|other| other.prefix == server.prefix).count();
    if let Some(server) = servers.iter().find(|server| prefixes(server) > 1) {
        let message = format!(
            "another server has the prefix `{}` too, so that their tools could not be told apart",
            server.prefix
        );
        at.problems.add(format!("{path}.servers.{}.prefix", server.name), message);
    }
    for (i, origin) in mcp.allowed_origins.iter().enumerate() {
        let is_origin = origin == "*"
            || origin.parse::<Uri>().is_ok_and(|uri| uri.scheme().is_some() && uri.authority().is_some())
                && !origin.ends_with('/');
        if !is_origin {
            at.problems
                .add(format!("{path}.allowed_origins[{i}]"), "an origin is written as `https://app.example.com`");
        }
    }
    let rules = mcp.rules.iter().zip(rules).enumerate().map(|(i, (rule, filters))| {
        for filter in filters.iter().filter(|filter| !matches!(filter.stage, Stage::Authorise | Stage::Limit)) {
            let message = format!("`{}` belongs to the route: rules hold filters that authorise or limit", filter.name);
            at.problems.add(format!("{path}.rules[{i}].filters"), message);
        }
        let steps = filters.iter().filter_map(|filter| Some((filter.stage, filter.request()?.clone()))).collect();
        Rule { tools: rule.tools.clone().into(), steps }
    });
    let rules: Box<[Rule]> = rules.collect();
    if at.problems.0.len() > before {
        return None;
    }
    let size = mcp.memory.get();
    let state = || State {
        sessions: Sessions::default(),
        memory: Arc::new(Semaphore::new((size / UNIT).min(Semaphore::MAX_PERMITS as u64) as usize)),
        size,
    };
    let mut kept = at.lasting.kept(&path, state);
    if kept.size != size {
        kept = at.lasting.kept(&format!("{path} {size}"), state);
    }
    let sessions = &mcp.sessions;
    let mut fingerprint = DefaultHasher::new();
    for tool in tools.values() {
        tool.listed.to_string().hash(&mut fingerprint);
    }
    for server in &servers {
        (&server.name, &server.prefix, &server.authority, &server.path, &server.tools).hash(&mut fingerprint);
    }
    Some(McpBackend {
        name: mcp.name.as_str().into(),
        instructions: mcp.instructions.as_deref().map(Into::into),
        allowed_origins: mcp.allowed_origins.clone().into(),
        tools,
        servers,
        rules,
        max_body: mcp.max_body.get(),
        max_answer: mcp.max_answer.get() as usize,
        timeout: mcp.timeout.get(),
        bounds: Bounds {
            max: sessions.max as usize,
            per_caller: sessions.per_caller as usize,
            idle: sessions.idle.get(),
            lifetime: sessions.lifetime.get(),
        },
        state: kept,
        fingerprint: fingerprint.finish(),
    })
}

fn route_tool(
    config: &Config,
    name: &str,
    tool: &written::Tool,
    path: &str,
    problems: &mut Problems,
) -> Option<RouteTool> {
    let found = tool.route.split_once('/').and_then(|(service, route)| {
        let service = config.services.get(service)?;
        Some((service, service.routes.get(route)?))
    });
    let Some((service, route)) = found else {
        let names: Vec<String> = config
            .services
            .iter()
            .flat_map(|(service, written)| written.routes.keys().map(move |route| format!("{service}/{route}")))
            .collect();
        problems.unknown(format!("{path}.route"), "route", &tool.route, names.iter().map(String::as_str));
        return None;
    };
    if matches!(route.backend, crate::config::Backend::Mcp(_)) {
        problems.add(format!("{path}.route"), "this route offers tools itself; name the one that does the work");
        return None;
    }
    let rule = &route.matches;
    let written = match (&tool.method, rule.methods.as_slice()) {
        (Some(method), _) => method.as_str(),
        (None, [only]) => only,
        (None, _) if tool.body.is_some() => "POST",
        (None, _) => "GET",
    };
    let method = match Method::from_bytes(written.as_bytes()) {
        Ok(method) if method != Method::CONNECT => method,
        _ => {
            problems.add(format!("{path}.method"), "this is no method of HTTP");
            return None;
        }
    };
    let Some(target) = tool.path.as_deref().or(rule.path.as_deref()) else {
        problems.add(path, "the route has no `path`, so that it has to be said here which one is called: `path: /…`");
        return None;
    };
    let hosts = rule.host.iter().chain(&rule.hosts);
    let hosts: Vec<&String> =
        if rule.host.is_none() && rule.hosts.is_empty() { service.hosts.iter().collect() } else { hosts.collect() };
    let host = tool.host.clone().or_else(|| hosts.iter().find(|host| !host.contains('*')).map(|host| (*host).clone()));
    if host.is_none() && !hosts.is_empty() {
        problems
            .add(path, "the route's hosts are patterns, so that it has to be said here which one is called: `host: …`");
        return None;
    }
    let arguments = arguments(tool, target, path, problems)?;
    let body = tool.body.as_ref().map(|_| Body { encoding: Encoding::Json, required: true });
    let operation = match Operation::new(method.clone(), host, target, arguments, body) {
        Ok(operation) => operation,
        Err(message) => {
            problems.add(path, message);
            return None;
        }
    };
    let input = operation.input_schema(|argument| {
        if argument == BODY
            && let Some(body) = &tool.body
        {
            return body.clone();
        }
        let parameter = tool.parameters.get(argument);
        let mut schema = parameter.and_then(|p| p.schema.clone()).unwrap_or_else(|| json!({ "type": "string" }));
        if let (Some(description), Some(schema)) =
            (parameter.and_then(|p| p.description.as_deref()), schema.as_object_mut())
        {
            schema.insert("description".to_owned(), description.into());
        }
        schema
    });
    let listed = Listed {
        name,
        title: tool.title.as_deref(),
        description: tool.description.as_deref(),
        method: &method,
        input,
        output: tool.output.clone(),
        annotations: &tool.annotations,
    };
    Some(RouteTool { listed: listed.json(), operation })
}

/// Where the arguments of a tool go in its request.
fn arguments(tool: &written::Tool, target: &str, path: &str, problems: &mut Problems) -> Option<Vec<Argument>> {
    let mut arguments = Vec::new();
    for (argument, parameter) in &tool.parameters {
        let wire = parameter.name.as_deref().unwrap_or(argument);
        let place = match parameter.place {
            ParameterPlace::Path => Place::Path,
            ParameterPlace::Query => Place::Query(wire.to_owned()),
            ParameterPlace::Header => match HeaderName::from_bytes(wire.as_bytes()) {
                Ok(header) if may_be_argument(&header) => Place::Header(header),
                _ => {
                    problems.add(format!("{path}.parameters.{argument}"), "this header is not for a model to set");
                    return None;
                }
            },
        };
        arguments.push(Argument { name: argument.clone(), place, required: parameter.required });
    }
    // What is called a parameter of the query by default may be one of the path.
    for argument in &mut arguments {
        if matches!(argument.place, Place::Query(_)) && target.contains(&format!("{{{}}}", argument.name)) {
            argument.place = Place::Path;
        }
    }
    Some(arguments)
}

/// What lists say of a tool.
struct Listed<'l> {
    name: &'l str,
    title: Option<&'l str>,
    description: Option<&'l str>,
    method: &'l Method,
    input: Value,
    output: Option<Value>,
    annotations: &'l written::Annotations,
}

impl Listed<'_> {
    fn json(self) -> Value {
        let mut tool = json!({ "name": self.name });
        for (key, text) in [("title", self.title), ("description", self.description)] {
            if let Some(text) = text {
                tool[key] = text.into();
            }
        }
        tool["inputSchema"] = self.input;
        if let Some(output) = self.output {
            tool["outputSchema"] = output;
        }
        let reads = self.method.is_safe();
        let said = self.annotations;
        let mut annotations = json!({ "readOnlyHint": said.read_only.unwrap_or(reads) });
        if !said.read_only.unwrap_or(reads) {
            annotations["destructiveHint"] = said.destructive.unwrap_or(*self.method == Method::DELETE).into();
        }
        annotations["idempotentHint"] = said.idempotent.unwrap_or(self.method.is_idempotent()).into();
        if let Some(open_world) = said.open_world {
            annotations["openWorldHint"] = open_world.into();
        }
        tool["annotations"] = annotations;
        tool
    }
}

/// Adds the operations of a document to the tools.
fn operations(written: &written::OpenApi, path: &str, tools: &mut BTreeMap<Box<str>, RouteTool>, at: &mut Site<'_>) {
    let place = format!("{path}.file");
    let file = at.around.folder.join(&written.file);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => return at.problems.add(place, format!("cannot read {}: {error}", file.display())),
    };
    // JSON is nearly YAML, and quicker to read.
    let root = match serde_json::from_str(&text) {
        Ok(root) => root,
        Err(_) => {
            let mut found = Problems::default();
            match document::read_str(&written.file, &text, &|_| None, &mut found).filter(|_| found.is_empty()) {
                Some(document) => document.value,
                None => return at.problems.add(place, format!("this is neither YAML nor JSON: {found}")),
            }
        }
    };
    let document = match Document::new(root) {
        Ok(document) => document,
        Err(message) => return at.problems.add(place, message),
    };
    let base = written.base_path.clone().unwrap_or_else(|| document.base_path());
    let wanted = Wanted { operations: &written.operations, tags: &written.tags };
    let (described, problems) = document.operations(&wanted, base.trim_end_matches('/'), written.host.as_deref());
    for (operation, message) in problems {
        // Of what was asked for by name it is a problem; of a whole document, what can be a tool becomes one.
        match written.operations.contains(&operation) || written.tags.contains(&operation) {
            true => at.problems.add(format!("{path}.operations"), format!("{operation}: {message}")),
            false => log::warn!("{}: {operation} becomes no tool: {message}", written.file),
        }
    }
    for tool in described {
        let name = format!("{}{}", written.prefix, tool.name);
        let listed = Listed {
            name: &name,
            title: tool.title.as_deref(),
            description: tool.description.as_deref(),
            method: &tool.operation.method.clone(),
            input: tool.input,
            output: tool.output,
            annotations: &written::Annotations::default(),
        };
        let tool = RouteTool { listed: listed.json(), operation: tool.operation };
        if tools.insert(name.as_str().into(), tool).is_some() {
            at.problems.add(path, format!("there is a tool `{name}` already; write a `prefix`"));
        }
    }
}

fn server(
    name: &str,
    written: &written::Server,
    path: &str,
    ground: &mut Ground<'_>,
    at: &mut Site<'_>,
) -> Option<McpServer> {
    let (authority, https, target) = match take_apart(&written.url) {
        Ok(parts) => parts,
        Err(message) => {
            at.problems.add(format!("{path}.url"), message);
            return None;
        }
    };
    let mut headers = Vec::new();
    let bearer = written.bearer.as_ref().map(|secret| ("authorization", "Bearer ", secret, format!("{path}.bearer")));
    let others =
        written.headers.iter().map(|(name, secret)| (name.as_str(), "", secret, format!("{path}.headers.{name}")));
    for (name, before, secret, place) in bearer.into_iter().chain(others) {
        headers.extend(secret_header(name, before, secret, &place, at));
    }
    let address = authority_with_port(&authority, https);
    let upstream = upstream_of(address, https, written);
    // No name of the configuration has a colon.
    let key = format!("mcp:{}:{name}", ground.route);
    let before = ground.previous.and_then(|previous| previous.origins.get(&key)).map(|origin| &origin.upstream);
    let upstream = Upstream::compile(&key, &upstream, before, at.around, path, at.problems)?;
    let metrics = ground.metrics.upstream(upstream.name());
    let origin = Arc::new(Origin { upstream, metrics });
    ground.origins.insert(key, origin.clone());
    let lists = at.lasting.kept(&format!("{path} {}", written.url), Lists::default);
    Some(McpServer {
        name: name.into(),
        prefix: written.prefix.clone().unwrap_or_else(|| format!("{name}_")).into(),
        origin,
        authority,
        path: target,
        headers: headers.into(),
        tools: written.tools.clone().into(),
        cache: written.cache.get(),
        lists,
    })
}

/// Authority, whether by TLS, and path with query.
fn take_apart(url: &str) -> Result<(String, bool, String), &'static str> {
    let uri: Uri = url.parse().map_err(|_| "this is not a URL")?;
    let https = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) if *scheme == Scheme::HTTP => false,
        _ => return Err("a URL begins with `https://` or `http://`"),
    };
    let authority = uri.authority().ok_or("the URL names no host")?;
    if authority.as_str().contains('@') {
        return Err("credentials do not belong into a URL; write them as `bearer` or `headers`");
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok((authority.as_str().to_owned(), https, target.to_owned()))
}

fn authority_with_port(authority: &str, https: bool) -> String {
    match authority.parse::<Authority>().ok().and_then(|authority| authority.port_u16()) {
        Some(_) => authority.to_owned(),
        None => format!("{authority}:{}", if https { 443 } else { 80 }),
    }
}

fn secret_header(
    name: &str,
    before: &str,
    secret: &SecretRef,
    place: &str,
    at: &mut Site<'_>,
) -> Option<(HeaderName, HeaderValue)> {
    let secret = secret.resolve(at.around.folder, at.around.environment, place, at.problems)?;
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        at.problems.add(place, "this is not a name for a header");
        return None;
    };
    let Ok(mut value) = HeaderValue::from_str(&format!("{before}{}", secret.expose())) else {
        at.problems.add(place, "the secret has characters that no header may hold");
        return None;
    };
    value.set_sensitive(true);
    Some((name, value))
}

const FIRST_BYTE: units::Duration = units::Duration::from_secs(30);
const IDLE: units::Duration = units::Duration::from_secs(300);

fn upstream_of(address: String, https: bool, written: &written::Server) -> upstream::Upstream {
    let usual = Timeouts { first_byte: FIRST_BYTE, idle: IDLE, ..Timeouts::default() };
    let timeouts = written.timeouts.clone().unwrap_or(usual);
    let tls = https.then(|| written.tls.clone().unwrap_or_default());
    upstream::Upstream::of_address(address, timeouts, tls)
}
