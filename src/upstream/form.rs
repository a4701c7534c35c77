//! Puts a request header that the gateway sends by itself into the form that the protocol of its session wants.

use http::{HeaderName, HeaderValue, Uri, Version, header};
use pingora::http::RequestHeader;

/// Fields that belong to the connection the request came by (RFC 9110, section 7.6.1), or to its framing.
const CONNECTION_FIELDS: [HeaderName; 11] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the gateway says of the request itself; a client that nominates it in `Connection` wants it unsaid.
const NOT_TO_BE_NOMINATED: [&str; 5] =
    ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"];

/// Leaves only what is meant for the origin: drops the connection's fields, the nominated ones, and the framing.
pub fn drop_connection_fields(head: &mut RequestHeader) {
    let nominated: Vec<HeaderName> = (head.headers.get_all(header::CONNECTION).iter())
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| !NOT_TO_BE_NOMINATED.contains(&name.as_str()))
        .collect();
    for name in nominated.iter().chain(&CONNECTION_FIELDS) {
        head.remove_header(name);
    }
}

/// Puts a request that the gateway has made into the form of its session's protocol.
pub fn request_form(request: &mut RequestHeader, authority: &str, http2: bool, tls: bool) -> Result<(), String> {
    match http2 {
        true => for_http2(request, authority, tls),
        false => for_http1(request, authority),
    }
}

/// Origin form and a `Host` field.
pub(super) fn for_http1(request: &mut RequestHeader, authority: &str) -> Result<(), String> {
    request.set_version(Version::HTTP_11);
    if request.uri.authority().is_some() {
        let path = request.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        request.set_uri(path.parse().map_err(|e| format!("bad path: {e}"))?);
    }
    let host = HeaderValue::from_str(authority).map_err(|e| format!("bad host: {e}"))?;
    request.insert_header(header::HOST, host).map_err(|e| e.to_string())
}

/// `:authority` in place of `Host`, and the true `:scheme`: left to itself Pingora writes `https` also without TLS,
/// which strict servers refuse.
pub(super) fn for_http2(request: &mut RequestHeader, authority: &str, tls: bool) -> Result<(), String> {
    request.set_version(Version::HTTP_2);
    let scheme = if tls { "https" } else { "http" };
    let path = request.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    request.set_uri(uri.map_err(|e| format!("bad host or path: {e}"))?);
    request.remove_header(&header::HOST);
    Ok(())
}
