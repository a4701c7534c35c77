//! From a canonical request to what answers it: route, filters, backend.
//!
//! On the hot path. Pingora boxes every phase; a phase that never waits is decided in plain functions, so that its box
//! holds a result and not the room for everything that might have been awaited.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use http::Method;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use pingora::proxy::Session;

use super::context::Context;
use super::{Proxy, ai, answer, forward, mcp, mirror, receive, tunnel};
use crate::error::{Error, Reason};
use crate::filters::access::cors::Cors;
use crate::filters::filter::{Answer, Flow, Request, RequestStep};
use crate::filters::registry::FilterKind;
use crate::listener::ConnectionState;
use crate::routing::{Found, Lookup};
use crate::snapshot::{Backend, Route, Snapshot};

/// What has to be done with a request.
enum Next {
    /// Its target is chosen; Pingora forwards it.
    Forward,
    /// Its target is chosen; the connection may have to be switched to another protocol.
    Tunnel,
    /// Providers of models are asked.
    Ai,
    /// Tools are called.
    Mcp,
    Answer(Answer),
    Refuse(Error),
    /// The route has other methods: those of the value for `Allow`.
    OtherMethods(String),
    /// The filter of this index has to wait for something.
    Wait(usize),
}

/// Runs a request up to its backend; true if it has been answered here.
pub fn run<'f>(
    proxy: &'f Proxy,
    session: &'f mut Session,
    ctx: &'f mut Context,
) -> Pin<Box<dyn Future<Output = pingora::Result<bool>> + Send + 'f>> {
    match begin(proxy, session, ctx) {
        Next::Forward => Box::pin(ready(Ok(false))),
        next => Box::pin(conclude(proxy, session, ctx, next)),
    }
}

/// Does what takes time.
async fn conclude(proxy: &Proxy, session: &mut Session, ctx: &mut Context, mut next: Next) -> pingora::Result<bool> {
    loop {
        next = match next {
            Next::Forward => return Ok(false),
            // Boxed: answers, which are more frequent, need not have room for it.
            Next::Tunnel => return Box::pin(tunnel::run(proxy, session, ctx, None)).await.map(|()| true),
            Next::Ai => return Box::pin(ai::run(proxy, session, ctx)).await.map(|()| true),
            Next::Mcp => return Box::pin(mcp::run(proxy, session, ctx)).await.map(|()| true),
            Next::Answer(made) => return answer::send(session, ctx, made).await.map(|()| true),
            Next::Refuse(error) => return answer::send_error(session, ctx, error).await.map(|()| true),
            Next::OtherMethods(allow) => {
                return answer::send_method_not_allowed(session, ctx, &allow).await.map(|()| true);
            }
            Next::Wait(step) => wait(proxy, session, ctx, step).await,
        };
    }
}

/// Receives the request, finds its route, and runs its filters up to the first that waits or decides.
fn begin(proxy: &Proxy, session: &mut Session, ctx: &mut Context) -> Next {
    ctx.snapshot = Some(proxy.published.current());
    ctx.observation = Some(proxy.telemetry.begin(session.req_header()));
    ctx.connection = ConnectionState::of(session.digest()).cloned();
    if let Err(error) = receive::receive(session, ctx) {
        return Next::Refuse(error);
    }
    match find(session, ctx) {
        Found::Route { index, captures } => {
            ctx.route = Some(index);
            ctx.exchange.captures = captures;
        }
        Found::MethodNotAllowed { allow } => return Next::OtherMethods(allow),
        Found::Nothing => return Next::Refuse(Reason::RouteNotFound.into()),
    }
    with_route(ctx, |route, ctx| {
        ctx.exchange.route = Some(route.name.clone());
        if let Backend::Mcp(_) = route.backend {
            ctx.received_headers = Some(Box::new(session.req_header().headers.clone()));
        }
        filter(proxy, route, session, ctx, 0)
    })
}

fn find(session: &Session, ctx: &Context) -> Found {
    let Some(snapshot) = &ctx.snapshot else { return Found::Nothing };
    let head = session.req_header();
    let lookup = Lookup {
        host: &ctx.exchange.host,
        path: head.uri.path(),
        method: &head.method,
        headers: &head.headers,
        query: head.uri.query(),
        client: ctx.exchange.client,
    };
    match snapshot.router.find(&lookup) {
        Found::MethodNotAllowed { allow } => {
            find_for_preflight(snapshot, &lookup).unwrap_or(Found::MethodNotAllowed { allow })
        }
        found => found,
    }
}

/// The route that a CORS preflight asks about: that of the method to come, if the route answers preflights at all.
fn find_for_preflight(snapshot: &Snapshot, lookup: &Lookup<'_>) -> Option<Found> {
    if lookup.method != Method::OPTIONS || !lookup.headers.contains_key(ORIGIN) {
        return None;
    }
    let method = lookup.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let found = snapshot.router.find(&Lookup { method: &method, ..*lookup });
    let Found::Route { index, .. } = &found else { return None };
    let filters = &snapshot.routes.get(*index)?.chain.filters;
    filters.iter().any(|(name, ..)| *name == Cors::NAME).then_some(found)
}

