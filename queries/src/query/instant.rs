//! Instants as text and back: RFC 3339 where it can say it, ISO 8601's expanded years where it cannot.
//!
//! Written here and not with chrono because Postgres' years go from 4713 BC to 294276, beyond what chrono holds. RFC 3339
//! has no seconds in offsets, which local mean time before about 1900 has: such instants are given in UTC.

use std::fmt::Write;

use engine::materialization::Calendar;
use engine::materialization::bucket::{civil_from_days, days_from_civil};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;
/// Years that Postgres' timestamps have.
const YEARS: std::ops::RangeInclusive<i64> = -4_712..=294_276;

/// One end of a range as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Exactly there.
    At(i64),
    /// So long ago; to be moved outward to the edge of a bucket, because nobody means half a day by "30 days ago".
    Ago(i64),
}

/// Reads `2026`, `2026-03`, `2026-03-01` (in the calendar's zone), an RFC 3339 instant, `now` or `-30d` (s, m, h, d, w).
#[must_use]
pub fn parse_bound(text: &str, calendar: &Calendar, now_us: i64) -> Option<Bound> {
    if text == "now" {
        return Some(Bound::Ago(now_us));
    }
    if let Some(ago_us) = parse_ago(text) {
        return now_us.checked_sub(ago_us).map(Bound::Ago);
    }
    let (day, rest) = parse_date(text)?;
    let midnight = day.checked_mul(DAY_US)?;
    if rest.is_empty() {
        return Some(Bound::At(calendar.instant_of_local(midnight)));
    }
    parse_time(rest)?.checked_add(midnight).map(Bound::At)
}

fn parse_ago(text: &str) -> Option<i64> {
    let period = text.strip_prefix('-')?;
    let (digits, unit) = period.split_at_checked(period.len().checked_sub(1)?)?;
    let unit_us = match unit {
        "s" => SECOND_US,
        "m" => MINUTE_US,
        "h" => HOUR_US,
        "d" => DAY_US,
        "w" => 7 * DAY_US,
        _ => return None,
    };
    digits_of(digits)?.checked_mul(unit_us)
}

fn digits_of(text: &str) -> Option<i64> {
    let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

/// The civil date at the beginning, as days since 2000-01-01, and what follows it.
fn parse_date(text: &str) -> Option<(i64, &str)> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let length = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    let expanded = unsigned.len() != text.len();
    if !(length == 4 || expanded && length == 6) {
        return None;
    }
    let (year, rest) = unsigned.split_at_checked(length)?;
    let year = sign * digits_of(year)?;
    let (month, rest) = parse_part(rest)?;
    let (day, rest) = if month.is_some() { parse_part(rest)? } else { (None, rest) };
    // A time needs a whole date before it.
    if !rest.is_empty() && day.is_none() {
        return None;
    }
    let date = (year, month.unwrap_or(1), day.unwrap_or(1));
    let days =
        (YEARS.contains(&year) && (1..=12).contains(&date.1)).then(|| days_from_civil(date.0, date.1, date.2))?;
    (civil_from_days(days) == date).then_some((days, rest))
}

/// `-03` and what follows, or nothing.
fn parse_part(text: &str) -> Option<(Option<u32>, &str)> {
    let Some(rest) = text.strip_prefix('-') else { return Some((None, text)) };
    let (digits, rest) = rest.split_at_checked(2)?;
    Some((Some(u32::try_from(digits_of(digits)?).ok()?), rest))
}

/// `T05:00:00.25+01:00`, as microseconds after midnight UTC. In an URL a `+` that was not escaped arrives as a blank.
fn parse_time(text: &str) -> Option<i64> {
    let clock = text.strip_prefix(['T', 't', ' '])?;
    let at = clock.find(['Z', 'z', '+', '-', ' '])?;
    let (clock, offset) = clock.split_at_checked(at)?;
    let offset_us = match offset.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        ("-", offset) => -parse_hours_minutes(offset)?,
        ("+" | " ", offset) => parse_hours_minutes(offset)?,
        _ => return None,
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (minutes, seconds) = match clock.split_at_checked(5)? {
        (minutes, "") if fraction.is_empty() => (minutes, 0),
        (minutes, seconds) => (minutes, digits_of(seconds.strip_prefix(':').filter(|s| s.len() == 2)?)?),
    };
    let fraction_us = match fraction {
        "" => 0,
        digits if digits.len() <= 6 => digits_of(&format!("{digits:0<6}"))?,
        _ => return None,
    };
    (seconds < 60).then_some(parse_hours_minutes(minutes)? + seconds * SECOND_US + fraction_us - offset_us)
}

fn parse_hours_minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
    let (hours, minutes) = (digits_of(hours)?, digits_of(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * HOUR_US + minutes * MINUTE_US)
}

/// An instant with the offset that the calendar's zone has then.
#[must_use]
pub fn format_instant(instant_us: i64, calendar: &Calendar) -> String {
    format_at_offset(instant_us, calendar.offset_s(instant_us))
}

