//! The gateway under test: the real binary, in a process of its own.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::client::{Answer, Call, Client};
use super::origin::Origin;
use super::ports::{Reserved, reserve};
use super::scratch::Scratch;
use super::{PATIENCE, eventually};

/// Put before configurations that name no listener.
const ONE_LISTENER: &str = "listeners: { http: { address: '{{http}}' } }\n";
/// Put before configurations without an admin listener: readiness is asked there.
const ADMIN: &str = "admin: { address: '{{admin}}' }\n";

/// Put before configurations that say nothing of the process: gateways of parallel tests must not meet.
const SERVER: &str = "server: { upgrade: { socket: '{{dir}}/run/upgrade.sock', pid_file: '{{dir}}/run/pid' } }\n";

/// A gateway in the making. In its YAML `{{dir}}` is the test's directory, `{{NAME}}` what [`Builder::with`] gave,
/// and `{{http}}`, `{{admin}}` or any other word a loopback address reserved for it.
pub struct Builder {
    yaml: String,
    scratch: Scratch,
    values: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    beside: Vec<(String, String)>,
    obedient: bool,
}

impl Builder {
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.values.insert(name.into(), value.to_string());
        self
    }

    pub fn origin(self, origin: &Origin) -> Self {
        self.with("origin", origin.address)
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Makes the configuration a directory, with this file in it beside `headgate.yaml`.
    pub fn beside(mut self, name: &str, yaml: &str) -> Self {
        self.beside.push((name.into(), yaml.into()));
        self
    }

    /// Takes from the gateway what root has and others have not: files are read and written as their permissions say.
    pub fn obeying_permissions(mut self) -> Self {
        self.obedient = true;
        self
    }

    /// The directory that `{{dir}}` stands for, to put files into beforehand.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts it and waits until it says that it is ready.
    pub async fn start(self) -> Gateway {
        let mut gateway = self.launch();
        gateway.await_ready().await;
        gateway
    }

    /// Starts it without waiting.
    pub fn launch(self) -> Gateway {
        let Builder { yaml, scratch, values, environment, beside, obedient } = self;
        let mut config = scratch.path().join("headgate.yaml");
        let mut template = Template { directory: scratch.path().display().to_string(), values, reserved: Vec::new() };
        if !beside.is_empty() {
            let folder = scratch.path().join("conf");
            std::fs::create_dir(&folder).expect("making the configuration's directory");
            for (name, yaml) in &beside {
                std::fs::write(folder.join(name), template.fill_in(yaml)).expect("writing a part of the configuration");
            }
            std::fs::write(folder.join("headgate.yaml"), template.fill(&yaml)).expect("writing the configuration");
            config = folder;
        } else {
            std::fs::write(&config, template.fill(&yaml)).expect("writing the configuration");
        }
        let launcher = Launcher { config, environment, obedient };
        let (child, log) = launcher.run(&[]);
        Gateway { child, log, retired: Vec::new(), launcher, template, scratch }
    }
}

/// Fills in the `{{…}}` of a configuration; a reload gets the same addresses.
struct Template {
    directory: String,
    values: BTreeMap<String, String>,
    reserved: Vec<Reserved>,
}

impl Template {
    fn fill(&mut self, yaml: &str) -> String {
        let mut text = String::new();
        let has = |key: &str| yaml.lines().any(|line| line.starts_with(key));
        if !has("listeners:") {
            text += ONE_LISTENER;
        }
        if !has("server:") {
            text += SERVER;
        }
        if !has("admin:") {
            text += ADMIN;
        }
        self.fill_in(&(text + yaml))
    }

    fn fill_in(&mut self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").expect("every {{ of a configuration has its }}");
            filled += before;
            filled += &self.value(name);
            rest = after;
        }
        filled + rest
    }

    fn value(&mut self, name: &str) -> String {
        if name == "dir" {
            return self.directory.clone();
        }
        if let Some(value) = self.values.get(name) {
            return value.clone();
        }
        let port = reserve();
        let address = port.address.to_string();
        self.reserved.push(port);
        self.values.insert(name.into(), address.clone());
        address
    }
}

