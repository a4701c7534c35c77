//! How long a provider wants to be left alone, in the ways that providers say it.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;

/// The time that an answer asks to wait: `retry-after-ms`, `x-ms-retry-after-ms`, or `retry-after` in seconds or as a date
/// (RFC 9110, section 10.2.3). `None` if it says none that can be read.
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?.trim();
        text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)
    };
    let milliseconds = number("retry-after-ms").or_else(|| number("x-ms-retry-after-ms"));
    if let Some(milliseconds) = milliseconds {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    if let Some(seconds) = number("retry-after") {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(headers.get("retry-after")?.to_str().ok()?).ok()?;
    let seconds = date.timestamp().as_second().saturating_sub(Timestamp::now().as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| drop(map.insert(*name, value.parse().unwrap())));
        read(&map)
    }

    #[test]
    fn every_way_of_saying_it_is_read() {
        assert_eq!(wait(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(wait(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(wait(&[("retry-after", "9"), ("retry-after-ms", "20")]), Some(Duration::from_millis(20)));
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), Some(Duration::ZERO));
        assert!(wait(&[("retry-after", "Wed, 21 Oct 2048 07:28:00 GMT")]) > Some(Duration::from_secs(3600)));
        for wrong in ["-1", "soon", "nan", "inf", "1e400"] {
            assert_eq!(wait(&[("retry-after", wrong)]), None, "{wrong}");
        }
        assert_eq!(wait(&[]), None);
    }
}
