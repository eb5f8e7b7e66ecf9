//! Limits on bandwidth: how many bytes a session may read from its peers now.
//!
//! Two limits apply at once. The limit of each session is a token bucket. The limit of all sessions together is another
//! bucket, which they share. In addition, each session that moves anything has a bucket of its own that fills with an equal
//! share of the total rate: bytes within the share may move at once, and only those beyond it wait for what the others
//! leave. So a desktop, which needs less than its share, does not wait behind bulk transfers, and bulk gets all the rest.
//!
//! A bucket holds the bytes of [`BURST`]: enough for the resolution of the runtime's clock, too little to starve anybody.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::parse::Bandwidth;

/// The time in which an empty bucket fills up.
const BURST: Duration = Duration::from_millis(50);
/// The minimum capacity of a bucket, in bytes, so that a message of a desktop session is not cut into pieces.
const MIN_CAPACITY: i64 = 16 * 1024;
/// A session waits until it may read this many bytes: fewer are not worth a wake-up.
const MIN_PIECE: i64 = 4 * 1024;
/// A session takes the surplus, which is what other sessions leave, in pieces of this many bytes.
const SURPLUS_PIECE: i64 = 64 * 1024;
/// At high rates the pieces are larger: the bytes of a second divided by this, which are those of 4 ms.
const SURPLUS_DIVISOR: u64 = 250;
/// The shortest pause of a session that waits: the resolution of the runtime's clock.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause: how soon a changed limit, or what others leave, is noticed.
const MAX_PAUSE: Duration = Duration::from_millis(100);
/// A session counts among those that share for this long after its task ran, and its share fills for no longer than that: a
/// session that is not counted accumulates nothing.
const PERIOD: Duration = Duration::from_millis(200);

/// The limits in force. All sessions share them.
#[derive(Debug, Default)]
pub struct Throttle {
    /// The limit of each session, in bytes a second; 0 is no limit.
    session: AtomicU64,
    /// The limit of all sessions together, in bytes a second; 0 is no limit.
    total: AtomicU64,
    shared: Mutex<SharedBandwidth>,
}

/// What sessions share if their total is limited.
#[derive(Debug, Default)]
struct SharedBandwidth {
    bucket: TokenBucket,
    /// The number of the current period, and its end.
    period: u64,
    period_end: Option<Instant>,
    /// The number of sessions whose tasks ran in the current period, and in the one before.
    sessions: u32,
    previous_sessions: u32,
    /// The moving average of what is left of the share, over sessions that want more than their share.
    average_share: i64,
}

/// Bytes that may be moved. They are negative if sessions have used shares that exceed what the bucket held.
#[derive(Debug, Default)]
struct TokenBucket {
    bytes: i64,
    /// When the bucket was last filled. `None` before the first time, when it is filled to its capacity.
    filled: Option<Instant>,
}

impl TokenBucket {
    /// Fills the bucket at `rate` bytes a second until `now`.
    fn fill(&mut self, rate: u64, now: Instant) {
        let capacity = capacity(rate);
        let Some(filled) = self.filled else {
            (self.bytes, self.filled) = (capacity, Some(now));
            return;
        };
        let elapsed = now.saturating_duration_since(filled);
        let bytes = u128::from(rate) * elapsed.as_nanos() / 1_000_000_000;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(bytes).min(capacity);
        // Time that was too short for a whole byte is counted the next time.
        self.filled = Some((filled + time_for(bytes, rate)).min(now));
    }

    /// Fills the bucket. Returns its bytes, and the time until there are enough to continue.
    fn grant(&mut self, rate: u64, now: Instant) -> (i64, Duration) {
        self.fill(rate, now);
        (self.bytes, MIN_PAUSE.max(time_for(MIN_PIECE - self.bytes, rate)))
    }
}

/// Returns the capacity of a bucket, in bytes.
fn capacity(rate: u64) -> i64 {
    let millis = u64::try_from(BURST.as_millis()).unwrap_or(u64::MAX);
    i64::try_from(rate / 1000 * millis).unwrap_or(i64::MAX).max(MIN_CAPACITY)
}

/// Returns the level, in bytes, that the shared bucket reaches only while no session waits for it.
fn spare_level(total: u64) -> i64 {
    capacity(total) / 2
}

