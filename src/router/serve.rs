//! An authenticated link: keys out, notices in, statistics, keep-alive.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::crypto::CryptoError;
use crate::link::dialect::{Dialect, Frame, FramingError, KeyPool, Notice, OfferedKey, PeerFacts};
use crate::link::keepalive::{Due, KeepAlive};
use crate::log::limit::LineLimit;
use crate::state::keys::{KeyId, OneTimeKey, Order, Used};
use crate::state::sessions::{End, Session, SessionId};
use crate::state::shared::SharedState;
use crate::wire::frame::FrameError;

use super::connection::{Connection, Reader, Writer};
use super::error::LinkError;
use super::metrics::RouterMetrics;

/// Keys made and sent at once: some milliseconds of work, and a message of about 15 KiB.
const KEY_BATCH: usize = 256;
/// A Router that has this many keys is in no hurry for more: they are collected for [`COLLECT`], and made and sent
/// together. With thousands of short sessions a second that saves a message and two changes of threads for each.
const PLENTY: usize = 64;
/// See [`PLENTY`]. Two hundredths of a second, in which even 3000 sessions a second do not use up what is plenty.
const COLLECT: Duration = Duration::from_millis(20);
/// No more keys and no statistics are queued while this many bytes wait for the Router.
const ENOUGH_WAITING: usize = 256 * 1024;
/// How long a link that is being closed is still listened to: the Router may have given keys away meanwhile.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Lines about what means nothing, in a [`PERIOD`]: a Router that floods the link shall not fill the log.
const LINES: NonZero<u32> = NonZero::new(20).expect("it is not 0");
/// See [`LINES`].
const PERIOD: Duration = Duration::from_secs(10);
/// Room left in a frame of statistics for what surrounds the sessions.
const STATISTICS_MARGIN: usize = 1024;

/// What an authenticated link needs.
pub(super) struct Server<W> {
    pub(super) state: SharedState<W>,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) metrics: RouterMetrics,
    pub(super) dialect: &'static dyn Dialect,
    pub(super) started: Instant,
    pub(super) stop: CancellationToken,
    pub(super) lines: LineLimit,
}

/// As many lines about what means nothing as a link may cause.
pub(super) fn lines() -> LineLimit {
    LineLimit::new(LINES, PERIOD)
}

/// Takes the keys on offer back when the link is gone, however it goes.
struct OnOffer<'a, W>(&'a SharedState<W>);

impl<'a, W> OnOffer<'a, W> {
    fn begin(state: &'a SharedState<W>) -> Self {
        state.link_up();
        Self(state)
    }
}

impl<W> Drop for OnOffer<'_, W> {
    fn drop(&mut self) {
        let dropped = self.0.link_lost();
        debug!(dropped, "keys on offer dropped with the Router link");
    }
}

/// Statistics that are being made, and how many sessions are left out of them.
type Listing = JoinHandle<(Vec<u8>, usize)>;
type Made = JoinHandle<(Order, Result<Vec<OneTimeKey>, CryptoError>)>;

