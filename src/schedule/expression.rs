//! Cron text, or `DaysOfWeek` with `TimeOfDay`, becomes a [`Recurrence`].
//!
//! What operators write is what crontab(5) taught them: five fields, 0 and 7 for Sunday, "either" for
//! two day fields. The `cron` crate wants seconds first and counts 1 as Sunday, so expressions are
//! checked and normalised here; the crate then evaluates second, minute, hour, month and year on local
//! time dressed as UTC, and never sees a zone.

use std::fmt::Write as _;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime, NaiveTime, Timelike, Utc};
use thiserror::Error;

use super::days::Days;
use super::fields::{Field, HOUR, MINUTE, MONTH, SECOND, YEAR};

/// Longest cron text taken: nothing sensible is longer, and parsing time grows with length.
const MAX_BYTES: usize = 256;

/// When a schedule fires, on the clock on the wall; [`super::next_after`] adds the zone.
///
/// Years run from 1970 to 2099, the range on which the `cron` crate agrees with everybody.
#[derive(Debug, Clone)]
pub struct Recurrence {
    text: String,
    clock: cron::Schedule,
    days: Days,
    rhythm: Rhythm,
}

/// How a schedule meets clock changes; the table is in `calendar.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rhythm {
    /// Second, minute and hour are given as numbers, ranges or lists: "at 02:30", "at 0, 1, 2 and 3".
    FixedTimes,
    /// Second, minute or hour has a `*` or a step: "every ten minutes".
    Interval,
}

/// Why a schedule's text is refused: a sentence with what is wrong, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExpressionError {
    /// Nothing but white space.
    #[error(
        "the cron expression is empty; give five fields such as '30 2 * * *' \
         (minute hour day-of-month month day-of-week), or @daily"
    )]
    Empty,

    /// More than 256 bytes.
    #[error("the cron expression has {bytes} bytes, more than 256; split it into several schedules")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },

    /// Not five, six or seven fields.
    #[error(
        "the cron expression '{text}' has {count} fields; give 5 (minute hour day-of-month month day-of-week), \
         6 (second first) or 7 (second first, year last)"
    )]
    FieldCount {
        /// The expression as typed.
        text: String,
        /// How many fields it has.
        count: usize,
    },

    /// One item of one field cannot stand.
    #[error("{field} '{value}' {problem}")]
    Field {
        /// The field's name, as in crontab(5).
        field: &'static str,
        /// The item of the field's list, in upper case.
        value: String,
        /// What is wrong and what to give instead.
        problem: String,
    },

    /// An `@` word or a `TZ=` prefix that is something else here.
    #[error("the cron expression '{text}' cannot be used; {instead}")]
    NotHere {
        /// The expression as typed.
        text: String,
        /// What to use instead.
        instead: &'static str,
    },

    /// No day from 1970 to 2099 fits, 30 February for instance.
    #[error(
        "the cron expression '{text}' never fires: no day from 1970 to 2099 fits its day, month and year; \
         for the last day of a month write L"
    )]
    NeverFires {
        /// The expression as typed.
        text: String,
    },

    /// The year field names past years only.
    #[error(
        "the cron expression '{text}' never fires again: its last year has passed; give a later year or leave the year out"
    )]
    Over {
        /// The expression as typed.
        text: String,
    },

    /// A `DaysOfWeek` that is not made of the digits 1 to 7.
    #[error(
        "DaysOfWeek '{text}' is not understood; give digits from 1 (Sunday) to 7 (Saturday) such as '246' or '2,4,6', or leave it empty for every day"
    )]
    DaysOfWeek {
        /// The column as typed.
        text: String,
    },

    /// A `TimeOfDay` between two seconds.
    #[error("TimeOfDay '{time}' has a fraction of a second; give whole seconds")]
    TimeOfDay {
        /// The column's value.
        time: NaiveTime,
    },

    /// The `cron` crate refused what the checks here let through; a bug worth reporting.
    #[error("the cron expression '{text}' was not understood ({reason}); please report this")]
    Evaluator {
        /// The expression as typed.
        text: String,
        /// The crate's own words.
        reason: String,
    },
}

