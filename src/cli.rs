//! The command line: one function per command, each a few lines over the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::units::Timestamp;
use crate::{app, demo_origin};

/// An API gateway and AI gateway in one binary.
#[derive(Parser)]
#[command(name = "headgate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve traffic until stopped.
    ///
    /// SIGTERM drains and exits, SIGHUP reloads the configuration, SIGUSR1 reopens log files, SIGQUIT hands the
    /// listening sockets to a waiting successor.
    Run {
        #[command(flatten)]
        config: ConfigPath,
        /// Take the listening sockets over from the running process, which then drains and exits.
        #[arg(short, long)]
        upgrade: bool,
    },
    /// Serve models without a configuration: of every provider whose key is in the environment, and of engines found running.
    ///
    /// Prints the addresses for OpenAI's, Anthropic's and Google's libraries, a key for callers, and the models. The key is
    /// made anew each time, unless HEADGATE_AI_KEY holds one.
    Ai {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:8080")]
        address: SocketAddr,
        /// Where metrics and status are.
        #[arg(long, default_value = "127.0.0.1:9080")]
        admin: SocketAddr,
        /// The engines to look for on this machine, as NAME or NAME=ADDRESS, such as `ollama,vllm=127.0.0.1:8001`; `none`.
        /// Default: all that are known, where they usually are.
        #[arg(long, value_name = "LIST", env = "HEADGATE_AI_ENGINES", value_delimiter = ',')]
        engines: Vec<String>,
        /// Print the configuration that this is, to save and go on from, instead of serving it.
        #[arg(long)]
        print_config: bool,
    },
    /// Report every problem of a configuration; exits 1 if there is one.
    Check {
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Show what a route does: its match, its filters in order with where each was attached, its backend.
    Explain {
        /// The route, as SERVICE/ROUTE, or ROUTE alone if only one service has a route of that name.
        route: String,
        /// With the filters of this consumer and of its plan.
        #[arg(long)]
        consumer: Option<String>,
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Replace the running process with this binary, without losing a request.
    Upgrade {
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Make API keys, or hash those from elsewhere.
    #[command(subcommand)]
    Key(Key),
    /// Hash passwords for `basic_auth`.
    #[command(subcommand)]
    Password(Password),
    /// Serve a small origin that answers with what it received, to try things out.
    DemoOrigin {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:9001")]
        address: SocketAddr,
        /// The name it gives itself in its answers.
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Print the version and what it was built with.
    Version,
}

#[derive(Subcommand)]
enum Key {
    /// Make a key and show it, once, with the hash that the configuration keeps of it.
    ///
    /// Makes the pepper that keys the hashes if the configuration names a file that is not there yet.
    Create {
        /// The consumer it is for.
        consumer: String,
        /// When it ends: a date such as 2027-06-30, or 2027-06-30T12:00:00Z.
        #[arg(long)]
        expires: Option<Timestamp>,
        /// Print key and hash as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Read a key that another gateway has made from the standard input, and show its hash.
    Hash {
        /// The consumer it belongs to.
        consumer: String,
        /// When it ends: a date such as 2027-06-30, or 2027-06-30T12:00:00Z.
        #[arg(long)]
        expires: Option<Timestamp>,
        #[command(flatten)]
        config: ConfigPath,
    },
}

#[derive(Subcommand)]
enum Password {
    /// Read a password from the standard input, and show its argon2id hash.
    Hash,
}

#[derive(Args)]
struct ConfigPath {
    /// The configuration: a YAML file, or a directory whose YAML files are merged.
    #[arg(short, long, value_name = "FILE|DIR", env = "HEADGATE_CONFIG", default_value = "conf/headgate.yaml")]
    config: PathBuf,
}

/// Runs the command that the arguments name, and returns the exit status of the process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run { config, upgrade } => app::run(&config.config, upgrade),
        Command::Ai { address, admin, engines, print_config } => app::ai::Engines::read(&engines)
            .and_then(|engines| app::ai::run(&app::ai::Options { address, admin, engines, print_config })),
        Command::Check { config } => app::check(&config.config),
        Command::Explain { route, consumer, config } => app::explain(&config.config, &route, consumer.as_deref()),
        Command::Schema => {
            println!("{:#}", app::schema());
            Ok(())
        }
        Command::Upgrade { config } => app::upgrade::replace_running(&config.config),
        Command::Key(Key::Create { consumer, expires, json, config }) => {
            app::keys::create(&config.config, &consumer, expires, json)
        }
        Command::Key(Key::Hash { consumer, expires, config }) => app::keys::hash(&config.config, &consumer, expires),
        Command::Password(Password::Hash) => app::keys::hash_password(),
        Command::DemoOrigin { address, name } => demo_origin::run(address, name),
        Command::Version => {
            println!("{}", version());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn version() -> String {
    format!("headgate {} (pingora {}, {})", env!("CARGO_PKG_VERSION"), "0.9.1", std::env::consts::ARCH)
}
