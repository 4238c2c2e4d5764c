//! Which calls are tried again, and when.

use std::future::Future;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::call::CallOptions;
use crate::error::{Code, Delay, Error};

/// Whether it does harm to make a call twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    Harmless,
    /// A call of which nobody knows whether it was done is not made again.
    Harmful,
    /// An append, which is done once however often it is sent, by its request id.
    /// It is sent again while an earlier attempt is under way.
    Append,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_UNDER_WAY_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_UNDER_WAY_PAUSE: Duration = Duration::from_millis(500);
/// What "no timeout" comes to: some time that can be counted.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What each attempt at a call carries.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) deadline: Instant,
    pub(crate) request_id: Option<HeaderValue>,
}

/// The attempts at one call.
pub(crate) struct Attempts {
    each: Attempt,
    most: u32,
    made: u32,
    under_way_pause: Duration,
    twice: Twice,
}

impl Attempts {
    pub(crate) fn new(options: &CallOptions, twice: Twice) -> Self {
        Self {
            each: Attempt {
                deadline: Instant::now() + options.timeout.min(LONGEST_TIMEOUT),
                request_id: options.request_id.clone(),
            },
            most: options.max_attempts.max(1),
            made: 0,
            under_way_pause: FIRST_UNDER_WAY_PAUSE,
            twice,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.each.deadline
    }

    /// Further calls within the same time, such as the next piece of an append.
    pub(crate) fn anew(&self) -> Self {
        Self {
            each: self.each.clone(),
            made: 0,
            under_way_pause: FIRST_UNDER_WAY_PAUSE,
            ..*self
        }
    }

    /// Waits until the time of the next attempt.
    ///
    /// # Errors
    /// `error` if there is none.
    pub(crate) async fn after(&mut self, error: Error) -> Result<(), Error> {
        let Some(next) = self.next(&error) else {
            return Err(error);
        };
        tokio::time::sleep_until(next).await;
        Ok(())
    }

    /// The time of the next attempt; none if there is none.
    pub(crate) fn next(&mut self, error: &Error) -> Option<Instant> {
        let pause = self.pause_after(error)?;
        // A server may tell a longer delay than a clock can count.
        let next = Instant::now().checked_add(pause)?;
        (next < self.each.deadline).then_some(next)
    }

    fn is_under_way(&self, error: &Error) -> bool {
        self.twice == Twice::Append && error.has_reason("APPEND_UNDER_WAY")
    }

    fn pause_after(&mut self, error: &Error) -> Option<Duration> {
        if self.is_under_way(error) {
            if self.most == 1 {
                return None;
            }
            let pause = match error.delay() {
                Delay::After(delay) => delay,
                Delay::Untold => self.under_way_pause,
                Delay::Never => return None,
            };
            self.under_way_pause = (2 * self.under_way_pause).min(LONGEST_UNDER_WAY_PAUSE);
            return Some(spread(pause));
        }
        self.made += 1;
        if self.made >= self.most || !self.may_try_again(error) {
            return None;
        }
        let pause = match error.delay() {
            Delay::After(delay) => delay,
            Delay::Untold => {
                let doublings = (self.made - 1).min(16);
                (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
            }
            Delay::Never => return None,
        };
        Some(spread(pause))
    }

    fn may_try_again(&self, error: &Error) -> bool {
        match error.code() {
            Code::ResourceExhausted => matches!(error.delay(), Delay::After(_)),
            Code::Unavailable => match error.reason() {
                Some(reason) => reason == "DRAINING",
                None => self.twice != Twice::Harmful,
            },
            _ => false,
        }
    }
}

/// Makes the call until it succeeds, fails for good, or its time is over.
pub(crate) async fn retrying<T, F, Fut>(mut attempts: Attempts, mut attempt: F) -> Result<T, Error>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    within(attempts.deadline(), async {
        loop {
            match attempt(attempts.each.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.after(error).await?,
            }
        }
    })
    .await
}

/// `DeadlineExceeded` once the time is over.
pub(crate) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    // The timer has a resolution of a millisecond, and looks at the work first.
    if Instant::now() >= deadline {
        return Err(deadline_exceeded());
    }
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(deadline_exceeded()),
    }
}

pub(crate) fn deadline_exceeded() -> Error {
    Error::local(Code::DeadlineExceeded, "the timeout of the call is over")
        .with_reason("DEADLINE_EXCEEDED")
}

