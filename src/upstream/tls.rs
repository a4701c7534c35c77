//! TLS towards targets: certificate files in the form that Pingora's connector wants.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pingora::utils::tls::{CertKey, WrappedX509};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Problems;
use crate::config::upstream::Tls as Config;

/// What all targets of an upstream share of TLS.
#[derive(Debug, Default)]
pub(super) struct Tls {
    pub(super) verify: bool,
    pub(super) sni: Option<String>,
    pub(super) ca: Option<Arc<[WrappedX509]>>,
    pub(super) client: Option<Arc<CertKey>>,
    /// Everything above in bytes: connections made under other settings are not reused.
    pub(super) fingerprint: Vec<u8>,
}

impl Tls {
    pub(super) fn load(config: &Config, folder: &Path, path: &str, problems: &mut Problems) -> Self {
        let mut tls = Tls { verify: config.verify, ..Tls::default() };
        tls.sni = config
            .sni
            .as_ref()
            .filter(|sni| {
                let valid = server_name(sni);
                if !valid {
                    // Pingora takes an empty name as leave not to verify at all.
                    problems.add(format!("{path}.sni"), format!("`{sni}` is not a host name or IP address"));
                }
                valid
            })
            .cloned();
        tls.fingerprint = vec![u8::from(config.verify)];
        if let Some(file) = &config.ca {
            let path = format!("{path}.ca");
            let authorities = certificates(&folder.join(file), &path, problems);
            tls.note(authorities.iter().map(Vec::as_slice));
            // The connector would find out on the first request only.
            let anchor = |der: &Vec<u8>| rustls::RootCertStore::empty().add(der.as_slice().into());
            if let Some(Err(error)) = authorities.iter().map(anchor).find(Result::is_err) {
                problems.add(&path, format!("{} holds a certificate that cannot be trusted: {error}", file.display()));
            }
            if !config.verify {
                problems.add(&path, "has no effect with `verify: false`");
            }
            tls.ca = Some(
                authorities.into_iter().map(|der| WrappedX509::new(der, pingora::utils::tls::parse_x509)).collect(),
            );
        }
        match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(&folder.join(certificate), &format!("{path}.certificate"), problems);
                let key = private_key(&folder.join(key), &format!("{path}.key"), problems);
                if let (false, Some(key)) = (chain.is_empty(), key) {
                    match belongs(&chain, &key) {
                        Ok(()) => {
                            tls.note(chain.iter().map(Vec::as_slice));
                            tls.client = Some(Arc::new(CertKey::new(chain, key)));
                        }
                        Err(error) => problems.add(format!("{path}.key"), error),
                    }
                }
            }
            (Some(_), None) => {
                problems.add(format!("{path}.certificate"), "needs `key`, the private key it belongs to")
            }
            (None, Some(_)) => problems.add(format!("{path}.key"), "needs `certificate`"),
            (None, None) => {}
        }
        tls
    }

    fn note<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        for part in parts {
            self.fingerprint.extend_from_slice(&(part.len() as u64).to_le_bytes());
            self.fingerprint.extend_from_slice(part);
        }
        self.fingerprint.push(0);
    }
}

/// What may be verified against: a DNS name or an IP address.
pub(super) fn server_name(name: &str) -> bool {
    rustls::pki_types::ServerName::try_from(name).is_ok()
}

fn read(file: &Path, path: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    match fs::read(file) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            problems.add(path, format!("cannot read {}: {error}", file.display()));
            None
        }
    }
}

/// The certificates of a PEM file; none after a problem was reported. Each is known to parse, since Pingora panics over
/// one that does not.
fn certificates(file: &Path, path: &str, problems: &mut Problems) -> Vec<Vec<u8>> {
    let Some(pem) = read(file, path, problems) else {
        return Vec::new();
    };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&pem).map(|item| item.map(|der| der.to_vec())).collect();
    match certificates {
        Ok(all) if all.is_empty() => problems.add(path, format!("{} holds no certificate", file.display())),
        Ok(all) if all.iter().any(|der| X509Certificate::from_der(der).is_err()) => {
            problems.add(path, format!("{} holds a certificate that cannot be read", file.display()));
        }
        Ok(all) => return all,
        Err(error) => problems.add(path, format!("{} is not a PEM file: {error}", file.display())),
    }
    Vec::new()
}

fn private_key(file: &Path, path: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    let pem = read(file, path, problems)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Some(key.secret_der().to_vec()),
        Err(error) => {
            problems.add(path, format!("{} holds no private key: {error}", file.display()));
            None
        }
    }
}