impl Recurrence {
    /// Reads a cron expression of 5, 6 (second first) or 7 (year last) fields, or an `@` word.
    ///
    /// An expression that can never fire is refused; one whose years are merely past is not, because
    /// that depends on today: see [`Recurrence::check_still_fires`].
    pub fn cron(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > MAX_BYTES {
            return Err(ExpressionError::TooLong { bytes: text.len() });
        }
        let upper = text.to_ascii_uppercase();
        let mut fields: Vec<&str> = expand_word(&upper, text)?.split_ascii_whitespace().collect();
        let count = fields.len();
        if count == 0 {
            return Err(ExpressionError::Empty);
        }
        if !(5..=7).contains(&count) {
            return Err(ExpressionError::FieldCount { text: text.to_owned(), count });
        }
        if count == 5 {
            fields.insert(0, "0");
        }
        if count < 7 {
            fields.push("*");
        }
        let clock = clock(&fields).map_err(|error| error.with_text(text))?;
        let days = Days::parse(fields[3], fields[5])?;
        let every = fields[..3].iter().any(|field| field.contains(['*', '/']));
        let rhythm = if every { Rhythm::Interval } else { Rhythm::FixedTimes };
        let recurrence = Self { text: text.to_owned(), clock, days, rhythm };
        if recurrence.next_civil(FIRST_SECOND - Duration::seconds(1)).is_none() {
            return Err(ExpressionError::NeverFires { text: text.to_owned() });
        }
        Ok(recurrence)
    }

    /// Reads `DaysOfWeek` ('246' or '2,4,6', 1 = Sunday; empty or `None` = every day) and `TimeOfDay`.
    pub fn weekly(days: Option<&str>, time: NaiveTime) -> Result<Self, ExpressionError> {
        let text = days.unwrap_or_default();
        let refused = || ExpressionError::DaysOfWeek { text: text.chars().take(40).collect() };
        let mut weekdays = String::new();
        for digit in text.chars().filter(|char| !matches!(char, ',' | ' ')) {
            let day = digit.to_digit(8).filter(|day| *day > 0).ok_or_else(refused)?;
            let comma = if weekdays.is_empty() { "" } else { "," };
            let _ = write!(weekdays, "{comma}{}", day - 1); // writing to a String cannot fail
        }
        if weekdays.is_empty() {
            if text.contains(',') {
                return Err(refused());
            }
            weekdays.push('*');
        }
        if time.nanosecond() != 0 {
            return Err(ExpressionError::TimeOfDay { time });
        }
        // Seven digits are enough; repeats would only approach the length limit.
        let mut unique: Vec<&str> = weekdays.split(',').collect();
        unique.sort_unstable();
        unique.dedup();
        let (second, minute, hour) = (time.second(), time.minute(), time.hour());
        Self::cron(&format!("{second} {minute} {hour} * * {}", unique.join(",")))
    }

    /// Refuses an expression whose year field leaves nothing after `now`.
    ///
    /// A day's grace covers every zone, so a schedule that still fires is never refused.
    pub fn check_still_fires(&self, now: DateTime<Utc>) -> Result<(), ExpressionError> {
        match self.next_civil(within_years(now.naive_utc()) - Duration::days(1)) {
            Some(_) => Ok(()),
            None => Err(ExpressionError::Over { text: self.text.clone() }),
        }
    }

    /// The expression as typed, or the cron form of a weekly schedule.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the schedule follows the clock on the wall or elapsed time when the clocks change.
    pub fn rhythm(&self) -> Rhythm {
        self.rhythm
    }

    /// The first matching local time strictly after `after`; `None` when the years are used up.
    ///
    /// Cheap however rare the match: at most two steps for each month the expression names.
    pub(super) fn next_civil(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let mut after = within_years(after);
        loop {
            let candidate = self.clock.after(&after.and_utc()).next()?.naive_utc();
            let date = candidate.date();
            if self.days.matches(date) {
                return Some(candidate);
            }
            let next_day = self.days.next_in_month(date).or_else(|| first_of_next_month(date))?;
            after = next_day.and_time(NaiveTime::MIN) - Duration::seconds(1);
        }
    }
}

const FIRST_SECOND: NaiveDateTime = DateTime::UNIX_EPOCH.naive_utc();

/// Any time the evaluator can take: whatever lies further out has the same answer.
fn within_years(time: NaiveDateTime) -> NaiveDateTime {
    let far = FIRST_SECOND + Duration::days(366 * 131);
    time.clamp(FIRST_SECOND - Duration::days(2), far)
}

