//! Client certificates: what a verified one says of its owner, and the consumers that are known by theirs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Consumer;
use crate::config::consumer::Mtls;

/// A certificate that a client proved to own, and that an authority of the listener has issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Distinguished name in the order of the certificate, as in `CN=mobile, O=Example`.
    pub subject: String,
    /// Subject alternative names: DNS names in lower case, email addresses, URIs, IP addresses.
    pub names: Vec<String>,
    /// In lower-case hexadecimal digits.
    pub serial: String,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    pub organization: Option<String>,
}

impl ClientCertificate {
    /// Reads what matters of a certificate in DER. Its signature is not looked at.
    pub fn read(der: &[u8]) -> Option<ClientCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let subject = certificate.subject();
        Some(ClientCertificate {
            subject: subject.to_string(),
            names: alternative.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect(),
            serial: certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            fingerprint,
            organization: subject.iter_organization().next().and_then(|o| o.as_str().ok()).map(str::to_owned),
        })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| Ipv4Addr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// What has to be true of a certificate for its owner to be a certain consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateMatch {
    subject: Option<String>,
    san: Option<String>,
    fingerprint: Option<[u8; 32]>,
}

impl CertificateMatch {
    pub fn compile(written: &Mtls) -> Result<CertificateMatch, String> {
        let Mtls { subject, san, fingerprint } = written;
        if subject.is_none() && san.is_none() && fingerprint.is_none() {
            return Err("write `subject`, `san` or `fingerprint`; without any, every certificate would do".to_owned());
        }
        let fingerprint = match fingerprint {
            None => None,
            Some(text) => Some(parse_fingerprint(text).ok_or_else(|| {
                format!("`{text}` is not a SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
            })?),
        };
        Ok(CertificateMatch { subject: subject.as_deref().map(normal_subject), san: san.clone(), fingerprint })
    }

    fn holds(&self, certificate: &ClientCertificate) -> bool {
        self.subject.as_ref().is_none_or(|subject| normal_subject(&certificate.subject) == *subject)
            && self.san.as_ref().is_none_or(|san| certificate.names.iter().any(|name| name.eq_ignore_ascii_case(san)))
            && self.fingerprint.is_none_or(|fingerprint| fingerprint == certificate.fingerprint)
    }

    /// What an entry is filed under: its most particular condition.
    fn label(&self) -> Label {
        match (self.fingerprint, &self.san, &self.subject) {
            (Some(fingerprint), ..) => Label::Fingerprint(fingerprint),
            (_, Some(san), _) => Label::San(san.to_ascii_lowercase()),
            (.., subject) => Label::Subject(subject.clone().unwrap_or_default()),
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Label {
    Fingerprint([u8; 32]),
    San(String),
    Subject(String),
}

/// The consumers that are known by certificates.
#[derive(Default)]
pub(super) struct Certificates(HashMap<Label, Vec<(CertificateMatch, Arc<Consumer>)>>);

impl Certificates {
    /// Returns the consumer that has the same conditions already, if there is one.
    pub(super) fn add(&mut self, wanted: CertificateMatch, consumer: &Arc<Consumer>) -> Option<Arc<Consumer>> {
        let entries = self.0.entry(wanted.label()).or_default();
        let other = entries.iter().find(|(known, _)| *known == wanted).map(|(_, other)| other.clone());
        entries.push((wanted, consumer.clone()));
        other
    }

    /// A fingerprint goes before an alternative name, and that before a subject.
    pub(super) fn find(&self, certificate: &ClientCertificate) -> Option<&Arc<Consumer>> {
        let names = certificate.names.iter().map(|name| Label::San(name.to_ascii_lowercase()));
        let labels = std::iter::once(Label::Fingerprint(certificate.fingerprint))
            .chain(names)
            .chain(std::iter::once(Label::Subject(normal_subject(&certificate.subject))));
        labels
            .filter_map(|label| self.0.get(&label))
            .flatten()
            .find(|(wanted, _)| wanted.holds(certificate))
            .map(|(_, consumer)| consumer)
    }
}

fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let mut fingerprint = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(fingerprint)
}

/// A distinguished name without the spaces around its commas, which tools write or not.
fn normal_subject(subject: &str) -> String {
    subject.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_written_has_to_agree() {
        let certificate = ClientCertificate {
            subject: "CN=mobile, O=Example".into(),
            names: vec!["mobile.example.com".into(), "spiffe://example/mobile".into()],
            serial: "01".into(),
            fingerprint: [0xab; 32],
            organization: None,
        };
        let fingerprint = vec!["AB"; 32].join(":");
        let text = |text: &str| Some(text.to_owned());
        for (subject, san, print, holds) in [
            (text("CN=mobile,O=Example"), None, None, true),
            (text("CN=mobile"), None, None, false),
            (None, text("Mobile.example.com"), None, true),
            (None, text("spiffe://example/mobile"), None, true),
            (None, text("example.com"), None, false),
            (None, None, text(&fingerprint), true),
            (text("CN=mobile,O=Example"), text("other"), None, false),
            (text("CN=mobile,O=Example"), None, text(&"00".repeat(32)), false),
        ] {
            let written = Mtls { subject, san, fingerprint: print };
            let wanted = CertificateMatch::compile(&written).unwrap();
            assert_eq!(wanted.holds(&certificate), holds, "{written:?}");
        }
        assert!(CertificateMatch::compile(&Mtls::default()).is_err());
        assert!(CertificateMatch::compile(&Mtls { fingerprint: text("abc"), ..Mtls::default() }).is_err());
    }
}