/// Calls `work` with the route that matched. The snapshot is taken out of the context meanwhile, so that the rest of it
/// may be changed.
fn with_route(ctx: &mut Context, work: impl FnOnce(&Route, &mut Context) -> Next) -> Next {
    let Some(snapshot) = ctx.snapshot.take() else { return Next::Refuse(Reason::Internal.into()) };
    let next = match ctx.route(&snapshot) {
        Some(route) => work(route, ctx),
        None => Next::Refuse(Reason::Internal.into()),
    };
    ctx.snapshot = Some(snapshot);
    next
}

/// Runs the request side of the filters from `from` on, and then the backend. Once it is known who calls, the filters of
/// that caller and its plan are among them.
fn filter(proxy: &Proxy, route: &Route, session: &mut Session, ctx: &mut Context, from: usize) -> Next {
    let (known, mut from) = (route.chain.identified_after, from);
    if from < known {
        if let Some(next) = step_through(route.chain.request.get(..known).unwrap_or_default(), session, ctx, from) {
            return next;
        }
        from = known;
    }
    if from == known {
        ctx.chain = ctx.exchange.consumer().and_then(|consumer| route.chain.of_caller(consumer)).map(Arc::new);
    }
    let own = ctx.chain.clone();
    let chain = own.as_ref().unwrap_or(&route.chain);
    match step_through(&chain.request, session, ctx, from) {
        Some(next) => next,
        None => backend(proxy, route, session, ctx),
    }
}

/// Runs steps up to the first that waits or decides; `None` if all have let the request pass.
fn step_through(steps: &[RequestStep], session: &mut Session, ctx: &mut Context, from: usize) -> Option<Next> {
    let mut request =
        Request { head: session.req_header_mut(), exchange: &mut ctx.exchange, controls: &mut ctx.controls };
    for (index, step) in steps.iter().enumerate().skip(from) {
        let flow = match step {
            RequestStep::Now(filter) => filter.on_request(&mut request),
            RequestStep::Perhaps(filter) => match filter.on_request(&mut request) {
                Some(flow) => flow,
                None => return Some(Next::Wait(index)),
            },
            RequestStep::Later(_) => return Some(Next::Wait(index)),
        };
        match flow {
            Flow::Continue => {}
            Flow::Answer(made) => return Some(Next::Answer(made)),
            Flow::Refuse(error) => return Some(Next::Refuse(error)),
        }
    }
    None
}

/// Runs the filter that has to wait, and goes on with those after it.
async fn wait(proxy: &Proxy, session: &mut Session, ctx: &mut Context, step: usize) -> Next {
    let Some(snapshot) = ctx.snapshot.clone() else { return Next::Refuse(Reason::Internal.into()) };
    let Some(route) = ctx.route(&snapshot) else { return Next::Refuse(Reason::Internal.into()) };
    let own = ctx.chain.clone();
    let chain = own.as_ref().unwrap_or(&route.chain);
    ctx.waited = true;
    let mut request =
        Request { head: session.req_header_mut(), exchange: &mut ctx.exchange, controls: &mut ctx.controls };
    let flow = match chain.request.get(step) {
        Some(RequestStep::Later(filter)) => filter.on_request(&mut request).await,
        Some(RequestStep::Perhaps(filter)) => filter.wait(&mut request).await,
        Some(RequestStep::Now(_)) | None => return Next::Refuse(Reason::Internal.into()),
    };
    match flow {
        Flow::Continue => filter(proxy, route, session, ctx, step + 1),
        Flow::Answer(made) => Next::Answer(made),
        Flow::Refuse(error) => Next::Refuse(error),
    }
}

/// Answers, or finds the target of the first attempt. Finding it here and not in `upstream_peer` means that a request
/// without any available target is refused without ending the client's connection.
fn backend(proxy: &Proxy, route: &Route, session: &mut Session, ctx: &mut Context) -> Next {
    let origin = match &route.backend {
        Backend::Upstream(origin) => origin.clone(),
        Backend::Split(split) => {
            let choice = split.choose(&session.req_header().headers);
            ctx.split_cookie = choice.set_cookie;
            choice.origin.clone()
        }
        Backend::Ai(_) => return Next::Ai,
        Backend::Mcp(_) => return Next::Mcp,
        Backend::Answer(backend) => {
            let mut request =
                Request { head: session.req_header_mut(), exchange: &mut ctx.exchange, controls: &mut ctx.controls };
            return match backend.on_request(&mut request) {
                Flow::Answer(made) => Next::Answer(made),
                Flow::Refuse(error) => Next::Refuse(error),
                // A redirect to where the request already is would be one without an end.
                Flow::Continue => Next::Refuse(Reason::RouteNotFound.into()),
            };
        }
    };
    if let Err(error) = forward::begin(origin, session, ctx) {
        return Next::Refuse(error);
    }
    if session.is_upgrade_req() {
        if tunnel::asked_for(session) {
            return match tunnel::possible(ctx) {
                Ok(()) => Next::Tunnel,
                Err(error) => Next::Refuse(error),
            };
        }
        tunnel::decline(session);
    }
    if let Some(mirror) = &route.mirror {
        mirror::begin(proxy, mirror, session, ctx);
    }
    Next::Forward
}