/// Tests that a key can be used and is the certificate's, as the connector will only find out on the first request.
fn belongs(chain: &[Vec<u8>], key: &[u8]) -> Result<(), String> {
    let key = PrivateKeyDer::try_from(key.to_vec()).map_err(|error| error.to_string())?;
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map(drop)
        .map_err(|error| format!("does not fit the certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::upstream::Timeouts;
    use crate::upstream::tests::compile;

    fn load(edit: impl Fn(&mut Config)) -> (Tls, Vec<String>) {
        let mut config = Config::default();
        edit(&mut config);
        let mut problems = Problems::default();
        let tls = Tls::load(&config, Path::new(""), "upstreams.a.tls", &mut problems);
        (tls, problems.0.iter().map(|problem| problem.to_string()).collect())
    }

    fn files() -> (tempdir::Dir, rcgen::CertifiedKey<rcgen::KeyPair>) {
        let dir = tempdir::Dir::new();
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        dir.write("cert.pem", &made.cert.pem());
        dir.write("key.pem", &made.signing_key.serialize_pem());
        (dir, made)
    }

    /// A directory that goes away with the test.
    mod tempdir {
        use std::path::PathBuf;

        pub struct Dir(PathBuf);

        impl Dir {
            pub fn new() -> Self {
                let dir = std::env::temp_dir().join(format!("headgate-tls-{:016x}", fastrand::u64(..)));
                std::fs::create_dir_all(&dir).unwrap();
                Dir(dir)
            }
            pub fn path(&self, name: &str) -> PathBuf {
                self.0.join(name)
            }
            pub fn write(&self, name: &str, text: &str) {
                std::fs::write(self.path(name), text).unwrap();
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    #[test]
    fn good_files_load_and_change_the_fingerprint() {
        let (dir, made) = files();
        let (tls, problems) = load(|config| {
            config.ca = Some(dir.path("cert.pem"));
            config.certificate = Some(dir.path("cert.pem"));
            config.key = Some(dir.path("key.pem"));
        });
        assert_eq!(problems, [""; 0]);
        assert!(tls.verify);
        assert_eq!(tls.ca.as_ref().unwrap()[0].borrow_raw_cert(), made.cert.der().as_ref());
        assert!(tls.client.is_some());
        assert_ne!(tls.fingerprint, load(|_| {}).0.fingerprint);
    }

    #[test]
    fn every_bad_file_is_a_problem_and_never_a_panic() {
        let (dir, _) = files();
        dir.write("text.pem", "hello");
        dir.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
        dir.write("other.pem", &other.signing_key.serialize_pem());
        for (ca, certificate, key, expected) in [
            (Some("missing.pem"), None, None, "tls.ca: cannot read"),
            (Some("text.pem"), None, None, "holds no certificate"),
            (Some("broken.pem"), None, None, "cannot be read"),
            (Some("key.pem"), None, None, "holds no certificate"),
            (None, Some("cert.pem"), None, "needs `key`"),
            (None, None, Some("key.pem"), "needs `certificate`"),
            (None, Some("cert.pem"), Some("cert.pem"), "holds no private key"),
            (None, Some("cert.pem"), Some("other.pem"), "does not fit the certificate"),
        ] {
            let (_, problems) = load(|config| {
                config.ca = ca.map(|name| dir.path(name));
                config.certificate = certificate.map(|name| dir.path(name));
                config.key = key.map(|name| dir.path(name));
            });
            assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}: {problems:?}");
        }
    }

    #[test]
    fn an_empty_name_is_refused() {
        let (tls, problems) = load(|config| config.sni = Some(String::new()));
        assert_eq!(tls.sni, None);
        assert_eq!(problems.len(), 1, "an empty SNI would switch verification off");
    }

    /// Answers each connection with one byte after a handshake with this certificate; asks for a client certificate of
    /// `clients`, if given.
    async fn origin(
        made: &rcgen::CertifiedKey<rcgen::KeyPair>,
        clients: Option<CertificateDer<'static>>,
    ) -> SocketAddr {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority).unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.unwrap().with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(socket).await {
                        let _ = stream.write_all(b"!").await;
                    }
                });
            }
        });
        address
    }

    /// Whether an upstream with this TLS gets through to the address.
    async fn gets_through(address: &str, tls: serde_json::Value) -> bool {
        let upstream =
            compile(serde_json::json!({ "targets": [{ "address": address }], "tls": tls, "protocol": "http1" }));
        let peer = upstream.targets()[0].peer(&Timeouts::default());
        let connector = pingora::connectors::TransportConnector::new(None);
        match connector.new_stream(&*peer).await {
            // With TLS 1.3 a refused client certificate shows on the first read only.
            Ok(mut stream) => stream.read_u8().await.is_ok(),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn only_the_named_and_trusted_origin_is_spoken_to() {
        let dir = tempdir::Dir::new();
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        dir.write("ca.pem", &made.cert.pem());
        dir.write("other.pem", &other.cert.pem());
        let address = origin(&made, None).await.to_string();
        let (ca, other) = (dir.path("ca.pem"), dir.path("other.pem"));
        for (tls, expected, why) in [
            (serde_json::json!({ "ca": ca, "sni": "a.example" }), true, "its name and authority are right"),
            (serde_json::json!({ "ca": ca }), true, "by default its address is its name"),
            (serde_json::json!({ "ca": ca, "sni": "b.example" }), false, "the name is another"),
            (serde_json::json!({ "ca": other, "sni": "a.example" }), false, "another authority"),
            (serde_json::json!({}), false, "the system does not know the authority"),
            (serde_json::json!({ "verify": false }), true, "nothing is verified, by explicit wish"),
        ] {
            assert_eq!(gets_through(&address, tls).await, expected, "{why}");
        }
    }

    #[tokio::test]
    async fn the_client_certificate_is_shown() {
        let (dir, made) = files();
        let address = origin(&made, Some(made.cert.der().clone())).await.to_string();
        let file = |name: &str| dir.path(name);
        let anonymous = serde_json::json!({ "verify": false });
        assert!(!gets_through(&address, anonymous).await);
        let known = serde_json::json!({
            "ca": file("cert.pem"), "sni": "a.example", "certificate": file("cert.pem"), "key": file("key.pem"),
        });
        assert!(gets_through(&address, known).await);
    }
}
