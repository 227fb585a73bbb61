//! `compare` of a question: the same range some time earlier, beside each row.
//!
//! `previous` is as long as the range itself: whole months go back by months, whole days by days, so that March is compared
//! with February and not with the 31 days before. The 29th to 31st of March have no counterpart then, and say so by NULL.
//!
//! The surprise: a bucket so much earlier need not be one. A year before a week lies no week, and an hour before the clock was
//! set lies none or two. A total has a counterpart only where exactly what it is about, so much earlier, is a bucket too:
//!
//! ```text
//!  row's bucket, as far as the range goes   [ start ──────── end )
//!                                              │ before        │ before
//!  a bucket, as far as the earlier range goes [ start ──────── end )      otherwise NULL
//! ```

use engine::materialization::bucket::{Interval, civil_from_days, days_from_civil};
use engine::materialization::{Calendar, Granularity};

use super::refusal::QueryError;

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// How much earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Civil months.
    Months(i64),
    /// Civil days.
    Days(i64),
    /// Microseconds.
    Exact(i64),
}

impl Period {
    /// Reads `previous` or an ISO 8601 period of one unit, `P1Y`, `P3M`, `P1W`, `P7D`, for a range and its buckets. Refuses one
    /// after which buckets lie elsewhere, where the range has several.
    pub fn of(
        text: &str,
        (from, to): (Option<i64>, Option<i64>),
        granularity: Granularity,
        calendar: &Calendar,
    ) -> Result<Period, QueryError> {
        let Some((from, to)) = from.zip(to) else {
            return Err(QueryError::refused(
                "compare",
                "compare_needs_range",
                "only a range with both ends has one before",
            )
            .hint("give from and to"));
        };
        let period = if text == "previous" { length(from, to, calendar) } else { Period::parse(text)? };
        if period.repeats(granularity) || period.fits_one(Interval { start: from, end: to }, granularity, calendar) {
            return Ok(period);
        }
        let hint = match granularity {
            Granularity::Week => "use P1W or P52W",
            Granularity::Month => "use P1M or P1Y",
            Granularity::Quarter => "use P3M or P1Y",
            Granularity::Year => "use P1Y",
            _ => "use a whole number of buckets, or ask for days",
        };
        let name = period.name();
        let wrong = format!("what lies {name} before one {granularity} begins and ends inside others");
        Err(QueryError::refused("compare", "compare_misfit", wrong).hint(hint))
    }

    fn parse(text: &str) -> Result<Period, QueryError> {
        let period = text.strip_prefix('P').and_then(|rest| rest.split_at_checked(rest.len().checked_sub(1)?));
        let count = |digits: &str| digits.parse::<i64>().ok().filter(|n| (1..=100_000).contains(n));
        period
            .and_then(|(digits, unit)| {
                let n = count(digits)?;
                Some(match unit {
                    "Y" => Period::Months(12 * n),
                    "M" => Period::Months(n),
                    "W" => Period::Days(7 * n),
                    "D" => Period::Days(n),
                    _ => return None,
                })
            })
            .ok_or_else(|| QueryError::malformed("compare", "use previous, or a period such as P1Y, P3M, P1W or P7D"))
    }

    /// Whether buckets so much earlier are buckets, but for where the clock was set.
    fn repeats(self, granularity: Granularity) -> bool {
        let by_steps_of = |step: i64| match self {
            Period::Months(_) => DAY_US % step == 0,
            Period::Days(days) => days.checked_mul(DAY_US).is_some_and(|us| us % step == 0),
            Period::Exact(us) => us % step == 0,
        };
        match (granularity, self) {
            (Granularity::All, _) => true,
            (Granularity::Step(step), _) => by_steps_of(step),
            (Granularity::Hour, _) => by_steps_of(HOUR_US),
            (Granularity::Day, period) => !matches!(period, Period::Exact(_)),
            (Granularity::Week, Period::Days(days)) => days % 7 == 0,
            (Granularity::Month, Period::Months(_)) => true,
            (Granularity::Quarter, Period::Months(months)) => months % 3 == 0,
            (Granularity::Year, Period::Months(months)) => months % 12 == 0,
            (Granularity::Week | Granularity::Month | Granularity::Quarter | Granularity::Year, _) => false,
        }
    }

