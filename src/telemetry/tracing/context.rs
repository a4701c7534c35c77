//! The W3C Trace Context (Recommendation of 2021, version 00): parsed strictly, since it comes from strangers.

use std::fmt;

use http::HeaderValue;

/// Longest `tracestate` passed on. The recommendation asks for at least 512 characters.
const MAX_STATE: usize = 512;
const MAX_MEMBERS: usize = 32;

/// Declares an identifier of so many bytes, which is never all zeros.
macro_rules! id {
    ($name:ident, $len:literal) => {
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name([u8; $len]);

        impl $name {
            pub fn random() -> Self {
                let mut bytes = [0; $len];
                fastrand::fill(&mut bytes);
                // All zeros means "invalid".
                bytes[$len - 1] |= u8::from(bytes == [0; $len]);
                $name(bytes)
            }

            fn parse(hex: &[u8]) -> Option<Self> {
                let mut bytes = [0; $len];
                for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
                    *byte = parse_byte(pair)?;
                }
                (hex.len() == 2 * $len && bytes != [0; $len]).then_some($name(bytes))
            }

            pub fn bytes(self) -> [u8; $len] {
                self.0
            }

            /// Lower-case hexadecimal, without allocating.
            pub fn hex(self) -> Hex<{ 2 * $len }> {
                let mut hex = [0; 2 * $len];
                for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                Hex(hex)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.hex().as_str())
            }
        }
    };
}

id!(TraceId, 16);
id!(SpanId, 8);

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// An identifier in hexadecimal.
pub struct Hex<const N: usize>([u8; N]);

impl<const N: usize> Hex<N> {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The context that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub struct ParentContext {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
}

/// The one valid `traceparent` among the values of the header; `None` if there is none, or more than one.
pub fn parent<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Option<ParentContext> {
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    parse(value.as_bytes())
}

/// `version "-" trace-id "-" parent-id "-" flags`. A later version may go on after another dash; `ff` is none.
fn parse(value: &[u8]) -> Option<ParentContext> {
    let (known, rest) = value.split_at_checked(55)?;
    let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
    let version = parse_byte(&known[..2])?;
    let ends = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.first().is_none_or(|byte| *byte == b'-'),
    };
    if !dashes || !ends {
        return None;
    }
    Some(ParentContext {
        trace: TraceId::parse(&known[3..35])?,
        span: SpanId::parse(&known[36..52])?,
        sampled: parse_byte(&known[53..])? & 1 == 1,
    })
}

fn parse_byte(hex: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        // Upper case is invalid (section 3.2.2).
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    match hex {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

pub fn traceparent(trace: TraceId, span: SpanId, sampled: bool) -> HeaderValue {
    let mut value = [0; 55];
    value[..3].copy_from_slice(b"00-");
    value[3..35].copy_from_slice(&trace.hex().0);
    value[35] = b'-';
    value[36..52].copy_from_slice(&span.hex().0);
    value[52..].copy_from_slice(if sampled { b"-01" } else { b"-00" });
    // Cannot fail: these are hexadecimal digits and dashes.
    HeaderValue::from_bytes(&value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What other tracing systems on the way have noted; passed on unchanged, or not at all if it is invalid.
#[derive(Debug, Default)]
pub struct TraceState(Vec<u8>);

impl TraceState {
    pub fn of<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Self {
        let mut joined = Vec::new();
        for value in values {
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(value.as_bytes());
            if joined.len() > MAX_STATE {
                return TraceState::default();
            }
        }
        let members = joined.split(|byte| *byte == b',').map(|member| member.trim_ascii());
        let mut filled = members.filter(|member| !member.is_empty());
        let valid = filled.by_ref().take(MAX_MEMBERS).all(valid_member) && filled.next().is_none();
        TraceState(if valid { joined } else { Vec::new() })
    }

    pub fn header(&self) -> Option<HeaderValue> {
        if self.0.is_empty() { None } else { HeaderValue::from_bytes(&self.0).ok() }
    }

    pub fn as_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// `key "=" value`, with the characters of section 3.3.1.3.
fn valid_member(member: &[u8]) -> bool {
    let Some(at) = memchr::memchr(b'=', member) else { return false };
    let (key, value) = (&member[..at], &member[at + 1..]);
    let key_byte = |byte: &u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let value_byte = |byte: &u8| (0x20..=0x7e).contains(byte) && !matches!(byte, b',' | b'=');
    (1..=256).contains(&key.len())
        && key.iter().all(key_byte)
        && (1..=256).contains(&value.len())
        && value.iter().all(value_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn traceparent_is_parsed_strictly() {
        let good = |text: &str| parse(text.as_bytes()).map(|parent| parent.sampled);
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-ff"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.what-comes"), None),
            (format!("00-{TRACE}-{SPAN}-01-what-comes"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("0-{TRACE}-{SPAN}-01"), None),
            (format!("00-{TRACE}-{SPAN}-1"), None),
            (format!("00-{TRACE}-{SPAN}-0x"), None),
            (format!("00_{TRACE}-{SPAN}-01"), None),
            (format!("00-{TRACE}_{SPAN}-01"), None),
            (format!(" 00-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}g-{SPAN}-01", &TRACE[1..]), None),
            (String::new(), None),
            ("é".repeat(40), None),
        ] {
            assert_eq!(good(&text), sampled, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_what_was_parsed() {
        let text = format!("00-{TRACE}-{SPAN}-01");
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!(traceparent(read.trace, read.span, read.sampled), text.as_str());
        let fresh = traceparent(TraceId::random(), SpanId::random(), false);
        assert!(parse(fresh.as_bytes()).is_some_and(|parent| !parent.sampled));
    }

    #[test]
    fn two_parents_are_none() {
        let value = HeaderValue::from_str(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert!(parent([&value].into_iter()).is_some());
        assert!(parent([&value, &value].into_iter()).is_none());
    }

    #[test]
    fn tracestate_is_passed_on_whole_or_not_at_all() {
        let many = (0..33).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        for (values, passed) in [
            (vec!["a=1"], Some("a=1")),
            (vec!["a=1", "b@c=2"], Some("a=1,b@c=2")),
            (vec!["a=1, ,b=x y"], Some("a=1, ,b=x y")),
            (vec![""], None),
            (vec!["a"], None),
            (vec!["A=1"], None),
            (vec!["a="], None),
            (vec!["a=1=2"], None),
            (vec![many.as_str()], None),
            (vec![&*"x".repeat(600)], None),
        ] {
            let values: Vec<_> = values.iter().map(|value| HeaderValue::from_str(value).unwrap()).collect();
            let header = TraceState::of(values.iter()).header();
            assert_eq!(header.as_ref().map(|value| value.to_str().unwrap()), passed);
        }
    }
}
