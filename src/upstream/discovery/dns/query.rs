//! One resolution of one name: hosts file, search list, address and service records.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::join;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig as Servers, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name as DnsName, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};

use super::{Name, Resolved, ResolverConfig};

/// Hosts of one SRV answer that are asked for at a time.
const PARALLEL_HOSTS: usize = 8;
/// How long an entry of the hosts file is believed before the file is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(10);
/// How long a denial without a time to live is believed (RFC 2308 leaves it open).
const DENIAL_TTL: Duration = Duration::from_secs(5);

/// What a resolution came to.
pub(super) enum Outcome {
    /// `targets` are sorted by address. `gap` says which part could not be asked for and was filled from memory.
    Found { targets: Vec<Resolved>, ttl: Duration, gap: Option<String> },
    /// The DNS says that there is no such name, or that it has no address.
    Denied { why: String, ttl: Duration },
    /// The DNS says nothing that could be believed.
    Failed { why: String },
}

/// The last good answer for each question, for when one question of several fails.
#[derive(Default)]
pub(super) struct Memory(HashMap<Question, Vec<IpAddr>>);

type Question = (DnsName, RecordType);

/// The answer to the questions about one host.
struct Host {
    addresses: Vec<IpAddr>,
    ttl: Duration,
    gap: Option<String>,
    learned: Vec<(Question, Vec<IpAddr>)>,
}

/// The answer to one question, or why there is none.
enum Miss {
    Denied { why: String, ttl: Duration },
    Failed { why: String },
}

/// What says where to ask, read again when it changes.
#[derive(Default)]
pub(super) struct Sources {
    read: Option<([Stamp; 2], Arc<ResolverConfig>)>,
    snapshot: Arc<Snapshot>,
}

type Stamp = Option<(SystemTime, u64)>;

/// Everything a resolution uses.
pub(super) struct Snapshot {
    client: Result<TokioResolver, String>,
    hosts: Hosts,
    search: Vec<DnsName>,
    ndots: usize,
    /// Bounds one question, so that a server that drops AAAA questions does not use up the time of the whole
    /// resolution, and with it the answer for A.
    question_timeout: Duration,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot {
            client: Err("no DNS servers".into()),
            hosts: Hosts::default(),
            search: Vec::new(),
            ndots: 1,
            question_timeout: Duration::ZERO,
        }
    }
}

