//! `headgate run`: from a configuration to a serving process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::proxy::http_proxy;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::Service as PingoraService;
use pingora::services::listening::Service;

use tokio::sync::watch;

use super::gateway::Gateway;
use super::shutdown::{self, Signals};
use super::source::Source;
use super::systemd;
use super::upgrade::Meeting;
use crate::config::Config;
use crate::control::admin::Admin;
use crate::control::readiness::{Phase, Readiness};
use crate::control::reload::Reloader;
use crate::listener;
use crate::proxy::{Internal, Proxy, Refuse};

/// Serves until told to stop. Returns an error, with a remedy where there is one, if serving cannot begin.
pub fn run(path: &Path, upgrade: bool) -> Result<(), String> {
    prepare_process();
    serve(Serve { source: Source::file(path), upgrade, own_folder: None, opening: Box::new(|| ()) })
}

/// What is served, and how it begins and ends.
pub struct Serve {
    pub source: Source,
    /// Whether the listening sockets are taken over from a running process.
    pub upgrade: bool,
    /// A folder for the upgrade socket and the process id that goes with the process.
    pub own_folder: Option<PathBuf>,
    /// Told before the listeners open, when nothing can keep them from it any more.
    pub opening: Box<dyn FnOnce()>,
}

/// Sets up what holds for the whole process: its log, its cryptography, how many files it may open.
pub fn prepare_process() {
    env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or("info,pingora_core=warn,pingora_proxy=off"),
    )
    .format_timestamp_millis()
    .init();
    // Two crypto providers may be linked; say which before anyone asks.
    let _ = rustls::crypto::ring::default_provider().install_default();
    raise_file_limit();
}

/// Serves a configuration until told to stop.
pub fn serve(serve: Serve) -> Result<(), String> {
    let Serve { source, upgrade, own_folder, opening: tell } = serve;
    let mut loaded = source.load().map_err(|problems| problems.to_string())?;
    let gateway = Gateway::start(source, &loaded).map_err(|problems| problems.to_string())?;
    let files = super::inspect::referenced_files(&loaded);
    // What is compiled needs what was written no more, which may be many times as large.
    loaded.forget_resources();
    super::memory::give_back();
    let config = &loaded.config;
    let meeting = Meeting::prepare(config, own_folder)?;
    match upgrade {
        true => meeting.ask_predecessor()?,
        false => check_addresses(config)?,
    }

    let conf = Arc::new(server_conf(config, &meeting));
    let mut server = Server::new_with_opt_and_conf(Opt { upgrade, ..Opt::default() }, server_conf(config, &meeting));
    server.bootstrap();

    let readiness = Arc::new(Readiness::default());
    let reloader = Arc::new(Reloader::new(gateway.revision(), {
        let gateway = gateway.clone();
        Box::new(move || gateway.reload())
    }));
    let opening = Arc::new(Opening {
        waiting: AtomicUsize::new(config.listeners.len()),
        readiness: readiness.clone(),
        meeting: meeting.clone(),
    });
    let refusals = Arc::new(Refuse::new(&gateway.telemetry));
    for listener in gateway.listeners.values() {
        let internal = Internal::default();
        let proxy = Proxy::new(&gateway.published, &gateway.telemetry, &gateway.mirror, &gateway.connector, &internal);
        let proxy = Arc::new(http_proxy(&conf, proxy));
        internal.serve_by(&proxy);
        let service = listener::service(listener.clone(), proxy, refusals.clone());
        server.add_service(Managed { service, role: Role::Traffic(opening.clone()) });
    }
    let admin = Admin {
        readiness: readiness.clone(),
        reloader: reloader.clone(),
        views: gateway.clone(),
        allow_remote: config.admin.allow_remote,
    };
    let mut service = Service::new("admin".to_owned(), admin);
    service.threads = Some(1);
    service.add_tcp(&config.admin.address.to_string());
    let handed_over = Arc::new(AtomicBool::new(false));
    server.add_service(Managed { service, role: Role::Admin { handed_over: handed_over.clone() } });

    let drain = &config.server.drain;
    // Listeners cut what is left when the drain time is over; a moment later nothing can be open any more.
    let limit = drain.timeout.get() + Duration::from_secs(3);
    shutdown::exit_when_idle(server.watch_execution_phase(), gateway.clone(), meeting.clone(), limit);
    gateway.watch_files(files, {
        let reloader = reloader.clone();
        move || drop(reloader.reload("files changed"))
    });
    let signals = Signals {
        readiness,
        reloader,
        gateway: gateway.clone(),
        meeting: meeting.clone(),
        delay: drain.delay.get(),
        handed_over,
    };
    tell();
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    shutdown::leave(&gateway, &meeting);
    Ok(())
}

