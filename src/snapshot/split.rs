//! One route over several upstreams: by weight, with sticky assignment, or by what the request carries.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Origin;
use crate::config::Problems;
use crate::config::backend as written;

/// Chooses an origin per request: the first rule that holds, else the share a cookie keeps the client on, else by weight.
pub struct Split {
    rules: Vec<(Vec<Condition>, Arc<Origin>)>,
    shares: Vec<Share>,
    /// Of all weights.
    total: u32,
    sticky: Option<Sticky>,
}

struct Share {
    origin: Arc<Origin>,
    weight: u32,
    /// What stands for it in the cookie.
    token: String,
}

struct Sticky {
    cookie: String,
    attributes: String,
}

enum Condition {
    Header(HeaderName, HeaderValue),
    Cookie(String, String),
}

/// The origin a request goes to, and the cookie that keeps the client there, if it has to be set.
pub struct Choice<'a> {
    pub origin: &'a Arc<Origin>,
    pub set_cookie: Option<HeaderValue>,
}

type Find<'f> = dyn FnMut(&str, String, &mut Problems) -> Option<Arc<Origin>> + 'f;

impl Split {
    pub fn compile(split: &written::Split, find: &mut Find<'_>, path: &str, problems: &mut Problems) -> Option<Split> {
        let before = problems.0.len();
        let mut shares = Vec::new();
        for (i, target) in split.targets.iter().enumerate() {
            let origin = find(&target.upstream, format!("{path}.targets[{i}].upstream"), problems);
            let token = token(&target.upstream);
            shares.extend(origin.map(|origin| Share { origin, weight: target.weight, token }));
        }
        let total = split.targets.iter().fold(0u32, |sum, target| sum.saturating_add(target.weight));
        if total == 0 {
            problems.add(format!("{path}.targets"), "all weights are 0, so no request could be sent anywhere");
        }
        let mut rules = Vec::new();
        for (i, choose) in split.choose.iter().enumerate() {
            let path = format!("{path}.choose[{i}]");
            let origin = find(&choose.upstream, format!("{path}.upstream"), problems);
            let conditions = conditions(&choose.when, &format!("{path}.when"), problems);
            rules.extend(origin.map(|origin| (conditions, origin)));
        }
        let sticky = split.sticky.as_ref().map(|sticky| Sticky {
            cookie: sticky.cookie.clone(),
            attributes: match sticky.max_age {
                Some(age) => format!("; Path=/; Max-Age={}; HttpOnly; SameSite=Lax", age.get().as_secs()),
                None => "; Path=/; HttpOnly; SameSite=Lax".to_owned(),
            },
        });
        if let Some(sticky) = &sticky
            && HeaderName::from_bytes(sticky.cookie.as_bytes()).is_err()
        {
            problems.add(format!("{path}.sticky.cookie"), format!("`{}` is not a name for a cookie", sticky.cookie));
        }
        (problems.0.len() == before && !shares.is_empty()).then_some(Split { rules, shares, total, sticky })
    }

    pub fn choose(&self, headers: &HeaderMap) -> Choice<'_> {
        let rule =
            self.rules.iter().find(|(conditions, _)| conditions.iter().all(|condition| condition.holds(headers)));
        if let Some((_, origin)) = rule {
            return Choice { origin, set_cookie: None };
        }
        let kept = self.sticky.as_ref().and_then(|sticky| {
            let token = cookie(headers, &sticky.cookie)?;
            // A share of weight 0 is being emptied: its clients are assigned anew.
            self.shares.iter().find(|share| share.token == token && share.weight > 0)
        });
        if let Some(share) = kept {
            return Choice { origin: &share.origin, set_cookie: None };
        }
        let share = self.draw();
        let set_cookie = self.sticky.as_ref().and_then(|sticky| {
            HeaderValue::from_str(&format!("{}={}{}", sticky.cookie, share.token, sticky.attributes)).ok()
        });
        Choice { origin: &share.origin, set_cookie }
    }

    /// A share, each as likely as its weight says.
    fn draw(&self) -> &Share {
        let mut left = fastrand::u32(..self.total);
        for share in &self.shares[..self.shares.len() - 1] {
            if left < share.weight {
                return share;
            }
            left -= share.weight;
        }
        &self.shares[self.shares.len() - 1]
    }
}

impl Condition {
    fn holds(&self, headers: &HeaderMap) -> bool {
        match self {
            Condition::Header(name, value) => headers.get_all(name).iter().any(|sent| sent == value),
            Condition::Cookie(name, value) => cookie(headers, name) == Some(value),
        }
    }
}

fn conditions(when: &written::When, path: &str, problems: &mut Problems) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for (name, value) in &when.header {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => conditions.push(Condition::Header(name, value)),
            _ => problems.add(format!("{path}.header.{name}"), "HTTP does not allow this header name or value"),
        }
    }
    conditions.extend(when.cookie.iter().map(|(name, value)| Condition::Cookie(name.clone(), value.clone())));
    conditions
}

/// Stands for an upstream in a cookie, the same on every gateway and after every restart (64-bit FNV-1a). It keeps the
/// upstream's name from showing; it protects nothing.
fn token(upstream: &str) -> String {
    let hash = upstream
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// The first cookie of that name (RFC 6265, section 5.4), over all `Cookie` lines.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get_all(http::header::COOKIE).iter().filter_map(|line| line.to_str().ok()).find_map(|line| {
        line.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim() == name).then(|| value.trim())
        })
    })
}
