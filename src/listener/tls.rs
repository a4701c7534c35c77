//! TLS of a listener: certificates by server name, client certificates, and what a handshake agreed on.
//!
//! It is compiled as a whole from files and then never changes; a reload compiles another one.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pingora::protocols::tls::SslDigest;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, RootCertStore, ServerConfig, ServerConnection};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::Problems;
use crate::config::listener as config;
use crate::identity::certificate::ClientCertificate;

/// The compiled TLS of a listener.
pub struct Tls {
    pub(super) server: Arc<ServerConfig>,
    pub(super) names: Arc<Names>,
    certificates: Vec<CertificateInfo>,
    /// Of everything it was compiled from. An unchanged one is kept on reload, and with it the session tickets.
    fingerprint: u64,
}

/// The files a listener is made of; when one changes, it is time for a reload.
pub fn files(written: &config::Listener) -> Vec<&str> {
    let Some(tls) = &written.tls else { return Vec::new() };
    let certificates = tls.certificates.iter().flat_map(|c| [c.cert.as_str(), c.key.as_str()]);
    certificates.chain(tls.client_certificates.as_ref().map(|c| c.ca.as_str())).collect()
}

/// What is shown of a certificate in metrics and status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The file it came from.
    pub file: String,
    pub hosts: Vec<String>,
    pub not_after: SystemTime,
}

/// What the handshake of one connection agreed on.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    pub cipher: &'static str,
    /// The name the client asked for, in lower case.
    pub server_name: Option<Box<str>>,
    /// The certificate the client proved to own.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    names: Arc<Names>,
}

/// Which certificates answer to which name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The certificates of each name, several if their keys differ in kind. Wildcards stand under `*.rest`.
    by_name: HashMap<Box<str>, Vec<usize>, foldhash::fast::RandomState>,
    keys: Vec<Arc<CertifiedKey>>,
}

impl Names {
    /// The certificates for a lower-case host name: exact, then wildcard of one label (RFC 6125, section 6.4.3), then
    /// the first of the listener.
    fn find(&self, host: &str) -> &[usize] {
        const FIRST: &[usize] = &[0];
        if let Some(found) = self.by_name.get(host) {
            return found;
        }
        let Some((label, rest)) = host.split_once('.') else { return FIRST };
        if label.is_empty() || self.by_name.is_empty() {
            return FIRST;
        }
        // A host name has at most 253 bytes; longer ones match nothing.
        let mut wildcard = [0u8; 256];
        let Some(place) = wildcard.get_mut(..rest.len() + 2) else { return FIRST };
        place[..2].copy_from_slice(b"*.");
        place[2..].copy_from_slice(rest.as_bytes());
        let wildcard = std::str::from_utf8(place).unwrap_or_default();
        self.by_name.get(wildcard).map_or(FIRST, |found| found)
    }
}

#[derive(Debug)]
struct Resolver(Arc<Names>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls gives the name in lower case.
        let candidates = self.0.find(hello.server_name().unwrap_or(""));
        let fitting =
            candidates.iter().find(|i| self.0.keys[**i].key.choose_scheme(hello.signature_schemes()).is_some());
        fitting.or(candidates.first()).and_then(|i| self.0.keys.get(*i)).cloned()
    }
}

impl TlsInfo {
    /// Whether `host` (lower case, without port) may be served on this connection: it is the name the client asked for,
    /// or one that the same certificate was chosen for. Others are answered 421 (RFC 9110, section 15.5.20).
    /// A client that named no server may ask for any host.
    pub fn serves(&self, host: &str) -> bool {
        match &self.server_name {
            None => true,
            Some(name) => **name == *host || self.names.find(name) == self.names.find(host),
        }
    }

    pub(super) fn of(connection: &ServerConnection, names: Arc<Names>) -> TlsInfo {
        TlsInfo {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: connection.negotiated_cipher_suite().and_then(|s| s.suite().as_str()).unwrap_or(""),
            server_name: connection.server_name().map(Into::into),
            client_certificate: connection
                .peer_certificates()
                .and_then(|c| c.first())
                .and_then(|der| ClientCertificate::read(der))
                .map(Arc::new),
            names,
        }
    }

    pub(super) fn digest(&self) -> SslDigest {
        let client = self.client_certificate.as_ref();
        SslDigest::new(
            self.cipher,
            self.version,
            client.and_then(|c| c.organization.clone()),
            client.map(|c| c.serial.clone()),
            client.map(|c| c.fingerprint.to_vec()).unwrap_or_default(),
        )
    }
}