impl<W: Send + 'static> Server<W> {
    /// Serves the link until it ends, and says why it did; or until it is told to stop.
    pub(super) async fn run(self, connection: Connection) -> Option<LinkError> {
        let _on_offer = OnOffer::begin(&self.state);
        let (mut reader, writer) = connection.split();
        // What is sent ends with the loop, so the Router sees the end of the relay's half.
        let served = self.serve(&mut reader, writer);
        let end = self.stop.run_until_cancelled(served).await;
        let end = match end {
            None => None,
            Some(Ok(never)) => match never {},
            Some(Err(error)) => Some(error),
        };
        if matches!(end, None | Some(LinkError::Closed(_))) {
            // Keys that the Router gave away before it saw the end are in what it sent before its own.
            let rest = async {
                while let Ok(Some(frame)) = reader.next().await {
                    if let Frame::Message(message) = frame {
                        self.receive(&message);
                    }
                    consume_budget().await;
                }
            };
            let _ = timeout(LAST_WORDS, rest).await;
        }
        end
    }

    async fn serve(
        &self,
        reader: &mut Reader,
        mut writer: Writer,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut settings = self.config.clone();
        let mut config = settings.borrow_and_update().clone();
        let mut timer = statistics_timer(&config);
        let mut keep_alive = KeepAlive::new(self.dialect.keep_alive(), Instant::now());
        let mut making: Option<Made> = None;
        let mut listing: Option<Listing> = None;
        let mut next_order = Instant::now();
        loop {
            let in_time = next_order <= Instant::now() || self.state.counts().offered < PLENTY;
            if making.is_none() && in_time && has_room(&writer) {
                making = self.state.order(KEY_BATCH, self.dialect.max_on_offer()).map(make);
                if making.is_some() {
                    next_order = Instant::now() + COLLECT;
                }
            }
            tokio::select! {
                frame = reader.next() => {
                    match came(frame)? {
                        Frame::Message(message) => self.receive(&message),
                        Frame::Ping(data) => writer.send(&Frame::Pong(data))?,
                        Frame::Pong(data) => {
                            let taken = keep_alive.on_pong(&data, Instant::now())?;
                            self.metrics.ping.observe(taken.as_secs_f64());
                            debug!(milliseconds = taken.as_millis(), "the Router answered a ping");
                        }
                    }
                    // There may be thousands of frames in what was read at once; others have a turn, too.
                    consume_budget().await;
                }
                flushed = writer.flush(), if writer.waiting() > 0 => {
                    flushed.map_err(|error| LinkError::Closed(Some(error)))?;
                }
                made = finished(&mut making) => {
                    making = None;
                    let (order, keys) = made?;
                    let pool = self.key_pool(&config, &keys);
                    // First known here, then there: a peer may come as soon as the Router knows.
                    if self.state.offer(&order, keys) {
                        writer.send(&message(pool))?;
                    }
                }
                () = self.state.room(), if making.is_none() && in_time => {}
                () = sleep_until(next_order), if making.is_none() && !in_time => {}
                () = sleep_until(keep_alive.deadline()) => {
                    if reader.has_heard() {
                        keep_alive.on_bytes();
                    }
                    // For a last look there is nothing to do: what the Router sent is read above.
                    if let Due::Ping(data) = keep_alive.on_deadline(Instant::now())? {
                        writer.send(&Frame::Ping(Bytes::copy_from_slice(&data)))?;
                    }
                }
                () = tick(&mut timer), if listing.is_none() => {
                    // The Router keeps the latest only: those that it has not taken yet are enough.
                    listing = has_room(&writer).then(|| self.list());
                }
                statistics = listed(&mut listing) => {
                    listing = None;
                    let (statistics, left_out) = statistics?;
                    self.warn_left_out(left_out);
                    writer.send(&message(statistics))?;
                }
                Ok(()) = settings.changed() => {
                    let old = config;
                    config = settings.borrow_and_update().clone();
                    if old.statistics_interval != config.statistics_interval {
                        timer = statistics_timer(&config);
                    }
                }
            }
        }
    }

    /// Takes a message of the Router. One that means nothing is logged and ignored.
    fn receive(&self, message: &[u8]) {
        let notices = match self.dialect.notices(message) {
            Ok(notices) => notices,
            Err(error) => {
                return self
                    .ignored(format_args!("a message of the Router cannot be read: {error}"));
            }
        };
        if notices.is_empty() {
            self.ignored(format_args!(
                "a message of the Router says nothing that this relay knows"
            ));
        }
        for notice in notices {
            match notice {
                Notice::KeyUsed(key) => self.key_used(key),
                Notice::Disconnect(session) => {
                    if self.state.stop_session(SessionId(session), End::Disconnected) {
                        info!(session, "the Router ends a session");
                    } else if self.lines.allows() {
                        info!(
                            session,
                            "the Router wants to end a session that is not there; ignored"
                        );
                    }
                }
                Notice::Unknown(request) => {
                    self.ignored(format_args!("the Router asks for something unknown: {request}"));
                }
            }
        }
    }

    /// Says that something means nothing, unless that has been said often enough.
    fn ignored(&self, what: fmt::Arguments<'_>) {
        if self.lines.allows() {
            let left_out = self.lines.take_left_out();
            warn!(left_out, "{what}; ignored");
        }
    }

    fn key_used(&self, key: u32) {
        match self.state.key_used(KeyId(key), Instant::now()) {
            Used::HandedOut => debug!(key, "key handed out"),
            // A Router may say so for ever.
            Used::Already if self.debugs() => debug!(key, "key was handed out before"),
            Used::Unknown if self.debugs() => {
                // Two peers that were faster than this message have used it up; or it is nonsense.
                debug!(key, "the Router used a key that is not on offer; ignored");
            }
            Used::Already | Used::Unknown => {}
        }
    }

    /// Makes statistics where they do not hold up anything else: there may be 100 000 sessions.
    fn list(&self) -> Listing {
        let (state, dialect, started) = (self.state.clone(), self.dialect, self.started);
        tokio::task::spawn_blocking(move || {
            statistics(dialect, &state.sessions(), started, Instant::now())
        })
    }

    fn warn_left_out(&self, left_out: usize) {
        // As often as statistics are sent, and for as long as there are so many.
        if left_out > 0 && self.lines.allows() {
            warn!(
                left_out,
                "statistics do not fit into one frame; the newest sessions are left out"
            );
        }
    }

    /// Whether one more line may be written that a Router can repeat for ever, and that only debugging shows.
    fn debugs(&self) -> bool {
        tracing::enabled!(tracing::Level::DEBUG) && self.lines.allows()
    }

    fn key_pool(&self, config: &Config, keys: &[OneTimeKey]) -> Vec<u8> {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| OfferedKey { id: key.id.0, public: key.public(), iv: key.iv })
            .collect();
        self.dialect.key_pool(&KeyPool {
            host: config.router.peer_address.as_str(),
            port: config.router.peer_port,
            keys: &keys,
        })
    }
}

