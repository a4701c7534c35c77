//! What other servers answer: to whom a request goes, and what is passed on of what they say.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Exchange;
use super::request::Asked;
use super::server::{Answering, Trouble};
use crate::ai::mcp::events::Event;
use crate::ai::mcp::message::{self, Message, RpcError, classify, of_server};
use crate::proxy::context::Context;
use crate::snapshot::mcp::{Kind, List, McpServer};

/// What one message of a server is to the caller.
pub enum Passed {
    /// Sent on, in between.
    Event(Value),
    /// The answer that is waited for.
    Answer(Value),
    /// Nothing that a caller could use.
    Nothing,
}

/// Translates a message of a server; `waited` is the id of the request that it may answer.
pub fn pass_on(server: &McpServer, waited: Option<&Value>, mut message: Value) -> Passed {
    match classify(&message) {
        Ok(Message::Response { id }) if Some(&id) == waited => Passed::Answer(message),
        Ok(Message::Response { .. }) | Err(_) => Passed::Nothing,
        Ok(Message::Notification { method }) => {
            match method.as_str() {
                "notifications/tools/list_changed" => server.lists.forget("tools"),
                "notifications/prompts/list_changed" => server.lists.forget("prompts"),
                "notifications/resources/list_changed" => server.lists.forget("resources"),
                _ => {}
            }
            Passed::Event(message)
        }
        Ok(Message::Request { id, .. }) => {
            message["id"] = of_server(&server.name, &id).into();
            if let Some(token) = message.pointer_mut("/params/_meta/progressToken") {
                *token = of_server(&server.name, token).into();
            }
            Passed::Event(message)
        }
    }
}

/// An event as callers see it: its id leads back to the server that gave it.
pub fn event_of(server: &McpServer, id: Option<&str>, retry: Option<u64>, message: Option<&Value>) -> Event {
    Event {
        id: id.map(|id| format!("{}:{id}", server.name)),
        data: message.map(|message| message.to_string().into_bytes()).unwrap_or_default(),
        retry,
    }
}

