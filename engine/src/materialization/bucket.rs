//! Granularities and time buckets: half-open intervals `[start, end)` of instants.
//!
//! Four things surprise here.
//! - A local day may have no midnight, or two. A bucket starts at the *first instant whose local date has reached* the
//!   civil date; where the clock is set back across midnight the earlier crossing counts, so buckets stay contiguous.
//! - Postgres knows years to 294276, chrono to 262142, and the compiled zone tables end in 2099. Civil dates are
//!   therefore computed here (Howard Hinnant, "chrono-compatible low-level date algorithms"), chrono-tz is asked only for
//!   the offset from UTC, and for later years at the same date and weekday of the last tabled years, because rules of the
//!   zone tables no longer change then.
//! - A clock reading can be two instants, or none. A row's is read as Postgres reads it, a bucket begins where the reading was
//!   first reached: two methods, and neither is the other's special case.
//! - Instants count microseconds from 2000-01-01T00:00:00Z, as in Postgres; from 1970 its last timestamp would not fit.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;
/// 2000-01-01 in days since 1970-01-01.
const EPOCH_DAY: i64 = 10_957;
/// 2000-01-01T00:00:00Z in seconds since 1970.
const EPOCH_UNIX_S: i64 = EPOCH_DAY * 86_400;
/// Bucket edges one cache holds before it starts over.
const CACHE_LIMIT: usize = 100_000;

/// Length of a time bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Granularity {
    /// A fixed number of microseconds, counted from the origin. At least one second.
    Step(i64),
    /// Clock hour of the zone.
    Hour,
    /// Civil day of the zone.
    Day,
    /// Civil week: begins on Monday (ISO 8601), unless the calendar says otherwise.
    Week,
    /// Civil month.
    Month,
    /// Three months from January, April, July, October, or from the first month of the calendar's year.
    Quarter,
    /// Civil year: begins in January, unless the calendar says otherwise.
    Year,
    /// One bucket for everything, rows without a time included.
    All,
}

impl Granularity {
    /// Length in microseconds, where it is a fixed step.
    #[must_use]
    pub fn step_us(self) -> Option<i64> {
        match self {
            Granularity::Step(us) => Some(us),
            _ => None,
        }
    }
}

/// Not the name of a granularity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown granularity {0:?}: use second, minute, hour, day, week, month, quarter, year, all, or a fixed step such as PT15M or P10D"
)]
pub struct ParseGranularityError(String);

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Granularity::Step(SECOND_US) => "second",
            Granularity::Step(MINUTE_US) => "minute",
            Granularity::Hour => "hour",
            Granularity::Day => "day",
            Granularity::Week => "week",
            Granularity::Month => "month",
            Granularity::Quarter => "quarter",
            Granularity::Year => "year",
            Granularity::All => "all",
            Granularity::Step(us) if us % DAY_US == 0 => return write!(f, "P{}D", us / DAY_US),
            Granularity::Step(us) if us % HOUR_US == 0 => return write!(f, "PT{}H", us / HOUR_US),
            Granularity::Step(us) if us % MINUTE_US == 0 => return write!(f, "PT{}M", us / MINUTE_US),
            Granularity::Step(us) => return write!(f, "PT{}S", us / SECOND_US),
        })
    }
}

impl FromStr for Granularity {
    type Err = ParseGranularityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "second" => Granularity::Step(SECOND_US),
            "minute" => Granularity::Step(MINUTE_US),
            "hour" => Granularity::Hour,
            "day" => Granularity::Day,
            "week" => Granularity::Week,
            "month" => Granularity::Month,
            "quarter" => Granularity::Quarter,
            "year" => Granularity::Year,
            "all" => Granularity::All,
            _ => return parse_step(text).ok_or_else(|| ParseGranularityError(text.chars().take(64).collect())),
        })
    }
}

/// `PT15M`, `PT6H`, `P10D`, `PT90S`: one number, one unit, at most 100 years.
fn parse_step(text: &str) -> Option<Granularity> {
    let period = text.strip_prefix('P')?;
    let (digits, unit_us) = match period.strip_prefix('T') {
        Some(time) => match time.split_at_checked(time.len().checked_sub(1)?)? {
            (digits, "S") => (digits, SECOND_US),
            (digits, "M") => (digits, MINUTE_US),
            (digits, "H") => (digits, HOUR_US),
            _ => return None,
        },
        None => (period.strip_suffix('D')?, DAY_US),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let us = digits.parse::<i64>().ok()?.checked_mul(unit_us)?;
    (us > 0 && us <= 36_525 * DAY_US).then_some(Granularity::Step(us))
}

impl Serialize for Granularity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Granularity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The start of a bucket in microseconds since 2000-01-01T00:00:00Z, or one of the four that no instant falls in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub i64);

impl Bucket {
    /// Rows whose time is `-infinity`.
    pub const NEGATIVE_INFINITY: Bucket = Bucket(i64::MIN);
    /// Rows whose time is `infinity`.
    pub const INFINITY: Bucket = Bucket(i64::MAX - 1);
    /// Rows whose time is NULL; sorts last, as in Postgres.
    pub const NULL: Bucket = Bucket(i64::MAX);
    /// The one bucket of [`Granularity::All`].
    pub const ALL: Bucket = Bucket(0);

    /// The bucket of a time that is not an instant, or `None` for an ordinary start.
    #[must_use]
    pub fn is_special(self) -> bool {
        matches!(self, Bucket::NEGATIVE_INFINITY | Bucket::INFINITY | Bucket::NULL)
    }
}

