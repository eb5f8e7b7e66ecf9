//! Limits on bandwidth: how many bytes a session may take from its peers now.
//!
//! Two limits hold at once. That of each session is a bucket that fills at its rate. That of all together is another one,
//! shared, beside which every session that moves anything has a claim of its own on an equal part of the rate: what is
//! within the claim goes at once, and only what is beyond it waits for what the others leave. So a desktop, which needs
//! less than its part, does not wait behind bulk, and bulk has all that is left.
//!
//! A bucket holds the bytes of [`BURST`]: enough for the runtime's clock, too little to starve anybody.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::parse::Bandwidth;

/// The time whose bytes a bucket holds.
const BURST: Duration = Duration::from_millis(50);
/// Bytes that a bucket holds at least: a message of a desktop is not cut to pieces.
const LEAST: i64 = 16 * 1024;
/// A session waits until it may take so many bytes: fewer are not worth a wake-up.
const PIECE: i64 = 4 * 1024;
/// Bytes that a session takes at once of what others leave, at least; where there is more, 4 ms of the rate.
const SURPLUS: i64 = 64 * 1024;
const SURPLUS_PART: u64 = 250;
/// Shortest and longest pause of a session that waits: what the runtime's clock tells apart, and how soon a changed limit
/// or what others leave is noticed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// A session counts among those that share for so long after its task ran, and gathers a claim for no longer than that: one
/// that was not counted has none.
const PERIOD: Duration = Duration::from_millis(200);

impl Grant {
    fn new(bytes: i64, more: Instant) -> Self {
        Self { bytes: usize::try_from(bytes).unwrap_or(0), more }
    }
}

/// The limits in force; shared by all sessions.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Of each session, in bytes a second; 0 is none.
    session: AtomicU64,
    /// Of all together; 0 is none.
    total: AtomicU64,
    shared: Mutex<Shared>,
}

/// What sessions share where there is a limit on all of them.
#[derive(Debug, Default)]
struct Shared {
    bucket: Bucket,
    /// The present period, by its end; the sessions whose tasks ran in it, and in the one before.
    period: u64,
    ends: Option<Instant>,
    now: u32,
    before: u32,
    /// The claim that those have left who want more, on the average.
    usual_claim: i64,
}

/// Bytes that may be moved. Fewer than none where somebody had a claim on more than there was.
#[derive(Debug, Default)]
struct Bucket {
    bytes: i64,
    since: Option<Instant>,
}

impl Bucket {
    /// Fills it at `rate` bytes a second until `now`.
    fn fill(&mut self, rate: u64, now: Instant) {
        let most = holds(rate);
        let Some(since) = self.since else {
            (self.bytes, self.since) = (most, Some(now));
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        let filled = u128::from(rate) * elapsed.as_nanos() / 1_000_000_000;
        let filled = i64::try_from(filled).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(filled).min(most);
        // Time that is too short for a byte counts the next time.
        self.since = Some((since + time_for(filled, rate)).min(now));
    }

    /// The bytes in it at `now`, and the time until there are enough to go on with.
    fn grant(&mut self, rate: u64, now: Instant) -> (i64, Duration) {
        self.fill(rate, now);
        (self.bytes, PAUSES.0.max(time_for(PIECE - self.bytes, rate)))
    }
}

fn holds(rate: u64) -> i64 {
    let millis = u64::try_from(BURST.as_millis()).unwrap_or(u64::MAX);
    i64::try_from(rate / 1000 * millis).unwrap_or(i64::MAX).max(LEAST)
}

/// So much is in the bucket of all together only where nobody else wants it.
fn enough(total: u64) -> i64 {
    holds(total) / 2
}

/// What a session has taken, where there are limits.
#[derive(Default)]
pub(super) struct Account {
    own: Bucket,
    claim: Bucket,
    /// The period in which it counted itself among those that share.
    period: u64,
    /// Whose turn it is to go first.
    pub(super) turn: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({}, {})", self.own.bytes, self.claim.bytes)
    }
}

/// What a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    /// Bytes that it may take now.
    pub(super) bytes: usize,
    /// When it may take more, where it takes all of them.
    more: Instant,
}

impl Throttle {
    /// Changes the limits. Sessions that wait notice it within a tenth of a second.
    pub fn set(&self, session: Option<Bandwidth>, total: Option<Bandwidth>) {
        let number = |limit: Option<Bandwidth>| limit.map_or(0, |limit| limit.0.get());
        self.session.store(number(session), Ordering::Relaxed);
        self.total.store(number(total), Ordering::Relaxed);
    }