/// An instant with an offset, in seconds east of UTC; in UTC where that is no whole number of minutes.
#[must_use]
pub fn format_at_offset(instant_us: i64, offset_s: i64) -> String {
    let offset_s = if offset_s % 60 == 0 { offset_s } else { 0 };
    let mut text = format_local(instant_us.saturating_add(offset_s * SECOND_US));
    if offset_s == 0 {
        text.push('Z');
    } else {
        let (sign, minutes) = (if offset_s < 0 { '-' } else { '+' }, offset_s.abs() / 60);
        let _ = write!(text, "{sign}{:02}:{:02}", minutes / 60, minutes % 60);
    }
    text
}

/// A clock reading of which no zone is known.
#[must_use]
pub fn format_local(local_us: i64) -> String {
    let mut text = format_date(local_us.div_euclid(DAY_US));
    let time = local_us.rem_euclid(DAY_US);
    let _ = write!(text, "T{:02}:{:02}:{:02}", time / HOUR_US, time / MINUTE_US % 60, time / SECOND_US % 60);
    let fraction = time % SECOND_US;
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text
}

/// A civil date, from days since 2000-01-01.
#[must_use]
pub fn format_date(day: i64) -> String {
    let (year, month, day) = civil_from_days(day);
    match year {
        0..=9_999 => format!("{year:04}-{month:02}-{day:02}"),
        _ => {
            let sign = if year < 0 { '-' } else { '+' };
            format!("{sign}{:06}-{month:02}-{day:02}", year.unsigned_abs())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn madrid() -> Calendar {
        Calendar::new("Europe/Madrid".parse().unwrap(), 0)
    }

    fn at(text: &str, calendar: &Calendar) -> Option<i64> {
        match parse_bound(text, calendar, 0) {
            Some(Bound::At(us)) => Some(us),
            _ => None,
        }
    }

    #[test]
    fn dates_begin_in_the_zone_and_instants_say_theirs() {
        let march = days_from_civil(2026, 3, 1) * DAY_US;
        assert_eq!(at("2026-03", &Calendar::UTC), Some(march));
        assert_eq!(at("2026-03-01", &madrid()), Some(march - HOUR_US));
        assert_eq!(at("2026-03-01T00:00:00+01:00", &Calendar::UTC), Some(march - HOUR_US));
        assert_eq!(at("2026-03-01T00:00:00 01:00", &Calendar::UTC), Some(march - HOUR_US));
        assert_eq!(at("2026-03-01 00:00Z", &Calendar::UTC), Some(march));
        assert_eq!(at("2026-03-01T00:00:00.25Z", &Calendar::UTC), Some(march + 250_000));
        assert_eq!(at("2026", &Calendar::UTC), Some(days_from_civil(2026, 1, 1) * DAY_US));
        assert_eq!(at("-0044-03-15", &Calendar::UTC), Some(days_from_civil(-44, 3, 15) * DAY_US));
        assert_eq!(parse_bound("-30d", &Calendar::UTC, march), Some(Bound::Ago(march - 30 * DAY_US)));
        assert_eq!(parse_bound("now", &Calendar::UTC, march), Some(Bound::Ago(march)));
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in [
            "",
            "26",
            "2026-3",
            "2026-13",
            "2026-02-30",
            "2026-03T00:00Z",
            "2026-03-01T00:00:00",
            "2026-03-01T24:00Z",
            "2026-03-01T00:00:60Z",
            "2026-03-01T00:00:00.1234567Z",
            "294277",
            "+294277",
            "999999",
            "-d",
            "-3y",
            "é",
            "-é",
            "2026-é1",
            "2026-03-01Té",
        ] {
            assert_eq!(parse_bound(text, &Calendar::UTC, 0), None, "{text:?}");
        }
    }

    #[test]
    fn instants_are_written_in_the_zone() {
        let us = |text| at(text, &Calendar::UTC).unwrap();
        assert_eq!(format_instant(us("2026-03-01"), &Calendar::UTC), "2026-03-01T00:00:00Z");
        assert_eq!(format_instant(us("2026-07-01"), &madrid()), "2026-07-01T02:00:00+02:00");
        assert_eq!(format_instant(us("+012026-01-01"), &Calendar::UTC), "+012026-01-01T00:00:00Z");
        assert_eq!(format_instant(us("-0043-01-01"), &Calendar::UTC), "-000043-01-01T00:00:00Z");
        assert_eq!(format_instant(us("1890-01-01"), &madrid()), "1890-01-01T00:00:00Z");
        assert_eq!(format_instant(-1, &Calendar::UTC), "1999-12-31T23:59:59.999999Z");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(us in at("-4712", &Calendar::UTC).unwrap()..i64::MAX - 2 * DAY_US) {
            for calendar in [Calendar::UTC, madrid(), Calendar::new("America/St_Johns".parse().unwrap(), 0)] {
                let text = format_instant(us, &calendar);
                prop_assert_eq!(at(&text, &calendar), Some(us), "{}", text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*", zoned in any::<bool>(), now in any::<i64>()) {
            let _ = parse_bound(&text, &if zoned { madrid() } else { Calendar::UTC }, now);
        }

        #[test]
        fn nearly_right_text_is_read_or_refused(text in "[-+]?[0-9]{1,6}(-[0-9]{1,2}){0,2}([T ][0-9:]{0,8}[Z+-]?)?") {
            let _ = parse_bound(&text, &madrid(), 0);
        }
    }
}
