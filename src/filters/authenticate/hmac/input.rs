//! What `Signature-Input` and `Signature` say (RFC 9421, section 4): which components are signed, by which key, when.

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, InnerList, Item, List, ListEntry, Parser, SerializeValue};

/// A client signs once, and a proxy or two on the way may. Each may cost two verifications, as canonical and as sent.
const MOST_SIGNATURES: usize = 4;
const MOST_COMPONENTS: usize = 64;
const LONGEST: usize = 16 << 10;

pub const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// One signature and what it covers.
#[derive(Debug)]
pub struct Signature {
    pub components: Vec<Component>,
    /// The covered components and the parameters as the last line of what is signed has them.
    pub params: String,
    pub created: Option<i64>,
    pub expires: Option<i64>,
    pub key_id: String,
    pub algorithm: Option<String>,
    pub tag: Option<String>,
    pub bytes: Vec<u8>,
}

/// A covered component.
#[derive(Debug)]
pub struct Component {
    /// As what is signed has it: `"@query-param";name="x"`.
    pub identifier: String,
    pub part: Part,
}

/// Which part of a request a component is (RFC 9421, sections 2.1 and 2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Method,
    TargetUri,
    Authority,
    Scheme,
    RequestTarget,
    Path,
    Query,
    QueryParam(String),
    Field(HeaderName),
    /// One member of a field that is a dictionary.
    Member(HeaderName, String),
    /// A field whose lines are each encoded, for those that cannot be joined.
    Binary(HeaderName),
}

/// Reads the signatures of a request, each by itself: what cannot be read of one says nothing about the others. `None` if
/// there is none.
pub fn read(headers: &HeaderMap) -> Option<Result<Vec<Result<Signature, &'static str>>, &'static str>> {
    if !headers.contains_key(SIGNATURE_INPUT) && !headers.contains_key(SIGNATURE) {
        return None;
    }
    Some(read_all(headers))
}

fn read_all(headers: &HeaderMap) -> Result<Vec<Result<Signature, &'static str>>, &'static str> {
    let inputs =
        dictionary(headers, &SIGNATURE_INPUT).ok_or("`Signature-Input` is not a dictionary, or has a label twice")?;
    let mut values = dictionary(headers, &SIGNATURE).ok_or("`Signature` is not a dictionary, or has a label twice")?;
    if inputs.len() > MOST_SIGNATURES || values.len() > MOST_SIGNATURES {
        return Err("there are too many signatures");
    }
    if inputs.len() != values.len() || inputs.keys().any(|label| !values.contains_key(label)) {
        return Err("`Signature-Input` and `Signature` do not have the same labels");
    }
    let one = |(label, input): (String, ListEntry)| match (input, values.swap_remove(&label)) {
        (ListEntry::InnerList(input), Some(ListEntry::Item(Item { bare_item: BareItem::ByteSeq(bytes), .. }))) => {
            Signature::read(input, bytes)
        }
        _ => Err("a signature is not bytes, or what it covers is not a list"),
    };
    Ok(inputs.into_iter().map(one).collect())
}

/// All lines of a field as one dictionary. A member of the same name in two lines is no doubt meant to be read in one way
/// by us and in another by somebody else.
pub fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Dictionary> {
    let mut whole = Dictionary::new();
    let mut length = 0;
    for line in headers.get_all(name) {
        length += line.len();
        if length > LONGEST {
            return None;
        }
        for (label, value) in Parser::parse_dictionary(line.as_bytes()).ok()? {
            if whole.insert(label, value).is_some() {
                return None;
            }
        }
    }
    Some(whole)
}

