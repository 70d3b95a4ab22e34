//! Which days a schedule means: the day-of-month and day-of-week fields together.
//!
//! The `cron` crate knows neither crontab's "either field" rule nor `L`, `W` and `#`, so it is given
//! free day fields and its answers are filtered here.
//!
//! | written | in | means |
//! |---|---|---|
//! | `L`, `L-2` | day-of-month | the last day of the month, the second before it |
//! | `15W` | day-of-month | the Monday-to-Friday day nearest the 15th, never leaving the month |
//! | `LW` | day-of-month | the last Monday-to-Friday day of the month |
//! | `FRI#2`, `5#2` | day-of-week | the second Friday of the month |
//! | `FRIL`, `5L` | day-of-week | the last Friday of the month |
//!
//! When both fields are restricted, a day matching **either** counts; a field is unrestricted when it
//! begins with `*` or is `?`. That is crontab(5)'s rule to the letter, so `*/2` in one of the fields
//! makes both of them needed.

use chrono::{Datelike, NaiveDate};

use super::expression::ExpressionError;
use super::fields::{DAY_OF_MONTH, DAY_OF_WEEK, number};

/// The days both day fields allow.
#[derive(Debug, Clone)]
pub(super) struct Days {
    of_month: MonthDays,
    of_week: WeekDays,
    either: bool,
}

/// Sets of small numbers, a bit each.
#[derive(Debug, Clone, Default)]
struct MonthDays {
    numbers: u32,
    before_last: u32,
    nearest_weekday: u32,
    last_weekday: bool,
}

/// Bit 0 is Sunday.
#[derive(Debug, Clone, Default)]
struct WeekDays {
    every: u8,
    nth: [u8; 5],
    last: u8,
}

impl Days {
    pub(super) fn parse(day_of_month: &str, day_of_week: &str) -> Result<Self, ExpressionError> {
        Ok(Self {
            of_month: MonthDays::parse(day_of_month)?,
            of_week: WeekDays::parse(day_of_week)?,
            either: !unrestricted(day_of_month) && !unrestricted(day_of_week),
        })
    }

    pub(super) fn matches(&self, date: NaiveDate) -> bool {
        if self.either {
            self.of_month.matches(date) || self.of_week.matches(date)
        } else {
            self.of_month.matches(date) && self.of_week.matches(date)
        }
    }

    /// The first matching day after `date` in the same month.
    pub(super) fn next_in_month(&self, date: NaiveDate) -> Option<NaiveDate> {
        (date.day() + 1..=31).map_while(|day| date.with_day(day)).find(|&day| self.matches(day))
    }
}

fn unrestricted(field: &str) -> bool {
    field == "?" || field.starts_with('*')
}

impl MonthDays {
    fn parse(text: &str) -> Result<Self, ExpressionError> {
        if text == "?" {
            return Self::parse("*");
        }
        let mut days = Self::default();
        for item in text.split(',') {
            if item == "LW" {
                days.last_weekday = true;
            } else if item == "L" {
                days.before_last |= 1;
            } else if let Some(offset) = item.strip_prefix("L-") {
                let offset = number(offset).filter(|offset| (1..=30).contains(offset)).ok_or_else(|| {
                    DAY_OF_MONTH.problem(item, "is out of range; give L-1 to L-30, the days before the last")
                })?;
                days.before_last |= 1 << offset;
            } else if let Some(number) = item.strip_suffix('W') {
                days.nearest_weekday |= 1 << DAY_OF_MONTH.point(item, number)?;
            } else {
                days.numbers |= DAY_OF_MONTH.item(item)?.iter().fold(0, |bits, day| bits | 1 << day);
            }
        }
        Ok(days)
    }

    fn matches(&self, date: NaiveDate) -> bool {
        let (day, length) = (date.day(), u32::from(date.num_days_in_month()));
        has(self.numbers, day)
            || has(self.before_last, length - day)
            || (self.last_weekday && day == nearest_weekday(date, length))
            || (self.nearest_weekday != 0
                && (1..=length).any(|n| has(self.nearest_weekday, n) && day == nearest_weekday(date, n)))
    }
}