fn first_of_next_month(date: NaiveDate) -> Option<NaiveDate> {
    date.with_day(1)?.checked_add_months(chrono::Months::new(1))
}

/// The fields an `@` word stands for, or the text itself.
fn expand_word<'a>(upper: &'a str, typed: &str) -> Result<&'a str, ExpressionError> {
    let not_here = |instead| Err(ExpressionError::NotHere { text: typed.to_owned(), instead });
    let trimmed = upper.trim_ascii();
    if trimmed.starts_with("TZ=") || trimmed.starts_with("CRON_TZ=") {
        return not_here("leave the zone out and set JobSchedule.TimeZone");
    }
    if !trimmed.starts_with('@') {
        return Ok(trimmed);
    }
    match trimmed {
        "@YEARLY" | "@ANNUALLY" => Ok("0 0 1 1 *"),
        "@MONTHLY" => Ok("0 0 1 * *"),
        "@WEEKLY" => Ok("0 0 * * 0"),
        "@DAILY" | "@MIDNIGHT" => Ok("0 0 * * *"),
        "@HOURLY" => Ok("0 * * * *"),
        "@REBOOT" => not_here("to run at each start of a runner set JobConfig.AutoStart"),
        every if every.starts_with("@EVERY") => {
            not_here("to repeat at a fixed distance set JobConfig.Continuous and WaitInSeconds")
        }
        _ => not_here("give @yearly, @monthly, @weekly, @daily or @hourly, or five fields"),
    }
}

