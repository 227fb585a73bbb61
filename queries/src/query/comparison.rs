//! `compare` of a question: the same range some time earlier, beside each row.
//!
//! `previous` is as long as the range itself: whole months go back by months, whole days by days, so that March is compared
//! with February and not with the 31 days before. The 29th to 31st of March have no counterpart then, and say so by NULL.

use engine::materialization::bucket::{civil_from_days, days_from_civil};
use engine::materialization::{Calendar, Granularity};

use super::refusal::QueryError;

const DAY_US: i64 = 86_400_000_000;

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
    /// Reads `previous` or an ISO 8601 period of one unit: `P1Y`, `P3M`, `P1W`, `P7D`.
    pub fn parse(text: &str, from: Option<i64>, to: Option<i64>, calendar: &Calendar) -> Result<Period, QueryError> {
        let Some((from, to)) = from.zip(to) else {
            return Err(QueryError::refused(
                "compare",
                "compare_needs_range",
                "only a range with both ends has one before",
            )
            .hint("give from and to"));
        };
        if text == "previous" {
            return Ok(length(from, to, calendar));
        }
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

    /// The instant so much earlier by the local clock; `None` where that day does not exist.
    #[must_use]
    pub fn before(self, instant: i64, calendar: &Calendar) -> Option<i64> {
        let Period::Exact(us) = self else {
            let local = instant.checked_add(calendar.offset_s(instant) * 1_000_000)?;
            let (day, clock) = (local.div_euclid(DAY_US), local.rem_euclid(DAY_US));
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

/// The length of a range in the largest unit that it consists of.
fn length(from: i64, to: i64, calendar: &Calendar) -> Period {
    let starts = |granularity, instant| calendar.interval(granularity, instant).start == instant;
    let day = |instant: i64| (instant + calendar.offset_s(instant) * 1_000_000).div_euclid(DAY_US);
    if starts(Granularity::Month, from) && starts(Granularity::Month, to) {
        let months = |instant| {
            let (year, month, _) = civil_from_days(day(instant));
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
        Period::parse("previous", Some(from), Some(to), &Calendar::UTC).unwrap()
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
        let read = |text| Period::parse(text, Some(0), Some(1), &Calendar::UTC);
        assert_eq!(read("P1Y"), Ok(Period::Months(12)));
        assert_eq!(read("P2W"), Ok(Period::Days(14)));
        for wrong in ["P0D", "1Y", "P1H", "", "P", "last"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Period::parse("P1Y", None, Some(1), &Calendar::UTC).unwrap_err().code, "compare_needs_range");
    }
}
