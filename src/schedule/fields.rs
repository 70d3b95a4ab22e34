//! One field of a cron expression: numbers, names, ranges, steps and lists, as crontab(5) has them.
//!
//! Everything is checked here, before the `cron` crate sees it, because that crate's errors name
//! neither the field nor the remedy. The SQL function `vm.cron_problem` says the same sentences.

use super::expression::ExpressionError;

/// A cron field: what it is called and what it may hold.
pub(super) struct Field {
    pub(super) name: &'static str,
    low: u32,
    high: u32,
    /// The largest number an operator may write; above `high` only for weekdays, where 7 is Sunday.
    top: u32,
    /// Full names in order, the first standing for `low`; three letters or more identify one.
    names: &'static [&'static str],
    /// Whether a range may run past the end, as `FRI-MON` or `22-2` do. Days of a month may not,
    /// because months differ in length.
    wraps: bool,
    wish: &'static str,
}

pub(super) const SECOND: Field = plain("second", 0, 59, true, "give 0 to 59");
pub(super) const MINUTE: Field = plain("minute", 0, 59, true, "give 0 to 59");
pub(super) const HOUR: Field = plain("hour", 0, 23, true, "give 0 to 23");
pub(super) const DAY_OF_MONTH: Field =
    plain("day-of-month", 1, 31, false, "give 1 to 31, or L for the last day");
pub(super) const MONTH: Field = Field {
    names: &[
        "JANUARY",
        "FEBRUARY",
        "MARCH",
        "APRIL",
        "MAY",
        "JUNE",
        "JULY",
        "AUGUST",
        "SEPTEMBER",
        "OCTOBER",
        "NOVEMBER",
        "DECEMBER",
    ],
    ..plain("month", 1, 12, true, "give 1 to 12 or JAN to DEC")
};
pub(super) const DAY_OF_WEEK: Field = Field {
    top: 7,
    names: &["SUNDAY", "MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY"],
    ..plain("day-of-week", 0, 6, true, "give 0 to 7 (0 and 7 are Sunday) or SUN to SAT")
};
pub(super) const YEAR: Field = plain("year", 1970, 2099, false, "give 1970 to 2099");

const fn plain(name: &'static str, low: u32, high: u32, wraps: bool, wish: &'static str) -> Field {
    Field { name, low, high, top: high, names: &[], wraps, wish }
}

impl Field {
    /// The values a comma-separated field stands for, sorted, each once.
    pub(super) fn values(&self, text: &str) -> Result<Vec<u32>, ExpressionError> {
        let mut values = Vec::new();
        for item in text.split(',') {
            values.extend(self.item(item)?);
        }
        values.sort_unstable();
        values.dedup();
        Ok(values)
    }

