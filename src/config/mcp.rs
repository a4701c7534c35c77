//! Tools for agents, as they are written: routes and operations that are published, servers that are federated, and who
//! may call what.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::filter_entry::FilterEntry;
use super::reference::SecretRef;
use super::units::{Duration, Size};
use super::upstream::{Timeouts, Tls};

/// Publishes tools by the Model Context Protocol over streamable HTTP: routes of this gateway, operations of OpenAPI
/// documents, and the tools, resources and prompts of other MCP servers. Revisions 2025-03-26, 2025-06-18 and 2025-11-25
/// are spoken.
///
/// A call of a published route is a request like any other: it takes its way through that route's own filters, with the
/// credentials of whoever called the tool, and has a line of its own in the access log. Credentials that are bound to one
/// request, such as signatures of `hmac`, do not carry over.
///
/// ```yaml
/// mcp:
///   tools:
///     get_order: { route: shop/order, description: One order by its number }
///   servers:
///     github: { url: "https://mcp.example.com/mcp", bearer: env:GITHUB_TOKEN }
///   rules:
///     - tools: ["github_delete_*"]
///       filters: [{ acl: { allow: { teams: [platform] } } }]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mcp {
    /// Routes that can be called as tools, by the name of the tool.
    #[schemars(extend("propertyNames" = tool_name_schema()))]
    pub tools: BTreeMap<String, Tool>,
    /// Documents whose operations can be called as tools.
    pub openapi: Vec<OpenApi>,
    /// MCP servers whose tools, resources and prompts are offered too, by name. Each caller's session has one of its own
    /// with every server, opened when it is first needed.
    #[schemars(extend("propertyNames" = super::root::name_schema()))]
    pub servers: BTreeMap<String, Server>,
    /// Filters for certain tools. All rules that name a tool hold for it, in the order they are written.
    pub rules: Vec<Rule>,
    /// What the server calls itself.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// What models are told about the tools as a whole.
    pub instructions: Option<String>,
    /// Pages in browsers that may call, by their origin, such as `https://app.example.com`. Others are refused (403), so
    /// that no page can reach the tools through its visitor. Pages of the gateway's own machine may call from there.
    pub allowed_origins: Vec<String>,
    /// Longer messages of callers are refused (413).
    pub max_body: Size,
    /// What the messages of all callers may take together while they are read; beyond it they are refused (503).
    pub memory: Size,
    /// The longest answer of a tool, and the longest message of a server. A longer one becomes an error of that call.
    pub max_answer: Size,
    /// How long a call of a published route may take.
    pub timeout: Duration,
    /// How many sessions there are, and for how long.
    pub sessions: Sessions,
}

impl Default for Mcp {
    fn default() -> Self {
        Mcp {
            tools: BTreeMap::new(),
            openapi: Vec::new(),
            servers: BTreeMap::new(),
            rules: Vec::new(),
            name: "headgate".to_owned(),
            instructions: None,
            allowed_origins: Vec::new(),
            max_body: Size::mib(4),
            memory: Size::mib(128),
            max_answer: Size::mib(4),
            timeout: Duration::from_secs(60),
            sessions: Sessions::default(),
        }
    }
}

/// A route that can be called as a tool.
///
/// ```yaml
/// create_order:
///   route: shop/create
///   description: Places an order
///   parameters: { dry_run: { in: query, schema: { type: boolean } } }
///   body: { type: object, properties: { item: { type: string } }, required: [item] }
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `service/route`.
    pub route: String,
    /// What models are told of the tool: the better it says what the tool does, the better they choose.
    pub description: Option<String>,
    /// A name for people.
    pub title: Option<String>,
    /// Default: the route's only method; of a route with several or any, `POST` if there is a body, and else `GET`.
    pub method: Option<String>,
    /// The path that is called, with `{name}` for parameters. Default: the `path` of the route's match.
    pub path: Option<String>,
    /// The host that is called. Default: the first host of the route that is no pattern.
    pub host: Option<String>,
    /// What a call may or must say. Parameters of the path need not be written; they are texts, and required.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
    /// A JSON Schema for the body, which is sent as JSON. The argument `body` holds it. Default: none is sent.
    pub body: Option<Value>,
    /// A JSON Schema that answers keep to, which models are told.
    pub output: Option<Value>,
    /// What models are told about the effects of a call. Default: `GET` and `HEAD` only read, `DELETE` destroys, `PUT` and
    /// `DELETE` may be repeated.
    #[serde(default)]
    pub annotations: Annotations,
}