impl Signature {
    fn read(input: InnerList, bytes: Vec<u8>) -> Result<Signature, &'static str> {
        if input.items.len() > MOST_COMPONENTS {
            return Err("a signature covers too many components");
        }
        let mut components: Vec<Component> = Vec::with_capacity(input.items.len());
        for item in &input.items {
            let component = Component::read(item)?;
            if components.iter().any(|other| other.identifier == component.identifier) {
                return Err("a signature covers a component twice");
            }
            components.push(component);
        }
        let text = |name: &str| match input.params.get(name) {
            None => Ok(None),
            Some(BareItem::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err("a parameter of the signature is not a string"),
        };
        let time = |name: &str| match input.params.get(name) {
            None => Ok(None),
            Some(BareItem::Integer(time)) => Ok(Some(*time)),
            Some(_) => Err("a time of the signature is not an integer"),
        };
        let (created, expires) = (time("created")?, time("expires")?);
        let (key_id, algorithm, tag) = (text("keyid")?, text("alg")?, text("tag")?);
        text("nonce")?;
        let key_id = key_id.ok_or("the signature names no key")?;
        let list: List = vec![ListEntry::InnerList(input)];
        let params = list.serialize_value().map_err(|_| "the signature's parameters cannot be written")?;
        Ok(Signature { components, params, created, expires, key_id, algorithm, tag, bytes })
    }

    pub fn covers(&self, part: &Part) -> bool {
        self.components.iter().any(|component| component.part == *part)
    }
}

impl Component {
    fn read(item: &Item) -> Result<Component, &'static str> {
        const UNKNOWN: &str = "a signature covers a component that this gateway does not know";
        let BareItem::String(name) = &item.bare_item else { return Err("a covered component is not a string") };
        let identifier = item.serialize_value().map_err(|_| UNKNOWN)?;
        let mut params = item.params.iter().map(|(name, value)| (name.as_str(), value));
        let (param, more) = (params.next(), params.next());
        let part = match (name.as_str(), param, more) {
            (_, _, Some(_)) => return Err(UNKNOWN),
            ("@method", None, _) => Part::Method,
            ("@target-uri", None, _) => Part::TargetUri,
            ("@authority", None, _) => Part::Authority,
            ("@scheme", None, _) => Part::Scheme,
            ("@request-target", None, _) => Part::RequestTarget,
            ("@path", None, _) => Part::Path,
            ("@query", None, _) => Part::Query,
            ("@query-param", Some(("name", BareItem::String(name))), _) => Part::QueryParam(name.clone()),
            (name, param, _) if is_field(name) => {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| UNKNOWN)?;
                match param {
                    None => Part::Field(name),
                    Some(("key", BareItem::String(key))) => Part::Member(name, key.clone()),
                    Some(("bs", BareItem::Boolean(true))) => Part::Binary(name),
                    // `sf` needs to know each field's type; `req` and `tr` are of responses and of trailers.
                    Some(_) => return Err(UNKNOWN),
                }
            }
            _ => return Err(UNKNOWN),
        };
        Ok(Component { identifier, part })
    }
}

