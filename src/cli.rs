//! The command line: one function per command, each a few lines over the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

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
    /// Report every problem of a configuration; exits 1 if there is one.
    Check {
        #[command(flatten)]
        config: ConfigPath,
    },
    /// Show what a route does: its match, its filters in order with where each was attached, its backend.
    Explain {
        /// The route, as SERVICE/ROUTE, or ROUTE alone if only one service has a route of that name.
        route: String,
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
        Command::Check { config } => app::check(&config.config),
        Command::Explain { route, config } => app::explain(&config.config, &route),
        Command::Schema => {
            println!("{:#}", app::schema());
            Ok(())
        }
        Command::Upgrade { config } => app::upgrade::replace_running(&config.config),
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
