//! What each message of a caller asks for, and who answers it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pingora::proxy::Session;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Exchange;
use super::reply::Reply;
use super::server::Link;
use crate::ai::mcp::message::{self, RpcError, from_server};
use crate::ai::mcp::session::Session as McpSession;
use crate::proxy::context::Context;
use crate::snapshot::mcp::{Kind, McpServer};

/// Entries of one page of a list.
const PAGE: usize = 1000;

/// A request that is being answered.
pub struct Asked<'a> {
    pub session: &'a mut Session,
    pub ctx: &'a mut Context,
    pub reply: &'a mut Reply,
    /// The session that it belongs to.
    pub held: &'a Arc<McpSession>,
    pub id: &'a Value,
}

impl Asked<'_> {
    /// Answers with a result.
    pub async fn answer(&mut self, result: Value) -> pingora::Result<()> {
        self.finish(message::answer(self.id, result)).await
    }

    pub async fn refuse(&mut self, error: &RpcError) -> pingora::Result<()> {
        self.finish(error.answer(self.id)).await
    }

    /// Sends the answer, a whole message.
    pub async fn finish(&mut self, answer: Value) -> pingora::Result<()> {
        self.reply.finish(self.session, self.ctx, answer).await
    }

    /// Waits for something while there is someone to answer; the error means that there is not.
    pub async fn wait<T>(&mut self, work: impl Future<Output = T>) -> pingora::Result<T> {
        // What is waited for at a server is large, and would stand in each frame on the way to it.
        self.reply.wait(self.session, self.ctx, Box::pin(work)).await
    }
}