/// A half-open interval of instants, in microseconds since 2000-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// First instant inside.
    pub start: i64,
    /// First instant after.
    pub end: i64,
}

/// Day on which weeks begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeekStart {
    /// ISO 8601, Postgres' `date_trunc`.
    #[default]
    Monday,
    /// The Gulf states.
    Saturday,
    /// The Americas.
    Sunday,
}

/// A month in which years can begin: 1 to 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct YearStart(u8);

impl YearStart {
    /// The civil year.
    pub const JANUARY: YearStart = YearStart(1);

    /// From the month's number.
    #[must_use]
    pub fn new(month: u8) -> Option<YearStart> {
        (1..=12).contains(&month).then_some(YearStart(month))
    }

    /// The month's number.
    #[must_use]
    pub fn month(self) -> u8 {
        self.0
    }
}

/// A time zone with the origin of fixed steps and the beginnings of weeks and years: everything that turns instants into
/// buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    zone: Tz,
    origin_us: i64,
    week_start: WeekStart,
    year_start: YearStart,
}

impl Calendar {
    /// Days of UTC, steps from 2000-01-01.
    pub const UTC: Calendar =
        Calendar { zone: Tz::UTC, origin_us: 0, week_start: WeekStart::Monday, year_start: YearStart::JANUARY };

    /// A calendar of a zone, with the origin of fixed steps.
    #[must_use]
    pub fn new(zone: Tz, origin_us: i64) -> Self {
        Calendar { zone, origin_us, ..Calendar::UTC }
    }

    /// The same with other weeks and years. A fiscal year is named by the instant it begins at, as every bucket is.
    #[must_use]
    pub fn with_starts(self, week_start: WeekStart, year_start: YearStart) -> Self {
        Calendar { week_start, year_start, ..self }
    }

    /// The same in another zone.
    #[must_use]
    pub fn with_zone(self, zone: Tz) -> Self {
        Calendar { zone, ..self }
    }

    /// The same with another origin of fixed steps.
    #[must_use]
    pub fn with_origin(self, origin_us: i64) -> Self {
        Calendar { origin_us, ..self }
    }

    /// Where fixed steps start counting.
    #[must_use]
    pub fn origin_us(&self) -> i64 {
        self.origin_us
    }

    /// Day on which weeks begin.
    #[must_use]
    pub fn week_start(&self) -> WeekStart {
        self.week_start
    }

    /// Month in which years begin.
    #[must_use]
    pub fn year_start(&self) -> YearStart {
        self.year_start
    }

    /// The zone.
    #[must_use]
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The bucket that holds `instant`. Total over all of Postgres' timestamps. For [`Granularity::All`] the interval is
    /// everything and its start is not the bucket's name: use [`Bucket::ALL`].
    #[must_use]
    pub fn interval(&self, granularity: Granularity, instant: i64) -> Interval {
        match granularity {
            Granularity::Step(step) => {
                let since = instant.saturating_sub(self.origin_us);
                let start = instant.saturating_sub(since.rem_euclid(step));
                Interval { start, end: start.saturating_add(step) }
            }
            Granularity::Hour => self.hour(instant),
            Granularity::All => Interval { start: i64::MIN, end: i64::MAX },
            civil => self.civil(civil, instant),
        }
    }

    /// Seconds east of UTC at an instant.
    #[must_use]
    pub fn offset_s(&self, instant: i64) -> i64 {
        if self.zone == Tz::UTC {
            return 0;
        }
        let second = instant.div_euclid(SECOND_US);
        let (year, month, _) = civil_from_days(second.div_euclid(86_400));
        let known = if year > LAST_TABLED_YEAR {
            second - 86_400 * days_since_the_same(year, month)
        } else {
            second.max(days_from_civil(-9_999, 1, 1) * 86_400)
        };
        DateTime::from_timestamp(known + EPOCH_UNIX_S, 0)
            .map_or(0, |utc| i64::from(self.zone.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc()))
    }

