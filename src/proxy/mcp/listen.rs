//! A caller that listens: to what servers say by themselves, or to the rest of a stream that broke off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderName;
use pingora::proxy::Session;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Exchange;
use super::federation::{Passed, event_of, pass_on};
use super::reply::{HEARTBEAT, Reply};
use super::server::{Link, Trouble};
use crate::ai::mcp::events::Event;
use crate::ai::mcp::session::Session as McpSession;
use crate::proxy::context::Context;
use crate::snapshot::Backend;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How often it is looked whether the session goes on, and whether other tools are offered.
const LOOK: Duration = Duration::from_secs(2);
/// Before a server is listened to again, and at the most.
const AGAIN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);

impl Exchange<'_> {
    /// Answers a GET.
    pub(super) async fn listen(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        reply: &mut Reply,
        held: Arc<McpSession>,
    ) -> pingora::Result<()> {
        let after = session.req_header().headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
        let after = after.and_then(|id| id.split_once(':')).map(|(server, id)| (server.to_owned(), id.to_owned()));
        if let Some((server, id)) = after
            && let Some(server) = self.backend.server(&server)
        {
            let link = self.link(server, &held);
            return self.resume(session, ctx, reply, &link, &id).await;
        }
        let (number, mut newest) = held.listen();
        let (said, mut saying) = mpsc::channel(16);
        // Ends with this stream.
        let mut listeners = JoinSet::new();
        for server in &self.backend.servers {
            listeners.spawn(follow(self.link(server, &held), said.clone()));
        }
        drop(said);
        reply.begin(session, ctx).await?;
        let mut looks = tokio::time::interval(LOOK);
        let mut fingerprint = self.backend.fingerprint;
        let mut spoken = Instant::now();
        loop {
            let next = async {
                tokio::select! {
                    event = saying.recv(), if !saying.is_closed() || !saying.is_empty() => event,
                    _ = looks.tick() => None,
                    _ = newest.changed() => None,
                }
            };
            let event = reply.wait(session, ctx, next).await?;
            let now = Instant::now();
            if let Some(event) = event {
                reply.event(session, ctx, &event).await?;
                spoken = now;
            } else if now - spoken > HEARTBEAT {
                reply.heartbeat(session, ctx).await?;
                spoken = now;
            }
            if *newest.borrow() != number || !self.backend.state.sessions.lives(&held, &self.backend.bounds, now) {
                return reply.end(session).await;
            }
            self.backend.state.sessions.touch(&held, now);
            if let Some(changed) = self.offered_now(ctx).filter(|now| *now != fingerprint) {
                fingerprint = changed;
                let message = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
                let event = Event { data: message.to_string().into(), ..Event::default() };
                reply.event(session, ctx, &event).await?;
            }
        }
    }

    /// What the route offers by the configuration that holds now.
    fn offered_now(&self, ctx: &Context) -> Option<u64> {
        let now = self.proxy.published.current();
        let pinned = ctx.snapshot.as_ref()?;
        if now.revision == pinned.revision {
            return Some(self.backend.fingerprint);
        }
        let name = ctx.exchange.route.as_ref()?;
        let route = now.routes.iter().find(|route| route.name == *name)?;
        match &route.backend {
            Backend::Mcp(backend) => Some(backend.fingerprint),
            _ => None,
        }
    }

    /// Takes a stream of a server up again after an event.
    async fn resume(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        reply: &mut Reply,
        link: &Link,
        after: &str,
    ) -> pingora::Result<()> {
        let taking_up = async { link.listen(&*link.session().await?, Some(after)).await };
        let answering = reply.wait(session, ctx, taking_up).await?;
        reply.begin(session, ctx).await?;
        let mut answering = match answering {
            Ok(answering) => answering,
            Err(trouble) => {
                log::debug!("{}", trouble.message(&link.server));
                return reply.end(session).await;
            }
        };
        while let Ok(Some(event)) = reply.wait(session, ctx, answering.event()).await? {
            if let Some(event) = passed(link, &event, true) {
                reply.event(session, ctx, &event).await?;
            }
        }
        reply.end(session).await
    }
}

/// What a caller is told of a server's event. The answer to a request of its comes on a stream that was taken up again.
fn passed(link: &Link, event: &Event, answers: bool) -> Option<Event> {
    let server = &link.server;
    let of = |message: Option<&Value>| event_of(server, event.id.as_deref(), event.retry, message);
    let Ok(message) = serde_json::from_slice::<Value>(&event.data) else { return event.id.is_some().then(|| of(None)) };
    let id = message.get("id").filter(|_| answers).cloned();
    match pass_on(server, id.as_ref(), message) {
        Passed::Event(message) | Passed::Answer(message) => Some(of(Some(&message))),
        Passed::Nothing => None,
    }
}

/// Listens to a server as long as the caller does.
async fn follow(link: Link, to: mpsc::Sender<Event>) {
    let mut pause = AGAIN;
    let mut after: Option<String> = None;
    loop {
        let opened = match link.session().await {
            Ok(opened) => opened,
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SELDOM);
                continue;
            }
        };
        match link.listen(&opened, after.as_deref()).await {
            Ok(mut answering) => {
                while let Ok(Some(event)) = answering.event().await {
                    pause = AGAIN;
                    if event.id.is_some() {
                        after.clone_from(&event.id);
                    }
                    // Ids of several streams would mix: what is missed here the server is asked for by us.
                    let event = passed(&link, &event, false).map(|event| Event { id: None, retry: None, ..event });
                    let Some(event) = event.filter(|event| !event.data.is_empty()) else { continue };
                    if to.send(event).await.is_err() {
                        return;
                    }
                }
            }
            // It answers requests, and says nothing by itself.
            Err(Trouble::NoStream) => return,
            Err(Trouble::SessionEnded) => link.caller.forget(&link.server.name, &opened),
            Err(Trouble::Failed(_)) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SELDOM);
    }
}