impl Exchange<'_> {
    /// What each server lists; `None` of one that cannot be asked, and has not been before.
    pub(super) async fn lists(&self, asked: &mut Asked<'_>, kind: Kind) -> pingora::Result<Vec<Option<Arc<List>>>> {
        let servers = &self.backend.servers;
        // Most times everything is known.
        let known: Vec<_> = servers.iter().map(|server| server.lists.get(kind, server.cache)).collect();
        if known.iter().all(Option::is_some) {
            return Ok(known);
        }
        let lists = servers.iter().map(|server| {
            let link = self.link(server, asked.held);
            async move {
                match link.list(kind).await {
                    Ok(list) => Some(list),
                    Err(trouble) => {
                        log::warn!("{}: {}", kind.method(), trouble.message(&link.server));
                        // What it had before is more likely to be right than nothing.
                        link.server.lists.last(kind)
                    }
                }
            }
        });
        asked.wait(futures_util::future::join_all(lists)).await
    }

    /// The server that a tool belongs to, by the name that callers know.
    pub(super) async fn server_of_tool(
        &self,
        asked: &mut Asked<'_>,
        name: &str,
    ) -> pingora::Result<Option<Arc<McpServer>>> {
        self.server_of_name(asked, name, Kind::Tools).await
    }

    async fn server_of_name(
        &self,
        asked: &mut Asked<'_>,
        name: &str,
        kind: Kind,
    ) -> pingora::Result<Option<Arc<McpServer>>> {
        let fits = |server: &McpServer| name.starts_with(&*server.prefix);
        if !self.backend.servers.iter().any(|server| fits(server)) {
            return Ok(None);
        }
        let lists = self.lists(asked, kind).await?;
        let mut candidates: Vec<_> =
            self.backend.servers.iter().zip(lists).filter(|(server, _)| fits(server)).collect();
        // The longest prefix first: what fits it was more likely meant.
        candidates.sort_by_key(|(server, _)| std::cmp::Reverse(server.prefix.len()));
        let found = candidates.into_iter().find(|(server, list)| {
            let theirs = name.strip_prefix(&*server.prefix).unwrap_or(name);
            let listed = list.as_ref().is_some_and(|list| list.items.iter().any(|item| item["name"] == theirs));
            listed && (kind != Kind::Tools || server.offers(theirs))
        });
        Ok(found.map(|(server, _)| server.clone()))
    }

    pub(super) async fn get_prompt(&self, asked: &mut Asked<'_>, mut message: Value) -> pingora::Result<()> {
        let name = message.pointer("/params/name").and_then(Value::as_str).unwrap_or("").to_owned();
        let found = self.server_of_name(asked, &name, Kind::Prompts).await?;
        let Some(server) = found else {
            let error = RpcError::new(message::INVALID_PARAMS, "there is no such prompt");
            return asked.refuse(&error).await;
        };
        note(asked.ctx, &name, &server);
        if let Some(place) = message.pointer_mut("/params/name") {
            *place = name.strip_prefix(&*server.prefix).unwrap_or(&name).into();
        }
        Box::pin(self.relay(asked, &server, &message)).await
    }

    /// Reads a resource, or watches it.
    pub(super) async fn use_resource(&self, asked: &mut Asked<'_>, message: Value) -> pingora::Result<()> {
        let uri = message.pointer("/params/uri").and_then(Value::as_str).unwrap_or("").to_owned();
        let lists = self.lists(asked, Kind::Resources).await?;
        let listed = self.backend.servers.iter().zip(&lists).find(|(_, list)| {
            list.as_ref().is_some_and(|list| list.items.iter().any(|item| item["uri"] == uri.as_str()))
        });
        let found = match listed {
            Some((server, _)) => Some(server.clone()),
            None => {
                let lists = self.lists(asked, Kind::Templates).await?;
                let fitting = self.backend.servers.iter().zip(&lists).find(|(_, list)| {
                    let fits =
                        |item: &Value| item["uriTemplate"].as_str().is_some_and(|template| may_be_of(template, &uri));
                    list.as_ref().is_some_and(|list| list.items.iter().any(fits))
                });
                fitting.map(|(server, _)| server.clone())
            }
        };
        let Some(server) = found else {
            let mut error = RpcError::new(message::RESOURCE_NOT_FOUND, "Resource not found");
            error.data = Some(json!({ "uri": uri.chars().take(1024).collect::<String>() }));
            return asked.refuse(&error).await;
        };
        note(asked.ctx, &uri, &server);
        Box::pin(self.relay(asked, &server, &message)).await
    }

    /// Completes an argument of a prompt or of a template.
    pub(super) async fn complete(&self, asked: &mut Asked<'_>, mut message: Value) -> pingora::Result<()> {
        let text = |key: &str| message.pointer(key).and_then(Value::as_str).map(str::to_owned);
        let found = match (text("/params/ref/name"), text("/params/ref/uri")) {
            (Some(name), _) => {
                let found = self.server_of_name(asked, &name, Kind::Prompts).await?;
                if let (Some(server), Some(place)) = (&found, message.pointer_mut("/params/ref/name")) {
                    *place = name.strip_prefix(&*server.prefix).unwrap_or(&name).into();
                }
                found
            }
            (None, Some(uri)) => {
                let lists = self.lists(asked, Kind::Templates).await?;
                let of = |list: &Option<Arc<List>>| {
                    list.as_ref().is_some_and(|list| list.items.iter().any(|item| item["uriTemplate"] == uri.as_str()))
                };
                self.backend.servers.iter().zip(&lists).find(|(_, list)| of(list)).map(|(server, _)| server.clone())
            }
            (None, None) => None,
        };
        let Some(server) = found else {
            let error = RpcError::new(message::INVALID_PARAMS, "there is nothing of this name to complete");
            return asked.refuse(&error).await;
        };
        Box::pin(self.relay(asked, &server, &message)).await
    }

    /// Sets what servers log, of those that log at all; those that a session is opened with later are told too.
    pub(super) async fn set_level(&self, asked: &mut Asked<'_>, message: &Value) -> pingora::Result<()> {
        const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
        let level = message.pointer("/params/level").and_then(Value::as_str).filter(|level| LEVELS.contains(level));
        let Some(level) = level else {
            let error = RpcError::new(message::INVALID_PARAMS, "`params.level` is no level");
            return asked.refuse(&error).await;
        };
        let held = asked.held;
        held.set_level(level.into());
        let telling = held.connected().into_iter().filter_map(|(name, opened)| {
            let link = self.link(self.backend.server(&name)?, held);
            opened.capabilities.get("logging")?;
            Some(async move {
                if let Err(trouble) = link.tell(&opened, message).await {
                    log::debug!("{}", trouble.message(&link.server));
                }
            })
        });
        let telling: Vec<_> = telling.collect();
        asked.wait(futures_util::future::join_all(telling)).await?;
        asked.answer(json!({})).await
    }

    /// Passes a request on to a server, and to the caller what the server says to it.
    pub(super) async fn relay(
        &self,
        asked: &mut Asked<'_>,
        server: &Arc<McpServer>,
        message: &Value,
    ) -> pingora::Result<()> {
        asked.ctx.exchange.upstream = Some(server.origin.upstream.name().clone());
        let (held, id) = (asked.held, asked.id);
        held.answered_by(id, &server.name);
        let link = self.link(server, held);
        let cancelled = held.cancelled(id);
        let mut cancelled = std::pin::pin!(cancelled);
        macro_rules! wait {
            ($work:expr) => {{
                let work = async {
                    tokio::select! {
                        biased;
                        () = cancelled.as_mut() => None,
                        done = $work => Some(done),
                    }
                };
                match asked.wait(work).await? {
                    Some(done) => done,
                    None => {
                        let error = RpcError::new(message::CANCELLED, "the request was cancelled");
                        return asked.refuse(&error).await;
                    }
                }
            }};
        }
        let mut answering: Answering = match wait!(link.send(message)) {
            Ok(answering) => answering,
            Err(trouble) => return self.trouble(asked, server, &trouble).await,
        };
        if !answering.is_stream() {
            let body = match wait!(answering.whole()) {
                Ok(body) => body,
                Err(trouble) => return self.trouble(asked, server, &trouble).await,
            };
            let answer = serde_json::from_slice(&body).ok().map(|answer| pass_on(server, Some(id), answer));
            return match answer {
                Some(Passed::Answer(answer)) => asked.finish(answer).await,
                _ => {
                    let why = format!("answered {} without a message", answering.status().as_u16());
                    self.trouble(asked, server, &Trouble::Failed(why)).await
                }
            };
        }
        let mut resumable = false;
        loop {
            let event = match wait!(answering.event()) {
                Ok(Some(event)) => event,
                // Where the stream has a name, the caller takes it up again.
                Ok(None) | Err(Trouble::Failed(_)) if resumable && asked.reply.has_begun() => {
                    return asked.reply.end(asked.session).await;
                }
                Ok(None) => {
                    let why = Trouble::Failed("ended its stream without an answer".to_owned());
                    return self.trouble(asked, server, &why).await;
                }
                Err(trouble) => return self.trouble(asked, server, &trouble).await,
            };
            resumable |= event.id.is_some();
            let message = serde_json::from_slice::<Value>(&event.data).ok();
            let said = match message.map(|message| pass_on(server, Some(id), message)) {
                Some(Passed::Answer(answer)) => {
                    let id = event_of(server, event.id.as_deref(), None, None).id;
                    return asked.reply.finish_as(asked.session, asked.ctx, answer, id).await;
                }
                Some(Passed::Event(message)) => event_of(server, event.id.as_deref(), event.retry, Some(&message)),
                // It says where the stream stands, or how long to wait.
                Some(Passed::Nothing) | None if event.id.is_some() || event.retry.is_some() => {
                    event_of(server, event.id.as_deref(), event.retry, None)
                }
                Some(Passed::Nothing) | None => continue,
            };
            asked.reply.event(asked.session, asked.ctx, &said).await?;
        }
    }

    async fn trouble(&self, asked: &mut Asked<'_>, server: &McpServer, trouble: &Trouble) -> pingora::Result<()> {
        let error = RpcError::new(message::INTERNAL, trouble.message(server));
        asked.refuse(&error).await
    }
}

/// Notes what is asked for, for the log.
fn note(ctx: &mut Context, name: &str, server: &McpServer) {
    if let Some(call) = &mut ctx.exchange.mcp {
        call.name = Some(name.chars().take(256).collect::<String>().into());
        call.server = Some(server.name.clone());
    }
}

/// Whether a URI may be one of a template (RFC 6570): what stands between its expressions comes in this order.
fn may_be_of(template: &str, uri: &str) -> bool {
    let mut pattern = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        pattern += text;
        pattern.push('*');
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    pattern += rest;
    crate::ai::mcp::pattern::matches(&pattern, uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_of_the_template_that_it_fits() {
        assert!(may_be_of("test://template/{id}/data", "test://template/123/data"));
        assert!(may_be_of("file:///{+path}", "file:///a/b"));
        assert!(!may_be_of("test://template/{id}/data", "test://template/123"));
        assert!(!may_be_of("test://other/{id}", "test://template/123"));
    }
}