impl Sources {
    /// The sources as configuration and files are now. Blocks on reading them.
    pub(super) fn current(&mut self, config: &Arc<ResolverConfig>) -> Arc<Snapshot> {
        let stamps = [stamp(&config.hosts), stamp(&config.resolv_conf)];
        let same = |(read, by): &([Stamp; 2], Arc<ResolverConfig>)| *read == stamps && Arc::ptr_eq(by, config);
        if !self.read.as_ref().is_some_and(same) {
            self.read = Some((stamps, config.clone()));
            self.snapshot = Arc::new(Snapshot::read(config));
        }
        self.snapshot.clone()
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Snapshot {
    fn read(config: &ResolverConfig) -> Self {
        let mut hosts = Hosts::default();
        // Without a hosts file there are no entries, which is not an error.
        if let Ok(file) = fs::File::open(&config.hosts)
            && let Err(e) = hosts.read_hosts_conf(file)
        {
            log::warn!("cannot read {}: {e}", config.hosts.display());
        }
        let (servers, mut options) = match servers(config) {
            Ok(found) => found,
            Err(why) => return Snapshot { client: Err(why), hosts, ..Snapshot::default() },
        };
        // This module keeps the answers, and looks at the hosts file, the search list and the time to live itself.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        // Half of it, so that a lost packet is asked for again.
        let question_timeout = config.timeout / 3;
        options.timeout = options.timeout.min(question_timeout / 2);
        let (search, ndots) = (servers.search().to_vec(), options.ndots);
        let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Snapshot { client: builder.build().map_err(|e| e.to_string()), hosts, search, ndots, question_timeout }
    }

    pub(super) async fn resolve(&self, name: &Name, memory: &mut Memory) -> Outcome {
        match name {
            Name::Host { name, port } => self.resolve_host(name, *port, memory).await,
            Name::Srv { name } => self.resolve_service(name, memory).await,
        }
    }

    async fn resolve_host(&self, name: &str, port: u16, memory: &mut Memory) -> Outcome {
        if let Ok(ip) = name.parse::<IpAddr>() {
            let target = Resolved { address: SocketAddr::new(ip, port), weight: 1, tier: 0 };
            return Outcome::Found { targets: vec![target], ttl: Duration::MAX, gap: None };
        }
        let Ok(name) = DnsName::from_str_relaxed(name) else {
            return Outcome::Failed { why: "not a valid name".into() };
        };
        match self.host(&name, memory).await {
            Ok(host) => {
                memory.0 = host.learned.into_iter().collect();
                let target = |ip| Resolved { address: SocketAddr::new(ip, port), weight: 1, tier: 0 };
                let targets = host.addresses.into_iter().map(target).collect();
                Outcome::Found { targets: sorted(targets), ttl: host.ttl, gap: host.gap }
            }
            Err(miss) => miss.into(),
        }
    }

    async fn resolve_service(&self, name: &str, memory: &mut Memory) -> Outcome {
        let Ok(name) = DnsName::from_str_relaxed(name) else {
            return Outcome::Failed { why: "not a valid name".into() };
        };
        let (records, mut ttl) = match self.service(&name).await {
            Ok(found) => found,
            Err(miss) => return miss.into(),
        };
        // The priorities themselves may be anything up to 65535; only their order matters.
        let priorities: BTreeSet<u16> = records.iter().map(|r| r.priority).collect();
        let tier = |record: &SRV| {
            let rank = priorities.iter().take_while(|p| **p < record.priority).count();
            rank.min(usize::from(u8::MAX)) as u8
        };

        let known = &*memory;
        let mut hosts: BTreeSet<DnsName> = records.iter().map(|r| r.target.clone()).collect();
        let asked = std::mem::take(&mut hosts).into_iter().map(|host| async move {
            let found = self.host(&host, known).await;
            (host, found)
        });
        let answers: HashMap<DnsName, Result<Host, Miss>> =
            futures_util::stream::iter(asked).buffer_unordered(PARALLEL_HOSTS).collect().await;

        let (mut gap, mut denial) = (None, None);
        let mut learned = HashMap::new();
        for (host, answer) in &answers {
            match answer {
                Ok(found) => {
                    ttl = ttl.min(found.ttl);
                    gap = gap.or_else(|| found.gap.clone());
                    learned.extend(found.learned.iter().cloned());
                }
                Err(Miss::Failed { why }) => gap = Some(format!("{host}: {why}")),
                Err(Miss::Denied { why, ttl }) => denial = Some((format!("{host}: {why}"), *ttl)),
            }
        }
        let mut targets = Vec::new();
        for record in &records {
            if let Some(Ok(host)) = answers.get(&record.target) {
                targets.extend(host.addresses.iter().map(|ip| Resolved {
                    address: SocketAddr::new(*ip, record.port),
                    weight: u32::from(record.weight).max(1),
                    tier: tier(record),
                }));
            }
        }
        match (targets.is_empty(), gap, denial) {
            (false, gap, _) => {
                memory.0 = learned;
                Outcome::Found { targets: sorted(targets), ttl, gap }
            }
            (true, Some(why), _) => Outcome::Failed { why },
            (true, None, denial) => {
                let (why, ttl) = denial.unwrap_or(("the service is not offered".into(), ttl));
                Outcome::Denied { why, ttl }
            }
        }
    }

    /// The service records of the first candidate that has any.
    async fn service(&self, name: &DnsName) -> Result<(Vec<SRV>, Duration), Miss> {
        let mut last = None;
        for candidate in self.candidates(name) {
            let found = self.ask(&candidate, RecordType::SRV, |data| match data {
                RData::SRV(record) if !record.target.is_root() => Some(record.clone()),
                _ => None,
            });
            match found.await {
                Err(miss @ Miss::Denied { .. }) => last = Some(miss),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(Miss::nothing))
    }

    /// The addresses of a host: from the hosts file, else of the first candidate that has any.
    async fn host(&self, name: &DnsName, memory: &Memory) -> Result<Host, Miss> {
        if let Some(addresses) = self.in_hosts_file(name) {
            return Ok(Host { addresses, ttl: HOSTS_TTL, gap: None, learned: Vec::new() });
        }
        let mut last = None;
        for candidate in self.candidates(name) {
            // A failure ends the search: the next candidate may be a different host.
            match self.addresses(&candidate, memory).await {
                Err(miss @ Miss::Denied { .. }) => last = Some(miss),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(Miss::nothing))
    }

    /// Asks for both families at once. When one of them fails, its last good answer stands in.
    async fn addresses(&self, name: &DnsName, memory: &Memory) -> Result<Host, Miss> {
        let ask = |family| self.ask(name, family, |data| data.ip_addr().filter(usable));
        let (v4, v6) = join(ask(RecordType::A), ask(RecordType::AAAA)).await;
        let mut host = Host { addresses: Vec::new(), ttl: Duration::MAX, gap: None, learned: Vec::new() };
        let (mut denial, mut failure) = (None, None);
        for (family, answer) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let question = (name.clone(), family);
            let addresses = match answer {
                Ok((addresses, ttl)) => {
                    host.ttl = host.ttl.min(ttl);
                    addresses
                }
                Err(Miss::Denied { why, ttl }) => {
                    denial.get_or_insert((why, ttl));
                    continue;
                }
                Err(Miss::Failed { why }) => {
                    let last = memory.0.get(&question);
                    // Servers that cannot answer AAAA are so frequent that this alone is not worth a word.
                    if last.is_some() || family == RecordType::A {
                        host.gap.get_or_insert_with(|| why.clone());
                    }
                    failure.get_or_insert(why);
                    match last {
                        Some(last) => last.clone(),
                        None => continue,
                    }
                }
            };
            host.addresses.extend(&addresses);
            host.learned.push((question, addresses));
        }
        match (host.addresses.is_empty(), failure, denial) {
            (false, ..) => Ok(host),
            (true, Some(why), _) => Err(Miss::Failed { why }),
            (true, None, Some((why, ttl))) => Err(Miss::Denied { why, ttl }),
            (true, None, None) => Err(Miss::nothing()),
        }
    }

    /// Asks one question about a full name, and keeps the answers that `pick` takes.
    async fn ask<T>(
        &self,
        name: &DnsName,
        kind: RecordType,
        pick: impl Fn(&RData) -> Option<T>,
    ) -> Result<(Vec<T>, Duration), Miss> {
        let client = self.client.as_ref().map_err(|why| Miss::Failed { why: why.clone() })?;
        let lookup = tokio::time::timeout(self.question_timeout, client.lookup(name.clone(), kind)).await;
        match lookup.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|r| r.ttl).min().unwrap_or(0);
                let ttl = Duration::from_secs(ttl.into());
                let picked: Vec<T> = lookup.answers().iter().filter_map(|r| pick(&r.data)).collect();
                match picked.is_empty() {
                    false => Ok((picked, ttl)),
                    true => Err(Miss::Denied { why: format!("no usable {kind} record"), ttl }),
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(denial))) => Err(Miss::Denied {
                why: match denial.response_code {
                    hickory_resolver::proto::op::ResponseCode::NXDomain => "no such name (NXDOMAIN)".into(),
                    _ => format!("the name has no {kind} record"),
                },
                ttl: denial.negative_ttl.map_or(DENIAL_TTL, |secs| Duration::from_secs(secs.into())),
            }),
            Err(e) => Err(Miss::Failed { why: e.to_string() }),
        }
    }

