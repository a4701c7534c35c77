//! Lets requests pass, or not, by the client's address.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::Problems;
use crate::error::Reason;
use crate::filters::filter::{Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;

/// Admits or refuses by client address. A refused request is answered 403.
///
/// The address is the one found by walking through the listener's `trusted_proxies`, so a spoofed `X-Forwarded-For`
/// changes nothing. `deny` wins over `allow`; with an `allow` list, whatever is on neither is refused.
///
/// ```yaml
/// ip_restriction:
///   allow: [10.0.0.0/8, "2001:db8::/32"]
///   deny: [10.6.6.6]
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses and networks (CIDR) that may pass. Empty: all that are not denied.
    pub allow: Vec<String>,
    /// Addresses and networks (CIDR) that may not pass.
    pub deny: Vec<String>,
}

pub struct IpRestriction {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl FilterKind for IpRestriction {
    const NAME: &'static str = "ip_restriction";
    const STAGE: Stage = Stage::Guard;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        if config.allow.is_empty() && config.deny.is_empty() {
            problems.add(path, "neither `allow` nor `deny` names an address, so this filter would do nothing");
        }
        let filter = IpRestriction {
            allow: networks(&config.allow, &format!("{path}.allow"), problems),
            deny: networks(&config.deny, &format!("{path}.deny"), problems),
        };
        (problems.0.len() == before).then(|| Compiled::on_request(filter))
    }
}

impl OnRequest for IpRestriction {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let client = request.exchange.client;
        let listed = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        if listed(&self.deny) || !(self.allow.is_empty() || listed(&self.allow)) {
            return Flow::Refuse(Reason::Forbidden.into());
        }
        Flow::Continue
    }
}

/// Parses addresses and networks; a bare address is a network of one.
fn networks(written: &[String], path: &str, problems: &mut Problems) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(written.len());
    for (i, text) in written.iter().enumerate() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
            Ok(net) => nets.push(net.trunc()),
            Err(_) => problems
                .add(format!("{path}[{i}]"), format!("`{text}` is not an IP address or a network such as 10.0.0.0/8")),
        }
    }
    nets
}