/// Counts the listeners that have opened; with the last, the process is ready and says so.
struct Opening {
    waiting: AtomicUsize,
    readiness: Arc<Readiness>,
    meeting: Meeting,
}

impl Opening {
    fn opened(&self) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if let Err(error) = self.meeting.announce() {
            log::error!(
                "cannot write {}: {error}; `headgate upgrade` will not find this process",
                self.meeting.pid_file.display()
            );
        }
        self.readiness.set(Phase::Ready);
        systemd::serving();
        log::info!("ready");
    }
}

/// A listening service with what Pingora's own lacks: it tells when its sockets are open, or outlives the drain.
struct Managed<A> {
    service: Service<A>,
    role: Role,
}

enum Role {
    /// Clients' traffic: the process is ready once every such service has its sockets.
    Traffic(Arc<Opening>),
    /// The admin service. It outlives the listeners in a drain, so that load balancers go on seeing that this process is
    /// not ready, and operators what it waits for; only to a successor, which has the same socket, it gives way.
    Admin { handed_over: Arc<AtomicBool> },
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> PingoraService for Managed<A> {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let stop = match &self.role {
            Role::Traffic(opening) => {
                let addresses = self.listen_addresses().unwrap_or_default();
                tokio::spawn(announce(opening.clone(), addresses, fds.clone()));
                shutdown
            }
            Role::Admin { handed_over } => {
                let (stop, stopped) = watch::channel(false);
                tokio::spawn(linger(handed_over.clone(), shutdown, stop));
                stopped
            }
        };
        PingoraService::start_service(&mut self.service, fds, stop, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        PingoraService::name(&self.service)
    }

    fn threads(&self) -> Option<usize> {
        PingoraService::threads(&self.service)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        PingoraService::listen_addresses(&self.service)
    }
}

async fn announce(opening: Arc<Opening>, addresses: Vec<String>, table: Option<ListenFds>) {
    // A socket enters the table that upgrades hand over once it listens.
    let open = || {
        table.as_ref().is_none_or(|fds| {
            let fds = fds.lock();
            addresses.iter().all(|address| fds.get(address).is_some())
        })
    };
    while !open() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    opening.opened();
}

async fn linger(handed_over: Arc<AtomicBool>, mut shutdown: ShutdownWatch, stop: watch::Sender<bool>) {
    let _ = shutdown.wait_for(|stopping| *stopping).await;
    if handed_over.load(Ordering::Acquire) {
        stop.send_replace(true);
    } else {
        stop.closed().await;
    }
}

/// Finds out whether the addresses can be listened on. Pingora would try for half a minute and then panic.
fn check_addresses(config: &Config) -> Result<(), String> {
    let addresses = config.listeners.values().map(|listener| listener.address.clone());
    for address in addresses.chain([config.admin.address.to_string()]) {
        let Ok(socket) = address.parse::<SocketAddr>() else { continue };
        if let Err(error) = std::net::TcpListener::bind(socket) {
            let remedy = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "stop what listens there, or take over from a running headgate with -u"
                }
                std::io::ErrorKind::PermissionDenied => "ports below 1024 need the capability CAP_NET_BIND_SERVICE",
                _ => "check the address",
            };
            return Err(format!("cannot listen on {address}: {error}; {remedy}"));
        }
    }
    Ok(())
}

fn server_conf(config: &Config, meeting: &Meeting) -> ServerConf {
    /// Pingora stops its runtimes this long after the drain time; by then `exit_when_idle` has ended the process.
    const AFTER_DRAIN: u64 = 5;
    ServerConf {
        threads: config.server.threads.count(),
        work_stealing: config.server.work_stealing,
        upgrade_sock: meeting.socket.to_string_lossy().into_owned(),
        grace_period_seconds: Some(config.server.drain.timeout.get().as_secs() + AFTER_DRAIN),
        graceful_shutdown_timeout_seconds: Some(1),
        // The retry policy of each upstream decides; this only has to be out of its way.
        max_retries: 64,
        ..ServerConf::default()
    }
}

/// Lets the process open as many files as the system allows it to: every connection is one.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the struct passed to them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