struct Launcher {
    config: PathBuf,
    environment: Vec<(String, String)>,
    obedient: bool,
}

type Log = Arc<Mutex<Vec<String>>>;

impl Launcher {
    fn run(&self, extra: &[&str]) -> (Child, Log) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        command
            .arg("run")
            .arg("-c")
            .arg(&self.config)
            .args(extra)
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.obedient {
            // SAFETY: only system calls, which are safe between fork and exec.
            unsafe { command.pre_exec(obey_permissions) };
        }
        let mut child = command.spawn().expect("starting the headgate binary");
        let log = Log::default();
        gather(child.stdout.take().expect("stdout is piped"), "out", log.clone());
        gather(child.stderr.take().expect("stderr is piped"), "err", log.clone());
        (child, log)
    }
}

/// Root stays root, so that it reaches the binary, but is no longer let past permissions. Nobody else ever was: for them it
/// fails, and does not matter.
fn obey_permissions() -> io::Result<()> {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
        // SAFETY: a plain system call.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    Ok(())
}

fn text(log: &Log) -> String {
    // A test that panicked while it held the log must not lose it.
    log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
}

/// Collects a pipe line by line, so that the gateway never waits for us.
fn gather(pipe: impl Read + Send + 'static, source: &'static str, log: Log) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            log.lock().unwrap().push(format!("{source} {line}"));
        }
    });
}

pub struct Gateway {
    child: Child,
    log: Log,
    /// Processes that an upgrade has replaced, with their logs.
    retired: Vec<(Child, Log)>,
    launcher: Launcher,
    template: Template,
    scratch: Scratch,
}

impl Gateway {
    pub fn builder(yaml: &str) -> Builder {
        let scratch = Scratch::new();
        scratch.write("pepper", PEPPER);
        for (name, secret) in example_secrets() {
            std::fs::create_dir_all(scratch.path().join("secrets")).expect("a folder for secrets");
            scratch.write(&format!("secrets/{name}"), secret);
        }
        Builder {
            yaml: yaml.to_owned(),
            scratch,
            values: BTreeMap::new(),
            environment: Vec::new(),
            beside: Vec::new(),
            obedient: false,
        }
    }

    /// A gateway whose YAML needs nothing but reserved addresses.
    pub async fn start(yaml: &str) -> Self {
        Gateway::builder(yaml).start().await
    }

    /// A gateway that sends everything to one origin.
    pub async fn before(origin: &Origin) -> Self {
        Gateway::builder(EVERYTHING_TO_ORIGIN).origin(origin).start().await
    }

    /// A gateway with one of the examples under `conf/examples`, its addresses replaced by this test's.
    pub async fn example(name: &str, origin: &Origin) -> Self {
        Gateway::builder(&example(name)).origin(origin).start().await
    }

    async fn await_ready(&mut self) {
        let admin = self.address("admin");
        let ready = eventually(PATIENCE, || async {
            match try_get(admin, "/readyz").await {
                Ok(answer) => answer.status == 200,
                Err(_) => false,
            }
        });
        tokio::pin!(ready);
        loop {
            tokio::select! {
                ready = &mut ready => {
                    assert!(ready, "the gateway did not become ready; its log:\n{}", self.logged());
                    return;
                }
                _ = tokio::time::sleep(Duration::from_millis(50)) => {
                    if let Ok(Some(status)) = self.child.try_wait() {
                        // The last words may still be in the pipe.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        panic!("the gateway ended with {status} instead of starting; its log:\n{}", self.logged());
                    }
                }
            }
        }
    }