impl WeekDays {
    fn parse(text: &str) -> Result<Self, ExpressionError> {
        if text == "?" {
            return Self::parse("*");
        }
        let mut days = Self::default();
        for item in text.split(',') {
            if item == "L" {
                return Err(DAY_OF_WEEK.problem(
                    item,
                    "could mean two things; write SAT for Saturdays or SATL for the month's last Saturday",
                ));
            } else if let Some(weekday) = item.strip_suffix('L') {
                days.last |= 1 << DAY_OF_WEEK.in_field(DAY_OF_WEEK.point(item, weekday)?);
            } else if let Some((weekday, nth)) = item.split_once('#') {
                let weekday = DAY_OF_WEEK.in_field(DAY_OF_WEEK.point(item, weekday)?);
                let nth =
                    ["1", "2", "3", "4", "5"].iter().position(|known| *known == nth).ok_or_else(|| {
                        DAY_OF_WEEK.problem(item, "is not understood; give #1 to #5, such as FRI#2")
                    })?;
                days.nth[nth] |= 1 << weekday;
            } else {
                days.every |= DAY_OF_WEEK.item(item)?.iter().fold(0, |bits, day| bits | 1 << day);
            }
        }
        Ok(days)
    }

    fn matches(&self, date: NaiveDate) -> bool {
        let weekday = date.weekday().num_days_from_sunday();
        let nth = (date.day() - 1) / 7;
        has(self.every.into(), weekday)
            || has(self.nth[nth as usize].into(), weekday)
            || (has(self.last.into(), weekday) && date.day() + 7 > u32::from(date.num_days_in_month()))
    }
}

fn has(bits: u32, value: u32) -> bool {
    bits >> value & 1 == 1
}

/// The day of `month`'s month that is Monday to Friday and nearest to day `number`, within the month.
fn nearest_weekday(month: NaiveDate, number: u32) -> u32 {
    let length = u32::from(month.num_days_in_month());
    match month.with_day(number).map(|day| day.weekday()) {
        Some(chrono::Weekday::Sat) if number == 1 => 3,
        Some(chrono::Weekday::Sat) => number - 1,
        Some(chrono::Weekday::Sun) if number == length => number - 2,
        Some(chrono::Weekday::Sun) => number + 1,
        _ => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(day_of_month: &str, day_of_week: &str, year: i32, month: u32) -> Vec<u32> {
        let days = Days::parse(day_of_month, day_of_week).unwrap();
        let first = NaiveDate::from_ymd_opt(year, month, 1).unwrap();
        first
            .iter_days()
            .take_while(|day| day.month() == month)
            .filter(|&day| days.matches(day))
            .map(|day| day.day())
            .collect()
    }

    #[test]
    fn two_restricted_day_fields_mean_either() {
        assert_eq!(days("13", "FRI", 2026, 2), [6, 13, 20, 27]);
        assert_eq!(days("1", "FRI", 2026, 2), [1, 6, 13, 20, 27]);
        assert_eq!(days("*/10", "FRI", 2026, 5), [1], "a field that begins with * is unrestricted");
        assert_eq!(days("?", "FRI", 2026, 2), [6, 13, 20, 27]);
        assert_eq!(days("13", "?", 2026, 2), [13]);
    }

    #[test]
    fn last_nearest_and_nth_days_follow_the_table() {
        assert_eq!(days("L", "*", 2024, 2), [29]);
        assert_eq!(days("L-2,L", "*", 2026, 2), [26, 28]);
        assert_eq!(days("15W", "*", 2026, 8), [14], "15 August 2026 is a Saturday");
        assert_eq!(days("15W", "*", 2026, 3), [16], "15 March 2026 is a Sunday");
        assert_eq!(days("1W", "*", 2026, 8), [3], "never the month before");
        assert_eq!(days("31W", "*", 2026, 5), [29], "never the month after");
        assert!(days("31W", "*", 2026, 4).is_empty(), "April has no 31st");
        assert_eq!(days("LW", "*", 2026, 2), [27]);
        assert_eq!(days("*", "FRI#2", 2026, 2), [13]);
        assert_eq!(days("*", "7#1,1#5", 2026, 3), [1, 30]);
        assert_eq!(days("*", "FRIL", 2026, 5), [29]);
        assert_eq!(days("*", "5L,MON", 2026, 2), [2, 9, 16, 23, 27]);
        assert_eq!(days("1", "FRI#2", 2026, 2), [1, 13]);
    }
}
