//! Lengths of buckets: `INTERVAL '1' day`, `INTERVAL '1 hour 30 minutes'`, `'15 minutes'`.

use engine::materialization::Granularity;
use engine::materialization::bucket::{civil_from_days, days_from_civil};
use sqlparser::ast::{DataType, DateTimeField, Expr, Value};

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3_600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;

/// A length: months, which are of varying length, and microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stride {
    pub(super) months: i64,
    pub(super) us: i64,
}

impl Stride {
    /// The length that an expression says; `None` for anything else.
    pub(super) fn of(expression: &Expr) -> Option<Stride> {
        let (value, unit) = match expression {
            Expr::Cast { expr, data_type: DataType::Interval { fields: None, precision: None }, .. } => {
                (expr.as_ref(), None)
            }
            Expr::Interval(interval) if interval.last_field.is_none() => {
                let unit = match &interval.leading_field {
                    None => None,
                    Some(DateTimeField::Custom(_)) => return None,
                    Some(field) => Some(field.to_string().to_lowercase()),
                };
                (interval.value.as_ref(), unit)
            }
            other => (other, None),
        };
        let Expr::Value(value) = value else { return None };
        let text = match &value.value {
            Value::SingleQuotedString(text) => text.clone(),
            Value::Number(digits, _) if unit.is_some() => digits.clone(),
            _ => return None,
        };
        match unit {
            Some(unit) => Stride::default().plus(text.trim(), &unit),
            None => Stride::of_text(&text),
        }
    }

    /// `1 hour 30 minutes`
    fn of_text(text: &str) -> Option<Stride> {
        let mut stride = Stride::default();
        let mut words = text.split_whitespace();
        while let Some(number) = words.next() {
            if number.contains(':') {
                stride = stride.plus_clock(number)?;
                continue;
            }
            stride = match number.find(|c: char| !c.is_ascii_digit()) {
                // `15m`
                Some(at) => stride.plus(number.get(..at)?, number.get(at..)?)?,
                None => stride.plus(number, words.next()?)?,
            };
        }
        Some(stride).filter(|stride| *stride != Stride::default())
    }

    /// `00:15:00`, as Postgres shows what is shorter than a day.
    fn plus_clock(self, clock: &str) -> Option<Stride> {
        let parts: Vec<i64> =
            clock.split(':').map(|part| part.parse::<u32>().ok().map(i64::from)).collect::<Option<_>>()?;
        match parts.as_slice() {
            [hours, minutes @ 0..60, seconds @ 0..60] => {
                let us = hours.checked_mul(HOUR_US)?.checked_add((minutes * 60 + seconds) * SECOND_US)?;
                Some(Stride { us: self.us.checked_add(us)?, ..self })
            }
            _ => None,
        }
    }

    fn plus(self, number: &str, unit: &str) -> Option<Stride> {
        let number: i64 = number.parse().ok().filter(|number| *number > 0)?;
        let unit = unit.to_ascii_lowercase();
        let (months, us) = match unit.strip_suffix('s').filter(|unit| unit.len() > 1).unwrap_or(&unit) {
            "us" | "microsecond" => (0, 1),
            "ms" | "millisecond" => (0, 1_000),
            "s" | "sec" | "second" => (0, SECOND_US),
            "m" | "min" | "minute" => (0, 60 * SECOND_US),
            "h" | "hour" => (0, HOUR_US),
            "d" | "day" => (0, DAY_US),
            "w" | "week" => (0, 7 * DAY_US),
            "mon" | "month" => (1, 0),
            "quarter" => (3, 0),
            "y" | "year" => (12, 0),
            _ => return None,
        };
        Some(Stride {
            months: self.months.checked_add(number.checked_mul(months)?)?,
            us: self.us.checked_add(number.checked_mul(us)?)?,
        })
    }

    /// The step of so many microseconds, as `date_bin` makes them.
    pub(super) fn step(self) -> Result<Granularity, String> {
        if self.months > 0 {
            return Err(
                "date_bin has steps of fixed length, and months are of varying length: use date_trunc".to_owned()
            );
        }
        // What a granularity can be is known in one place: its text.
        if self.us % SECOND_US != 0 {
            return Err("the shortest bucket is a second, and buckets are whole seconds".to_owned());
        }
        let text = match self.us {
            us if us % DAY_US == 0 => format!("P{}D", us / DAY_US),
            us => format!("PT{}S", us / SECOND_US),
        };
        text.parse().map_err(|_| "a bucket is at least one second and at most 36,525 days".to_owned())
    }