impl Tls {
    /// Compiles TLS from the files the configuration names. Every unreadable, mismatched or expired certificate is a
    /// problem with its place. `previous` is returned again if nothing changed.
    pub(super) fn compile(
        written: &config::Tls,
        protocols: &[config::Protocol],
        path: &str,
        previous: Option<&Arc<Tls>>,
        problems: &mut Problems,
    ) -> Option<Arc<Tls>> {
        let before = problems.0.len();
        let mut fingerprint = DefaultHasher::new();
        format!("{written:?} {protocols:?}").hash(&mut fingerprint);

        if written.certificates.is_empty() {
            problems.add(format!("{path}.certificates"), "TLS needs at least one certificate");
        }
        let mut files = Vec::with_capacity(written.certificates.len());
        for (i, certificate) in written.certificates.iter().enumerate() {
            let path = format!("{path}.certificates[{i}]");
            let cert = read(&certificate.cert, &format!("{path}.cert"), problems);
            let key = read(&certificate.key, &format!("{path}.key"), problems);
            if let (Some(cert), Some(key)) = (cert, key) {
                (&cert, &key).hash(&mut fingerprint);
                files.push((certificate, path, cert, key));
            }
        }
        let authorities = written.client_certificates.as_ref().and_then(|client| {
            let path = format!("{path}.client_certificates.ca");
            let pem = read(&client.ca, &path, problems)?;
            pem.hash(&mut fingerprint);
            Some((client, path, pem))
        });
        if problems.0.len() > before {
            return None;
        }
        let fingerprint = fingerprint.finish();
        if let Some(same) = previous.filter(|p| p.fingerprint == fingerprint) {
            // What has expired since is still a problem, but of the certificate, not of this configuration.
            return Some(same.clone());
        }

        let provider = Arc::new(provider::default_provider());
        let mut names = Names::default();
        let mut certificates = Vec::with_capacity(files.len());
        for (certificate, path, cert, key) in &files {
            if let Some((key, info)) = load(certificate, cert, key, path, &provider, problems) {
                names.add(key, &info.hosts);
                certificates.push(info);
            }
        }
        let mut roots = RootCertStore::empty();
        if let Some((_, path, pem)) = &authorities {
            add_authorities(&mut roots, pem, path, problems);
        }
        if problems.0.len() > before {
            return None;
        }

        let names = Arc::new(names);
        let mode = authorities.map(|(client, ..)| client.mode);
        match server_config(provider, names.clone(), mode.map(|mode| (roots, mode)), protocols) {
            Ok(server) => Some(Arc::new(Tls { server: Arc::new(server), names, certificates, fingerprint })),
            Err(e) => {
                problems.add(path, format!("TLS cannot be set up: {e}"));
                None
            }
        }
    }

    pub fn certificates(&self) -> &[CertificateInfo] {
        &self.certificates
    }
}

impl Names {
    fn add(&mut self, key: CertifiedKey, hosts: &[String]) {
        let index = self.keys.len();
        self.keys.push(Arc::new(key));
        for host in hosts {
            self.by_name.entry(host.as_str().into()).or_default().push(index);
        }
    }
}

fn server_config(
    provider: Arc<CryptoProvider>,
    names: Arc<Names>,
    clients: Option<(RootCertStore, config::ClientCertificateMode)>,
    protocols: &[config::Protocol],
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((roots, mode)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(match mode {
                config::ClientCertificateMode::Required => verifier.build()?,
                config::ClientCertificateMode::Optional => verifier.allow_unauthenticated().build()?,
            })
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(Resolver(names)));
    // Resumption by tickets under a key that rotates every six hours and never leaves the process.
    server.ticketer = provider::Ticketer::new()?;
    for protocol in protocols {
        match protocol {
            config::Protocol::Http2 => server.alpn_protocols.insert(0, b"h2".to_vec()),
            config::Protocol::Http1 => server.alpn_protocols.push(b"http/1.1".to_vec()),
            config::Protocol::H2c => {}
        }
    }
    Ok(server)
}

fn read(file: &str, path: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    fs::read(file).map_err(|e| problems.add(path, format!("cannot read `{file}`: {e}"))).ok()
}