    /// The instant at which a local clock reading is reached: the first where there are two, the first after the gap where
    /// there is none. Where buckets begin; a row's reading is [`Self::instant_of_reading`].
    #[must_use]
    pub fn instant_of_local(&self, local_us: i64) -> i64 {
        if self.zone == Tz::UTC {
            return local_us;
        }
        // Offsets lie within a day of UTC, and change at most once in these two days (true for all zones since 1970).
        let before = self.offset_s(local_us.saturating_sub(DAY_US)) * SECOND_US;
        let after = self.offset_s(local_us.saturating_add(DAY_US)) * SECOND_US;
        let candidates = [local_us.saturating_sub(before.max(after)), local_us.saturating_sub(before.min(after))];
        for candidate in candidates {
            if candidate.saturating_add(self.offset_s(candidate) * SECOND_US) == local_us {
                return candidate;
            }
        }
        // In a gap: search for the change itself.
        let (mut low, mut high) = (candidates[0].saturating_sub(DAY_US), candidates[1].saturating_add(DAY_US));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if middle.saturating_add(self.offset_s(middle) * SECOND_US) < local_us {
                low = middle;
            } else {
                high = middle;
            }
        }
        high
    }

    /// The instant that a row's clock reading stands for, which is Postgres' `reading AT TIME ZONE 'zone'`: the later one where the
    /// clock shows it twice; where it is skipped, by the offset from before.
    #[must_use]
    pub fn instant_of_reading(&self, local_us: i64) -> i64 {
        if self.zone == Tz::UTC {
            return local_us;
        }
        // Postgres takes the first change after the day before the reading, and the offset after it where the reading by that is
        // not before the change. No zone has two changes within three days, so the days around it have both offsets.
        let before = self.offset_s(local_us.saturating_sub(DAY_US));
        let after = self.offset_s(local_us.saturating_add(DAY_US));
        let by_after = local_us.saturating_sub(after * SECOND_US);
        if before == after || self.offset_s(by_after) == after {
            return by_after;
        }
        local_us.saturating_sub(before * SECOND_US)
    }

    /// Whether the clock was ever set, so that a reading may have been shown twice or skipped.
    #[must_use]
    pub fn was_ever_set(&self) -> bool {
        /// Before any zone left its local mean time.
        const FROM: i64 = 1_840;
        const TO: i64 = 2_037;
        /// Summer times last longer.
        const STEP: usize = 30;
        let days = days_from_civil(FROM, 1, 1)..days_from_civil(TO, 1, 1);
        let first = self.offset_s(days.start * DAY_US);
        days.step_by(STEP).any(|day| self.offset_s(day * DAY_US) != first)
    }

    /// The local civil date of an instant.
    #[must_use]
    pub fn local_date(&self, instant: i64) -> (i64, u32, u32) {
        civil_from_days(self.local_day(instant))
    }

    fn local_day(&self, instant: i64) -> i64 {
        instant.saturating_add(self.offset_s(instant) * SECOND_US).div_euclid(DAY_US)
    }

    fn hour(&self, instant: i64) -> Interval {
        let offset = self.offset_s(instant) * SECOND_US;
        let start = instant.saturating_sub(instant.saturating_add(offset).rem_euclid(HOUR_US));
        let end = start.saturating_add(HOUR_US);
        // The clock may be set within the hour by less than an hour (Lord Howe): the change then is an edge.
        let start =
            if self.offset_s(start) * SECOND_US == offset { start } else { self.change_between(start, instant) };
        let end =
            if self.offset_s(end - 1) * SECOND_US == offset { end } else { self.change_between(instant, end - 1) };
        Interval { start, end }
    }

    /// First instant after `low` at which the offset differs from the one at `low`.
    fn change_between(&self, mut low: i64, mut high: i64) -> i64 {
        let at_low = self.offset_s(low);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.offset_s(middle) == at_low {
                low = middle;
            } else {
                high = middle;
            }
        }
        high
    }

    fn civil(&self, granularity: Granularity, instant: i64) -> Interval {
        let day = self.local_day(instant);
        let start = self.first_day(granularity, day);
        let next = self.next_first_day(granularity, start);
        let interval = Interval { start: self.day_start(start), end: self.day_start(next) };
        // Where the clock is set back across the edge, the local date falls back too, but the bucket has begun.
        if instant >= interval.end {
            return Interval { start: interval.end, end: self.day_start(self.next_first_day(granularity, next)) };
        }
        interval
    }

    /// First civil day of the bucket that holds `day`; days count from 2000-01-01, a Saturday.
    fn first_day(&self, granularity: Granularity, day: i64) -> i64 {
        let (year, month, _) = civil_from_days(day);
        // Months since the last one that begins a unit of so many, counted from the first of the calendar's year.
        let back_to = |unit: u32| {
            let back = (month + 12 - u32::from(self.year_start.0)) % 12 % unit;
            match month.checked_sub(back).filter(|first| *first > 0) {
                Some(first) => days_from_civil(year, first, 1),
                None => days_from_civil(year - 1, month + 12 - back, 1),
            }
        };
        match granularity {
            Granularity::Week => {
                let first = match self.week_start {
                    WeekStart::Monday => 5,
                    WeekStart::Saturday => 0,
                    WeekStart::Sunday => 6,
                };
                day - (day + first).rem_euclid(7)
            }
            Granularity::Month => days_from_civil(year, month, 1),
            Granularity::Quarter => back_to(3),
            Granularity::Year => back_to(12),
            _ => day,
        }
    }

    fn next_first_day(&self, granularity: Granularity, first: i64) -> i64 {
        match granularity {
            Granularity::Week => first + 7,
            Granularity::Month => self.first_day(granularity, first + 31),
            Granularity::Quarter => self.first_day(granularity, first + 92),
            Granularity::Year => self.first_day(granularity, first + 366),
            _ => first + 1,
        }
    }

    /// The first instant whose local date is `day` (in days since 2000-01-01) or later.
    fn day_start(&self, day: i64) -> i64 {
        self.instant_of_local(day.saturating_mul(DAY_US))
    }
}

/// Up to its end the compiled zone tables go; no rule in them changes in its last eleven years.
const LAST_TABLED_YEAR: i64 = 2099;

/// Days since a tabled year was at the same date and weekday. What follows February is looked up apart: a whole leap year is the same
/// as another only every 28 years, and rules may have changed since.
fn days_since_the_same(year: i64, month: u32) -> i64 {
    let part = if month <= 2 { 1 } else { 3 };
    let begins = days_from_civil(year, part, 1);
    (LAST_TABLED_YEAR - 10..=LAST_TABLED_YEAR)
        .rev()
        .map(|tabled| begins - days_from_civil(tabled, part, 1))
        .find(|days| days % 7 == 0)
        .unwrap_or_default()
}

