//! Answers without asking any origin.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use crate::config::backend::Respond as Config;
use crate::filters::filter::{Answer, Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::telemetry::escape;
use crate::variables::{Scope, Template};

enum Body {
    Fixed(Bytes),
    /// With what makes a value from the request safe in this kind of document.
    Rendered(Template, Option<fn(&[u8], &mut String)>),
}

pub struct Respond {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Body,
}

impl FilterKind for Respond {
    const NAME: &'static str = "respond";
    const STAGE: Stage = Stage::Transform;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        if !(200..600).contains(&config.status) {
            problems.add(format!("{path}.status"), "the status of a final answer lies between 200 and 599");
        }
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => headers.push((name, value)),
                _ => problems.add(format!("{path}.headers.{name}"), "HTTP does not allow this header name or value"),
            }
        }
        let typed = headers.iter().find(|(name, _)| name == CONTENT_TYPE).map(|(_, value)| value.clone());
        let typed = typed.or_else(|| {
            let default = match (&config.body, &config.json) {
                (_, Some(_)) => HeaderValue::from_static("application/json"),
                (Some(_), None) => HeaderValue::from_static("text/plain; charset=utf-8"),
                (None, None) => return None,
            };
            headers.push((CONTENT_TYPE, default.clone()));
            Some(default)
        });
        let media = typed.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let escape = match media.split(';').next().unwrap_or_default().trim() {
            json if json.ends_with("json") => Some(escape::json as fn(&[u8], &mut String)),
            "text/html" | "application/xhtml+xml" | "application/xml" | "text/xml" => Some(escape::html as _),
            _ => None,
        };
        let text = match (&config.body, &config.json) {
            (Some(_), Some(_)) => {
                problems.add(path, "write either `body` or `json`");
                return None;
            }
            (Some(text), None) => text.clone(),
            (None, Some(json)) => json.to_string(),
            (None, None) => String::new(),
        };
        let body = match Template::parse(&text) {
            Ok(template) => match template.as_static() {
                Some(text) => Body::Fixed(Bytes::copy_from_slice(text.as_bytes())),
                None => Body::Rendered(template, escape),
            },
            Err(error) => {
                problems.add(format!("{path}.body"), error);
                return None;
            }
        };
        let status = StatusCode::from_u16(config.status).ok()?;
        (problems.0.len() == before).then(|| Compiled::on_request(Respond { status, headers, body }))
    }
}

impl OnRequest for Respond {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let body = match &self.body {
            Body::Fixed(bytes) => bytes.clone(),
            Body::Rendered(template, escape) => {
                let scope = Scope { exchange: request.exchange, request: request.head, response: None };
                let mut text = String::new();
                match escape {
                    Some(escape) => template.render_escaped(&scope, *escape, &mut text),
                    None => template.render(&scope, &mut text),
                }
                text.into()
            }
        };
        Flow::Answer(Answer { status: self.status, headers: self.headers.clone(), body })
    }
}