fn time_for(bytes: i64, rate: u64) -> Duration {
    let nanos = u128::try_from(bytes).unwrap_or(0) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The buckets of one session, if bandwidth is limited.
#[derive(Default)]
pub(super) struct BandwidthAccount {
    /// The bucket for the limit of each session.
    own: TokenBucket,
    /// The bucket for the session's share of the total limit.
    share: TokenBucket,
    /// The last period in which the session was counted among those that share.
    period: u64,
    /// Whether the second direction goes first. The directions take turns.
    pub(super) is_second_first: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for BandwidthAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BandwidthAccount({}, {})", self.own.bytes, self.share.bytes)
    }
}

/// What a session may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BandwidthGrant {
    /// Bytes that it may read now.
    pub(super) bytes: usize,
    /// When it may read more, if it reads all of them.
    more_at: Instant,
}

impl BandwidthGrant {
    fn new(bytes: i64, more_at: Instant) -> Self {
        Self { bytes: usize::try_from(bytes).unwrap_or(0), more_at }
    }
}

/// How the bytes of a grant were used.
#[derive(Debug, Clone, Copy)]
pub(super) struct GrantUse {
    /// Bytes of the grant that were not read.
    pub(super) unused: usize,
    /// Whether the unused bytes could be read at once.
    pub(super) can_use_rest: bool,
}

impl Throttle {
    /// Changes the limits. Sessions that wait notice it within a tenth of a second.
    pub fn set_limits(&self, session: Option<Bandwidth>, total: Option<Bandwidth>) {
        let number = |limit: Option<Bandwidth>| limit.map_or(0, |limit| limit.0.get());
        self.session.store(number(session), Ordering::Relaxed);
        self.total.store(number(total), Ordering::Relaxed);
    }

    /// Returns the limits of each session and of all together, in bytes a second; `None` if there are none.
    pub(super) fn limits(&self) -> Option<(u64, u64)> {
        let session = self.session.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        (session | total != 0).then_some((session, total))
    }