/// Makes one certificate ready for use.
fn load(
    written: &config::Certificate,
    cert: &[u8],
    key: &[u8],
    path: &str,
    provider: &CryptoProvider,
    problems: &mut Problems,
) -> Option<(CertifiedKey, CertificateInfo)> {
    let mut wrong = |part: &str, message: String| problems.add(format!("{path}.{part}"), message);

    let chain = match CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => chain,
        Ok(_) => {
            wrong("cert", format!("`{}` contains no certificate in PEM form", written.cert));
            return None;
        }
        Err(e) => {
            wrong("cert", format!("`{}` is not a PEM file: {e}", written.cert));
            return None;
        }
    };
    let key = match PrivateKeyDer::from_pem_slice(key) {
        Ok(key) => key,
        Err(e) => {
            wrong("key", format!("`{}` contains no private key in PEM form: {e}", written.key));
            return None;
        }
    };
    let (hosts, not_after) = match X509Certificate::from_der(&chain[0]) {
        Ok((_, leaf)) => (dns_names(&leaf), leaf.validity().not_after.timestamp()),
        Err(e) => {
            wrong("cert", format!("`{}` is not a certificate: {e}", written.cert));
            return None;
        }
    };
    let not_after = UNIX_EPOCH + Duration::from_secs(not_after.try_into().unwrap_or(0));
    if not_after < SystemTime::now() {
        wrong("cert", format!("the certificate in `{}` has expired", written.cert));
    }
    let key = match CertifiedKey::from_der(chain, key, provider) {
        Ok(key) => key,
        Err(rustls::Error::InconsistentKeys(_)) => {
            wrong(
                "key",
                format!("the key in `{}` does not belong to the certificate in `{}`", written.key, written.cert),
            );
            return None;
        }
        Err(e) => {
            wrong("key", format!("`{}` cannot be used: {e}", written.key));
            return None;
        }
    };
    let hosts = match &written.hosts {
        None => hosts,
        Some(hosts) => {
            for (i, host) in hosts.iter().enumerate() {
                let name = host.strip_prefix("*.").unwrap_or(host);
                if name.is_empty() || name.contains(['*', ':', '/', ' ']) {
                    wrong(&format!("hosts[{i}]"), format!("`{host}` is neither a host name nor `*.` and a host name"));
                }
            }
            hosts.iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect()
        }
    };
    Some((key, CertificateInfo { file: written.cert.clone(), hosts, not_after }))
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn add_authorities(roots: &mut RootCertStore, pem: &[u8], path: &str, problems: &mut Problems) {
    let before = problems.0.len();
    for authority in CertificateDer::pem_slice_iter(pem) {
        if let Err(e) = authority.map_err(|e| e.to_string()).and_then(|a| roots.add(a).map_err(|e| e.to_string())) {
            problems.add(path, format!("an authority cannot be used: {e}"));
        }
    }
    if roots.is_empty() && problems.0.len() == before {
        problems.add(path, "the file contains no certificate in PEM form");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lists: &[&[&str]]) -> Arc<Names> {
        let mut names = Names::default();
        for (index, hosts) in lists.iter().enumerate() {
            for host in *hosts {
                names.by_name.entry((*host).into()).or_default().push(index);
            }
        }
        Arc::new(names)
    }

    #[test]
    fn certificates_are_chosen_exact_then_wildcard_then_first() {
        let names = names(&[&["default.test"], &["*.example.com"], &["api.example.com"], &["*.eu.example.com"]]);
        for (host, certificate) in [
            ("default.test", 0),
            ("api.example.com", 2),
            ("www.example.com", 1),
            ("example.com", 0),
            ("a.b.example.com", 0),
            ("a.eu.example.com", 3),
            ("eu.example.com", 1),
            (".example.com", 0),
            ("", 0),
            ("localhost", 0),
        ] {
            assert_eq!(names.find(host), [certificate], "{host}");
        }
        assert_eq!(names.find(&format!("{}.example.com", "a".repeat(300))), [1]);
        assert_eq!(names.find(&format!("a.{}.com", "b".repeat(300))), [0], "too long to be a name");
    }

    #[test]
    fn a_host_of_another_certificate_is_misdirected() {
        let names = names(&[&["default.test"], &["*.example.com", "example.com"], &["api.example.com"]]);
        let on = |server_name: Option<&str>| TlsInfo {
            version: "TLSv1.3",
            cipher: "",
            server_name: server_name.map(Into::into),
            client_certificate: None,
            names: names.clone(),
        };
        assert!(on(Some("www.example.com")).serves("www.example.com"));
        assert!(on(Some("www.example.com")).serves("example.com"), "coalesced under one certificate");
        assert!(!on(Some("www.example.com")).serves("api.example.com"));
        assert!(!on(Some("api.example.com")).serves("www.example.com"));
        assert!(!on(Some("www.example.com")).serves("other.test"));
        assert!(on(Some("unknown.test")).serves("other.test"), "both have the default certificate");
        assert!(on(None).serves("www.example.com"));
    }
}