/// One argument of a tool.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Where the request carries it.
    #[serde(rename = "in", default)]
    pub place: ParameterPlace,
    /// The name there. Default: that of the argument.
    pub name: Option<String>,
    /// A JSON Schema. Default: a text.
    pub schema: Option<Value>,
    /// What models are told of it.
    pub description: Option<String>,
    /// Whether a call must say it. Parameters of the path always are.
    #[serde(default)]
    pub required: bool,
}

/// Where a request carries a parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParameterPlace {
    Path,
    #[default]
    Query,
    Header,
}

/// What a call does, as far as whoever offers the tool says so.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Annotations {
    /// It changes nothing.
    pub read_only: Option<bool>,
    /// It may undo or delete something.
    pub destructive: Option<bool>,
    /// A second call with the same arguments changes nothing more.
    pub idempotent: Option<bool>,
    /// It reaches out to a world that is not closed, as a search of the web does.
    pub open_world: Option<bool>,
}

/// An OpenAPI document (3.0 or 3.1, YAML or JSON) whose operations can be called as tools. They are called through this
/// gateway, so that a route has to take them.
///
/// ```yaml
/// openapi: [{ file: petstore.yaml, base_path: /v1, tags: [pets] }]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenApi {
    /// The document, relative to the configuration's folder.
    pub file: String,
    /// What stands before the document's paths at this gateway. Default: the path of the document's first server.
    pub base_path: Option<String>,
    /// The host that is called. Default: none, for routes that take any.
    pub host: Option<String>,
    /// The operations that are published, by `operationId`. Default, with no `tags` either: all.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Publishes the operations with one of these tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What stands before their names.
    #[serde(default)]
    pub prefix: String,
}

/// An MCP server (streamable HTTP) whose tools, resources and prompts are offered.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Where it is: `https://mcp.example.com/mcp`.
    pub url: String,
    /// What stands before the names of its tools and prompts. Default: its name and `_`. Empty: nothing.
    pub prefix: Option<String>,
    /// A token for `Authorization: Bearer`. What callers present is never passed on.
    pub bearer: Option<SecretRef>,
    /// Other headers that it wants, such as `x-api-key`, and where their values are kept.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
    /// The tools that are offered, by its own names; `*` stands for any text. Default: all.
    #[serde(default)]
    pub tools: Vec<String>,
    /// How long its lists of tools, resources and prompts are kept, unless it says before that they have changed.
    /// Callers share them.
    #[serde(default = "five_minutes")]
    pub cache: Duration,
    /// Time limits on the server. Default: 30 seconds for `first_byte`, and 5 minutes for `idle`, between two messages.
    pub timeouts: Option<Timeouts>,
    /// How its certificate is checked. Default: against the system's authorities.
    pub tls: Option<Tls>,
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// Filters for certain tools. They run when the tool is called, after those of the route; of lists, `acl` leaves out the
/// tools that a caller may not call.
///
/// ```yaml
/// rules:
///   - tools: ["*"]
///     filters: [{ rate_limit: { rate: 60/min, by: consumer } }]
///   - tools: [refund, "admin_*"]
///     filters: [{ acl: { allow: { scopes: ["orders:refund"] } } }]
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names of tools as callers see them; `*` stands for any text.
    #[schemars(length(min = 1))]
    pub tools: Vec<String>,
    /// Filters that authorise or limit, such as `acl`, `rate_limit` and `quota`.
    #[schemars(length(min = 1))]
    pub filters: Vec<FilterEntry>,
}

/// How many sessions there are, and for how long. They are kept by each gateway for itself: in front of several, balance
/// by the header `Mcp-Session-Id`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// One more is refused (503).
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: u32,
    /// Of one caller. One more ends the one that this caller has not used for longest.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub per_caller: u32,
    /// A session that is not used for so long ends.
    pub idle: Duration,
    /// However much it is used, a session ends after this.
    pub lifetime: Duration,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            max: 10_000,
            per_caller: 100,
            idle: Duration::from_secs(30 * 60),
            lifetime: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What the protocol recommends, and what models take.
fn tool_name_schema() -> Value {
    serde_json::json!({
        "pattern": "^[A-Za-z0-9_.-]{1,128}$",
        "description": "letters, digits, `_`, `-` and `.`, at most 128",
    })
}
