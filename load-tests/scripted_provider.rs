//! A provider of models that answers by a script: OpenAI chat completions and Responses, Anthropic's Messages, Gemini's
//! generateContent, embeddings; whole and streamed. The name of the model says what it answers, so that every call can be
//! repeated, and every way a provider fails can be had. See [`provider::script`] for the words.
//!
//! `scripts/quickstart` shows calls with it, the tests of official libraries run against it, and `scripts/bench` measures with
//! it: answers that depend on nothing but the model's name are made once, and cost a read and a write after that.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use tokio::net::{TcpListener, TcpSocket};

#[path = "scripted_provider/mod.rs"]
mod provider;

use provider::Provider;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A provider of models that answers by a script, told by the model's name.
#[derive(Parser)]
#[command(after_help = provider::script::HELP)]
struct Arguments {
    /// Where to listen; port 0 is any.
    #[arg(long, default_value = "127.0.0.1:9100")]
    address: SocketAddr,
    /// Where to write the port once it is open.
    #[arg(long)]
    port_file: Option<PathBuf>,
    /// Threads that answer.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let provider = Provider::default();
    let first = listen(arguments.address)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..arguments.threads {
        listeners.push(listen(address)?);
    }
    println!("the scripted provider answers on http://{address}");
    if let Some(file) = &arguments.port_file {
        write_port(file, address.port())?;
    }
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let provider = provider.clone();
            // A runtime each: connections stay on the thread that has accepted them.
            std::thread::spawn(move || -> std::io::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async { provider.serve(TcpListener::from_std(listener)?).await })
            })
        })
        .collect();
    for thread in serving {
        thread.join().map_err(|_| "a thread has panicked")??;
    }
    Ok(())
}

/// Listens beside others on the same address.
fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(4096)?.into_std()
}

/// Whoever waits for the file never reads half of it.
fn write_port(file: &Path, port: u16) -> std::io::Result<()> {
    let next = file.with_extension("next");
    std::fs::write(&next, format!("{port}\n"))?;
    std::fs::rename(next, file)
}