/// Days since 2000-01-01 of a civil date of the proleptic Gregorian calendar.
#[must_use]
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = i64::from(month);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468 - EPOCH_DAY
}

/// Year (astronomical: 0 is 1 BC), month and day of a day since 2000-01-01.
#[must_use]
pub fn civil_from_days(day: i64) -> (i64, u32, u32) {
    let shifted = day + EPOCH_DAY + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u32, day as u32)
}

/// Why one granularity cannot be answered from another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{coarse} cannot be put together from {fine} buckets: {reason}")]
pub struct DoesNotNest {
    /// The stored granularity.
    pub fine: Granularity,
    /// The one that was asked for.
    pub coarse: Granularity,
    /// Why not.
    pub reason: &'static str,
}

impl Calendar {
    /// Whether every bucket of `fine` lies within one bucket of `coarse`, in this calendar.
    pub fn nests(&self, fine: Granularity, coarse: Granularity) -> Result<(), DoesNotNest> {
        use Granularity::{All, Day, Hour, Month, Quarter, Step, Week, Year};
        let refuse = |reason| Err(DoesNotNest { fine, coarse, reason });
        match (fine, coarse) {
            (a, b) if a == b => Ok(()),
            (_, All) => Ok(()),
            (All, _) => refuse("`all` is a single bucket"),
            (Step(a), Step(b)) if b % a == 0 => Ok(()),
            (Step(_), Step(_)) => refuse("the longer step is not a multiple of the shorter one"),
            (Step(a), Hour) if HOUR_US % a == 0 => self.step_meets_edges(fine, coarse, HOUR_US),
            (Step(a), Day | Week | Month | Quarter | Year) if DAY_US % a == 0 => self.step_meets_edges(fine, coarse, a),
            (Step(_), _) => refuse("the step does not divide it"),
            (_, Step(_)) => refuse("its buckets are of varying length, or start elsewhere than the step's"),
            (Hour, Day | Week | Month | Quarter | Year)
            | (Day, Week | Month | Quarter | Year)
            | (Month, Quarter | Year)
            | (Quarter, Year) => Ok(()),
            (Week, _) => refuse("a week can lie in two of them"),
            _ => refuse("it is finer than what is stored"),
        }
    }

    /// Whether every bucket of `fine` in this calendar lies within one bucket of `coarse` in `asked`, as far as the offsets
    /// between `within` tell. Offsets of a zone are sampled every few weeks, so whoever adds up must still look at each
    /// bucket; this says beforehand which level is worth reading.
    pub fn nests_into(
        &self,
        fine: Granularity,
        asked: &Calendar,
        coarse: Granularity,
        within: Interval,
    ) -> Result<(), DoesNotNest> {
        use Granularity::{All, Day, Hour, Month, Quarter, Step, Week, Year};
        let refuse = |reason| Err(DoesNotNest { fine, coarse, reason });
        let quarters_meet = self.year_start.0 % 3 == asked.year_start.0 % 3;
        match (fine, coarse) {
            (_, All) => Ok(()),
            (All, _) => refuse("`all` is a single bucket"),
            (Step(a), Step(b)) if b % a != 0 => refuse("the longer step is not a multiple of the shorter one"),
            (Step(a), Step(_)) if (asked.origin_us - self.origin_us).rem_euclid(a) != 0 => {
                refuse("the steps start elsewhere")
            }
            (Step(_), Step(_)) => Ok(()),
            // Those of UTC are all of one length.
            (Hour, Step(step))
                if self.zone == Tz::UTC && [step, asked.origin_us].iter().all(|us| us % HOUR_US == 0) =>
            {
                Ok(())
            }
            (Day, Step(step)) if self.zone == Tz::UTC && [step, asked.origin_us].iter().all(|us| us % DAY_US == 0) => {
                Ok(())
            }
            (_, Step(_)) => refuse("its buckets are of varying length, or start elsewhere than the step's"),
            (Step(a), Hour) if HOUR_US % a != 0 => refuse("the step does not divide it"),
            (Step(a), _) if DAY_US % a != 0 => refuse("the step does not divide a day"),
            (Step(a), _) => self.width_meets(fine, a, asked, coarse, within),
            _ if self.zone == asked.zone => match (fine, coarse) {
                (Week, Week) if self.week_start != asked.week_start => refuse("its weeks begin on another day"),
                (Quarter, Quarter | Year) if !quarters_meet => refuse("its quarters begin in other months"),
                (Year, Year) if self.year_start != asked.year_start => refuse("its years begin in another month"),
                _ => self.nests(fine, coarse),
            },
            (Hour, Hour | Day | Week | Month | Quarter | Year) => {
                self.width_meets(fine, HOUR_US, asked, coarse, within)
            }
            (Day | Week | Month | Quarter | Year, _) => refuse("it is kept by the local days of another time zone"),
        }
    }