    /// Whether the range is of one bucket, and the earlier one too. Where that does not exist, somebody else says so.
    fn fits_one(self, range: Interval, granularity: Granularity, calendar: &Calendar) -> bool {
        let bucket = calendar.interval(granularity, range.start);
        let then = self.before(range.start, calendar).zip(self.before(range.end, calendar));
        then.is_none_or(|(start, end)| {
            let then = Interval { start, end };
            bucket.end >= range.end && self.counterpart(bucket.start, granularity, calendar, range, then).is_some()
        })
    }

    fn name(self) -> String {
        match self {
            Period::Months(months) if months % 12 == 0 => format!("P{}Y", months / 12),
            Period::Months(months) => format!("P{months}M"),
            Period::Days(days) => format!("P{days}D"),
            Period::Exact(us) => format!("{} s", us / 1_000_000),
        }
    }

    /// The bucket of all that lies so much earlier than what a row is about, and of nothing else. `range` is the question's, `then`
    /// the earlier one.
    #[must_use]
    pub fn counterpart(
        self,
        bucket: i64,
        granularity: Granularity,
        calendar: &Calendar,
        range: Interval,
        then: Interval,
    ) -> Option<i64> {
        let within = |bucket: Interval, range: Interval| Interval {
            start: bucket.start.max(range.start),
            end: bucket.end.min(range.end),
        };
        let own = within(calendar.interval(granularity, bucket), range);
        let start = self.before(own.start, calendar)?;
        let end = match (self, granularity) {
            // The day before the first of March has none so many months earlier: within a month, days are as long as days.
            (Period::Months(_), Granularity::Step(_) | Granularity::Hour | Granularity::Day) => {
                Period::Days(local_day(own.start, calendar) - local_day(start, calendar)).before(own.end, calendar)?
            }
            _ => self.before(own.end, calendar)?,
        };
        let earlier = calendar.interval(granularity, start);
        (within(earlier, then) == Interval { start, end }).then_some(earlier.start)
    }

    /// The instant so much earlier by the local clock; `None` where that day does not exist. The beginning of a day becomes one,
    /// whatever the clock then shows.
    #[must_use]
    pub fn before(self, instant: i64, calendar: &Calendar) -> Option<i64> {
        let Period::Exact(us) = self else {
            let local = instant.checked_add(calendar.offset_s(instant) * 1_000_000)?;
            let begins = calendar.interval(Granularity::Day, instant).start == instant;
            let (day, clock) = (local.div_euclid(DAY_US), if begins { 0 } else { local.rem_euclid(DAY_US) });
            let earlier = match self {
                Period::Months(months) => months_before(day, months)?,
                Period::Days(days) => day.checked_sub(days)?,
                Period::Exact(_) => day,
            };
            return Some(calendar.instant_of_local(earlier.checked_mul(DAY_US)?.checked_add(clock)?));
        };
        instant.checked_sub(us)
    }
}

fn months_before(day: i64, months: i64) -> Option<i64> {
    let (year, month, day_of_month) = civil_from_days(day);
    let counted = (year * 12 + i64::from(month) - 1).checked_sub(months)?;
    let (year, month) = (counted.div_euclid(12), counted.rem_euclid(12) as u32 + 1);
    let earlier = days_from_civil(year, month, day_of_month);
    (civil_from_days(earlier) == (year, month, day_of_month)).then_some(earlier)
}

/// Days from 2000-01-01 to the local date of an instant.
fn local_day(instant: i64, calendar: &Calendar) -> i64 {
    let (year, month, day) = calendar.local_date(instant);
    days_from_civil(year, month, day)
}