/// Times a random number in [1, 1.2], so that clients that were refused together
/// do not come back together.
fn spread(pause: Duration) -> Duration {
    // Without randomness there is no spread.
    let random = getrandom::u32().unwrap_or(0);
    pause.mul_f64(1.0 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const OPTIONS: CallOptions = CallOptions {
        timeout: Duration::from_secs(60),
        max_attempts: 4,
        request_id: None,
    };

    fn error(code: Code, reason: Option<&str>, delay: Delay) -> Error {
        let error = Error::local(code, "x").with_delay(delay);
        match reason {
            Some(reason) => error.with_reason(reason),
            None => error,
        }
    }

    async fn attempts_of(error: Error, twice: Twice, options: CallOptions) -> (u32, Duration) {
        let attempts = AtomicU32::new(0);
        let begin = Instant::now();
        let result: Result<(), _> = retrying(Attempts::new(&options, twice), |_| async {
            attempts.fetch_add(1, Ordering::Relaxed);
            Err(error.clone())
        })
        .await;
        assert!(result.is_err());
        (attempts.into_inner(), begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_table() {
        use Code::{Aborted, Internal, ResourceExhausted, Unavailable};
        use Twice::{Append, Harmful, Harmless};
        let told = Delay::After(Duration::from_millis(70));
        let table = [
            (ResourceExhausted, Some("QUEUE_FULL"), told, Harmful, 4),
            (
                ResourceExhausted,
                Some("SESSION_BYTES"),
                Delay::Untold,
                Harmless,
                1,
            ),
            (
                ResourceExhausted,
                Some("QUEUE_FULL"),
                Delay::Never,
                Harmless,
                1,
            ),
            (Unavailable, Some("DRAINING"), Delay::Untold, Harmful, 4),
            (Unavailable, Some("DRAINING"), Delay::Never, Harmless, 1),
            (
                Unavailable,
                Some("SOMETHING_NEW"),
                Delay::Untold,
                Harmless,
                1,
            ),
            (Unavailable, Some("APPEND_UNDER_WAY"), told, Harmless, 1),
            (Unavailable, None, Delay::Untold, Harmless, 4),
            (Unavailable, None, Delay::Untold, Append, 4),
            (Unavailable, None, Delay::Untold, Harmful, 1),
            (Internal, None, told, Harmless, 1),
            (Aborted, Some("LENGTH_CONFLICT"), Delay::Untold, Append, 1),
        ];
        for (code, reason, delay, twice, wanted) in table {
            let (attempts, _) = attempts_of(error(code, reason, delay), twice, OPTIONS).await;
            assert_eq!(attempts, wanted, "{code} {reason:?} {delay:?} {twice:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_told_ones_are_kept() {
        let lost = error(Code::Unavailable, None, Delay::Untold);
        let (_, time) = attempts_of(lost.clone(), Twice::Harmless, OPTIONS).await;
        assert!((700..=841).contains(&time.as_millis()), "{time:?}");
        let told = Delay::After(Duration::from_secs(2));
        let busy = error(Code::ResourceExhausted, None, told);
        let (_, time) = attempts_of(busy, Twice::Harmless, OPTIONS).await;
        assert!((6000..=7201).contains(&time.as_millis()), "{time:?}");
        let many = CallOptions {
            max_attempts: 10,
            ..OPTIONS
        };
        let (attempts, time) = attempts_of(lost, Twice::Harmless, many).await;
        assert_eq!(attempts, 10);
        // 0.1 + 0.2 + ... + 3.2, then 5 s each.
        assert!((21_300..=25_561).contains(&time.as_millis()), "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_passes_the_deadline() {
        let options = CallOptions {
            timeout: Duration::from_millis(250),
            ..OPTIONS
        };
        let lost = error(Code::Unavailable, None, Delay::Untold);
        let (attempts, time) = attempts_of(lost, Twice::Harmless, options).await;
        assert_eq!(attempts, 2);
        assert!(time < Duration::from_millis(125), "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_under_way_is_waited_for() {
        let options = CallOptions {
            timeout: Duration::from_secs(3),
            ..OPTIONS
        };
        let under_way = error(Code::Unavailable, Some("APPEND_UNDER_WAY"), Delay::Untold);
        let (attempts, _) = attempts_of(under_way.clone(), Twice::Append, options).await;
        assert!((9..=12).contains(&attempts), "{attempts}");
        let once = CallOptions {
            max_attempts: 1,
            ..OPTIONS
        };
        let (attempts, _) = attempts_of(under_way, Twice::Append, once).await;
        assert_eq!(attempts, 1);
    }
}