    /// The values of one item of the list: `5`, `MON`, `1-5`, `*`, `*/15`, `10-40/10`, `FRI-MON`.
    pub(super) fn item(&self, item: &str) -> Result<Vec<u32>, ExpressionError> {
        if item.is_empty() {
            return Err(self.problem(item, "has an empty item; remove the extra comma"));
        }
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(self.step(item, step)?)),
            None => (item, None),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => self.range(item, first, last)?,
            None if range == "*" => (self.low, self.high),
            None => {
                let only = self.point(item, range)?;
                // `10/15` counts on from 10 to the end of the field, as in Quartz.
                if step.is_some() { (self.in_field(only), self.high) } else { (only, only) }
            }
        };
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        Ok((first..=last).step_by(step).map(|value| self.in_field(value)).collect())
    }

    /// A single number or name, as written: a weekday 7 stays 7.
    pub(super) fn point(&self, item: &str, point: &str) -> Result<u32, ExpressionError> {
        if is_number(point) {
            return number(point)
                .filter(|number| (self.low..=self.top).contains(number))
                .ok_or_else(|| self.problem(item, &format!("is out of range; {}", self.wish)));
        }
        let named =
            (self.low..).zip(self.names).find(|(_, name)| point.len() >= 3 && name.starts_with(point));
        named.map(|(value, _)| value).ok_or_else(|| self.not_understood(item))
    }

    /// The value inside the field: weekday 7 and whatever a range counted past the end start again.
    pub(super) fn in_field(&self, value: u32) -> u32 {
        if value > self.high { self.low + (value - self.low) % self.size() } else { value }
    }

    /// The error every complaint about this field becomes.
    pub(super) fn problem(&self, item: &str, problem: &str) -> ExpressionError {
        ExpressionError::Field { field: self.name, value: item.to_owned(), problem: problem.to_owned() }
    }

    fn size(&self) -> u32 {
        self.high - self.low + 1
    }

    fn range(&self, item: &str, first: &str, last: &str) -> Result<(u32, u32), ExpressionError> {
        let (first, last) = (self.point(item, first)?, self.point(item, last)?);
        if first <= last {
            return Ok((first, last));
        }
        if self.wraps {
            return Ok((
                self.in_field(first),
                self.in_field(last) + if first > self.high { 0 } else { self.size() },
            ));
        }
        let (low, high) = (self.low, self.high);
        Err(self
            .problem(item, &format!("runs backwards; write '{first}-{high},{low}-{last}' or swap the ends")))
    }

    /// A step longer than the field would silently fire at the field's start only, so it is refused.
    fn step(&self, item: &str, step: &str) -> Result<u32, ExpressionError> {
        if !is_number(step) {
            return Err(self.problem(item, "has no whole number after the '/'; write a step such as '*/5'"));
        }
        number(step).filter(|step| (1..=self.size()).contains(step)).ok_or_else(|| {
            let size = self.size();
            self.problem(
                item,
                &format!(
                    "steps by {step}; give a step of 1 to {size}, \
                     or use Continuous with WaitInSeconds for other intervals"
                ),
            )
        })
    }

    fn not_understood(&self, item: &str) -> ExpressionError {
        let jenkins =
            item.strip_prefix('H').is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '(']));
        if jenkins || item.contains('~') {
            return self.problem(item, "asks for a random value; write a fixed one and set JitterSeconds");
        }
        if item.contains('?') {
            return self.problem(
                item,
                "uses '?', which may only stand alone in day-of-month or day-of-week; write '*'",
            );
        }
        self.problem(item, &format!("is not understood; {}", self.wish))
    }
}

/// The digits' value; `None` for a sign, anything else that is no digit, and numbers beyond `u32`.
pub(super) fn number(digits: &str) -> Option<u32> {
    if is_number(digits) { digits.parse().ok() } else { None }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_steps_and_names_mean_what_crontab_says() {
        let weekdays = |text| DAY_OF_WEEK.values(text).unwrap();
        assert_eq!(weekdays("MON-FRI"), [1, 2, 3, 4, 5]);
        assert_eq!(weekdays("0-7"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(weekdays("FRI-MON"), [0, 1, 5, 6]);
        assert_eq!(weekdays("5-7"), [0, 5, 6]);
        assert_eq!(weekdays("7-2"), [0, 1, 2]);
        assert_eq!(weekdays("0,7,SUNDAY"), [0]);
        assert_eq!(weekdays("TUES,THURS"), [2, 4]);
        assert_eq!(weekdays("MON/2"), [1, 3, 5]);
        assert_eq!(weekdays("7/2"), [0, 2, 4, 6]);
        assert_eq!(HOUR.values("22-2").unwrap(), [0, 1, 2, 22, 23]);
        assert_eq!(HOUR.values("22-4/2").unwrap(), [0, 2, 4, 22]);
        assert_eq!(MINUTE.values("5/20,*/30").unwrap(), [0, 5, 25, 30, 45]);
        assert_eq!(MONTH.values("NOV-FEB,6").unwrap(), [1, 2, 6, 11, 12]);
        assert_eq!(SECOND.values("*").unwrap().len(), 60);
        assert_eq!(YEAR.values("*").unwrap().len(), 130);
    }

    #[test]
    fn every_complaint_names_field_value_and_remedy() {
        let sentence = |field: &Field, text| field.values(text).unwrap_err().to_string();
        assert_eq!(sentence(&MINUTE, "61"), "minute '61' is out of range; give 0 to 59");
        assert_eq!(
            sentence(&DAY_OF_MONTH, "28-3"),
            "day-of-month '28-3' runs backwards; write '28-31,1-3' or swap the ends"
        );
        assert_eq!(
            sentence(&MINUTE, "*/90"),
            "minute '*/90' steps by 90; give a step of 1 to 60, \
             or use Continuous with WaitInSeconds for other intervals"
        );
        assert_eq!(
            sentence(&MONTH, "1,MONDAY"),
            "month 'MONDAY' is not understood; give 1 to 12 or JAN to DEC"
        );
        assert_eq!(
            sentence(&HOUR, "H/4"),
            "hour 'H/4' asks for a random value; write a fixed one and set JitterSeconds"
        );
        assert!(sentence(&HOUR, "99999999999999999999").contains("is out of range"));
    }
}
