//! Client certificates: what a verified one says of its owner, and the consumers that are known by theirs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};
use x509_parser::x509::AttributeTypeAndValue;

use super::{Consumer, Credential, first_word};
use crate::config::consumer::Mtls;

/// The kind of [`Credential`] that certificates are.
pub const KIND: &str = "mtls";

/// A certificate that a client proved to own, and that an authority of the listener has issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Distinguished name in the order of the certificate, as in `CN=mobile, O=Example`, escaped as in RFC 4514.
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
            subject: distinguished_name(subject),
            names: alternative.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect(),
            serial: certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            fingerprint,
            organization: subject.iter_organization().next().and_then(|o| o.as_str().ok()).map(str::to_owned),
        })
    }
}

impl ClientCertificate {
    pub fn credential(&self) -> Credential {
        Credential { kind: KIND, id: first_word(&self.fingerprint) }
    }

    /// SHA-256 of the certificate in lower-case hexadecimal digits.
    pub fn fingerprint_text(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// By hand: what x509-parser displays escapes nothing, so that a common name with a comma in it could stand for an
/// organization.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let relative = |attributes: Vec<String>| attributes.join("+");
    name.iter_rdn().map(|rdn| relative(rdn.iter().map(attribute).collect())).collect::<Vec<_>>().join(", ")
}

/// RFC 4514, sections 2.3 and 2.4.
fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let kind = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
    match attribute.as_str() {
        Ok(value) => format!("{kind}={}", escaped(value)),
        Err(_) => attribute.as_slice().iter().fold(format!("{kind}=#"), |text, byte| text + &format!("{byte:02x}")),
    }
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (at, character) in value.char_indices() {
        let outer = at == 0 || at + character.len_utf8() == value.len();
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', character]),
            ' ' if outer => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            // Neither a header nor a line of a log can hold them.
            control if control.is_control() => {
                control.to_string().bytes().for_each(|byte| out.push_str(&format!("\\{byte:02x}")));
            }
            plain => out.push(plain),
        }
    }
    out
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

/// A distinguished name without the spaces around its commas, which tools write or not. An escaped comma is a part of a
/// value, and so is an escaped space.
fn normal_subject(subject: &str) -> String {
    let mut normal = String::with_capacity(subject.len());
    let mut characters = subject.chars();
    // Where the last part ends without the spaces after it.
    let mut end = 0;
    let mut begins = true;
    while let Some(character) = characters.next() {
        match character {
            ' ' if begins => {}
            ',' => {
                normal.truncate(end);
                normal.push(',');
                (begins, end) = (true, normal.len());
            }
            character => {
                normal.push(character);
                if character == '\\' {
                    normal.extend(characters.next());
                }
                begins = false;
                if character != ' ' {
                    end = normal.len();
                }
            }
        }
    }
    normal.truncate(end);
    normal
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

    #[test]
    fn a_value_with_a_comma_is_not_two() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in [
            (rcgen::DnType::CommonName, "mobile, O=Example"),
            (rcgen::DnType::OrganizationName, " #a+b=\"c\"; "),
            (rcgen::DnType::LocalityName, "#Köln\r\nX: y"),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = ClientCertificate::read(params.self_signed(&key).unwrap().der()).unwrap();
        let expected = r#"CN=mobile\, O\=Example, O=\ #a\+b\=\"c\"\;\ , L=\#Köln\0d\0aX: y"#;
        assert_eq!(certificate.subject, expected);
        let matches = |subject: &str| {
            let written = Mtls { subject: Some(subject.to_owned()), ..Mtls::default() };
            CertificateMatch::compile(&written).unwrap().holds(&certificate)
        };
        assert!(matches(expected) && matches(&expected.replace(", O=\\ ", " ,O=\\ ")));
        assert!(!matches("CN=mobile, O=Example") && !matches("CN=mobile,O=Example"));
        assert_eq!(normal_subject(r"CN=a\, b , O=c "), r"CN=a\, b,O=c");
        assert_ne!(normal_subject(r"CN=a\, b"), normal_subject(r"CN=a\,b"));
        assert_eq!(normal_subject(r"CN=a\ , O=c\"), r"CN=a\ ,O=c\");
    }
}