/// RFC 9421, section 2.1: names of fields are in lower case.
fn is_field(name: &str) -> bool {
    !name.starts_with('@') && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_pair(input: &[&str], signature: &[&str]) -> Result<Vec<Result<Signature, &'static str>>, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, lines) in [(SIGNATURE_INPUT, input), (SIGNATURE, signature)] {
            for line in lines {
                headers.append(&name, line.parse().unwrap());
            }
        }
        read(&headers).unwrap_or(Err("none"))
    }

    #[test]
    fn what_is_signed_is_written_as_the_rfc_writes_it() {
        let input = r#"sig-b22=("@authority"   "content-digest" "@query-param";name="Pet");created=1618884473; keyid="test-key-rsa-pss";tag="header-example""#;
        let read = read_pair(&[input], &["sig-b22=:AAAA:"]).unwrap().remove(0).unwrap();
        let params = r#"("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#;
        assert_eq!(read.params, params);
        assert_eq!(read.components[2].part, Part::QueryParam("Pet".into()));
        assert_eq!((read.created, read.expires, read.key_id.as_str()), (Some(1618884473), None, "test-key-rsa-pss"));
        assert_eq!((read.tag.as_deref(), read.bytes.as_slice()), (Some("header-example"), &[0, 0, 0][..]));
        let two = read_pair(&[r#"a=();keyid="k""#, r#"b=("@nothing");keyid="k""#], &["a=:AA==:, b=:AA==:"]).unwrap();
        assert!(two[0].is_ok() && two[1].is_err(), "{two:?}");
    }

    #[test]
    fn hostile_fields_are_no_signatures() {
        let too_long = format!("a=({});keyid=\"k\"", "\"x\" ".repeat(5000));
        for (input, signature) in [
            (&["a=()"][..], &[][..]),
            (&[], &["a=:AA==:"]),
            (&["a=();keyid=\"k\""], &["b=:AA==:"]),
            (&["a=();keyid=\"k\"", "a=();keyid=\"l\""], &["a=:AA==:"]),
            (&["a=();keyid=\"k\""], &["a=:AA==:", "a=:AB==:"]),
            (&["a=();keyid=\"k\", b=();keyid=\"k\""], &["a=:AA==:"]),
            (&["a=((;"], &["a=:AA==:"]),
            (&["\u{e9}"], &["a=:AA==:"]),
            (&["a=();keyid=\"k\""], &["a=:A*A:"]),
            (&[&too_long], &["a=:AA==:"]),
            (&["a=(),b=(),c=(),d=(),e=(),f=(),g=(),h=(),i=()"], &["a,b,c,d,e,f,g,h,i"]),
        ] {
            assert!(read_pair(input, signature).is_err(), "{input:?} {signature:?}");
        }
        let many = format!("a=({});keyid=\"k\"", (0..65).map(|i| format!("\"x{i}\" ")).collect::<String>());
        for input in [
            r#"a=("@method")"#,
            r#"a="@method";keyid="k""#,
            r#"a=("@method" "@method");keyid="k""#,
            r#"a=(@method);keyid="k""#,
            r#"a=("@status");keyid="k""#,
            r#"a=("@signature-params");keyid="k""#,
            r#"a=("@method";req);keyid="k""#,
            r#"a=("@query-param");keyid="k""#,
            r#"a=("Content-Type");keyid="k""#,
            r#"a=("content type");keyid="k""#,
            r#"a=("x";tr);keyid="k""#,
            r#"a=("x";sf);keyid="k""#,
            r#"a=("x";bs;key="k");keyid="k""#,
            r#"a=();keyid=k"#,
            r#"a=();keyid="k";created="1""#,
            r#"a=();keyid="k";created=1.5"#,
            r#"a=();keyid="k";nonce=1"#,
            &many,
        ] {
            let read = read_pair(&[input], &["a=:AA==:"]);
            assert!(read.as_ref().map_or(true, |all| all[0].is_err()), "{input}: {read:?}");
        }
        assert!(matches!(&read_pair(&["a=();keyid=\"k\""], &["a=token"]), Ok(all) if all[0].is_err()));
    }

    #[test]
    fn no_field_makes_the_parser_panic() {
        let input =
            br#"a=("@method" "@query-param";name="x" "x";key="k" "y";bs);created=1618884473;keyid="k";nonce="n", b=()"#;
        let mut random = fastrand::Rng::with_seed(9421);
        for _ in 0..20_000 {
            let mut bytes = input.to_vec();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(b' '..=b'~'),
                    1 => bytes[at] = *random.choice(b"\"();:,=?*@-.9\\").unwrap_or(&b' '),
                    2 => bytes.insert(at, random.u8(b' '..=b'~')),
                    _ => drop(bytes.remove(at)),
                }
            }
            let mut headers = HeaderMap::new();
            headers.insert(SIGNATURE_INPUT, http::HeaderValue::from_bytes(&bytes).unwrap());
            headers.insert(SIGNATURE, http::HeaderValue::from_static("a=:AAAA:, b=:AAAA:"));
            for signature in read(&headers).unwrap().into_iter().flatten().flatten() {
                // What was read is written so that it reads as the same again.
                let again = HeaderMap::from_iter([
                    (SIGNATURE_INPUT, format!("a={}", signature.params).parse().unwrap()),
                    (SIGNATURE, http::HeaderValue::from_static("a=:AAAA:")),
                ]);
                let again = read(&again).unwrap().unwrap().remove(0).unwrap();
                assert_eq!(again.params, signature.params, "{}", String::from_utf8_lossy(&bytes));
            }
        }
    }
}
