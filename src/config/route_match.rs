//! Which requests a route answers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// Which requests a route answers: all that satisfy every key that is written. An empty match takes every request.
///
/// ```yaml
/// match:
///   host: api.example.com
///   path: "/orders/{id}"
///   methods: [GET]
///   headers: { x-version: { exact: "2" } }
/// ```
///
/// Of several routes that match a request, the first in this order answers it:
///
/// 1. host: a full name, then `*.` names from long to short, then any host;
/// 2. higher `priority`;
/// 3. path: one that is matched to its end (`path` without `{*rest}`), then `path_regex` (longer text first), then one
///    with an open end (`path_prefix`, `{*rest}`, none). Within the first and last kind, the first segment in which two
///    paths differ decides: text, then text with a parameter in it (more text first), then `{name}`, then `{*rest}`,
///    then the end of a prefix. So a longer prefix stands before a shorter one;
/// 4. `methods` that name HEAD but not GET, then named ones, then any method;
/// 5. more `headers`, then more `query` parameters, then more `cookies`; each with more `exact` ones first;
/// 6. `client` networks from narrow to wide, then any client;
/// 7. the route's name.
///
/// `check` reports a route that can never be reached because of this order, and two of which only the name decides.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteMatch {
    /// Host name without port: `api.example.com`, or `*.example.com` for every name below that one, at any depth.
    /// Default: any host.
    pub host: Option<String>,
    /// Several host names, instead of `host`.
    pub hosts: Vec<String>,
    /// The whole path. `{name}` stands for one segment or for part of one, as in `/orders/{id}` or `/img/{name}.png`;
    /// `{*rest}` at the end for whatever follows, at least one character. A slash at the end counts. What the names
    /// stood for is available to filters.
    pub path: Option<String>,
    /// Whole segments that the path begins with: `/api` takes `/api`, `/api/` and `/api/x`, not `/apix`. May contain
    /// `{name}`.
    pub path_prefix: Option<String>,
    /// A regular expression that the path begins with; end it with `$` to bind its end too. Named groups are available
    /// to filters, as `{name}` is. Syntax of the Rust crate `regex`, which takes linear time.
    pub path_regex: Option<String>,
    /// Methods in upper case. GET implies HEAD. Default: any method.
    pub methods: Vec<String>,
    /// Conditions on request headers by name; all must hold. If a header is sent several times, one of its values
    /// must fulfil the condition.
    pub headers: BTreeMap<String, ValueMatch>,
    /// Conditions on decoded query parameters by name, as for `headers`.
    pub query: BTreeMap<String, ValueMatch>,
    /// Conditions on cookies by name, as for `headers`.
    pub cookies: BTreeMap<String, ValueMatch>,
    /// Addresses and networks (CIDR) that the client must be in one of, by the address found through trusted proxies.
    /// Default: any client.
    pub client: Vec<String>,
    /// Routes of the same host are tried from high to low, whatever their paths. Needed only to break the usual order.
    pub priority: i32,
}

/// A condition on a header, query parameter or cookie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueMatch {
    /// The value is this one, letter by letter.
    Exact(String),
    /// The value begins with this.
    Prefix(String),
    /// The value begins with a match of this regular expression; end it with `$` to bind its end too.
    Regex(String),
    /// It is there, with whatever value.
    Present,
    /// It is not there.
    Absent,
}
