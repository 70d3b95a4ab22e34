//! What Qualys' refusals say, and whether they pass.

use super::text::{one_line, plain};
use crate::connectors::{HeaderMap, StatusCode};

/// What Qualys refused, and how.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// Its own number of the error, or 0.
    code: u32,
    text: String,
    /// Seconds after which it may be asked again, if it says so.
    wait: u64,
    /// What was to be done, after "Qualys refused to ".
    doing: &'static str,
}

/// Of a text that is repeated in an error, in characters.
const REPEATED: usize = 1000;
/// Concurrency limit and rate limit: the call was blocked before it was looked at.
const BLOCKED: [u32; 3] = [1920, 1960, 1965];

impl Refusal {
    /// From an answer. `doing` finishes "Qualys refused to ".
    pub(super) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        code: u32,
        text: &str,
        doing: &'static str,
    ) -> Self {
        Self { status, code, text: one_line(&plain(text), REPEATED), wait: wait_wanted(headers), doing }
    }

    /// Whether the same may be done later.
    pub(super) fn is_passing(&self) -> bool {
        if self.is_login() || self.status.is_redirection() {
            return false;
        }
        if BLOCKED.contains(&self.code) || self.is_full() {
            return true;
        }
        match self.status {
            StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => true,
            // What is wrong with the parameters, and what the account or subscription may not do.
            StatusCode::OK => !matches!(self.code, 1901..=1908 | 1922 | 2000..=2012),
            status => status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// Whether nobody may log in like this, or not do this.
    pub(super) fn is_login(&self) -> bool {
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    /// Whether there are as many scans as there may be. Only the words say so.
    fn is_full(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        text.contains("concurrent scans") || text.contains("limit has been reached")
    }

    /// What it says.
    pub(super) fn sentence(&self) -> String {
        let Self { status, code, text, wait, doing } = self;
        let said = match (*code, text.is_empty()) {
            (0, true) => String::new(),
            (0, false) => format!(": {text}"),
            (code, _) => format!(": {code} {text}"),
        };
        let wait =
            if *wait > 0 { format!("; it wants to be left alone for {wait} seconds") } else { String::new() };
        let status = status.as_u16();
        match status {
            401 => format!("Qualys refused to {doing} ({status}): it does not accept the credentials{said}"),
            403 => format!("Qualys refused to {doing} ({status}): the account may not do this{said}"),
            404 if said.is_empty() => {
                format!(
                    "Qualys refused to {doing} ({status}): there is nothing of this kind; does Address lead to the API of Qualys?"
                )
            }
            300..=399 => format!(
                "Qualys was asked to {doing}, and answered with a redirect ({status}), which is not followed; give the \
                 address it leads to as Address"
            ),
            200 => format!("Qualys refused to {doing}{said}{wait}"),
            _ => format!("Qualys refused to {doing} ({status}){said}{wait}"),
        }
    }
}

fn wait_wanted(headers: &HeaderMap) -> u64 {
    let text = headers.get("x-ratelimit-towait-sec").and_then(|value| value.to_str().ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_passes_unless_somebody_has_to_do_something() {
        let refusal = |status: u16, code, text: &str| Refusal {
            status: StatusCode::from_u16(status).unwrap(),
            code,
            text: text.to_owned(),
            wait: 0,
            doing: "x",
        };
        let full = "You are allowed to run 2 concurrent scans. This limit has already been reached.";
        for (status, code, text, passes) in [
            (200, 999, "Internal error", true),
            (200, 1999, "maintenance", true),
            (200, 1905, "parameter ip has invalid value", false),
            (400, 1905, "parameter ip has invalid value", false),
            (400, 1965, "blocked", true),
            (409, 1960, "blocked", true),
            (409, 0, "", true),
            (429, 0, "", true),
            (503, 0, "", true),
            (501, 0, "", false),
            (302, 0, "", false),
            (401, 2000, "Bad Login/Password", false),
            (403, 2012, "User does not have permission", false),
            (200, 1904, full, true),
            (400, 1904, full, true),
            (404, 0, "", false),
        ] {
            assert_eq!(refusal(status, code, text).is_passing(), passes, "{status} {code}");
        }
    }
}
