//! The smallest honest Pingora proxy: every request goes to one origin, and nothing else happens to it.
//!
//! `scripts/bench` measures Headgate against it, so it gets what Headgate gets: the release profile, the allocator, keep-alive to
//! the origin and no modules. What the two differ by is what Headgate adds.
//!
//! Usage: `bare_pingora LISTEN ORIGIN [THREADS]`, addresses as `127.0.0.1:8080`.

use std::error::Error;
use std::net::SocketAddr;

use async_trait::async_trait;
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare {
    origin: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    /// Without this Pingora installs its compression module, which costs an allocation per request even when it is off.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, origin, rest @ ..] = arguments.as_slice() else {
        return Err("usage: bare_pingora LISTEN ORIGIN [THREADS]".into());
    };
    let threads = rest.first().map_or(Ok(1), |count| count.parse())?;
    let bare = Bare { origin: origin.parse()? };

    let conf = ServerConf { threads, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever()
}
