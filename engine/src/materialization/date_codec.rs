//! Times that a table keeps as integers: `20261231`, `311226`, seconds since 1970.
//!
//! A codec is stated in the definition, never found out from the data: `10203` is a day under three of them. A number that
//! is not a date under the codec stated is refused, so that `20261399` is in no month at all rather than in a wrong one.
//! Years of two digits are those from 1970 to 2069, as in Postgres' `to_date`.

use serde::{Deserialize, Serialize};

use super::bucket::{Granularity, civil_from_days, days_from_civil};
use crate::change::ColumnType;
use crate::change::value::EPOCH_UNIX_US;

const DAY_US: i64 = 86_400_000_000;
/// First and last instant of Postgres' `timestamptz`, in microseconds since 2000.
pub(super) const INSTANTS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// How an integer is a date or an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DateCodec {
    /// `20261231`
    Yyyymmdd,
    /// `261231`; a leading zero is lost in an integer, so `70105` is 2007-01-05.
    Yymmdd,
    /// `311226`
    Ddmmyy,
    /// `202612`
    Yyyymm,
    /// Seconds since 1970-01-01T00:00:00Z.
    EpochS,
    /// Milliseconds since 1970.
    EpochMs,
    /// Microseconds since 1970.
    EpochUs,
}

impl DateCodec {
    /// All of them.
    pub const ALL: [DateCodec; 7] = [
        DateCodec::Yyyymmdd,
        DateCodec::Yymmdd,
        DateCodec::Ddmmyy,
        DateCodec::Yyyymm,
        DateCodec::EpochS,
        DateCodec::EpochMs,
        DateCodec::EpochUs,
    ];

    /// The name in definitions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DateCodec::Yyyymmdd => "yyyymmdd",
            DateCodec::Yymmdd => "yymmdd",
            DateCodec::Ddmmyy => "ddmmyy",
            DateCodec::Yyyymm => "yyyymm",
            DateCodec::EpochS => "epoch_s",
            DateCodec::EpochMs => "epoch_ms",
            DateCodec::EpochUs => "epoch_us",
        }
    }

    /// The codec of a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<DateCodec> {
        DateCodec::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Microseconds of one unit, where the integer counts units since 1970; `None` where it spells a date.
    #[must_use]
    pub fn unit_us(self) -> Option<i64> {
        match self {
            DateCodec::EpochS => Some(1_000_000),
            DateCodec::EpochMs => Some(1_000),
            DateCodec::EpochUs => Some(1),
            _ => None,
        }
    }

    /// Whether values of a column of this type can be such dates.
    #[must_use]
    pub fn fits(self, column_type: &ColumnType) -> bool {
        match column_type {
            ColumnType::Int8 => true,
            ColumnType::Int4 => !matches!(self, DateCodec::EpochMs | DateCodec::EpochUs),
            _ => false,
        }
    }

    /// The finest granularity of the dates it spells; `None` for instants, which have any.
    #[must_use]
    pub fn finest(self) -> Option<Granularity> {
        match self {
            DateCodec::Yyyymmdd | DateCodec::Yymmdd | DateCodec::Ddmmyy => Some(Granularity::Day),
            DateCodec::Yyyymm => Some(Granularity::Month),
            DateCodec::EpochS | DateCodec::EpochMs | DateCodec::EpochUs => None,
        }
    }

    /// Microseconds since 2000-01-01T00:00:00Z of the instant, or of the date's midnight; `None` for what is no date.
    #[must_use]
    pub fn instant(self, value: i64) -> Option<i64> {
        if let Some(unit) = self.unit_us() {
            return value.checked_mul(unit)?.checked_sub(EPOCH_UNIX_US).filter(|us| INSTANTS.contains(us));
        }
        let (high, middle, low) = (value / 10_000, value / 100 % 100, value % 100);
        let (year, month, day) = match self {
            _ if value < 0 => return None,
            DateCodec::Yyyymmdd => (high, middle, low),
            DateCodec::Yymmdd => (century(high)?, middle, low),
            DateCodec::Ddmmyy => (century(low)?, middle, high),
            _ => (value / 100, low, 1),
        };
        // A year of fewer digits is a number of fewer digits: of another codec.
        if !(1_000..=9_999).contains(&year) {
            return None;
        }
        let (month, day) = (u32::try_from(month).ok()?, u32::try_from(day).ok()?);
        let days = days_from_civil(year, month.clamp(1, 12), day.clamp(1, 31));
        (civil_from_days(days) == (year, month, day)).then_some(days * DAY_US)
    }
}