impl Exchange<'_> {
    /// Answers a request.
    pub(super) async fn request(&self, asked: &mut Asked<'_>, method: &str, message: Value) -> pingora::Result<()> {
        // Also when the caller leaves, and this is never finished.
        let (held, id) = (asked.held, asked.id);
        let _entered = Entered { session: held, id, cancelled: held.enter(id) };
        // Each in a box of its own: the stack of a thread has to hold the largest of all otherwise, several times.
        match method {
            "ping" => asked.answer(json!({})).await,
            "tools/call" => Box::pin(self.call_tool(asked, message)).await,
            "tools/list" => Box::pin(self.list(asked, &message, Kind::Tools)).await,
            "prompts/list" => Box::pin(self.list(asked, &message, Kind::Prompts)).await,
            "resources/list" => Box::pin(self.list(asked, &message, Kind::Resources)).await,
            "resources/templates/list" => Box::pin(self.list(asked, &message, Kind::Templates)).await,
            "prompts/get" => Box::pin(self.get_prompt(asked, message)).await,
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                Box::pin(self.use_resource(asked, message)).await
            }
            "completion/complete" => Box::pin(self.complete(asked, message)).await,
            "logging/setLevel" if !self.backend.servers.is_empty() => Box::pin(self.set_level(asked, &message)).await,
            _ => {
                let error = RpcError::new(message::METHOD_NOT_FOUND, "there is no such method");
                asked.refuse(&error).await
            }
        }
    }

    /// What the caller tells without waiting for an answer.
    pub(super) fn notification(&self, held: &Arc<McpSession>, method: &str, message: Value) {
        match method {
            "notifications/cancelled" => {
                let Some(id) = message.pointer("/params/requestId") else { return };
                // To the server of the request too, which knows it by the same id.
                let server = held.cancel(id).and_then(|call| call.server);
                self.tell_servers(held, message, |name| server.as_deref() == Some(name));
            }
            "notifications/progress" => {
                let mut message = message;
                let token = message.pointer("/params/progressToken").and_then(Value::as_str).and_then(from_server);
                let Some((server, token)) = token.map(|(server, token)| (server.to_owned(), token)) else { return };
                if let Some(place) = message.pointer_mut("/params/progressToken") {
                    *place = token;
                }
                self.tell_servers(held, message, |name| name == server);
            }
            "notifications/roots/list_changed" => self.tell_servers(held, message, |_| true),
            _ => {}
        }
    }

    /// The caller's answer to a request of a server's.
    pub(super) fn response(&self, held: &Arc<McpSession>, id: &Value, mut message: Value) {
        let Some((server, id)) = id.as_str().and_then(from_server) else { return };
        let server = server.to_owned();
        if let Some(place) = message.get_mut("id") {
            *place = id;
        }
        self.tell_servers(held, message, |name| name == server);
    }

    /// Sends a message to servers that there is a session with, after the caller has been told that it was taken.
    fn tell_servers(&self, held: &Arc<McpSession>, message: Value, to: impl Fn(&str) -> bool) {
        for (name, opened) in held.connected() {
            let Some(server) = self.backend.server(&name).filter(|_| to(&name)) else { continue };
            let (link, message) = (self.link(server, held), message.clone());
            tokio::spawn(async move {
                if let Err(trouble) = link.tell(&opened, &message).await {
                    log::debug!("{}", trouble.message(&link.server));
                }
            });
        }
    }

    /// Ends a session, and those with servers that belong to it.
    pub(super) fn end(&self, held: &Arc<McpSession>) {
        self.backend.state.sessions.end(held);
        for (name, opened) in held.connected() {
            let Some(server) = self.backend.server(&name) else { continue };
            let link = self.link(server, held);
            tokio::spawn(async move { link.end(&opened).await });
        }
    }

    pub(super) fn link(&self, server: &Arc<McpServer>, held: &Arc<McpSession>) -> Link {
        Link {
            server: server.clone(),
            caller: held.clone(),
            connector: self.proxy.connector.clone(),
            most: self.backend.max_answer,
        }
    }

    /// Answers with a list of everything that is offered.
    async fn list(&self, asked: &mut Asked<'_>, message: &Value, kind: Kind) -> pingora::Result<()> {
        let from = match message.pointer("/params/cursor") {
            None | Some(Value::Null) => 0,
            Some(cursor) => match cursor.as_str().and_then(from_cursor) {
                Some(from) => from,
                None => {
                    let error = RpcError::new(message::INVALID_PARAMS, "this cursor was not given out");
                    return asked.refuse(&error).await;
                }
            },
        };
        let mut items: Vec<Value> = match kind {
            Kind::Tools => self.backend.tools.values().map(|tool| tool.listed.clone()).collect(),
            _ => Vec::new(),
        };
        let lists = self.lists(asked, kind).await?;
        for (server, list) in self.backend.servers.iter().zip(lists) {
            let Some(list) = list else { continue };
            items.extend(list.items.iter().filter_map(|item| prefixed(server, kind, item)));
        }
        if kind == Kind::Tools {
            items.retain(|tool| tool["name"].as_str().is_some_and(|name| self.may_see(asked.session, asked.ctx, name)));
        }
        let next = (items.len() > from + PAGE).then(|| to_cursor(from + PAGE));
        let page: Vec<Value> = items.into_iter().skip(from).take(PAGE).collect();
        let mut result = json!({ kind.member(): page });
        if let Some(next) = next {
            result["nextCursor"] = next.into();
        }
        asked.answer(result).await
    }
}

/// An entry of a server's list as callers see it; `None` if it is not offered.
fn prefixed(server: &McpServer, kind: Kind, item: &Value) -> Option<Value> {
    let mut item = item.clone();
    if matches!(kind, Kind::Tools | Kind::Prompts) {
        let name = item.get("name")?.as_str()?;
        if kind == Kind::Tools && !server.offers(name) {
            return None;
        }
        item["name"] = format!("{}{name}", server.prefix).into();
    }
    Some(item)
}

fn to_cursor(from: usize) -> String {
    URL_SAFE_NO_PAD.encode(from.to_string())
}

fn from_cursor(cursor: &str) -> Option<usize> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?.parse().ok()
}

/// A request under way, until it is not.
struct Entered<'e> {
    session: &'e McpSession,
    id: &'e Value,
    cancelled: Arc<Notify>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.session.leave(self.id, &self.cancelled);
    }
}