    /// The address that `{{name}}` got.
    pub fn address(&self, name: &str) -> SocketAddr {
        let value = self.template.values.get(name).unwrap_or_else(|| panic!("no {{{{{name}}}}} in the configuration"));
        value.parse().expect("a socket address")
    }

    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    pub fn config(&self) -> &Path {
        &self.launcher.config
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// A new connection to the listener `{{http}}`.
    pub async fn connect(&self) -> Client {
        Client::connect(self.address("http")).await.expect("connecting to the gateway")
    }

    /// One call on a connection of its own.
    pub async fn call(&self, call: &Call) -> Answer {
        let answer = self.connect().await.call(call).await;
        answer.unwrap_or_else(|error| panic!("{call:?} got no answer: {error}"))
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.call(&Call::get(target)).await
    }

    pub async fn admin_get(&self, path: &str) -> Answer {
        try_get(self.address("admin"), path).await.unwrap_or_else(|error| panic!("admin {path}: {error}"))
    }

    pub async fn admin(&self, call: &Call) -> Answer {
        let mut client = Client::connect(self.address("admin")).await.expect("connecting to the admin listener");
        let call = call.clone().host(&self.address("admin").to_string());
        client.call(&call).await.unwrap_or_else(|error| panic!("admin {call:?}: {error}"))
    }

    /// Replaces the configuration file without telling the gateway.
    pub fn write_config(&mut self, yaml: &str) {
        let text = self.template.fill(yaml);
        // As editors do: a watcher must see a renamed file too, and nobody may read half of one.
        let next = self.scratch.write("next.yaml", text);
        std::fs::rename(next, &self.launcher.config).expect("replacing the configuration");
    }

    /// Replaces one file of a configuration that is a directory.
    pub fn write_beside(&mut self, name: &str, yaml: &str) {
        let next = self.scratch.write("next.yaml", self.template.fill_in(yaml));
        std::fs::rename(next, self.launcher.config.join(name)).expect("replacing a part of the configuration");
    }

    /// Replaces the configuration and asks for a reload; the answer tells whether it was taken.
    pub async fn reload(&mut self, yaml: &str) -> Answer {
        self.write_config(yaml);
        self.admin(&Call::new("POST", "/reload")).await
    }

    /// Every sample by its name and labels, as written.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.admin_get("/metrics").await.text();
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
                (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number in {line:?}")))
            })
            .collect()
    }

    /// The sum over all samples of one metric whose labels include these.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.metrics().await;
        let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let of_name = samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        of_name.filter(|(sample, _)| wanted.iter().all(|label| sample.contains(label))).map(|(_, value)| value).sum()
    }

    /// Waits until a metric satisfies a condition.
    pub async fn metric_becomes(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) -> bool {
        eventually(PATIENCE, || async { wanted(self.metric(name, labels).await) }).await
    }

    /// Waits for at least `n` access log records in `{{dir}}/access.log`, each one JSON document.
    pub async fn access_log(&self, n: usize) -> Vec<serde_json::Value> {
        let path = self.scratch.path().join("access.log");
        let lines = || std::fs::read_to_string(&path).unwrap_or_default();
        let enough = eventually(PATIENCE, || async { lines().lines().count() >= n }).await;
        let text = lines();
        assert!(enough, "{n} access log lines were expected in:\n{text}");
        let record = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        text.lines().map(record).collect()
    }

    /// Everything the gateway has printed: `out …` and `err …` lines.
    pub fn logged(&self) -> String {
        text(&self.log)
    }

    pub async fn logs(&self, text: &str) -> bool {
        eventually(PATIENCE, || async { self.logged().contains(text) }).await
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the child is ours and not reaped before `try_wait` has said so.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "signalling the gateway: {}", io::Error::last_os_error());
    }

    /// Waits for the process to end; `None` if it does not in time.
    pub async fn exit(&mut self, within: Duration) -> Option<ExitStatus> {
        let status = wait(&mut self.child, within).await?;
        // The last words may still be in the pipes; whoever reads one holds the log. A successor may keep them open.
        let log = &self.log;
        eventually(Duration::from_millis(500), || async { Arc::strong_count(log) == 1 }).await;
        Some(status)
    }

    /// Starts the gateway again after its process has ended, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.relaunch();
        self.await_ready().await;
    }

    /// Starts it again without waiting.
    pub fn relaunch(&mut self) {
        (self.child, self.log) = self.launcher.run(&[]);
    }

    /// Starts a new process that takes over the sockets; the old one drains. Returns when the new one runs.
    pub fn upgrade(&mut self) {
        let (child, log) = self.launcher.run(&["-u"]);
        self.retired.push((std::mem::replace(&mut self.child, child), std::mem::replace(&mut self.log, log)));
    }

    /// Waits for the process that the last upgrade replaced.
    pub async fn predecessor_exit(&mut self, within: Duration) -> Option<ExitStatus> {
        let (child, _) = self.retired.last_mut().expect("an upgrade came first");
        wait(child, within).await
    }

    /// Waits until the process that the last upgrade replaced has said this.
    pub async fn predecessor_logs(&self, said: &str) -> bool {
        let (_, log) = self.retired.last().expect("an upgrade came first");
        eventually(PATIENCE, || async { text(log).contains(said) }).await
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() << 10
    }
}