/// The year that two digits stand for.
fn century(digits: i64) -> Option<i64> {
    match digits {
        0..=69 => Some(2_000 + digits),
        70..=99 => Some(1_900 + digits),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use chrono::{Datelike, NaiveDate};
    use proptest::prelude::*;

    use super::*;

    fn date(codec: DateCodec, value: i64) -> Option<(i64, u32, u32)> {
        codec.instant(value).map(|us| civil_from_days(us.div_euclid(DAY_US)))
    }

    #[test]
    fn what_is_no_date_is_refused() {
        use DateCodec::{Ddmmyy, EpochMs, EpochS, EpochUs, Yymmdd, Yyyymm, Yyyymmdd};
        for (codec, value, expected) in [
            (Yyyymmdd, 20_240_229, Some((2024, 2, 29))),
            (Yyyymmdd, 20_230_229, None),
            (Yyyymmdd, 260_315, None),
            (Yyyymm, 2_612, None),
            (Yyyymmdd, 20_261_399, None),
            (Yyyymmdd, 20_261_200, None),
            (Yyyymmdd, 0, None),
            (Yyyymmdd, -20_240_101, None),
            (Yyyymmdd, 1_020_240_101, None),
            (Yymmdd, 261_231, Some((2026, 12, 31))),
            (Yymmdd, 991_231, Some((1999, 12, 31))),
            (Yymmdd, 105, Some((2000, 1, 5))),
            (Yymmdd, 1_305, None),
            (Yymmdd, 10_105, Some((2001, 1, 5))),
            (Yymmdd, 20_261_231, None),
            (Ddmmyy, 311_226, Some((2026, 12, 31))),
            (Ddmmyy, 10_270, Some((1970, 2, 1))),
            (Ddmmyy, 320_126, None),
            (Ddmmyy, 1_010_126, None),
            (Yyyymm, 202_612, Some((2026, 12, 1))),
            (Yyyymm, 202_613, None),
            (Yyyymm, 20_261_231, None),
            (EpochS, 0, Some((1970, 1, 1))),
            (EpochS, -1, Some((1969, 12, 31))),
            (EpochMs, 1_767_225_600_000, Some((2026, 1, 1))),
            (EpochUs, i64::MAX, Some((294_247, 1, 10))),
            (EpochUs, i64::MIN, None),
            (EpochS, i64::MAX, None),
            (EpochS, i64::MIN, None),
        ] {
            assert_eq!(date(codec, value), expected, "{} {value}", codec.name());
        }
    }

    #[test]
    fn names_are_those_of_definitions() {
        for codec in DateCodec::ALL {
            assert_eq!(DateCodec::of_name(codec.name()), Some(codec));
            assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
        }
        assert_eq!(DateCodec::of_name("mmddyy"), None);
    }

    proptest! {
        /// Every number is the date that chrono says it spells, or none.
        #[test]
        fn dates_are_those_of_chrono(value in prop_oneof![0i64..1_000_000, 19_000_000i64..21_000_000, any::<i64>()]) {
            let chrono = |year: i64, month: i64, day: i64| {
                let day = NaiveDate::from_ymd_opt(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?)?;
                Some((i64::from(day.year()), day.month(), day.day())).filter(|(year, ..)| (1_000..=9_999).contains(year))
            };
            let full = |two: i64| if two < 70 { 2_000 + two } else { 1_900 + two };
            let (a, b, c) = (value / 10_000, value / 100 % 100, value % 100);
            let positive = value >= 0;
            prop_assert_eq!(date(DateCodec::Yyyymmdd, value), chrono(a, b, c).filter(|_| positive));
            let short = (0..=99).contains(&a) && positive;
            prop_assert_eq!(date(DateCodec::Yymmdd, value), chrono(full(a), b, c).filter(|_| short));
            prop_assert_eq!(date(DateCodec::Ddmmyy, value), chrono(full(c), b, a).filter(|_| positive));
            prop_assert_eq!(date(DateCodec::Yyyymm, value), chrono(value / 100, c, 1).filter(|_| positive));
        }
    }
}