/// The frame that came, or why none will come any more.
fn came(frame: Result<Option<Frame>, FramingError>) -> Result<Frame, LinkError> {
    match frame {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) | Err(FramingError::Frame(FrameError::Torn)) => Err(LinkError::Closed(None)),
        Err(FramingError::Frame(FrameError::Io(error))) => Err(LinkError::Closed(Some(error))),
        Err(FramingError::Frame(error)) => Err(LinkError::Frame(error)),
        Err(FramingError::Sealed(error)) => Err(LinkError::Sealed(error)),
    }
}

fn message(payload: Vec<u8>) -> Frame {
    Frame::Message(Bytes::from(payload))
}

/// Whether the Router takes what it is sent, so that more makes sense.
fn has_room(writer: &Writer) -> bool {
    writer.waiting() < ENOUGH_WAITING
}

/// Makes keys where it does not hold up anything else.
fn make(order: Order) -> Made {
    tokio::task::spawn_blocking(move || {
        let keys = order.make();
        (order, keys)
    })
}

async fn finished(making: &mut Option<Made>) -> Result<(Order, Vec<OneTimeKey>), LinkError> {
    match making {
        None => std::future::pending().await,
        Some(made) => {
            let (order, keys) = made.await.map_err(|_| CryptoError::Provider)?;
            Ok((order, keys?))
        }
    }
}

async fn listed(listing: &mut Option<Listing>) -> Result<(Vec<u8>, usize), LinkError> {
    match listing {
        None => std::future::pending().await,
        Some(listed) => listed.await.map_err(|error| LinkError::Panicked(error.to_string())),
    }
}

fn statistics_timer(config: &Config) -> Option<Interval> {
    config.statistics_interval.map(|period| {
        let mut timer = interval_at(Instant::now() + period, period);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer
    })
}

async fn tick(timer: &mut Option<Interval>) {
    match timer {
        None => std::future::pending().await,
        Some(timer) => {
            timer.tick().await;
        }
    }
}

/// The message, and how many sessions did not fit into it.
fn statistics(
    dialect: &dyn Dialect,
    sessions: &[Arc<Session>],
    started: Instant,
    now: Instant,
) -> (Vec<u8>, usize) {
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let peers: Vec<_> = sessions
        .iter()
        .map(|session| PeerFacts {
            id: session.id.0,
            client_address: session.identity.client_address(),
            client_user_name: session.identity.client_user_name(),
            host_address: session.identity.host_address(),
            host_id: session.identity.host_id,
            bytes: session.traffic.bytes(),
            duration: seconds(session.started),
            idle: seconds(session.traffic.last_moved()),
        })
        .collect();
    let room = dialect.max_frame() - STATISTICS_MARGIN;
    let (message, listed) = dialect.statistics(&peers, seconds(started), room);
    (message, peers.len() - listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::DIALECTS;
    use crate::state::sessions::{Identity, Sessions};

    #[test]
    fn statistics_stay_within_a_frame_whatever_the_number_of_sessions() {
        let text = "x".repeat(256);
        let identity = Identity::new(&text, &text, &text, u64::MAX);
        let mut sessions = Sessions::default();
        let now = Instant::now();
        let address = ([127, 0, 0, 1], 1).into();
        for _ in 0..10_000 {
            drop(sessions.start(identity.clone(), [address; 2], now));
        }
        for dialect in DIALECTS {
            let longest = dialect.max_frame();
            let (message, left_out) = statistics(dialect, &sessions.list(), now, now);
            assert!(left_out > 0);
            assert!(message.len() < longest - 64, "{}", message.len());
            // And not much less than there is room for.
            assert!(message.len() > longest / 100 * 99, "{}", message.len());
            let (few, _) = statistics(dialect, &sessions.list()[..1000], now, now);
            assert!(few.len() > 1000 * 3 * 256, "{}", few.len());
        }
    }
}