/// Runs `headgate` with these arguments to its end.
pub fn headgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headgate")).args(arguments).output().expect("starting the headgate binary")
}

/// Runs the binary with a text as its standard input.
pub fn headgate_with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starting the headgate binary");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    // It may end without having read everything.
    let _ = io::Write::write_all(&mut pipe, input.as_bytes());
    drop(pipe);
    child.wait_with_output().expect("the output of the headgate binary")
}

/// What `headgate check` says of a configuration that it has to refuse. In its YAML `{{NAME}}` is some address.
pub fn problems_of(yaml: &str) -> String {
    let scratch = Scratch::new();
    scratch.write("pepper", PEPPER);
    let yaml = yaml.replace("{{dir}}", &scratch.path().display().to_string()) + ONE_LISTENER;
    let yaml = regex::Regex::new(r"\{\{\w+\}\}").expect("a pattern").replace_all(&yaml, "127.0.0.1:1").into_owned();
    let file = scratch.write("headgate.yaml", yaml.clone());
    let output = headgate(&["check", "-c", file.to_str().expect("a path in UTF-8")]);
    assert!(!output.status.success(), "accepted:\n{yaml}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What keys the hashes of API keys in tests; the file of the default configuration.
const PEPPER: &str = "a pepper for tests";

/// The hash that a configuration keeps of an API key, computed by other means than the gateway's.
pub fn key_hash(key: &str) -> String {
    let pepper = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, PEPPER.as_bytes());
    let tag = ring::hmac::sign(&pepper, key.as_bytes());
    tag.as_ref().iter().fold("hmac-sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// The secrets that examples refer to, by file name.
fn example_secrets() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples/secrets");
    let files = std::fs::read_dir(&folder).expect("the secrets of the examples").map(|entry| entry.unwrap().path());
    let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.map(|file| (name(&file), std::fs::read(&file).expect("reading a secret"))).collect()
}

/// An example's text, with placeholders for the addresses that examples use.
pub fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples").join(name).with_extension("yaml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text =
        text.replace("http://127.0.0.1:9001", "http://{{origin}}").replace("http://127.0.0.1:8080", "http://{{http}}");
    text.replace("127.0.0.1:8080", "'{{http}}'").replace("127.0.0.1:9001", "'{{origin}}'")
}

/// The configuration of [`Gateway::before`].
pub const EVERYTHING_TO_ORIGIN: &str = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services: { all: { routes: { all: { match: { path_prefix: / }, backend: { upstream: origin } } } } }
";

async fn try_get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    Client::connect(address).await?.call(&Call::get(path).host(&address.to_string())).await
}

async fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let until = std::time::Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if std::time::Instant::now() < until => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => return None,
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        for child in self.retired.iter_mut().map(|(child, _)| child).chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The successor of an upgrade by command is nobody's child here; it has announced itself in the test's own folder.
        let announced = std::fs::read_to_string(self.scratch.path().join("run/pid")).unwrap_or_default();
        if let Ok(successor) = announced.trim().parse::<libc::pid_t>()
            && successor > 1
            && successor != self.child.id() as libc::pid_t
        {
            // SAFETY: a plain system call.
            unsafe { libc::kill(successor, libc::SIGKILL) };
        }
        if std::thread::panicking() {
            // The last words may still be in the pipe.
            std::thread::sleep(Duration::from_millis(50));
            for (_, log) in &self.retired {
                eprintln!("--- log of a replaced gateway\n{}", text(log));
            }
            eprintln!("--- log of the gateway\n{}", self.logged());
        }
    }
}
