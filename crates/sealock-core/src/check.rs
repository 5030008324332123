//! Checks of the program behind a service: what is tried, how often, and what the results add up to.
//!
//! The first result decides at once; after it, a program must pass `rise` times in a row to count as well again, and
//! fail `fall` times in a row to count as ill, so that one slow answer changes nothing. Deliberately absent: the trying
//! itself, which is the agent's.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::unit::{Count, Span};
use crate::reason::Reason;

/// Between two tries.
pub type Interval = Span<1, 3_600>;
/// How long one try may take.
pub type Patience = Span<1, 60>;
/// How many results in a row change a standing.
pub type Threshold = Count<1, 20>;

/// How one try is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Probe {
    /// The target accepts a connection.
    Tcp,
    /// The target answers `GET` of this path with 2xx.
    Http(String),
    /// A program, given as its words, ends with 0. No shell reads them.
    Command(Vec<String>),
}

/// Why a text is not a probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// None of the known kinds.
    #[error("`{0}` is no check: write tcp, http:/path or command:PROGRAM ARGUMENTS")]
    Unknown(String),
    /// A path that cannot stand in a request.
    #[error(
        "`{0}` is no path of a check: write http:/path, in printable characters without spaces"
    )]
    Path(String),
    /// No program, or too many words.
    #[error("a check's command has 1 to {WORDS_LIMIT} words")]
    Words,
    /// Longer than any check needs.
    #[error("a check has at most {TEXT_LIMIT} characters")]
    TooLong,
}

const WORDS_LIMIT: usize = 32;
const TEXT_LIMIT: usize = 1_024; // what fits on a screen; the kernel takes far more

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        if text.len() > TEXT_LIMIT {
            return Err(ProbeError::TooLong);
        }
        let shown = |text: &str| text.escape_default().to_string();
        if text == "tcp" {
            return Ok(Self::Tcp);
        }
        if let Some(path) = text.strip_prefix("http:") {
            // Anything else could end the request's line and begin another one.
            let clean = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
            return if clean {
                Ok(Self::Http(path.to_owned()))
            } else {
                Err(ProbeError::Path(shown(path)))
            };
        }
        let Some(command) = text.strip_prefix("command:") else {
            return Err(ProbeError::Unknown(shown(text)));
        };
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() || words.len() > WORDS_LIMIT || command.contains('\0') {
            return Err(ProbeError::Words);
        }
        Ok(Self::Command(words))
    }
}

impl TryFrom<String> for Probe {
    type Error = ProbeError;

    fn try_from(text: String) -> Result<Self, ProbeError> {
        text.parse()
    }
}

impl From<Probe> for String {
    fn from(probe: Probe) -> Self {
        probe.to_string()
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Http(path) => write!(f, "http:{path}"),
            Self::Command(words) => write!(f, "command:{}", words.join(" ")),
        }
    }
}

/// A check of the program behind a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CheckBody", into = "CheckBody")]
pub struct Check {
    /// How one try is made.
    pub probe: Probe,
    /// From the end of one try to the next, give or take a quarter.
    pub interval: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How many passes in a row make an ill program well.
    pub rise: u32,
    /// How many failures in a row make a well program ill.
    pub fall: u32,
}

impl Check {
    /// A check with the usual times: an ill program is out within 15 s, and back 10 s after it is well.
    #[must_use]
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

/// A check as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckBody {
    probe: Probe,
    interval: String,
    timeout: String,
    rise: u32,
    fall: u32,
}

impl TryFrom<CheckBody> for Check {
    type Error = crate::config::unit::UnitError;

    fn try_from(body: CheckBody) -> Result<Self, Self::Error> {
        Ok(Self {
            probe: body.probe,
            interval: body.interval.parse::<Interval>()?.duration(),
            timeout: body.timeout.parse::<Patience>()?.duration(),
            rise: body.rise.to_string().parse::<Threshold>()?.number(),
            fall: body.fall.to_string().parse::<Threshold>()?.number(),
        })
    }
}

impl From<Check> for CheckBody {
    fn from(check: Check) -> Self {
        Self {
            probe: check.probe,
            interval: humantime::format_duration(check.interval).to_string(),
            timeout: humantime::format_duration(check.timeout).to_string(),
            rise: check.rise,
            fall: check.fall,
        }
    }
}