    /// Whether the edges of the asked calendar are edges of buckets of this width, at the offsets within an interval.
    fn width_meets(
        &self,
        fine: Granularity,
        width: i64,
        asked: &Calendar,
        coarse: Granularity,
        within: Interval,
    ) -> Result<(), DoesNotNest> {
        const SAMPLE_EVERY_US: i64 = 20 * DAY_US;
        const MAX_SAMPLES: i64 = 2_000;
        let length = within.end.saturating_sub(within.start).max(1);
        let every = SAMPLE_EVERY_US.max(length / MAX_SAMPLES);
        let mut instant = within.start;
        while instant < within.end {
            // Steps count from the origin, hours by the own clock.
            let first = match fine {
                Granularity::Step(_) => self.origin_us,
                _ => -self.offset_s(instant) * SECOND_US,
            };
            if (-asked.offset_s(instant) * SECOND_US - first).rem_euclid(width) != 0 {
                let reason = "the clock of the time zone is not whole buckets away from UTC";
                return Err(DoesNotNest { fine, coarse, reason });
            }
            instant = instant.saturating_add(every);
        }
        Ok(())
    }

    /// Steps are counted in instants, hours and days by the local clock: they share edges only where the offset from UTC
    /// never changes the remainder. UTC is the zone of which that is certain.
    fn step_meets_edges(&self, fine: Granularity, coarse: Granularity, unit: i64) -> Result<(), DoesNotNest> {
        let Granularity::Step(step) = fine else { return Ok(()) };
        if self.zone != Tz::UTC {
            return Err(DoesNotNest {
                fine,
                coarse,
                reason: "fixed steps and the local clock of this time zone drift apart",
            });
        }
        if self.origin_us.rem_euclid(unit.min(step)) != 0 {
            return Err(DoesNotNest { fine, coarse, reason: "the origin of the steps is not one of its edges" });
        }
        Ok(())
    }
}

/// Bucket edges already computed for one calendar and granularity, so that a row costs a comparison and not a time-zone
/// conversion. Bounded; it starts over when full.
#[derive(Clone, Debug)]
pub struct BucketCache {
    calendar: Calendar,
    granularity: Granularity,
    last: Interval,
    known: BTreeMap<i64, i64>,
}

impl BucketCache {
    /// An empty cache.
    #[must_use]
    pub fn new(calendar: Calendar, granularity: Granularity) -> Self {
        BucketCache { calendar, granularity, last: Interval { start: 0, end: 0 }, known: BTreeMap::new() }
    }

    /// The bucket of an instant or of one of the special times.
    pub fn bucket(&mut self, time: i64) -> Bucket {
        if self.granularity == Granularity::All {
            return Bucket::ALL;
        }
        // First: an interval that ends with time itself, `i64::MAX`, is not to hold infinity.
        if Bucket(time).is_special() {
            return Bucket(time);
        }
        if time >= self.last.start && time < self.last.end {
            return Bucket(self.last.start);
        }
        if let Granularity::Step(_) = self.granularity {
            self.last = self.calendar.interval(self.granularity, time);
            return Bucket(self.last.start);
        }
        if let Some((&start, &end)) = self.known.range(..=time).next_back()
            && time < end
        {
            self.last = Interval { start, end };
            return Bucket(start);
        }
        let interval = self.calendar.interval(self.granularity, time);
        if self.known.len() >= CACHE_LIMIT {
            self.known.clear();
        }
        self.known.insert(interval.start, interval.end);
        self.last = interval;
        Bucket(interval.start)
    }

