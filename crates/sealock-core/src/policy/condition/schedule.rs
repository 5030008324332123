//! `schedule`: the rule speaks on certain days at certain hours, in UTC.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use crate::policy::Answer;

/// Days and hours in UTC; a span past midnight belongs to the day on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    days: Days,
    from: Minute,
    until: Minute,
}

/// A first and a last day, both included; `sat-mon` goes over the week's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Days(Weekday, Weekday);

/// A minute of the day, 0 to 1440.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Minute(u16);

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

impl Schedule {
    pub(super) const NAME: &'static str = "schedule";
    pub(super) const DOC: &'static str =
        "The rule speaks on these days at these hours only, in UTC.";
    pub(super) const WANTED: &'static str = "days and hours in UTC";
    pub(super) const EXAMPLE: &'static str = "mon-fri 08:00-18:00";

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (days, hours) = text.split_once(' ')?;
        let (from, until) = hours.split_once('-')?;
        let (from, until) = (Minute::parse(from)?, Minute::parse(until)?);
        // An empty span would never hold, and 24:00 is an end only.
        if from == until || from.0 == DAY {
            return None;
        }
        Some(Self {
            days: Days::parse(days)?,
            from,
            until,
        })
    }

    pub(super) fn eval(&self, now: Timestamp) -> Answer {
        let now = now.to_zoned(TimeZone::UTC);
        let time = now.time();
        let minute = Minute(
            u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs()),
        );
        let (today, yesterday) = (now.weekday(), now.weekday().previous());
        let holds = if self.from < self.until {
            self.days.contain(today) && self.from <= minute && minute < self.until
        } else {
            (self.days.contain(today) && self.from <= minute)
                || (self.days.contain(yesterday) && minute < self.until)
        };
        holds.into()
    }

    pub(super) fn explain(&self, now: Timestamp) -> String {
        match self.eval(now) {
            Answer::Yes => format!("it is {now}, within `{self}` (UTC)"),
            Answer::No | Answer::Unknown => format!("it is {now}, outside `{self}` (UTC)"),
        }
    }
}

impl Days {
    fn parse(text: &str) -> Option<Self> {
        let day = |text: &str| {
            let named = DAYS.iter().find(|(name, _)| *name == text);
            named.map(|(_, day)| *day)
        };
        match text.split_once('-') {
            Some((first, last)) => Some(Self(day(first)?, day(last)?)),
            None => day(text).map(|only| Self(only, only)),
        }
    }

    fn contain(self, day: Weekday) -> bool {
        self.0.until(day) <= self.0.until(self.1)
    }
}

const DAY: u16 = 24 * 60;

impl Minute {
    fn parse(text: &str) -> Option<Self> {
        let (hour, minute) = text.split_once(':')?;
        let two_digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        if !two_digits(hour) || !two_digits(minute) {
            return None;
        }
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        (minute < 60 && hour * 60 + minute <= DAY).then_some(Self(hour * 60 + minute))
    }
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |day: Weekday| {
            let named = DAYS.iter().find(|(_, known)| *known == day);
            named.map_or("", |(name, _)| name)
        };
        if self.0 == self.1 {
            f.write_str(name(self.0))
        } else {
            write!(f, "{}-{}", name(self.0), name(self.1))
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-{}", self.days, self.from, self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 2026-01-05 is a Monday.
    #[test]
    fn holds_on_its_days_and_hours_also_past_midnight() {
        for (schedule, now, answer) in [
            ("mon-fri 08:00-18:00", "2026-01-05T08:00:00Z", Answer::Yes),
            ("mon-fri 08:00-18:00", "2026-01-05T07:59:59Z", Answer::No),
            ("mon-fri 08:00-18:00", "2026-01-05T18:00:00Z", Answer::No),
            ("mon-fri 08:00-18:00", "2026-01-10T12:00:00Z", Answer::No),
            ("mon 00:00-24:00", "2026-01-05T23:59:59Z", Answer::Yes),
            ("mon 22:00-06:00", "2026-01-05T23:00:00Z", Answer::Yes),
            ("mon 22:00-06:00", "2026-01-06T05:59:00Z", Answer::Yes),
            ("mon 22:00-06:00", "2026-01-05T05:59:00Z", Answer::No),
            ("mon 22:00-06:00", "2026-01-06T06:00:00Z", Answer::No),
            ("sat-mon 00:00-24:00", "2026-01-11T12:00:00Z", Answer::Yes),
            ("sat-mon 00:00-24:00", "2026-01-06T12:00:00Z", Answer::No),
        ] {
            let parsed = Schedule::parse(schedule).expect(schedule);
            assert_eq!(parsed.to_string(), schedule);
            assert_eq!(
                parsed.eval(now.parse().expect(now)),
                answer,
                "{schedule} {now}"
            );
        }
    }

    #[test]
    fn refuses_empty_spans_and_impossible_times() {
        for text in [
            "mon 08:00-08:00",
            "mon 25:00-26:00",
            "mon 08:60-09:00",
            "mon 8:00-9:00",
            "mon 24:00-01:00",
            "mon 24:01-25:00",
            "xyz 08:00-09:00",
            "mon-xyz 08:00-09:00",
            "08:00-09:00",
            "Mon 08:00-09:00",
        ] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
    }
}
