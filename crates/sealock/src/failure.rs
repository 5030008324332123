//! How a verb fails: what is shown, with which hint, and the exit code.

use std::fmt;
use std::process::ExitCode;

use sealock_agent::StartError;
use sealock_core::api::ApiError;
use sealock_core::reason::Reason;
use sealock_net::unix;

use crate::print;

/// The exit code for «it was tried and did not work».
pub(crate) const FAILED: u8 = 1;
/// The exit code for wrong usage or configuration.
pub(crate) const USAGE: u8 = 2;

/// A failure with its exit code and the next step; also put over other errors as context.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    code: u8,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: FAILED,
            hint: None,
        }
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            ..Self::new(text)
        }
    }

    /// The end of a flow, or of a wish, by its coded reason.
    pub(crate) fn of(reason: Reason) -> Self {
        Self {
            text: words(reason),
            code: reason.exit_code(),
            hint: Some(reason.hint().to_owned()).filter(|hint| !hint.is_empty()),
        }
    }

    /// The same failure, said of something.
    pub(crate) fn about(mut self, what: impl fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with names in place of the hint's general words.
    pub(crate) fn naming(mut self, caller: &str, service: &str) -> Self {
        self.hint = self
            .hint
            .map(|hint| hint.replace("CALLER", caller).replace("SERVICE", service));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// A reason in a sentence, with the code by which scripts and the reference know it.
pub(crate) fn words(reason: Reason) -> String {
    format!("{} ({})", reason.text(), reason.code())
}

/// Shows an error with its causes and the next step, and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let told = Told::of(error);
    print::error(&format!("error: {}", told.text));
    for hint in &told.hints {
        print::error(&format!("hint: {hint}"));
    }
    ExitCode::from(told.code)
}

struct Told {
    text: String,
    hints: Vec<String>,
    code: u8,
}

impl Told {
    fn of(error: &anyhow::Error) -> Self {
        let (mut parts, mut hints): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for cause in error.chain() {
            // Libraries write the hint behind the sentence, because they have one text only.
            let whole = cause.to_string();
            let (text, hint) = match whole.split_once("; hint: ") {
                Some((text, hint)) => (text, Some(hint.to_owned())),
                None => (whole.as_str(), None),
            };
            hints.extend(hint);
            if !parts.iter().any(|part| says_already(part, text)) {
                parts.push(text.to_owned());
            }
        }
        let mut code = FAILED;
        if let Some(api) = api_error(error) {
            hints.extend(api.hint.clone());
            code = api.reason.map_or(FAILED, Reason::exit_code);
        }
        if let Some(StartError::ExpiredAndAlone { why, .. }) = error.downcast_ref() {
            code = why.reason().exit_code();
        }
        if let Some(failure) = error.downcast_ref::<Failure>() {
            hints.splice(..0, failure.hint.clone());
            code = failure.code;
        }
        hints.truncate(1); // the outermost knows best what its user can do
        Self {
            text: parts.join(": "),
            hints,
            code,
        }
    }
}

/// Some libraries put the text of their cause behind their own.
fn says_already(part: &str, text: &str) -> bool {
    part.strip_suffix(text)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with(": "))
}

fn api_error(error: &anyhow::Error) -> Option<&ApiError> {
    if let Some(api) = error.downcast_ref::<ApiError>() {
        return Some(api);
    }
    match error.downcast_ref::<unix::CallError>() {
        Some(unix::CallError::Api(api)) => Some(api),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_within_a_library_s_text_is_shown_as_a_hint_and_once() {
        let inner = std::io::Error::other("it is closed; hint: open it");
        let error = anyhow::Error::from(inner).context("entering");
        let told = Told::of(&error);
        assert_eq!(told.text, "entering: it is closed");
        assert_eq!((told.hints, told.code), (vec!["open it".to_owned()], 1));
    }

    #[test]
    fn the_outermost_failure_gives_hint_and_code_also_below_a_context() {
        let inner = std::io::Error::other("no; hint: inner");
        let failure = Failure::of(Reason::PolicyDenied).naming("cart", "db");
        let error = anyhow::Error::from(inner)
            .context(failure)
            .context("opening");
        let told = Told::of(&error);
        assert_eq!(
            told.text,
            "opening: no rule allows this (POLICY_DENIED): no"
        );
        assert_eq!(told.code, 3);
        assert!(told.hints[0].contains("sealock why cart db"));
    }

    #[test]
    fn an_answer_of_a_running_node_keeps_its_reason_and_hint() {
        let api = ApiError::from(Reason::NameTaken);
        let told = Told::of(&unix::CallError::Api(api).into());
        assert_eq!((told.code, told.hints.len()), (3, 1));
    }
}