    /// The bucket of an ordinary instant, whole.
    pub fn interval(&mut self, instant: i64) -> Interval {
        if self.granularity == Granularity::All {
            return self.calendar.interval(Granularity::All, instant);
        }
        self.bucket(instant);
        self.last
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use chrono::{Datelike, NaiveDate, Timelike};
    use proptest::prelude::*;

    use super::*;

    const CIVIL: [Granularity; 6] = [
        Granularity::Hour,
        Granularity::Day,
        Granularity::Week,
        Granularity::Month,
        Granularity::Quarter,
        Granularity::Year,
    ];

    #[test]
    fn civil_dates_agree_with_chrono() {
        let epoch = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap();
        for day in (-1_000_000..1_000_000).step_by(37) {
            let date = epoch + chrono::Duration::days(day);
            assert_eq!(civil_from_days(day), (i64::from(date.year()), date.month(), date.day()));
            assert_eq!(days_from_civil(i64::from(date.year()), date.month(), date.day()), day);
        }
    }

    #[test]
    fn infinity_is_in_no_interval_that_ends_with_time() {
        // 294276-12-31, the last year that Postgres has.
        let last_year = days_from_civil(294_276, 12, 31) * DAY_US;
        for granularity in ["P30D", "P36500D", "year"] {
            let mut cache = BucketCache::new(Calendar::new(chrono_tz::UTC, 0), granularity.parse().unwrap());
            assert!(!cache.bucket(last_year).is_special());
            for special in [Bucket::INFINITY, Bucket::NULL, Bucket::NEGATIVE_INFINITY] {
                assert_eq!(cache.bucket(special.0), special, "{granularity}");
            }
        }
    }

    #[test]
    fn names_read_back() {
        for text in [
            "second", "minute", "hour", "day", "week", "month", "quarter", "year", "all", "PT15M", "PT6H", "P10D",
            "PT90S",
        ] {
            assert_eq!(text.parse::<Granularity>().unwrap().to_string(), text);
        }
        for text in ["", "P", "PT", "PTM", "P-1D", "P1Y", "months", "PT0S", "P99999999D", "PT1é"] {
            assert!(text.parse::<Granularity>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_day_without_midnight_starts_when_the_clock_says_so() {
        // Cairo, 2023-04-28: 00:00 does not exist, the day starts at 01:00 local, 22:00 UTC.
        let cairo = Calendar::new(chrono_tz::Africa::Cairo, 0);
        let noon = days_from_civil(2023, 4, 28) * DAY_US + 10 * HOUR_US;
        let day = cairo.interval(Granularity::Day, noon);
        assert_eq!(day.start, days_from_civil(2023, 4, 27) * DAY_US + 22 * HOUR_US);
        assert_eq!(day.end - day.start, 23 * HOUR_US);
    }

    /// What Postgres 15 answers to `extract(epoch FROM timestamp '...' AT TIME ZONE '...')`, in hours and minutes of UTC.
    #[test]
    fn a_row_s_reading_is_the_instant_that_postgres_takes() {
        let minute = |(day, hour, minute): (u32, i64, i64), (year, month): (i64, u32)| {
            days_from_civil(year, month, day) * DAY_US + hour * HOUR_US + minute * MINUTE_US
        };
        for (zone, month, reading, instant) in [
            // 02:00 to 03:00 does not exist on the 29th: the offset from before.
            ("Europe/Madrid", (2026, 3), (29, 1, 59), (29, 0, 59)),
            ("Europe/Madrid", (2026, 3), (29, 2, 0), (29, 1, 0)),
            ("Europe/Madrid", (2026, 3), (29, 2, 30), (29, 1, 30)),
            ("Europe/Madrid", (2026, 3), (29, 3, 0), (29, 1, 0)),
            // 02:00 to 03:00 is shown twice on the 25th: the later one.
            ("Europe/Madrid", (2026, 10), (25, 1, 59), (24, 23, 59)),
            ("Europe/Madrid", (2026, 10), (25, 2, 0), (25, 1, 0)),
            ("Europe/Madrid", (2026, 10), (25, 2, 59), (25, 1, 59)),
            ("Europe/Madrid", (2026, 10), (25, 3, 0), (25, 2, 0)),
            ("America/New_York", (2026, 3), (8, 2, 30), (8, 7, 30)),
            ("America/New_York", (2026, 11), (1, 0, 59), (1, 4, 59)),
            ("America/New_York", (2026, 11), (1, 1, 0), (1, 6, 0)),
            ("America/New_York", (2026, 11), (1, 1, 59), (1, 6, 59)),
            // Half an hour.
            ("Australia/Lord_Howe", (2026, 4), (5, 1, 29), (4, 14, 29)),
            ("Australia/Lord_Howe", (2026, 4), (5, 1, 30), (4, 15, 0)),
            ("Australia/Lord_Howe", (2026, 4), (5, 2, 0), (4, 15, 30)),
            ("Australia/Lord_Howe", (2026, 10), (4, 2, 15), (3, 15, 45)),
            ("Australia/Lord_Howe", (2026, 10), (4, 2, 30), (3, 15, 30)),
            // Another standard time, no summer time.
            ("Europe/Moscow", (2014, 10), (26, 0, 59), (25, 20, 59)),
            ("Europe/Moscow", (2014, 10), (26, 1, 30), (25, 22, 30)),
            ("Asia/Pyongyang", (2015, 8), (14, 23, 45), (14, 15, 15)),
            ("Asia/Pyongyang", (2018, 5), (4, 23, 45), (4, 15, 15)),
            // A day that never was.
            ("Pacific/Apia", (2011, 12), (29, 23, 59), (30, 9, 59)),
            ("Pacific/Apia", (2011, 12), (30, 12, 0), (30, 22, 0)),
            ("Pacific/Apia", (2011, 12), (31, 0, 0), (30, 10, 0)),
        ] {
            let calendar = Calendar::new(zone.parse().unwrap(), 0);
            let read = calendar.instant_of_reading(minute(reading, month));
            assert_eq!(read, minute(instant, month), "{zone} {month:?} {reading:?}");
        }
    }

    /// How far Postgres 15 shows noon of UTC from noon, `AT TIME ZONE` these.
    #[test]
    fn rules_go_on_beyond_the_tables_as_they_are_and_not_as_they_were() {
        for (zone, date, hours) in [
            // Years that fall on the same days as 2012 and 2016, when there were other rules.
            ("America/Mexico_City", (2040, 7, 1), -6),
            ("Europe/Moscow", (2040, 6, 1), 3),
            ("America/Sao_Paulo", (2044, 12, 25), -3),
            ("Europe/Istanbul", (2044, 1, 10), 3),
            // A month of fasting long from now, one that is tabled no more.
            ("Africa/Casablanca", (2050, 6, 1), 0),
            ("Africa/Casablanca", (2081, 7, 1), 0),
            ("Africa/Casablanca", (2081, 7, 15), 1),
            ("Africa/Casablanca", (2120, 7, 15), 1),
            ("Europe/Madrid", (2104, 3, 29), 1),
            ("Europe/Madrid", (2104, 3, 30), 2),
            ("Europe/Madrid", (2396, 2, 29), 1),
            ("Europe/Madrid", (2396, 10, 26), 2),
            ("Europe/Madrid", (2396, 10, 27), 1),
            ("America/New_York", (9999, 7, 4), -4),
        ] {
            let (year, month, day) = date;
            let noon = days_from_civil(year, month, day) * DAY_US + 12 * HOUR_US;
            assert_eq!(Calendar::new(zone.parse().unwrap(), 0).offset_s(noon), hours * 3_600, "{zone} {date:?}");
        }
    }

    #[test]
    fn clocks_that_were_never_set_are_told_from_others() {
        let was_ever_set = |zone: &str| Calendar::new(zone.parse().unwrap(), 0).was_ever_set();
        for zone in ["UTC", "Etc/GMT+5", "Etc/GMT-14", "Etc/UCT", "GMT"] {
            assert!(!was_ever_set(zone), "{zone}");
        }
        for zone in ["Europe/Madrid", "Asia/Kolkata", "America/Phoenix", "Australia/Lord_Howe", "Asia/Pyongyang"] {
            assert!(was_ever_set(zone), "{zone}");
        }
    }

    /// Postgres sends none beyond its own range, but who asks can write any.
    #[test]
    fn an_instant_that_postgres_does_not_have_is_no_overflow() {
        let zones =
            [Tz::UTC, chrono_tz::Asia::Kathmandu, chrono_tz::America::New_York, chrono_tz::Australia::Lord_Howe];
        for (zone, instant) in
            zones.into_iter().flat_map(|zone| [i64::MIN, i64::MIN + 1, i64::MAX].map(|at| (zone, at)))
        {
            for granularity in CIVIL.into_iter().chain([Granularity::Step(15 * MINUTE_US), Granularity::All]) {
                let interval = Calendar::new(zone, 0).interval(granularity, instant);
                assert!(interval.start <= interval.end, "{zone} {granularity} {instant}: {interval:?}");
            }
        }
    }

    #[test]
    fn weeks_and_years_begin_where_the_calendar_says() {
        let [saturday, sunday, monday] = [0, 1, 2].map(|day| day * DAY_US);
        for (start, first) in
            [(WeekStart::Saturday, saturday), (WeekStart::Sunday, sunday), (WeekStart::Monday, monday)]
        {
            let calendar = Calendar::UTC.with_starts(start, YearStart::JANUARY);
            for day in 0..7 {
                let week = calendar.interval(Granularity::Week, first + day * DAY_US);
                assert_eq!(week, Interval { start: first, end: first + 7 * DAY_US }, "{start:?} {day}");
            }
        }
        let day = |year, month, day| days_from_civil(year, month, day) * DAY_US;
        let fiscal = |month| Calendar::UTC.with_starts(WeekStart::Monday, YearStart::new(month).unwrap());
        for (month, granularity, at, start, end) in [
            (4, Granularity::Year, day(2026, 3, 31), day(2025, 4, 1), day(2026, 4, 1)),
            (4, Granularity::Year, day(2026, 4, 1), day(2026, 4, 1), day(2027, 4, 1)),
            (4, Granularity::Quarter, day(2026, 2, 3), day(2026, 1, 1), day(2026, 4, 1)),
            (2, Granularity::Quarter, day(2026, 1, 31), day(2025, 11, 1), day(2026, 2, 1)),
            (2, Granularity::Quarter, day(2026, 4, 30), day(2026, 2, 1), day(2026, 5, 1)),
            (12, Granularity::Year, day(2026, 11, 30), day(2025, 12, 1), day(2026, 12, 1)),
            (1, Granularity::Quarter, day(2026, 12, 31), day(2026, 10, 1), day(2027, 1, 1)),
        ] {
            assert_eq!(fiscal(month).interval(granularity, at), Interval { start, end }, "{month} {granularity}");
        }
    }

    #[test]
    fn quarter_hours_answer_every_zone_and_hours_those_of_whole_hours() {
        let year = Interval { start: days_from_civil(2026, 1, 1) * DAY_US, end: days_from_civil(2027, 1, 1) * DAY_US };
        let quarter_hour = Granularity::Step(15 * MINUTE_US);
        let answers = |fine, zone: &str| {
            let asked = Calendar::new(zone.parse().unwrap(), 0);
            Calendar::UTC.nests_into(fine, &asked, Granularity::Day, year).is_ok()
        };
        for zone in ["Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Casablanca", "America/St_Johns", "Europe/Madrid"]
        {
            assert!(answers(quarter_hour, zone), "{zone}");
            assert!(!answers(Granularity::Day, zone), "{zone}");
            let whole_hours = ["Africa/Casablanca", "Europe/Madrid"].contains(&zone);
            assert_eq!(answers(Granularity::Hour, zone), whole_hours, "{zone}");
        }
        let kathmandu = Calendar::new(chrono_tz::Asia::Kathmandu, 0);
        let from_kathmandu = |zone: &str| {
            let asked = Calendar::new(zone.parse().unwrap(), 0);
            kathmandu.nests_into(Granularity::Hour, &asked, Granularity::Month, year).is_ok()
        };
        assert!(!from_kathmandu("UTC") && from_kathmandu("Asia/Kathmandu"));
    }

    #[test]
    fn hours_and_days_of_utc_are_of_one_length() {
        let hours = |hours: i64| Granularity::Step(hours * HOUR_US);
        let year = Interval { start: 0, end: 366 * DAY_US };
        let nests = |own: &Calendar, fine, coarse, origin_us| {
            own.nests_into(fine, &Calendar::new(Tz::Europe__Madrid, origin_us), coarse, year).is_ok()
        };
        for (fine, coarse, origin_us, expected) in [
            (Granularity::Hour, hours(1), 0, true),
            (Granularity::Hour, hours(6), HOUR_US, true),
            (Granularity::Hour, hours(6), HOUR_US / 2, false),
            (Granularity::Hour, Granularity::Step(HOUR_US * 3 / 2), 0, false),
            (Granularity::Day, hours(48), DAY_US, true),
            (Granularity::Day, hours(36), 0, false),
            (Granularity::Day, hours(24), HOUR_US, false),
            (Granularity::Month, hours(24), 0, false),
        ] {
            assert_eq!(nests(&Calendar::UTC, fine, coarse, origin_us), expected, "{fine} {coarse} {origin_us}");
            assert!(!nests(&Calendar::new(Tz::Europe__Madrid, 0), fine, coarse, origin_us), "{fine} {coarse}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        /// What is promised to nest does, bucket by bucket.
        #[test]
        fn what_nests_lies_inside(
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            own in prop::sample::select(vec!["UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Madrid"]),
            fine in prop::sample::select(vec!["PT15M", "hour", "day", "week", "month", "quarter", "year"]),
            coarse in prop::sample::select(vec!["PT30M", "hour", "day", "week", "month", "quarter", "year"]),
            month in 1u8..13, sunday in any::<bool>(),
            instant in (days_from_civil(1975, 1, 1) * DAY_US)..(days_from_civil(2037, 1, 1) * DAY_US),
        ) {
            let week = if sunday { WeekStart::Sunday } else { WeekStart::Monday };
            let own = Calendar::new(own.parse().unwrap(), 0);
            let asked = Calendar::new(zone, 0).with_starts(week, YearStart::new(month).unwrap());
            let (fine, coarse): (Granularity, Granularity) = (fine.parse().unwrap(), coarse.parse().unwrap());
            let within = Interval { start: instant - 400 * DAY_US, end: instant + 400 * DAY_US };
            if own.nests_into(fine, &asked, coarse, within).is_ok() {
                let inner = own.interval(fine, instant);
                let outer = asked.interval(coarse, instant);
                prop_assert!(outer.start <= inner.start && inner.end <= outer.end, "{:?} in {:?}", inner, outer);
            }
        }

        /// Over all zones: a bucket holds its instant, buckets are contiguous, finer ones nest in coarser ones, and away
        /// from the edges the civil fields of the local clock are those of the bucket.
        #[test]
        fn buckets_partition_time(
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            instant in (days_from_civil(1971, 1, 1) * DAY_US)..(days_from_civil(2150, 1, 1) * DAY_US),
        ) {
            let calendar = Calendar::new(zone, 0);
            for (index, granularity) in CIVIL.into_iter().enumerate() {
                let bucket = calendar.interval(granularity, instant);
                prop_assert!(bucket.start <= instant && instant < bucket.end, "{zone} {granularity} {instant} {bucket:?}");
                prop_assert_eq!(calendar.interval(granularity, bucket.start), bucket, "{} {}", zone, granularity);
                prop_assert_eq!(calendar.interval(granularity, bucket.end - 1), bucket, "{} {}", zone, granularity);
                prop_assert_eq!(calendar.interval(granularity, bucket.end).start, bucket.end, "{} {}", zone, granularity);
                for coarse in &CIVIL[index + 1..] {
                    if calendar.nests(granularity, *coarse).is_ok() {
                        let outer = calendar.interval(*coarse, instant);
                        prop_assert!(outer.start <= bucket.start && bucket.end <= outer.end, "{zone} {granularity} in {coarse}");
                    }
                }
            }
        }

        #[test]
        fn middays_fall_on_their_local_date(
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            day in days_from_civil(1971, 1, 1)..days_from_civil(2037, 12, 30),
        ) {
            let utc = DateTime::from_timestamp((day + EPOCH_DAY) * 86_400 + 43_200, 0).unwrap();
            let local = utc.with_timezone(&zone);
            let calendar = Calendar::new(zone, 0);
            let instant = day * DAY_US + 12 * HOUR_US;
            prop_assert_eq!(calendar.local_date(instant), (i64::from(local.year()), local.month(), local.day()));
            let hour = calendar.interval(Granularity::Hour, instant);
            prop_assert_eq!((instant - hour.start) / MINUTE_US, i64::from(local.minute()));
        }

        /// What a clock shows, it shows at the instant it is read as; what it skips is read as far beyond the change as it is skipped by.
        #[test]
        fn a_reading_is_shown_at_its_instant_or_skipped(
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            local in (days_from_civil(1971, 1, 1) * DAY_US)..(days_from_civil(2037, 12, 1) * DAY_US),
        ) {
            let calendar = Calendar::new(zone, 0);
            let shown = |instant: i64| instant + calendar.offset_s(instant) * SECOND_US;
            let (first, read) = (calendar.instant_of_local(local), calendar.instant_of_reading(local));
            if shown(first) == local {
                prop_assert!(shown(read) == local && first <= read, "{zone} {local}: {read}");
            } else {
                prop_assert!(read >= first && shown(first) - (shown(first - 1) + 1) == shown(read) - local, "{zone} {local}: {read}");
            }
        }

        #[test]
        fn extreme_instants_have_buckets(instant in any::<i64>(), zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..])) {
            // Postgres' own range: 4713 BC to 294276 AD.
            let instant = instant.clamp(-211_813_488_000_000_000, 9_223_371_331_199_999_999);
            for granularity in CIVIL {
                let bucket = Calendar::new(zone, 0).interval(granularity, instant);
                prop_assert!(bucket.start <= instant && instant < bucket.end);
                prop_assert_eq!(BucketCache::new(Calendar::new(zone, 0), granularity).bucket(instant), Bucket(bucket.start));
            }
        }
    }
}
