//! The configuration as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;

use super::ai::Ai;
use super::budget::Team;
use super::consumer::{Consumer, Identity, Plan, Usage};
use super::dns::Dns;
use super::filter_entry::FilterEntry;
use super::listener::Listener;
use super::redis::Redis;
use super::server::{Admin, Server};
use super::service::Service;
use super::telemetry::{AccessLog, Tracing};
use super::upstream::Upstream;
use super::{ConfigSchema, Loaded, Problems, load, process_environment};

/// The configuration of a gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Threads, stopping and upgrading. Read at the start only.
    #[serde(default)]
    pub server: Server,
    /// The addresses that accept connections, by name.
    #[schemars(length(min = 1), extend("propertyNames" = name_schema()))]
    pub listeners: BTreeMap<String, Listener>,
    /// Health, status, metrics and reload, on an address of their own.
    #[serde(default)]
    pub admin: Admin,
    /// One line per request. Default: none.
    pub access_log: Option<AccessLog>,
    /// OpenTelemetry traces. Default: none.
    pub tracing: Option<Tracing>,
    /// Who is asked for the addresses of targets that are names.
    #[serde(default)]
    pub dns: Dns,
    /// Filters on every route. A filter of the same name on a service or route replaces the one here.
    #[serde(default)]
    pub filters: Vec<FilterEntry>,
    /// The origins, by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub upstreams: BTreeMap<String, Upstream>,
    /// The published APIs, by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub services: BTreeMap<String, Service>,
    /// The applications that call, by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub consumers: BTreeMap<String, Consumer>,
    /// Consumers that are counted together, by the name that they give as their `team`. One that only consumers name has no
    /// budgets.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub teams: BTreeMap<String, Team>,
    /// What subscriptions allow, by name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub plans: BTreeMap<String, Plan>,
    /// How callers are known, and what origins are told of them.
    #[serde(default)]
    pub identity: Identity,
    /// Where what was used of quotas is kept. Read at the start only.
    #[serde(default)]
    pub usage: Usage,
    /// Models that can be called, and their providers.
    pub ai: Option<Ai>,
    /// Makes several gateways a fleet whose limits hold together. Default: this gateway counts by itself.
    pub redis: Option<Redis>,
}

impl Config {
    /// Reads a YAML file, or the YAML files of a directory. Every problem that can be seen without compiling is reported.
    pub fn load(path: &Path, schema: &ConfigSchema) -> Result<Loaded<Config>, Problems> {
        load(path, schema, &process_environment)
    }
}

impl Loaded<Config> {
    /// Drops everything but the settings of the process and its listeners.
    pub fn forget_resources(&mut self) {
        let config = &mut self.config;
        config.filters.clear();
        config.upstreams.clear();
        config.services.clear();
        config.consumers.clear();
        config.plans.clear();
        config.teams.clear();
        config.ai = None;
        self.sources = Default::default();
    }
}

/// Names become labels of metrics, fields of logs and parts of paths in problems.
pub(super) fn name_schema() -> serde_json::Value {
    serde_json::json!({
        "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        "description": "letters, digits, `_`, `-` and `.`, at most 128",
    })
}

#[cfg(test)]
mod tests;