    /// Runs `transfer` with the number of bytes that a session may read at `now`, and subtracts the bytes that it reads. If
    /// `transfer` is pending, the task is woken when the session may read more.
    pub(super) fn poll_granted<T>(
        &self,
        account: &mut BandwidthAccount,
        limits: (u64, u64),
        now: Instant,
        context: &mut Context<'_>,
        transfer: impl FnOnce(usize, &mut Context<'_>) -> (Poll<T>, GrantUse),
    ) -> Poll<T> {
        let grant = self.grant(account, limits, now);
        let (result, GrantUse { unused, can_use_rest }) = transfer(grant.bytes, context);
        self.subtract(account, limits, grant.bytes - unused);
        if result.is_pending() {
            let can_continue = if unused == 0 {
                account.poll_more(context, grant).is_ready()
            } else {
                can_use_rest
            };
            if can_continue {
                context.waker().wake_by_ref();
            }
        }
        result
    }

    /// Returns what a session may read.
    fn grant(
        &self,
        account: &mut BandwidthAccount,
        (session, total): (u64, u64),
        now: Instant,
    ) -> BandwidthGrant {
        let mut bytes = i64::MAX;
        let mut pause = MIN_PAUSE;
        if session != 0 {
            (bytes, pause) = account.own.grant(session, now);
        }
        if total != 0 {
            let mut shared = self.shared.lock();
            let share = (total / u64::from(shared.count_session(account, now))).max(1);
            let earliest = now.checked_sub(PERIOD).unwrap_or(now);
            account.share.filled = account.share.filled.map(|filled| filled.max(earliest));
            account.share.fill(share, now);
            shared.bucket.fill(total, now);
            let surplus = shared.grant_surplus(account.share.bytes, total);
            bytes = bytes.min(account.share.bytes.max(surplus));
            let until_share = time_for(MIN_PIECE - account.share.bytes, share);
            let until_spare = time_for(spare_level(total) - shared.bucket.bytes, total);
            pause = pause.max(until_share.min(until_spare));
        }
        BandwidthGrant::new(bytes, now + pause.min(MAX_PAUSE))
    }

    /// Subtracts the bytes that a session has read.
    fn subtract(&self, account: &mut BandwidthAccount, (session, total): (u64, u64), bytes: usize) {
        if session != 0 {
            account.subtract(bytes);
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if total != 0 {
            let second = i64::try_from(total).unwrap_or(i64::MAX);
            let mut shared = self.shared.lock();
            // The debt is limited to one second: it comes from sessions that have used their shares.
            shared.bucket.bytes = shared.bucket.bytes.saturating_sub(bytes).max(-second);
            // A session that has used the surplus has no share for a while, and then gets one again.
            let part = (second / i64::from(shared.sessions.max(1))).max(MIN_CAPACITY);
            account.share.bytes = account.share.bytes.saturating_sub(bytes).max(-part);
        }
    }
}

impl SharedBandwidth {
    /// Returns how many bytes of the surplus a session may read whose share holds `share` bytes. Those that took less of the
    /// surplus than the average, by the debt of their shares, come first; the others get some only while the bucket is so full
    /// that no session can be waiting.
    fn grant_surplus(&mut self, share: i64, total: u64) -> i64 {
        if share < MIN_PIECE {
            self.average_share += (share - self.average_share) / 16;
        }
        let is_in_turn = share >= self.average_share || self.bucket.bytes >= spare_level(total);
        let piece = i64::try_from(total / SURPLUS_DIVISOR).unwrap_or(i64::MAX).max(SURPLUS_PIECE);
        if is_in_turn { self.bucket.bytes.min(piece) } else { 0 }
    }

    /// Counts a session in the current period. Returns how many sessions share.
    fn count_session(&mut self, account: &mut BandwidthAccount, now: Instant) -> u32 {
        if self.period_end.is_none_or(|end| end <= now) {
            // If more than a period has passed since, no session was counted in the one before.
            let is_next = self.period_end.is_some_and(|end| now < end + PERIOD);
            self.previous_sessions = if is_next { self.sessions } else { 0 };
            (self.sessions, self.period_end) = (0, Some(now + PERIOD));
            self.period += 1;
        }
        if account.period != self.period {
            account.period = self.period;
            self.sessions += 1;
        }
        self.sessions.max(self.previous_sessions)
    }
}

impl BandwidthAccount {
    /// Returns what may be read at `now` at `rate` bytes a second, regardless of other sessions.
    pub(super) fn grant(&mut self, rate: u64, now: Instant) -> BandwidthGrant {
        let (bytes, pause) = self.own.grant(rate, now);
        BandwidthGrant::new(bytes, now + pause.min(MAX_PAUSE))
    }

    /// Subtracts bytes that were read.
    pub(super) fn subtract(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.own.bytes = self.own.bytes.saturating_sub(bytes);
    }

    /// Waits until more may be read. Ready when that time has come.
    pub(super) fn poll_more(
        &mut self,
        context: &mut Context<'_>,
        grant: BandwidthGrant,
    ) -> Poll<()> {
        let mut pause = Box::pin(sleep_until(grant.more_at));
        let ready = pause.as_mut().poll(context);
        self.pause = ready.is_pending().then_some(pause);
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZero;

    const MIB: u64 = 1024 * 1024;

    fn throttle(session: u64, total: u64) -> Throttle {
        let throttle = Throttle::default();
        let limit = |rate| NonZero::new(rate).map(Bandwidth);
        throttle.set_limits(limit(session), limit(total));
        throttle
    }

    /// Runs one session for each number in `wanted`, which is how many bytes the session wants each millisecond. Sessions wait
    /// until the time of their grant. Returns how many bytes each has moved.
    fn run_sessions(throttle: &Throttle, wanted: &[usize], seconds: u32) -> Vec<u64> {
        let limits = throttle.limits().unwrap();
        let (began, mut got) = (Instant::now(), vec![0; wanted.len()]);
        let account = |_| (BandwidthAccount::default(), began);
        let mut accounts: Vec<(BandwidthAccount, Instant)> = wanted.iter().map(account).collect();
        for millisecond in 0..1000 * seconds {
            let now = began + Duration::from_millis(millisecond.into());
            for (number, (account, next)) in accounts.iter_mut().enumerate() {
                if wanted[number] == 0 || *next > now {
                    continue;
                }
                let grant = throttle.grant(account, limits, now);
                let taken = grant.bytes.min(wanted[number]);
                throttle.subtract(account, limits, taken);
                if taken == grant.bytes {
                    *next = grant.more_at;
                }
                got[number] += taken as u64;
            }
        }
        got
    }

    fn assert_about(got: u64, expected: u64) {
        assert!(got.abs_diff(expected) <= expected / 10, "{got} instead of {expected}");
    }

    #[test]
    fn zero_means_no_limit() {
        assert_eq!(throttle(0, 0).limits(), None);
    }

    #[test]
    fn session_limit_applies_to_each_session() {
        let got = run_sessions(&throttle(2 * MIB, 0), &[usize::MAX, usize::MAX, 100], 10);
        assert_about(got[0], 20 * MIB);
        assert_about(got[1], 20 * MIB);
        assert_eq!(got[2], 100 * 10_000);
    }

    #[test]
    fn total_limit_is_shared_equally() {
        let got = run_sessions(&throttle(0, 4 * MIB), &[usize::MAX; 4], 10);
        assert_about(got.iter().sum(), 40 * MIB);
        for got in got {
            assert_about(got, 10 * MIB);
        }
    }

    #[test]
    fn session_below_its_share_never_waits_and_others_share_the_rest() {
        // 100 bytes each millisecond are less than a share of 4 MiB/s among 11.
        let mut wanted = vec![usize::MAX; 10];
        wanted.push(100);
        let got = run_sessions(&throttle(0, 4 * MIB), &wanted, 10);
        assert_eq!(got[10], 100 * 10_000);
        assert_about(got.iter().sum(), 40 * MIB);
        let rest = (40 * MIB - got[10]) / 10;
        for got in &got[..10] {
            assert!(got.abs_diff(rest) <= rest / 3, "{got} instead of about {rest}");
        }
    }

    #[test]
    fn total_limit_holds_for_many_small_senders() {
        let (throttle, began) = (throttle(0, MIB), Instant::now());
        let limits = throttle.limits().unwrap();
        let mut accounts: Vec<BandwidthAccount> =
            (0..1000).map(|_| BandwidthAccount::default()).collect();
        let mut got = 0;
        for millisecond in 0_u64..20_000 {
            // Each session runs once a second, one after the other.
            let account = &mut accounts[usize::try_from(millisecond % 1000).unwrap()];
            let now = began + Duration::from_millis(millisecond);
            let taken = throttle.grant(account, limits, now).bytes.min(5000);
            throttle.subtract(account, limits, taken);
            // The first seconds do not count: each session begins with a full share.
            got += if millisecond >= 10_000 { taken as u64 } else { 0 };
        }
        assert!(got <= 11 * MIB, "{got}");
    }

    #[test]
    fn bandwidth_left_by_quiet_sessions_is_used_even_at_high_rates() {
        for rate in [125 * MIB, 1000 * MIB] {
            let mut wanted = vec![100; 11];
            wanted[5] = usize::MAX;
            let got = run_sessions(&throttle(0, rate), &wanted, 5);
            assert_about(got[5], 5 * rate);
        }
    }

    #[test]
    fn fractions_of_a_byte_are_not_lost() {
        let (mut bucket, began) = (TokenBucket::default(), Instant::now());
        bucket.fill(65536, began);
        bucket.bytes = 0;
        for step in 1..=8000 {
            bucket.fill(65536, began + Duration::from_micros(25) * step);
        }
        // 200 ms at this rate.
        assert!((13_100..=13_108).contains(&bucket.bytes), "{bucket:?}");
    }

    #[test]
    fn single_session_gets_the_whole_total() {
        let got = run_sessions(&throttle(0, 40 * MIB), &[usize::MAX, 0, 0], 5);
        assert_about(got[0], 200 * MIB);
    }

    #[test]
    fn both_limits_apply() {
        let got = run_sessions(&throttle(MIB, 4 * MIB), &[usize::MAX, usize::MAX], 10);
        assert_about(got[0], 10 * MIB);
        assert_about(got[1], 10 * MIB);
        let got = run_sessions(&throttle(3 * MIB, 4 * MIB), &[usize::MAX, usize::MAX], 10);
        assert_about(got.iter().sum(), 40 * MIB);
    }

    #[test]
    fn pause_lasts_until_a_piece_is_available() {
        let (throttle, now) = (throttle(MIB, 0), Instant::now());
        let (limits, mut account) = (throttle.limits().unwrap(), BandwidthAccount::default());
        let grant = throttle.grant(&mut account, limits, now);
        throttle.subtract(&mut account, limits, grant.bytes);
        let grant = throttle.grant(&mut account, limits, now);
        assert_eq!(grant.bytes, 0);
        // 4 KiB at 1 MiB a second.
        assert_eq!((grant.more_at - now).as_micros(), 3906);
        let grant = throttle.grant(&mut account, limits, grant.more_at);
        assert!((4000..=4096).contains(&grant.bytes), "{grant:?}");
    }
}
