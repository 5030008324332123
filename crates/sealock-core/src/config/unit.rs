//! Numbers with a unit and with limits that their type states.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a text is not a number of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is no duration: write a number with s, m, h or d, such as `30s`")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is no size: write a number with B, KiB, MiB or GiB, such as `64KiB`")]
    Size(String),
    /// Not a whole number.
    #[error("`{0}` is no whole number")]
    Count(String),
    /// Outside the limits.
    #[error("`{given}` is outside the limits: {least} to {most}")]
    Limits {
        /// What was given.
        given: String,
        /// The least that is allowed.
        least: String,
        /// The most that is allowed.
        most: String,
    },
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    start.escape_default().to_string()
}

fn limits(given: &str, least: impl fmt::Display, most: impl fmt::Display) -> UnitError {
    UnitError::Limits {
        given: shown(given),
        least: least.to_string(),
        most: most.to_string(),
    }
}

/// A duration of `LEAST` to `MOST` seconds, written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span<const LEAST: u64, const MOST: u64>(Duration);

impl<const LEAST: u64, const MOST: u64> Span<LEAST, MOST> {
    /// The duration itself.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl<const LEAST: u64, const MOST: u64> FromStr for Span<LEAST, MOST> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let read = humantime::parse_duration(text);
        let duration = read.map_err(|_| UnitError::Duration(shown(text)))?;
        let (least, most) = (Duration::from_secs(LEAST), Duration::from_secs(MOST));
        if (least..=most).contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(limits(text, Self(least), Self(most)))
        }
    }
}

impl<const LEAST: u64, const MOST: u64> fmt::Display for Span<LEAST, MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() != 0 {
            return humantime::format_duration(self.0).fmt(f);
        }
        let seconds = self.0.as_secs();
        let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
        match units
            .iter()
            .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "{seconds}s"),
        }
    }
}

/// A whole number of `LEAST` to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> Count<LEAST, MOST> {
    /// The number itself.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl<const LEAST: u32, const MOST: u32> FromStr for Count<LEAST, MOST> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // `parse` alone would take «+80», and call a number beyond 32 bits no number.
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(UnitError::Count(shown(text)));
        }
        match text.parse() {
            Ok(number) if (LEAST..=MOST).contains(&number) => Ok(Self(number)),
            Ok(_) | Err(_) => Err(limits(text, LEAST, MOST)),
        }
    }
}

impl<const LEAST: u32, const MOST: u32> fmt::Display for Count<LEAST, MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of bytes, written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Size(shown(text));
        let unit = SIZES.iter().find(|(name, _)| text.ends_with(name));
        let (name, factor) = unit.ok_or_else(bad)?;
        let number = text.strip_suffix(name).ok_or_else(bad)?.trim_end();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(*factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole =
            |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        match SIZES.iter().find(whole) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Hours = Span<60, 86_400>;

    #[test]
    fn durations_need_a_unit_and_keep_their_limits() {
        for (text, printed) in [
            ("60s", "1m"),
            ("90s", "90s"),
            ("1h 30m", "90m"),
            ("1.5h", "90m"),
            ("24h", "1d"),
        ] {
            let span: Hours = text.parse().expect(text);
            assert_eq!(span.to_string(), printed);
            assert_eq!(printed.parse(), Ok(span));
        }
        for text in ["", "60", "0", "59s", "25h", "-5m", "5 parsecs", "m"] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
        let error = "25h".parse::<Hours>().expect_err("too long").to_string();
        assert_eq!(error, "`25h` is outside the limits: 1m to 1d");
    }

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes, printed) in [
            ("64KiB", 65_536, "64KiB"),
            ("1 MiB", 1_048_576, "1MiB"),
            ("0B", 0, "0B"),
            ("1025B", 1_025, "1025B"),
            ("1024B", 1_024, "1KiB"),
        ] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, printed));
        }
        for text in ["", "64", "64KB", "64kib", "-1B", "B", "99999999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn counts_keep_their_limits() {
        type Small = Count<1, 10>;
        assert_eq!("10".parse::<Small>().map(Count::number), Ok(10));
        for text in ["", "0", "11", "+5", "5.0", "0x5", "99999999999"] {
            assert!(text.parse::<Small>().is_err(), "{text}");
        }
    }
}