/// The part the `cron` crate evaluates: everything but the days, each field as a plain list of numbers.
fn clock(fields: &[&str]) -> Result<cron::Schedule, ExpressionError> {
    let list = |field: &Field, text: &str| {
        let values = field.values(text)?;
        Ok(values.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
    };
    let (second, minute, hour) =
        (list(&SECOND, fields[0])?, list(&MINUTE, fields[1])?, list(&HOUR, fields[2])?);
    let month = list(&MONTH, fields[4])?;
    // 130 years as a list would be parsed number by number.
    let year = if fields[6] == "*" { "1970-2099".to_owned() } else { list(&YEAR, fields[6])? };
    cron::Schedule::from_str(&format!("{second} {minute} {hour} * {month} * {year}"))
        .map_err(|error| ExpressionError::Evaluator { text: String::new(), reason: error.to_string() })
}

impl ExpressionError {
    /// Fills in the expression where only the whole text helps.
    fn with_text(self, typed: &str) -> Self {
        match self {
            Self::Evaluator { reason, .. } => Self::Evaluator { text: typed.to_owned(), reason },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Firings of `text` after noon of 1 January 2026, on a clock that never changes.
    fn first(text: &str, count: usize) -> Vec<String> {
        let recurrence = Recurrence::cron(text).unwrap();
        let noon = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap().and_hms_opt(12, 0, 0).unwrap();
        std::iter::successors(recurrence.next_civil(noon), |at| recurrence.next_civil(*at))
            .take(count)
            .map(|at| at.format("%a %F %T").to_string())
            .collect()
    }

    #[test]
    fn operators_get_the_times_crontab_would_give_them() {
        assert_eq!(first("30 2 * * *", 1), ["Fri 2026-01-02 02:30:00"]);
        assert_eq!(
            first("*/25 * * * *", 3),
            ["Thu 2026-01-01 12:25:00", "Thu 2026-01-01 12:50:00", "Thu 2026-01-01 13:00:00"]
        );
        assert_eq!(first("0 9 * * 1", 1), ["Mon 2026-01-05 09:00:00"]);
        assert_eq!(first("0 9 * * 7", 1), first("0 9 * * 0", 1));
        assert_eq!(
            first("0 0 13 * FRI", 3),
            ["Fri 2026-01-02 00:00:00", "Fri 2026-01-09 00:00:00", "Tue 2026-01-13 00:00:00"]
        );
        assert_eq!(first("15 30 2 * * *", 1), ["Fri 2026-01-02 02:30:15"]);
        assert_eq!(first("0 0 0 29 2 ? 2027-2099", 1), ["Tue 2028-02-29 00:00:00"]);
        assert_eq!(first("0 18 L * *", 2), ["Sat 2026-01-31 18:00:00", "Sat 2026-02-28 18:00:00"]);
        assert_eq!(first("0 7 1W * *", 1), ["Mon 2026-02-02 07:00:00"]);
        assert_eq!(first("0 22 * * FRI#2", 2), ["Fri 2026-01-09 22:00:00", "Fri 2026-02-13 22:00:00"]);
        assert_eq!(first("0 22-1 * * *", 4)[1..3], ["Thu 2026-01-01 23:00:00", "Fri 2026-01-02 00:00:00"]);
    }

    #[test]
    fn at_words_mean_their_fields() {
        for (word, fields) in [
            ("@yearly", "0 0 1 1 *"),
            ("@annually", "0 0 1 1 *"),
            ("@monthly", "0 0 1 * *"),
            ("@weekly", "0 0 * * 0"),
            ("@daily", "0 0 * * *"),
            (" @Midnight ", "0 0 * * *"),
            ("@hourly", "0 * * * *"),
        ] {
            assert_eq!(first(word, 5), first(fields, 5), "{word}");
        }
    }

    #[test]
    fn days_of_week_count_from_sunday_with_or_without_commas() {
        let half_past_two = NaiveTime::from_hms_opt(2, 30, 0).unwrap();
        let text = |days: Option<&str>| {
            Recurrence::weekly(days, half_past_two).map(|weekly| weekly.text().to_owned())
        };
        assert_eq!(text(Some("246")).unwrap(), "0 30 2 * * 1,3,5");
        assert_eq!(text(Some("2, 4,6")).unwrap(), "0 30 2 * * 1,3,5");
        assert_eq!(text(Some("71")).unwrap(), "0 30 2 * * 0,6");
        assert_eq!(text(None).unwrap(), "0 30 2 * * *");
        assert_eq!(text(Some(" ")).unwrap(), "0 30 2 * * *");
        assert_eq!(text(Some(&"1".repeat(1000))).unwrap(), "0 30 2 * * 0");
        for wrong in ["0", "8", "MON", "2-4", ",", "٣", "*"] {
            assert!(
                text(Some(wrong)).unwrap_err().to_string().contains("1 (Sunday) to 7 (Saturday)"),
                "{wrong}"
            );
        }
        let between = NaiveTime::from_hms_milli_opt(2, 30, 0, 500).unwrap();
        assert_eq!(
            Recurrence::weekly(None, between).unwrap_err().to_string(),
            "TimeOfDay '02:30:00.500' has a fraction of a second; give whole seconds"
        );
    }

    #[test]
    fn only_a_star_or_a_step_in_the_clock_fields_makes_an_interval() {
        for fixed in ["30 2 * * *", "0 0-3 * * *", "0,30 1,2 * */2 1-5/2", "@daily", "0 0 0 * * * *"] {
            assert_eq!(Recurrence::cron(fixed).unwrap().rhythm(), Rhythm::FixedTimes, "{fixed}");
        }
        for interval in
            ["* * * * *", "0 */2 * * *", "0/15 2 * * *", "@hourly", "* 0 2 * * *", "0-30/10 2 * * *"]
        {
            assert_eq!(Recurrence::cron(interval).unwrap().rhythm(), Rhythm::Interval, "{interval}");
        }
    }

    #[test]
    fn past_years_are_refused_once_today_is_known() {
        let now = "2026-11-22T03:00:00Z".parse().unwrap();
        let past = Recurrence::cron("0 0 0 1 1 * 2020-2025").unwrap();
        assert!(past.check_still_fires(now).unwrap_err().to_string().contains("its last year has passed"));
        assert_eq!(Recurrence::cron("0 0 0 1 1 * 2027").unwrap().check_still_fires(now), Ok(()));
        assert_eq!(Recurrence::cron("@daily").unwrap().check_still_fires(now), Ok(()));
    }

    /// `tests/data/cron-cases.txt` is read by the SQL validator's test too, so both sides agree.
    #[test]
    fn every_listed_expression_is_accepted_or_refused_as_listed() {
        let cases = include_str!("../../tests/data/cron-cases.txt");
        for line in cases.lines().filter(|line| !line.starts_with("# ") && !line.is_empty()) {
            let (expression, verdict) = line.split_once('\t').expect("expression<TAB>verdict");
            match (Recurrence::cron(expression), verdict) {
                (Ok(_), "ok") => {}
                (Ok(_), _) => panic!("'{expression}' was accepted, expected: {verdict}"),
                (Err(error), _) => assert!(error.to_string().contains(verdict), "'{expression}': {error}"),
            }
        }
    }
}
