//! Wall-clock time as text, cheap enough for every line of an access log.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// The texts of one second; all lines of that second on a thread share them.
#[derive(Clone, Copy)]
struct Second {
    unix: i64,
    /// `2026-01-31T12:00:00`
    rfc3339: [u8; 19],
    /// `31/Jan/2026:12:00:00 +0000`
    common: [u8; 26],
}

thread_local! {
    static LATEST: Cell<Second> = const { Cell::new(Second { unix: i64::MIN, rfc3339: [0; 19], common: [0; 26] }) };
}

/// Appends `2026-01-31T12:00:00.123Z`.
pub fn rfc3339(at: SystemTime, out: &mut String) {
    let (second, millis) = split(at);
    push(&second.rfc3339, out);
    let digits = [b'.', b'0' + (millis / 100) as u8, b'0' + (millis / 10 % 10) as u8, b'0' + (millis % 10) as u8, b'Z'];
    push(&digits, out);
}

/// Appends the time as the Common Log Format has it: `31/Jan/2026:12:00:00 +0000`.
pub fn common_log(at: SystemTime, out: &mut String) {
    push(&split(at).0.common, out);
}

fn push(ascii: &[u8], out: &mut String) {
    out.push_str(std::str::from_utf8(ascii).unwrap_or_default());
}

fn split(at: SystemTime) -> (Second, u32) {
    // A clock before 1970 shows as 1970.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix = since.as_secs() as i64;
    LATEST.with(|latest| {
        if latest.get().unix != unix {
            latest.set(format_second(unix));
        }
        (latest.get(), since.subsec_millis())
    })
}

fn format_second(unix: i64) -> Second {
    let at = Timestamp::from_second(unix).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut second = Second { unix, rfc3339: [b'?'; 19], common: [b'?'; 26] };
    fill(&mut second.rfc3339, &at.strftime("%Y-%m-%dT%H:%M:%S").to_string());
    fill(&mut second.common, &at.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string());
    second
}

/// Years beyond 9999 do not fit and stay question marks.
fn fill(place: &mut [u8], text: &str) {
    if text.len() == place.len() && text.is_ascii() {
        place.copy_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_form_is_written_in_utc() {
        for (millis, rfc, common) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (1_769_860_800_007, "2026-01-31T12:00:00.007Z", "31/Jan/2026:12:00:00 +0000"),
            (1_769_860_800_999, "2026-01-31T12:00:00.999Z", "31/Jan/2026:12:00:00 +0000"),
            (1_769_860_801_000, "2026-01-31T12:00:01.000Z", "31/Jan/2026:12:00:01 +0000"),
        ] {
            let at = UNIX_EPOCH + Duration::from_millis(millis);
            let (mut a, mut b) = (String::new(), String::new());
            rfc3339(at, &mut a);
            common_log(at, &mut b);
            assert_eq!((a.as_str(), b.as_str()), (rfc, common));
        }
    }
}
