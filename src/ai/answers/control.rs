//! What a caller says about caches (RFC 9111, section 5.2.1).

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    /// An answer that was kept is not wanted.
    pub no_cache: bool,
    /// Nothing of this exchange is to be kept.
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
}

impl Control {
    pub fn read(headers: &HeaderMap) -> Control {
        let mut control = Control::default();
        let values = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
        for directive in values.flat_map(|value| value.split(',')) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => control.no_cache = true,
                "no-store" => control.no_store = true,
                "only-if-cached" => control.only_if_cached = true,
                // What cannot be read is as old as can be.
                "max-age" => {
                    let seconds = value.trim().trim_matches('"').parse().unwrap_or(0);
                    control.max_age = Some(Duration::from_secs(seconds));
                }
                _ => {}
            }
        }
        control
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_however_they_are_written() {
        let mut headers = HeaderMap::new();
        assert_eq!(Control::read(&headers), Control::default());
        headers.append(CACHE_CONTROL, "No-Cache , max-age=\"60\", private".parse().unwrap());
        headers.append(CACHE_CONTROL, "only-if-cached".parse().unwrap());
        let want =
            Control { no_cache: true, no_store: false, only_if_cached: true, max_age: Some(Duration::from_secs(60)) };
        assert_eq!(Control::read(&headers), want);
    }
}
