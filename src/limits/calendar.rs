//! The periods of quotas, as a calendar in a time zone has them.

use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::config::units::Period;

/// One period: from its first second, up to and without its end. Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: i64,
    pub end: i64,
}

impl Window {
    pub fn contains(&self, now: i64) -> bool {
        (self.start..self.end).contains(&now)
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs(self.end.saturating_sub(self.start).max(0) as u64)
    }

    pub fn left(&self, now: i64) -> Duration {
        Duration::from_secs(self.end.saturating_sub(now).max(0) as u64)
    }
}

/// The period that holds a moment; `None` beyond the years that a calendar has.
pub fn window(period: Period, zone: &TimeZone, now: i64) -> Option<Window> {
    let local = zone.to_datetime(Timestamp::from_second(now).ok()?);
    if period == Period::Minute {
        let start = now.div_euclid(60) * 60;
        return Some(Window { start, end: start + 60 });
    }
    if period == Period::Hour {
        // Hours are the same everywhere, up to zones that are half an hour off: a shift of the clocks must not make one
        // of two.
        let offset = i64::from(zone.to_offset(Timestamp::from_second(now).ok()?).seconds());
        let start = (now + offset).div_euclid(3600) * 3600 - offset;
        return Some(Window { start, end: start + 3600 });
    }
    let today = local.date();
    let (first, span): (Date, Span) = match period {
        Period::Minute | Period::Hour | Period::Day => (today, Span::new().days(1)),
        Period::Week => {
            let since = i64::from(today.weekday().since(Weekday::Monday));
            (today.checked_sub(Span::new().days(since)).ok()?, Span::new().days(7))
        }
        Period::Month => (today.first_of_month(), Span::new().months(1)),
        Period::Year => (today.first_of_year(), Span::new().years(1)),
    };
    let second = |date: Date| Some(zone.to_timestamp(date.to_datetime(Time::midnight())).ok()?.as_second());
    Some(Window { start: second(first)?, end: second(first.checked_add(span).ok()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_and_end_as_the_zone_says() {
        let zone = |name: &str| TimeZone::get(name).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_second();
        for (period, name, now, start, end) in [
            (Period::Minute, "Asia/Kolkata", "2026-01-01T00:15:59Z", "2026-01-01T00:15:00Z", "2026-01-01T00:16:00Z"),
            (Period::Day, "UTC", "2026-02-28T23:59:59Z", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"),
            (Period::Day, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            (Period::Week, "UTC", "2026-11-29T10:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Period::Week, "UTC", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Period::Month, "America/New_York", "2026-02-01T04:59:59Z", "2026-01-01T05:00:00Z", "2026-02-01T05:00:00Z"),
            (Period::Month, "UTC", "2028-02-29T00:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Period::Year, "UTC", "2026-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Period::Hour, "Asia/Kolkata", "2026-01-01T00:15:00Z", "2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z"),
            (Period::Hour, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"),
        ] {
            let found = window(period, &zone(name), at(now)).unwrap();
            assert_eq!(found, Window { start: at(start), end: at(end) }, "{period:?} of {now} in {name}");
            assert!(found.contains(at(now)) && !found.contains(found.end));
        }
        assert_eq!(window(Period::Day, &TimeZone::UTC, i64::MAX), None);
    }
}