    /// The granularity of this length from an origin (microseconds since 2000-01-01): a civil one where that is what is
    /// meant, and then the origin says nothing more.
    pub(super) fn granularity(self, origin_us: i64) -> Result<Granularity, String> {
        let (day, time) = (origin_us.div_euclid(DAY_US), origin_us.rem_euclid(DAY_US));
        let (_, month, of_month) = civil_from_days(day);
        let month_begins = of_month == 1 && time == 0;
        match (self.months, self.us) {
            (0, HOUR_US) if origin_us.rem_euclid(HOUR_US) == 0 => Ok(Granularity::Hour),
            (0, DAY_US) if time == 0 => Ok(Granularity::Day),
            // 2000-01-03 was a Monday.
            (0, us) if us == 7 * DAY_US && time == 0 && (day - 2).rem_euclid(7) == 0 => Ok(Granularity::Week),
            (0, _) => self.step(),
            (1, 0) if month_begins => Ok(Granularity::Month),
            (3, 0) if month_begins && month % 3 == 1 => Ok(Granularity::Quarter),
            (12, 0) if month_begins && month == 1 => Ok(Granularity::Year),
            (1 | 3 | 12, 0) => Err("the origin is not one at which such buckets begin".to_owned()),
            _ => Err("of lengths in months there are 1 month, 3 months and 1 year".to_owned()),
        }
    }
}

/// 1970-01-01 in microseconds since 2000-01-01.
pub(super) fn epoch_1970() -> i64 {
    days_from_civil(1970, 1, 1) * DAY_US
}

/// Monday 2000-01-03, where Timescale's `time_bucket` begins to count.
pub(super) const TIME_BUCKET_ORIGIN: i64 = 2 * DAY_US;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_words() {
        let us = |text: &str| Stride::of_text(text).map(|stride| (stride.months, stride.us));
        assert_eq!(us("1 day"), Some((0, DAY_US)));
        assert_eq!(us("15 minutes"), us("15m"));
        assert_eq!(us("1 hour 30 min"), Some((0, 5_400 * SECOND_US)));
        assert_eq!(us("2 years 1 month"), Some((25, 0)));
        assert_eq!(us("7 days"), us("1 week"));
        assert_eq!(us("00:15:00"), us("15m"));
        assert_eq!(us("1 day 02:00:00"), us("26 hours"));
        for wrong in [
            "",
            "day",
            "1",
            "-1 day",
            "0 days",
            "1.5 hours",
            "1 fortnight",
            "00:15",
            "00:75:00",
            "00:00:00",
            "3000000000:00:00",
            "9999999999999999999 years",
        ] {
            assert_eq!(us(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_day_from_midnight_is_a_civil_day() {
        let granularity = |text: &str, origin: i64| {
            Stride::of_text(text).and_then(|stride| stride.granularity(origin).ok()).map(|g| g.to_string())
        };
        let is = |name: &str| Some(name.to_owned());
        assert_eq!(granularity("1 day", epoch_1970()), is("day"));
        assert_eq!(granularity("24 hours", epoch_1970() + HOUR_US), is("P1D"));
        assert_eq!(granularity("1 hour", epoch_1970()), is("hour"));
        assert_eq!(granularity("1 week", TIME_BUCKET_ORIGIN), is("week"));
        assert_eq!(granularity("1 week", epoch_1970()), is("P7D"));
        assert_eq!(granularity("1 month", epoch_1970()), is("month"));
        assert_eq!(granularity("1 month", TIME_BUCKET_ORIGIN), None);
        assert_eq!(granularity("3 months", epoch_1970()), is("quarter"));
        assert_eq!(granularity("1 year", epoch_1970()), is("year"));
        assert_eq!(granularity("2 months", epoch_1970()), None);
        assert_eq!(granularity("15 minutes", 0), is("PT15M"));
        assert_eq!(granularity("100 ms", 0), None);
    }
}
