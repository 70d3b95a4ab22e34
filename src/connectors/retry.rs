//! Whether a call is sent once more, and when.

use super::transport::TransportError;
use crate::config::SourcesSection;
use chrono::{DateTime, Utc};
use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, StatusCode};
use std::time::Duration;

/// Headers in which sources that know no Retry-After say after how many seconds a call may be made that they blocked. On
/// answers to calls that were carried out they are 0 or speak of later ones.
const BLOCKED_FOR: [HeaderName; 1] = [HeaderName::from_static("x-ratelimit-towait-sec")];

/// How often, and for how long, a call is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Times it is sent again at most, after the first.
    pub retries: u32,
    /// The first back-off at most; doubled for each one that follows.
    pub base: Duration,
    /// A back-off at most.
    pub longest: Duration,
    /// From the first start, within which another try may begin to wait for its turn.
    pub total: Duration,
}

/// How one try ended, as far as it matters here.
#[derive(Debug)]
pub(super) enum Ending<'a> {
    /// With an answer.
    Answer(StatusCode, &'a HeaderMap),
    /// Without one, or with half of one.
    Broken(&'a TransportError),
    /// Time ran out after the request had been sent. It may still be worked on; asking again would add to that.
    OutOfTime,
}

impl RetryPolicy {
    /// Sent once.
    pub const NEVER: Self =
        Self { retries: 0, base: Duration::ZERO, longest: Duration::ZERO, total: Duration::ZERO };

    /// What the configuration says (`sources.retries` and so on).
    pub fn of(settings: &SourcesSection) -> Self {
        Self {
            retries: settings.retries,
            base: settings.retry_base(),
            longest: settings.retry_max(),
            total: settings.retry_total(),
        }
    }

    /// The same with another number of retries.
    #[must_use]
    pub fn times(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// How long to wait before the next try, or `None` if this ending stands. `tries` were made in `elapsed`;
    /// `idempotent` calls may be carried out twice; `random` is from 0 to 1.
    pub(super) fn next(
        &self,
        ending: &Ending<'_>,
        idempotent: bool,
        tries: u32,
        elapsed: Duration,
        random: f64,
    ) -> Option<Duration> {
        if tries > self.retries || !is_worth_it(ending, idempotent) {
            return None;
        }
        // Full jitter: anything up to the bound, so that callers who failed together do not come back together.
        let bound = self.base.saturating_mul(2_u32.saturating_pow(tries - 1)).min(self.longest);
        let wished = match ending {
            Ending::Answer(status, headers) => pause_wanted(*status, headers).unwrap_or_default(),
            Ending::Broken(_) | Ending::OutOfTime => Duration::ZERO,
        };
        let wait = bound.mul_f64(random).max(wished);
        // A source that wants to be left alone for longer is: its answer goes to the job.
        (elapsed.saturating_add(wait) <= self.total).then_some(wait)
    }
}

fn is_worth_it(ending: &Ending<'_>, idempotent: bool) -> bool {
    match ending {
        // It was refused, so it was not carried out, whatever it was.
        Ending::Answer(StatusCode::TOO_MANY_REQUESTS, _) => true,
        Ending::Answer(status, headers) if blocked_for(*status, headers).is_some() => true,
        Ending::Answer(
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
            _,
        ) => idempotent,
        Ending::Answer(..)
        | Ending::OutOfTime
        | Ending::Broken(TransportError::Refused(_) | TransportError::Tls(_)) => false,
        Ending::Broken(error) => idempotent || error.nothing_was_sent(),
    }
}

/// How long the source wants to be left alone: `Retry-After` of a 429 or 503, in seconds or as a date, or one of
/// [`BLOCKED_FOR`].
pub(super) fn pause_wanted(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    retry_after(status, headers).or_else(|| blocked_for(status, headers))
}

/// Qualys blocks with 409, which elsewhere says that the call can never be carried out; its header tells.
fn blocked_for(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if ![StatusCode::TOO_MANY_REQUESTS, StatusCode::CONFLICT].contains(&status) {
        return None;
    }
    let seconds =
        BLOCKED_FOR.iter().find_map(|name| headers.get(name)?.to_str().ok()?.trim().parse().ok())?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if ![StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| DateTime::parse_from_rfc2822(text).ok().map(|at| at.with_timezone(&Utc));
    // By the source's own clock, where it tells.
    let now = headers.get(DATE).and_then(|now| date(now.to_str().ok()?));
    date(text)?.signed_duration_since(now.unwrap_or_else(Utc::now)).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        retries: 4,
        base: Duration::from_secs(1),
        longest: Duration::from_secs(5),
        total: Duration::from_secs(100),
    };

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    fn answer(status: u16, headers: &HeaderMap) -> Ending<'_> {
        Ending::Answer(StatusCode::from_u16(status).unwrap(), headers)
    }

    #[test]
    fn retry_after_counts_in_seconds_and_as_a_date_by_the_sources_own_clock() {
        let seconds = |status: u16, pairs: &[(&'static str, &str)]| {
            pause_wanted(StatusCode::from_u16(status).unwrap(), &headers(pairs)).map(|pause| pause.as_secs())
        };
        assert_eq!(seconds(429, &[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(503, &[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(500, &[("retry-after", "7")]), None);
        assert_eq!(seconds(429, &[]), None);
        assert_eq!(seconds(429, &[("retry-after", "-1")]), None);
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(seconds(429, &[date, ("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")]), Some(10));
        assert_eq!(seconds(429, &[date, ("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT")]), None);
    }

    #[test]
    fn a_header_that_says_for_how_long_a_call_is_blocked_counts_where_it_was_blocked() {
        let seconds = |status: u16, seconds: &str| {
            let headers = headers(&[("x-ratelimit-towait-sec", seconds)]);
            pause_wanted(StatusCode::from_u16(status).unwrap(), &headers).map(|pause| pause.as_secs())
        };
        assert_eq!((seconds(409, "7"), seconds(429, "7")), (Some(7), Some(7)));
        assert_eq!((seconds(200, "7"), seconds(409, "0"), seconds(409, "soon")), (None, None, None));
        let both = headers(&[("x-ratelimit-towait-sec", "7"), ("retry-after", "9")]);
        assert_eq!(pause_wanted(StatusCode::TOO_MANY_REQUESTS, &both), Some(Duration::from_secs(9)));
    }

    #[test]
    fn only_what_does_no_harm_is_sent_again() {
        let none = HeaderMap::new();
        let blocked = headers(&[("x-ratelimit-towait-sec", "7")]);
        let broken = TransportError::Broken("reset".to_owned());
        let refused = TransportError::NoConnection("refused".to_owned());
        let silent = TransportError::ConnectTimeout;
        let untrusted = TransportError::Tls("unknown".to_owned());
        let table = [
            // (ending, an idempotent call is sent again, any other is)
            (answer(429, &none), true, true),
            (answer(502, &none), true, false),
            (answer(503, &none), true, false),
            (answer(504, &none), true, false),
            (answer(409, &blocked), true, true),
            (answer(409, &none), false, false),
            (answer(500, &none), false, false),
            (answer(501, &none), false, false),
            (answer(401, &none), false, false),
            (answer(404, &none), false, false),
            (answer(302, &none), false, false),
            (answer(200, &none), false, false),
            (Ending::Broken(&broken), true, false),
            (Ending::Broken(&refused), true, true),
            (Ending::Broken(&silent), true, true),
            (Ending::Broken(&untrusted), false, false),
            (Ending::OutOfTime, false, false),
        ];
        for (ending, when_idempotent, otherwise) in table {
            let again = |idempotent| POLICY.next(&ending, idempotent, 1, Duration::ZERO, 0.5).is_some();
            assert_eq!((again(true), again(false)), (when_idempotent, otherwise), "{ending:?}");
        }
    }

    #[test]
    fn the_back_off_doubles_up_to_its_bound_and_is_anything_below_it() {
        let none = HeaderMap::new();
        let wait = |tries, random| POLICY.next(&answer(503, &none), true, tries, Duration::ZERO, random);
        let longest: Vec<_> = (1..=5).map(|tries| wait(tries, 1.0).map(|wait| wait.as_secs())).collect();
        assert_eq!(longest, [Some(1), Some(2), Some(4), Some(5), None]);
        assert_eq!(wait(3, 0.0), Some(Duration::ZERO));
        assert_eq!(wait(3, 0.25), Some(Duration::from_secs(1)));
        let many = RetryPolicy { retries: u32::MAX, ..POLICY };
        assert_eq!(
            many.next(&answer(503, &none), true, 4_000_000_000, Duration::ZERO, 1.0),
            Some(Duration::from_secs(5))
        );
    }

    #[test]
    fn a_source_is_not_asked_before_it_wants_to_be_nor_waited_for_beyond_the_total() {
        let wait = |after: &str, elapsed| {
            let headers = headers(&[("retry-after", after)]);
            POLICY.next(&answer(429, &headers), false, 1, Duration::from_secs(elapsed), 1.0)
        };
        assert_eq!(wait("30", 0), Some(Duration::from_secs(30)));
        assert_eq!(wait("0", 0), Some(Duration::from_secs(1)));
        assert_eq!(wait("101", 0), None);
        assert_eq!(wait("30", 80), None);
        assert_eq!(wait(&u64::MAX.to_string(), 1), None, "no overflow");
    }

    #[test]
    fn never_is_never() {
        let none = HeaderMap::new();
        assert_eq!(RetryPolicy::NEVER.next(&answer(429, &none), true, 1, Duration::ZERO, 0.0), None);
    }
}
