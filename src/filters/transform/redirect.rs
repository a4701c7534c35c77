//! Sends clients elsewhere.

use http::header::LOCATION;
use http::{HeaderValue, StatusCode};

use crate::config::backend::{self as written, Redirect as Config};
use crate::error::{Error, Reason};
use crate::filters::filter::{Answer, Compiled, Flow, OnRequest, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::telemetry::exchange::Scheme;
use crate::variables::{Scope, Template};

enum Destination {
    Whole(Template),
    Parts { scheme: Option<Scheme>, host: Option<String>, port: Option<u16>, path: Option<Template> },
}

pub struct Redirect {
    destination: Destination,
    status: StatusCode,
}

impl FilterKind for Redirect {
    const NAME: &'static str = "redirect";
    /// Before authentication: nobody should have to present credentials to learn that the address has moved, least of
    /// all over plain HTTP.
    const STAGE: Stage = Stage::Guard;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let (path, problems) = (at.path, &mut *at.problems);
        let before = problems.0.len();
        let mut template = |text: &Option<String>, word: &str| {
            let text = text.as_ref()?;
            Template::parse(text).map_err(|error| problems.add(format!("{path}.{word}"), error)).ok()
        };
        let to = template(&config.to, "to");
        let new_path = template(&config.path, "path");
        let scheme = config.scheme.map(|scheme| match scheme {
            written::Scheme::Http => Scheme::Http,
            written::Scheme::Https => Scheme::Https,
        });
        let parts = scheme.is_some() || config.host.is_some() || config.port.is_some() || config.path.is_some();
        if config.to.is_some() == parts {
            problems.add(path, "write either `to`, or one or more of `scheme`, `host`, `port` and `path`");
        }
        let status = match config.status.get() {
            301 => StatusCode::MOVED_PERMANENTLY,
            302 => StatusCode::FOUND,
            303 => StatusCode::SEE_OTHER,
            307 => StatusCode::TEMPORARY_REDIRECT,
            _ => StatusCode::PERMANENT_REDIRECT,
        };
        let destination = match to {
            Some(template) => Destination::Whole(template),
            None => Destination::Parts { scheme, host: config.host, port: config.port, path: new_path },
        };
        (problems.0.len() == before).then(|| Compiled::on_request(Redirect { destination, status }))
    }
}

impl OnRequest for Redirect {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let exchange = &*request.exchange;
        let scope = Scope { exchange, request: request.head, response: None };
        let location = match &self.destination {
            Destination::Whole(template) => {
                let mut location = String::new();
                template.render(&scope, &mut location);
                location
            }
            Destination::Parts { scheme, host, port, path } => {
                let new_scheme = scheme.unwrap_or(exchange.scheme);
                let new_host = host.as_deref().unwrap_or(&exchange.host);
                let new_port = port.unwrap_or(match new_scheme == exchange.scheme {
                    true => exchange.port,
                    false => new_scheme.default_port(),
                });
                let unmoved = new_scheme == exchange.scheme && new_host == exchange.host && new_port == exchange.port;
                if unmoved && path.is_none() {
                    return Flow::Continue;
                }
                let mut new_path = String::new();
                match path {
                    Some(template) => template.render(&scope, &mut new_path),
                    None => new_path.push_str(request.head.uri.path()),
                }
                if unmoved && new_path == request.head.uri.path() {
                    return Flow::Continue;
                }
                let mut location = format!("{}://{new_host}", new_scheme.as_str());
                if new_port != new_scheme.default_port() {
                    location.push_str(&format!(":{new_port}"));
                }
                location.push_str(&new_path);
                if let Some(query) = request.head.uri.query() {
                    location.push('?');
                    location.push_str(query);
                }
                location
            }
        };
        match HeaderValue::try_from(location) {
            Ok(location) => Flow::Answer(Answer {
                status: self.status,
                headers: vec![(LOCATION, location)],
                body: Default::default(),
            }),
            Err(_) => Flow::Refuse(Error::new(Reason::BadRequest)),
        }
    }
}