/// The length of a range in the largest unit that it consists of.
fn length(from: i64, to: i64, calendar: &Calendar) -> Period {
    let starts = |granularity, instant| calendar.interval(granularity, instant).start == instant;
    let day = |instant| local_day(instant, calendar);
    if starts(Granularity::Month, from) && starts(Granularity::Month, to) {
        let months = |instant| {
            let (year, month, _) = calendar.local_date(instant);
            year * 12 + i64::from(month)
        };
        return Period::Months(months(to) - months(from));
    }
    if starts(Granularity::Day, from) && starts(Granularity::Day, to) {
        return Period::Days(day(to) - day(from));
    }
    Period::Exact(to - from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn day(year: i64, month: u32, day: u32) -> i64 {
        days_from_civil(year, month, day) * DAY_US
    }

    fn previous(from: i64, to: i64) -> Period {
        Period::of("previous", (Some(from), Some(to)), Granularity::All, &Calendar::UTC).unwrap()
    }

    #[test]
    fn a_range_goes_back_by_its_own_length() {
        assert_eq!(previous(day(2026, 3, 1), day(2026, 4, 1)), Period::Months(1));
        assert_eq!(previous(day(2025, 1, 1), day(2026, 1, 1)), Period::Months(12));
        assert_eq!(previous(day(2026, 3, 2), day(2026, 3, 9)), Period::Days(7));
        assert_eq!(previous(day(2026, 3, 2), day(2026, 3, 2) + 5), Period::Exact(5));
    }

    #[test]
    fn a_day_that_does_not_exist_has_no_counterpart() {
        let month = Period::Months(1);
        assert_eq!(month.before(day(2026, 3, 28), &Calendar::UTC), Some(day(2026, 2, 28)));
        assert_eq!(month.before(day(2026, 3, 29), &Calendar::UTC), None);
        assert_eq!(Period::Months(12).before(day(2024, 2, 29), &Calendar::UTC), None);
        assert_eq!(Period::Months(1).before(day(2026, 1, 15), &Calendar::UTC), Some(day(2025, 12, 15)));
    }

    #[test]
    fn the_local_clock_counts() {
        let madrid = Calendar::new("Europe/Madrid".parse().unwrap(), 0);
        let midnight = |y, m, d| madrid.instant_of_local(day(y, m, d));
        // The clock changes on 2026-03-29: a day earlier is 23 hours earlier.
        assert_eq!(Period::Days(1).before(midnight(2026, 3, 30), &madrid), Some(midnight(2026, 3, 29)));
        assert_eq!(Period::Months(6).before(midnight(2026, 7, 1), &madrid), Some(midnight(2026, 1, 1)));
    }

    #[test]
    fn periods_are_read() {
        let read = |text| Period::of(text, (Some(0), Some(1)), Granularity::Day, &Calendar::UTC);
        assert_eq!(read("P1Y"), Ok(Period::Months(12)));
        assert_eq!(read("P2W"), Ok(Period::Days(14)));
        for wrong in ["P0D", "1Y", "P1H", "", "P", "last"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let endless = Period::of("P1Y", (None, Some(1)), Granularity::Day, &Calendar::UTC);
        assert_eq!(endless.unwrap_err().code, "compare_needs_range");
    }

    #[test]
    fn a_period_after_which_buckets_lie_elsewhere_is_refused() {
        let of = |text, granularity: &str, to| {
            let range = (Some(day(2026, 1, 1)), Some(to));
            Period::of(text, range, granularity.parse().unwrap(), &Calendar::UTC).map_err(|error| error.code)
        };
        let year = day(2027, 1, 1);
        for (text, granularity) in [
            ("P1Y", "week"),
            ("previous", "week"),
            ("P7D", "month"),
            ("P1M", "quarter"),
            ("P1M", "year"),
            ("P1D", "P2D"),
        ] {
            assert_eq!(of(text, granularity, year), Err("compare_misfit"), "{text} by {granularity}");
        }
        for (text, granularity) in [
            ("P52W", "week"),
            ("P7D", "week"),
            ("P1M", "month"),
            ("P3M", "quarter"),
            ("previous", "quarter"),
            ("previous", "year"),
            ("P1Y", "PT15M"),
            ("P1M", "day"),
            ("P1M", "hour"),
            ("P1D", "all"),
        ] {
            assert!(of(text, granularity, year).is_ok(), "{text} by {granularity}");
        }
        // Of one bucket a part can be compared with a part of one.
        let part = (Some(day(2026, 1, 10)), Some(day(2026, 1, 20)));
        assert_eq!(Period::of("P7D", part, Granularity::Month, &Calendar::UTC), Ok(Period::Days(7)));
        assert!(of("P7D", "month", day(2026, 1, 20)).is_err());
    }

    /// Which buckets of a range have one so much earlier, and which; in hours since the range begins, and since the earlier one.
    fn counterparts(
        zone: &str,
        granularity: &str,
        text: &str,
        [from, to]: [(i64, u32, u32); 2],
    ) -> Vec<(i64, Option<i64>)> {
        let calendar = Calendar::new(zone.parse().unwrap(), 0);
        let granularity = granularity.parse().unwrap();
        let [from, to] = [from, to].map(|(y, m, d)| calendar.instant_of_local(day(y, m, d)));
        let period = Period::parse(text).unwrap();
        let [then_from, then_to] = [from, to].map(|edge| period.before(edge, &calendar).unwrap());
        let (range, then) = (Interval { start: from, end: to }, Interval { start: then_from, end: then_to });
        let mut bucket = calendar.interval(granularity, from);
        let mut found = Vec::new();
        while bucket.start < to {
            let earlier = period.counterpart(bucket.start, granularity, &calendar, range, then);
            let hours = |instant: i64, since: i64| (instant - since).div_euclid(HOUR_US);
            found.push((hours(bucket.start, from), earlier.map(|earlier| hours(earlier, then_from))));
            bucket = calendar.interval(granularity, bucket.end);
        }
        found
    }

    #[test]
    fn what_is_no_bucket_so_much_earlier_is_no_counterpart() {
        // Thursday to Thursday: a year earlier no week begins where one does, 52 weeks earlier each.
        let year = [(2026, 1, 1), (2027, 1, 1)];
        assert!(counterparts("UTC", "week", "P1Y", year).iter().skip(1).all(|(_, earlier)| earlier.is_none()));
        assert!(counterparts("UTC", "week", "P52W", year).iter().all(|(own, earlier)| Some(*own) == *earlier));
        assert!(counterparts("UTC", "year", "P1M", year).iter().all(|(_, earlier)| earlier.is_none()));
        let days = counterparts("UTC", "day", "P1M", [(2026, 3, 1), (2026, 4, 1)]);
        let without: Vec<i64> = days.iter().filter(|day| day.1.is_none()).map(|day| day.0 / 24 + 1).collect();
        assert_eq!((days.len(), without), (31, vec![29, 30, 31]));
        assert!(counterparts("UTC", "hour", "P1M", [(2026, 3, 27), (2026, 3, 28)]).iter().all(|h| h.1.is_some()));
    }

    #[test]
    fn an_hour_before_the_clock_was_set_is_none_or_one() {
        let first = [(0, Some(0)), (1, Some(1)), (2, None), (3, Some(2))];
        // On 2026-03-29 there is no 02:00 in Madrid.
        let spring = counterparts("Europe/Madrid", "hour", "P1D", [(2026, 3, 30), (2026, 3, 31)]);
        assert_eq!((spring.len(), spring.get(..4)), (24, Some(&first[..])));
        // On 2026-10-25 there are two.
        let autumn = counterparts("Europe/Madrid", "hour", "P1D", [(2026, 10, 25), (2026, 10, 26)]);
        assert_eq!((autumn.len(), autumn.get(..4)), (25, Some(&first[..])));
        // A day that begins at one o'clock has a day before it, and is one before another.
        let cairo = counterparts("Africa/Cairo", "day", "P1D", [(2023, 4, 27), (2023, 5, 1)]);
        assert!(cairo.iter().all(|(_, earlier)| earlier.is_some()), "{cairo:?}");
    }
}
