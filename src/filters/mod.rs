//! The filters: one policy each on the way of a request.
//!
//! [`filter`] is the seam they are written against, [`registry`] how a written one is found, [`chain`] which of them a
//! route runs and in which order, [`callers`] those that come with who calls. `access/ip_restriction.rs` is the one to read first, and to copy for a new one.

pub mod access;
pub mod authenticate;
pub mod authorise;
pub mod callers;
pub mod chain;
pub mod expression;
pub mod filter;
pub mod lasting;
pub mod limit;
pub mod registry;
pub mod stage;
pub mod traffic;
pub mod transform;

use registry::Definition;

/// Every filter, in the order the reference lists them. Adding one is one line here.
pub const REGISTRY: &[Definition] = &[
    Definition::of::<access::ip_restriction::IpRestriction>(),
    Definition::of::<access::cors::Cors>(),
    Definition::of::<authenticate::api_key::ApiKey>(),
    Definition::of::<limit::shield::Shield>(),
    Definition::of::<limit::rate_limit::RateLimit>(),
    Definition::of::<limit::quota::Quota>(),
    Definition::of::<authenticate::ext_auth::ExtAuth>(),
    Definition::of::<authorise::acl::Acl>(),
    Definition::of::<authenticate::basic_auth::BasicAuth>(),
    Definition::of::<authenticate::hmac::Hmac>(),
    Definition::of::<authenticate::mtls::Mtls>(),
    Definition::of::<authenticate::anonymous::Anonymous>(),
    Definition::of::<authenticate::jwt::Jwt>(),
    Definition::of::<limit::concurrency::Concurrency>(),
    Definition::of::<limit::bandwidth::Bandwidth>(),
    Definition::of::<authenticate::introspection::Introspection>(),
    Definition::of::<authenticate::oidc::Oidc>(),
    Definition::of::<traffic::body_limit::BodyLimit>(),
    Definition::of::<traffic::timeout::Timeout>(),
    Definition::of::<traffic::fault::Fault>(),
    Definition::of::<transform::headers::Headers>(),
    Definition::of::<transform::rewrite::Rewrite>(),
    Definition::of::<transform::compression::Compression>(),
    Definition::of::<transform::grpc_web::GrpcWeb>(),
    Definition::of::<transform::redirect::Redirect>(),
    Definition::of::<transform::respond::Respond>(),
];

pub fn find(name: &str) -> Option<&'static Definition> {
    REGISTRY.iter().find(|definition| definition.name == name)
}