/// Why a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckFailure {
    /// The target could not be connected to.
    #[error("{}", .0.text())]
    Target(Reason),
    /// The target accepted and then closed or spoke something else.
    #[error("the program did not answer in HTTP")]
    NotHttp,
    /// Another status than 2xx.
    #[error("the program answered with status {0}")]
    Status(u16),
    /// The command ended with another code than 0.
    #[error("the command ended with code {0}")]
    Exit(i32),
    /// The command was killed.
    #[error("the command was killed")]
    Killed,
    /// The command cannot be run.
    #[error("the command cannot be run")]
    NotRun,
    /// It took too long.
    #[error("there was no answer in time")]
    Timeout,
}

/// What the results so far add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is no result yet.
    Unknown,
    /// The program may be offered.
    Well,
    /// The program is kept back; why the last try failed, when it did.
    Ill(CheckFailure),
}

/// Follows the results of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    standing: Standing,
    /// Results in a row that speak against the standing.
    streak: u32,
    rise: u32,
    fall: u32,
}

impl Health {
    /// Before the first result.
    #[must_use]
    pub fn new(check: &Check) -> Self {
        Self {
            standing: Standing::Unknown,
            streak: 0,
            rise: check.rise,
            fall: check.fall,
        }
    }

    /// What the results so far add up to.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Takes the next result.
    pub fn handle_result(&mut self, result: Result<(), CheckFailure>) {
        let result_standing = match result {
            Ok(()) => Standing::Well,
            Err(failure) => Standing::Ill(failure),
        };
        let needed = match (self.standing, result) {
            (Standing::Unknown, _) => 1,
            (Standing::Well, Ok(())) => {
                self.streak = 0;
                return;
            }
            (Standing::Ill(_), Err(_)) => {
                self.streak = 0;
                self.standing = result_standing;
                return;
            }
            (Standing::Well, Err(_)) => self.fall,
            (Standing::Ill(_), Ok(())) => self.rise,
        };
        self.streak += 1;
        if self.streak >= needed {
            self.streak = 0;
            self.standing = result_standing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check::new(Probe::Tcp)
    }

    const BAD: Result<(), CheckFailure> = Err(CheckFailure::Timeout);

    #[test]
    fn every_probe_is_read_as_it_is_written() {
        for text in [
            "tcp",
            "http:/",
            "http:/health?full=1",
            "command:/bin/test -e /x",
        ] {
            let probe: Probe = text.parse().expect("a probe");
            assert_eq!(probe.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_probe_is_refused() {
        for text in [
            "",
            "TCP",
            "http:health",
            "http:/a b",
            "http:/a\r\nHost: x",
            "command:",
            "command:  ",
            "command:a\0b",
        ] {
            assert!(text.parse::<Probe>().is_err(), "{text:?}");
        }
        assert_eq!(
            format!("command:{}", "x ".repeat(40)).parse::<Probe>(),
            Err(ProbeError::Words)
        );
        assert_eq!(
            format!("http:/{}", "x".repeat(2_000)).parse::<Probe>(),
            Err(ProbeError::TooLong)
        );
    }

    #[test]
    fn a_check_round_trips_through_json_and_keeps_its_limits() {
        let text = serde_json::to_string(&check()).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Check>(&text).expect("a check"),
            check()
        );
        for wrong in [
            text.replace("\"5s\"", "\"1ms\""),
            text.replace("\"2s\"", "\"2h\""),
            text.replace("\"rise\":2", "\"rise\":0"),
            text.replace("\"fall\":3", "\"fall\":4000"),
        ] {
            assert_ne!(wrong, text);
            assert!(serde_json::from_str::<Check>(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_result_decides_at_once() {
        for (result, standing) in [
            (Ok(()), Standing::Well),
            (BAD, Standing::Ill(CheckFailure::Timeout)),
        ] {
            let mut health = Health::new(&check());
            assert_eq!(health.standing(), Standing::Unknown);
            health.handle_result(result);
            assert_eq!(health.standing(), standing);
        }
    }

    #[test]
    fn only_results_in_a_row_change_a_standing() {
        let mut health = Health::new(&check());
        health.handle_result(Ok(()));
        for result in [BAD, BAD, Ok(()), BAD, BAD] {
            health.handle_result(result);
            assert_eq!(health.standing(), Standing::Well);
        }
        health.handle_result(Err(CheckFailure::Status(503)));
        assert_eq!(health.standing(), Standing::Ill(CheckFailure::Status(503)));
        for result in [Ok(()), BAD, Ok(())] {
            health.handle_result(result);
            assert_ne!(health.standing(), Standing::Well);
        }
        health.handle_result(Ok(()));
        assert_eq!(health.standing(), Standing::Well);
    }
}
