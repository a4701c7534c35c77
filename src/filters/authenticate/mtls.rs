//! Identifies callers by the client certificate that their connection was made with.

use std::sync::Arc;

use http::HeaderValue;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Authenticator, Verdict};
use crate::filters::filter::{Compiled, Request};
use crate::filters::registry::{FilterKind, Site};
use crate::filters::stage::Stage;
use crate::identity::{Directory, Identity, certificate};

/// Identifies the consumer by the certificate of the connection, which the listener has verified against its
/// `client_certificates`. A fingerprint goes before an alternative name, and that before a subject. Nothing of it is read
/// from headers; what the origin is to know of it goes into `identity.headers`, as in
/// `x-client-subject: "${client.certificate.subject}"`.
///
/// ```yaml
/// mtls: {}
/// ```
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether a certificate that belongs to no consumer is good enough: the caller is authenticated then, without a
    /// consumer. Default: it is refused.
    pub accept_unknown: bool,
}

pub struct Mtls {
    accept_unknown: bool,
    directory: Arc<Directory>,
}

impl FilterKind for Mtls {
    const NAME: &'static str = certificate::KIND;
    const STAGE: Stage = Stage::Authenticate;
    type Config = Config;

    fn compile(config: Config, at: &mut Site<'_>) -> Option<Compiled> {
        let directory = at.directory.clone();
        Some(Compiled::authenticator(Mtls { accept_unknown: config.accept_unknown, directory }))
    }
}

impl Authenticator for Mtls {
    fn authenticate(&self, request: &mut Request<'_>) -> Verdict {
        let Some(certificate) = &request.exchange.certificate else { return Verdict::Absent };
        let consumer = self.directory.certificate(certificate).cloned();
        if consumer.is_none() && !self.accept_unknown {
            return Verdict::Invalid("the client certificate belongs to no consumer");
        }
        Verdict::Identified(Identity { consumer, credential: certificate.credential(), ..Identity::default() })
    }

    /// It is a part of the connection, which ends here.
    fn strip(&self, _: &mut RequestHeader) {}

    /// No scheme of RFC 9110 asks for a certificate.
    fn challenge(&self) -> Option<HeaderValue> {
        None
    }
}