    fn in_hosts_file(&self, name: &DnsName) -> Option<Vec<IpAddr>> {
        let find = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [find(RecordType::A), find(RecordType::AAAA)];
        let records = found.iter().flatten().flat_map(|lookup| lookup.answers());
        let addresses: Vec<IpAddr> = records.filter_map(|record| record.data.ip_addr()).filter(usable).collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The full names that `name` may mean, in the order of resolv.conf(5).
    fn candidates(&self, name: &DnsName) -> Vec<DnsName> {
        let mut full = name.clone();
        full.set_fqdn(true);
        if name.is_fqdn() || name.is_localhost() {
            return vec![full];
        }
        let mut names: Vec<_> = self.search.iter().filter_map(|s| name.clone().append_domain(s).ok()).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, full);
        names
    }
}

impl Miss {
    fn nothing() -> Self {
        Miss::Denied { why: "the name has no address".into(), ttl: DENIAL_TTL }
    }
}

impl From<Miss> for Outcome {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Denied { why, ttl } => Outcome::Denied { why, ttl },
            Miss::Failed { why } => Outcome::Failed { why },
        }
    }
}

/// Whether `text` can be asked for.
pub(super) fn is_name(text: &str) -> bool {
    let clean = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "/:@*\\".contains(c));
    clean && DnsName::from_str_relaxed(text).is_ok_and(|name| !name.is_root())
}

/// `0.0.0.0`, used to block names, would connect to this very machine; multicast accepts no connection.
fn usable(ip: &IpAddr) -> bool {
    !ip.to_canonical().is_unspecified() && !ip.to_canonical().is_multicast()
}

/// One target per address, its best tier winning, then its largest weight.
fn sorted(mut targets: Vec<Resolved>) -> Vec<Resolved> {
    targets.sort_by_key(|t| (t.address, t.tier, Reverse(t.weight)));
    targets.dedup_by_key(|t| t.address);
    targets
}

/// The servers to ask, and how.
fn servers(config: &ResolverConfig) -> Result<(Servers, ResolverOpts), String> {
    if config.servers.is_empty() {
        let path = config.resolv_conf.display();
        let text = fs::read(&config.resolv_conf).map_err(|e| format!("cannot read {path}: {e}"))?;
        return system_conf::parse_resolv_conf(text).map_err(|e| format!("cannot use {path}: {e}"));
    }
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    };
    let search = config.search.iter().map(|domain| {
        let mut name = DnsName::from_str_relaxed(domain).map_err(|e| format!("search domain `{domain}`: {e}"))?;
        name.set_fqdn(true);
        Ok(name)
    });
    let search = search.collect::<Result<_, String>>()?;
    let servers = Servers::from_parts(None, search, config.servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.ndots = config.ndots;
    Ok((servers, options))
}
