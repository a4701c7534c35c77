//! The model of a call whose body is a form of files (`multipart/form-data`, RFC 7578): found, and replaced, without copying
//! the files.

use std::ops::Range;

use bytes::Bytes;

use super::chat::Failure;

/// More parts than this no such call has.
const MOST_PARTS: usize = 1000;
/// The longest name of a model.
const LONGEST_MODEL: usize = 256;
/// The longest head of a part.
const LONGEST_HEAD: usize = 16 << 10;

/// A form, and where it names its model.
#[derive(Debug)]
pub struct Form {
    body: Bytes,
    boundary: Vec<u8>,
    model: Option<(String, Range<usize>)>,
    pub stream: bool,
}

impl Form {
    /// Reads a form. One that names its model twice is refused: provider and gateway could read different ones.
    pub fn read(content_type: &str, body: &Bytes) -> Result<Form, Failure> {
        let boundary = boundary(content_type).ok_or_else(|| broken("it names no boundary"))?;
        let mut form = Form { body: body.clone(), boundary, model: None, stream: false };
        let mut delimiter = vec![b'-', b'-'];
        delimiter.extend_from_slice(&form.boundary);
        if !body.starts_with(&delimiter) {
            return Err(broken("it does not begin with its boundary"));
        }
        let inner: Vec<u8> = [b"\r\n", delimiter.as_slice()].concat();
        let find = memchr::memmem::Finder::new(&inner);
        let mut at = delimiter.len();
        for _ in 0..MOST_PARTS {
            let rest = body.get(at..).unwrap_or_default();
            if rest.starts_with(b"--") {
                return Ok(form);
            }
            let Some(part) = rest.strip_prefix(b"\r\n") else {
                return Err(broken("a boundary is followed by something"));
            };
            let start = at + 2;
            let length = find.find(part).ok_or_else(|| broken("it does not end"))?;
            form.part(start, part.get(..length).unwrap_or_default())?;
            at = start + length + inner.len();
        }
        Err(broken("it has too many parts"))
    }

    fn part(&mut self, start: usize, part: &[u8]) -> Result<(), Failure> {
        let head = part.get(..part.len().min(LONGEST_HEAD)).unwrap_or_default();
        let end = memchr::memmem::find(head, b"\r\n\r\n").ok_or_else(|| broken("a part has no head"))?;
        let Ok(head) = std::str::from_utf8(head.get(..end).unwrap_or_default()) else {
            return Err(broken("the head of a part is no text"));
        };
        let value = part.get(end + 4..).unwrap_or_default();
        match name(head).as_deref() {
            Some("model") => {
                let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= LONGEST_MODEL);
                let text = text.ok_or_else(|| Failure::invalid("model", "`model` is not the name of a model"))?;
                let place = start + end + 4..start + part.len();
                if self.model.replace((text.trim().to_owned(), place)).is_some() {
                    return Err(Failure::invalid("model", "the form names its model twice"));
                }
            }
            Some("stream") => self.stream = value == b"true" || value == b"True" || value == b"1",
            _ => {}
        }
        Ok(())
    }

    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub fn model(&self) -> Option<&str> {
        self.model.as_ref().map(|(name, _)| name.as_str()).filter(|name| !name.is_empty())
    }

    /// The form for a provider, in pieces, with its own name of the model.
    pub fn passed_on(&self, model: &str) -> Vec<Bytes> {
        match &self.model {
            Some((name, _)) if name == model => vec![self.body.clone()],
            Some((_, place)) => {
                vec![
                    self.body.slice(..place.start),
                    Bytes::copy_from_slice(model.as_bytes()),
                    self.body.slice(place.end..),
                ]
            }
            None => {
                let mut part = b"--".to_vec();
                part.extend_from_slice(&self.boundary);
                part.extend_from_slice(b"\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n");
                part.extend_from_slice(model.as_bytes());
                part.extend_from_slice(b"\r\n");
                vec![part.into(), self.body.clone()]
            }
        }
    }
}

fn broken(why: &str) -> Failure {
    Failure::invalid("", format!("the body is no form that can be read: {why}"))
}

/// The `boundary` of a content type (RFC 2046, section 5.1.1).
fn boundary(content_type: &str) -> Option<Vec<u8>> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    (1..=70).contains(&boundary.len()).then(|| boundary.into_bytes())
}

/// The name of a part, of its `Content-Disposition`.
fn name(head: &str) -> Option<String> {
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    parameter(disposition.split_once(';')?.1, "name")
}

/// One of the parameters of a header. A quoted one may hold what separates others.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_matches([' ', ';', '\t']);
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after.get(..end)?.trim().to_owned(), after.get(end..)?)
            }
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = next;
    }
}

/// The text up to the closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match letter {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Some((value, text.get(at + 1..)?)),
            _ => {
                escaped = false;
                value.push(letter);
            }
        }
    }
    None
}

/// Whether a body of this type is a form of files.
pub fn is_form(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("multipart/form-data")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"b b\"";

    fn form(parts: &[(&str, &str)]) -> Bytes {
        let mut body = String::new();
        for (head, value) in parts {
            body += &format!("--b b\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n");
        }
        (body + "--b b--\r\n").into()
    }

    fn passed(body: &Bytes, model: &str) -> String {
        let pieces = Form::read(TYPE, body).unwrap().passed_on(model);
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[test]
    fn the_model_is_found_and_replaced_and_nothing_else_changes() {
        let file = "name=\"file\"; filename=\"a; name=\\\"model\\\".wav\"\r\nContent-Type: audio/wav";
        let parts = |model| form(&[(file, "RIFF--b b\r\n"), ("name=\"model\"", model), ("name=stream", "true")]);
        let read = Form::read(TYPE, &parts("openai/whisper-1")).unwrap();
        assert_eq!((read.model(), read.stream), (Some("openai/whisper-1"), true));
        let want = String::from_utf8(parts("whisper-1").to_vec()).unwrap();
        assert_eq!(passed(&parts("openai/whisper-1"), "whisper-1"), want);
        assert_eq!(passed(&parts("whisper-1"), "whisper-1"), want);
    }

    #[test]
    fn a_form_without_a_model_gets_one() {
        let body = form(&[("name=\"file\"", "x")]);
        assert_eq!(Form::read(TYPE, &body).unwrap().model(), None);
        let passed: Bytes = passed(&body, "m").into();
        assert_eq!(Form::read(TYPE, &passed).unwrap().model(), Some("m"));
    }

    #[test]
    fn what_is_no_form_or_could_be_read_in_two_ways_is_refused() {
        let whole = form(&[("name=\"model\"", "m")]);
        let long = "m".repeat(LONGEST_MODEL + 1);
        for (kind, body) in [
            (TYPE, form(&[("name=\"model\"", "a"), ("name=\"model\"", "b")])),
            (TYPE, form(&[("name=\"model\"", &long)])),
            (TYPE, Bytes::from_static(b"")),
            (TYPE, Bytes::from_static(b"--b b\r\nno head\r\n--b b--")),
            (TYPE, Bytes::from_static(b"--b bx\r\n")),
            ("multipart/form-data", whole.clone()),
            ("multipart/form-data; boundary=\"b b", whole.clone()),
            ("application/json", whole.clone()),
        ] {
            assert!(Form::read(kind, &body).is_err(), "{kind} {body:?}");
        }
        for end in 0..whole.len() - 4 {
            let _ = Form::read(TYPE, &whole.slice(..end));
        }
    }
}