    /// The limits of each session and of all together, in bytes a second; `None` where there is neither.
    pub(super) fn limits(&self) -> Option<(u64, u64)> {
        let session = self.session.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        (session | total != 0).then_some((session, total))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a session may take.
    pub(super) fn grant(
        &self,
        account: &mut Account,
        (session, total): (u64, u64),
        now: Instant,
    ) -> Grant {
        let mut bytes = i64::MAX;
        let mut pause = PAUSES.0;
        if session != 0 {
            (bytes, pause) = account.own.grant(session, now);
        }
        if total != 0 {
            let mut shared = self.lock();
            let share = (total / u64::from(shared.sharing(account, now))).max(1);
            let earliest = now.checked_sub(PERIOD).unwrap_or(now);
            account.claim.since = account.claim.since.map(|since| since.max(earliest));
            account.claim.fill(share, now);
            shared.bucket.fill(total, now);
            let left = shared.left(account.claim.bytes, total);
            bytes = bytes.min(account.claim.bytes.max(left));
            let own = time_for(PIECE - account.claim.bytes, share);
            pause = pause.max(own.min(time_for(enough(total) - shared.bucket.bytes, total)));
        }
        Grant::new(bytes, now + pause.min(PAUSES.1))
    }

    /// A session has taken so many bytes.
    pub(super) fn take(&self, account: &mut Account, (session, total): (u64, u64), bytes: usize) {
        if session != 0 {
            account.take(bytes);
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if total != 0 {
            let second = i64::try_from(total).unwrap_or(i64::MAX);
            let mut shared = self.lock();
            // Not more than a second of debts: those who had claims have had them.
            shared.bucket.bytes = shared.bucket.bytes.saturating_sub(bytes).max(-second);
            // Who lived on what others left has no claim for a while, and then has it again.
            let part = (second / i64::from(shared.now.max(1))).max(LEAST);
            account.claim.bytes = account.claim.bytes.saturating_sub(bytes).max(-part);
        }
    }
}

impl Shared {
    /// What a session with such a claim may have of what others leave. First come those who had the least of it, by the
    /// debts that it made; the others, where so much is left that nobody else can be waiting for it.
    fn left(&mut self, claim: i64, total: u64) -> i64 {
        if claim < PIECE {
            self.usual_claim += (claim - self.usual_claim) / 16;
        }
        let is_in_turn = claim >= self.usual_claim || self.bucket.bytes >= enough(total);
        let piece = i64::try_from(total / SURPLUS_PART).unwrap_or(i64::MAX).max(SURPLUS);
        if is_in_turn { self.bucket.bytes.min(piece) } else { 0 }
    }

    /// How many sessions share, with this one.
    fn sharing(&mut self, account: &mut Account, now: Instant) -> u32 {
        if self.ends.is_none_or(|ends| ends <= now) {
            // Nobody else came in all the time since, if it was longer.
            let is_next = self.ends.is_some_and(|ends| now < ends + PERIOD);
            self.before = if is_next { self.now } else { 0 };
            (self.now, self.ends) = (0, Some(now + PERIOD));
            self.period += 1;
        }
        if account.period != self.period {
            account.period = self.period;
            self.now += 1;
        }
        self.now.max(self.before)
    }
}

impl Account {
    /// What may be taken at `now` at `rate` bytes a second, where nothing is shared with others.
    pub(super) fn grant(&mut self, rate: u64, now: Instant) -> Grant {
        let (bytes, pause) = self.own.grant(rate, now);
        Grant::new(bytes, now + pause.min(PAUSES.1))
    }

    /// So many bytes have been taken.
    pub(super) fn take(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.own.bytes = self.own.bytes.saturating_sub(bytes);
    }

    /// Waits for the time at which more may be taken. Ready when it has come.
    pub(super) fn poll_more(&mut self, context: &mut Context<'_>, grant: Grant) -> Poll<()> {
        let mut pause = Box::pin(sleep_until(grant.more));
        let ready = pause.as_mut().poll(context);
        self.pause = ready.is_pending().then_some(pause);
        ready
    }
}

fn time_for(bytes: i64, rate: u64) -> Duration {
    let nanos = u128::try_from(bytes).unwrap_or(0) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZero;

    const MIB: u64 = 1024 * 1024;

    fn throttle(session: u64, total: u64) -> Throttle {
        let throttle = Throttle::default();
        let limit = |rate| NonZero::new(rate).map(Bandwidth);
        throttle.set(limit(session), limit(total));
        throttle
    }

    /// What sessions get in so many seconds that want so many bytes each millisecond, and wait as long as they are told.
    fn run(throttle: &Throttle, wanted: &[usize], seconds: u32) -> Vec<u64> {
        let limits = throttle.limits().unwrap();
        let (began, mut got) = (Instant::now(), vec![0; wanted.len()]);
        let account = |_| (Account::default(), began);
        let mut accounts: Vec<(Account, Instant)> = wanted.iter().map(account).collect();
        for millisecond in 0..1000 * seconds {
            let now = began + Duration::from_millis(millisecond.into());
            for (number, (account, next)) in accounts.iter_mut().enumerate() {
                if wanted[number] == 0 || *next > now {
                    continue;
                }
                let grant = throttle.grant(account, limits, now);
                let taken = grant.bytes.min(wanted[number]);
                throttle.take(account, limits, taken);
                if taken == grant.bytes {
                    *next = grant.more;
                }
                got[number] += taken as u64;
            }
        }
        got
    }

    fn is_about(got: u64, expected: u64) {
        assert!(got.abs_diff(expected) <= expected / 10, "{got} instead of {expected}");
    }

    #[test]
    fn without_limits_there_are_none() {
        assert_eq!(throttle(0, 0).limits(), None);
    }

    #[test]
    fn each_session_has_its_rate() {
        let got = run(&throttle(2 * MIB, 0), &[usize::MAX, usize::MAX, 100], 10);
        is_about(got[0], 20 * MIB);
        is_about(got[1], 20 * MIB);
        assert_eq!(got[2], 100 * 10_000);
    }

    #[test]
    fn all_together_have_theirs_in_equal_parts() {
        let got = run(&throttle(0, 4 * MIB), &[usize::MAX; 4], 10);
        is_about(got.iter().sum(), 40 * MIB);
        for got in got {
            is_about(got, 10 * MIB);
        }
    }

    #[test]
    fn who_needs_less_than_its_part_never_waits_and_the_rest_is_for_the_others() {
        // 100 bytes each millisecond are less than a part of 4 MiB/s among 11.
        let mut wanted = vec![usize::MAX; 10];
        wanted.push(100);
        let got = run(&throttle(0, 4 * MIB), &wanted, 10);
        assert_eq!(got[10], 100 * 10_000);
        is_about(got.iter().sum(), 40 * MIB);
        let rest = (40 * MIB - got[10]) / 10;
        for got in &got[..10] {
            assert!(got.abs_diff(rest) <= rest / 3, "{got} instead of about {rest}");
        }
    }

    #[test]
    fn many_small_senders_are_held_to_it_together() {
        let (throttle, began) = (throttle(0, MIB), Instant::now());
        let limits = throttle.limits().unwrap();
        let mut accounts: Vec<Account> = (0..1000).map(|_| Account::default()).collect();
        let mut got = 0;
        for millisecond in 0_u64..20_000 {
            // Each of them once a second, one after the other.
            let account = &mut accounts[usize::try_from(millisecond % 1000).unwrap()];
            let now = began + Duration::from_millis(millisecond);
            let taken = throttle.grant(account, limits, now).bytes.min(5000);
            throttle.take(account, limits, taken);
            // The first seconds are those of the claims that everybody begins with.
            got += if millisecond >= 10_000 { taken as u64 } else { 0 };
        }
        assert!(got <= 11 * MIB, "{got}");
    }

    #[test]
    fn what_quiet_ones_leave_is_used_at_high_rates_too() {
        for rate in [125 * MIB, 1000 * MIB] {
            let mut wanted = vec![100; 11];
            wanted[5] = usize::MAX;
            let got = run(&throttle(0, rate), &wanted, 5);
            is_about(got[5], 5 * rate);
        }
    }

    #[test]
    fn no_part_of_a_byte_is_lost() {
        let (mut bucket, began) = (Bucket::default(), Instant::now());
        bucket.fill(65536, began);
        bucket.bytes = 0;
        for step in 1..=8000 {
            bucket.fill(65536, began + Duration::from_micros(25) * step);
        }
        // 200 ms of it.
        assert!((13_100..=13_108).contains(&bucket.bytes), "{bucket:?}");
    }

    #[test]
    fn one_alone_has_everything() {
        let got = run(&throttle(0, 40 * MIB), &[usize::MAX, 0, 0], 5);
        is_about(got[0], 200 * MIB);
    }

    #[test]
    fn both_limits_hold() {
        let got = run(&throttle(MIB, 4 * MIB), &[usize::MAX, usize::MAX], 10);
        is_about(got[0], 10 * MIB);
        is_about(got[1], 10 * MIB);
        let got = run(&throttle(3 * MIB, 4 * MIB), &[usize::MAX, usize::MAX], 10);
        is_about(got.iter().sum(), 40 * MIB);
    }

    #[test]
    fn a_pause_is_as_long_as_it_takes_and_never_long() {
        let (throttle, now) = (throttle(MIB, 0), Instant::now());
        let (limits, mut account) = (throttle.limits().unwrap(), Account::default());
        let grant = throttle.grant(&mut account, limits, now);
        throttle.take(&mut account, limits, grant.bytes);
        let grant = throttle.grant(&mut account, limits, now);
        assert_eq!(grant.bytes, 0);
        // 4 KiB at 1 MiB a second.
        assert_eq!((grant.more - now).as_micros(), 3906);
        let grant = throttle.grant(&mut account, limits, grant.more);
        assert!((4000..=4096).contains(&grant.bytes), "{grant:?}");
    }
}
