//! Serves an authenticated link: offers keys, processes the Router's messages, sends statistics and pings.

use std::fmt;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, Interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::crypto::CryptoError;
use crate::link::dialect::{Dialect, FramingError, KeyPool, Notice, OfferedKey};
use crate::link::keepalive::{KeepAlive, KeepAliveAction, KeepAliveSnapshot};
use crate::log::limit::LineLimit;
use crate::state::keys::{KeyId, KeyOrder, KeyUse, OneTimeKey};
use crate::state::sessions::{EndCause, SessionId};
use crate::state::shared::SharedState;
use crate::wire::frame::{Frame, FrameError};

use super::connection::{LinkReader, LinkWriter, RouterConnection, SuspendedConnection};
use super::error::LinkError;
use super::metrics::RouterMetrics;
use super::statistics;

/// How many keys are generated and sent at once. They take some milliseconds, and a message of about 15 KiB.
const KEY_BATCH: usize = 256;
/// A Router that has this many keys does not need more at once: missing keys are collected for [`KEY_COLLECTION_TIME`], then
/// generated and sent together. With thousands of short sessions a second this saves a message and two thread switches
/// per session.
const PLENTY_OF_KEYS: usize = 64;
/// See [`PLENTY_OF_KEYS`]: even 3000 sessions a second do not use up that many keys in this time.
const KEY_COLLECTION_TIME: Duration = Duration::from_millis(20);
/// No more keys and no statistics are queued while this many bytes wait for the Router.
const MAX_PENDING_BYTES: usize = 256 * 1024;
/// How long the relay still reads from a link that it closes: the Router may have given keys to peers meanwhile.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// How long suspending a link may wait for keys that are being generated, and for a Router that has much to read.
const SUSPENDING_TIME: Duration = Duration::from_millis(500);
/// How many bytes of each direction a suspended link may have: with more than that, it is closed instead.
const MAX_SUSPENDED_BYTES: usize = MAX_PENDING_BYTES;
/// How many lines about messages without effect are logged in each [`LINE_PERIOD`], so that a Router that floods the link
/// cannot fill the log.
const MAX_LINES: NonZero<u32> = NonZero::new(20).expect("it is not 0");
/// See [`MAX_LINES`].
const LINE_PERIOD: Duration = Duration::from_secs(10);

/// An authenticated link, and what is needed to serve it.
pub(super) struct AuthenticatedLink {
    pub(super) state: SharedState,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) metrics: RouterMetrics,
    pub(super) dialect: &'static dyn Dialect,
    /// When the relay started.
    pub(super) started: Instant,
    pub(super) stop: CancellationToken,
    pub(super) suspend: CancellationToken,
    /// The limit on lines about messages without effect.
    pub(super) line_limit: LineLimit,
}

/// Creates the limit on lines about messages without effect that one link may cause.
pub(super) fn new_line_limit() -> LineLimit {
    LineLimit::new(MAX_LINES, LINE_PERIOD)
}

/// How the service of a link ended.
pub(super) enum ServiceEnd {
    /// The link was told to stop, and is closed.
    Stopped,
    /// The link is still open and can be resumed, with its pings.
    Suspended(SuspendedConnection, KeepAliveSnapshot),
    /// The link failed.
    Failed(LinkError),
}

/// Withdraws the keys on offer when it is dropped, however the link ends, unless the link is suspended.
struct OfferGuard<'a> {
    state: &'a SharedState,
    is_suspended: bool,
}

impl<'a> OfferGuard<'a> {
    /// Guards the keys that will be offered on a new link, or those that are on offer on a link that is resumed.
    fn new(state: &'a SharedState, is_resumed: bool) -> Self {
        if is_resumed {
            state.resume_link();
        } else {
            state.link_up();
        }
        Self { state, is_suspended: false }
    }
}

impl Drop for OfferGuard<'_> {
    fn drop(&mut self) {
        if self.is_suspended {
            self.state.suspend_link();
        } else {
            let dropped = self.state.link_lost();
            debug!(dropped, "keys on offer dropped with the Router link");
        }
    }
}

/// A blocking task that encodes statistics. Yields the message and the number of sessions left out.
type StatisticsJob = JoinHandle<(Vec<u8>, usize)>;
/// A blocking task that generates keys.
type KeyJob = JoinHandle<(KeyOrder, Result<Vec<OneTimeKey>, CryptoError>)>;

impl AuthenticatedLink {
    /// Serves the link until it fails, is stopped or is suspended. `resumed` holds the pings of a link that was suspended.
    pub(super) async fn run(
        self,
        connection: RouterConnection,
        resumed: Option<KeepAliveSnapshot>,
    ) -> ServiceEnd {
        let mut guard = OfferGuard::new(&self.state, resumed.is_some());
        let (mut reader, writer) = connection.split();
        // The loop owns the writer, so that the Router sees the end of the relay's half as soon as the loop ends.
        let served = ServiceLoop::new(&self, writer, resumed).run(&mut reader);
        let end = match self.stop.run_until_cancelled(served).await {
            None | Some(Ok(None)) => ServiceEnd::Stopped,
            Some(Ok(Some((writer, keep_alive)))) => {
                return match RouterConnection::suspend(reader, writer) {
                    Ok(connection) => {
                        guard.is_suspended = true;
                        ServiceEnd::Suspended(connection, keep_alive)
                    }
                    Err(error) => ServiceEnd::Failed(error),
                };
            }
            Some(Err(error)) => ServiceEnd::Failed(error),
        };
        if matches!(end, ServiceEnd::Stopped | ServiceEnd::Failed(LinkError::Closed(_))) {
            let _ = timeout(CLOSING_TIME, self.read_remaining_frames(&mut reader)).await;
        }
        end
    }

    /// Processes what the Router sent before it saw the end of the link: it may have given keys to peers.
    async fn read_remaining_frames(&self, reader: &mut LinkReader) {
        while let Ok(Some(frame)) = reader.read_frame().await {
            if let Frame::Message(message) = frame {
                self.process_message(&message);
            }
            consume_budget().await;
        }
    }

    /// Processes a message from the Router. A message without effect is logged and ignored.
    fn process_message(&self, message: &[u8]) {
        let notices = match self.dialect.parse_notices(message) {
            Ok(notices) => notices,
            Err(error) => {
                self.log_ignored(format_args!(
                    "a message from the Router cannot be parsed: {error}"
                ));
                return;
            }
        };
        if notices.is_empty() {
            self.log_ignored(format_args!(
                "a message from the Router has no field that this relay knows"
            ));
        }
        for notice in notices {
            match notice {
                Notice::KeyUsed(key) => self.mark_key_used(key),
                Notice::Disconnect(session) => self.end_session(session),
                Notice::Unknown(request) => {
                    self.log_ignored(format_args!("the Router sent an unknown request: {request}"));
                }
            }
        }
    }

    /// Logs that something was ignored, within the limit on such lines.
    fn log_ignored(&self, what: fmt::Arguments<'_>) {
        if self.line_limit.allows() {
            let left_out = self.line_limit.take_left_out();
            warn!(left_out, "{what}; ignored");
        }
    }

    fn end_session(&self, session: u64) {
        if self.state.stop_session(SessionId(session), EndCause::Router) {
            info!(session, "the Router ends a session");
        } else if self.line_limit.allows() {
            info!(session, "the Router asks to end a session that does not exist; ignored");
        }
    }

    fn mark_key_used(&self, key: u32) {
        match self.state.key_used(KeyId(key), Instant::now()) {
            KeyUse::HandedOut => debug!(key, "key handed out"),
            // A Router may repeat this message for ever.
            KeyUse::AlreadyHandedOut if self.can_log_debug() => {
                debug!(key, "key was handed out before");
            }
            KeyUse::Unknown if self.can_log_debug() => {
                // Two peers were faster than this message and have used up the key, or the Router is wrong.
                debug!(key, "the Router used a key that is not on offer; ignored");
            }
            KeyUse::AlreadyHandedOut | KeyUse::Unknown => {}
        }
    }

    /// Returns whether one more debug line may be logged. The Router can cause such lines without end.
    fn can_log_debug(&self) -> bool {
        tracing::enabled!(tracing::Level::DEBUG) && self.line_limit.allows()
    }

    fn warn_left_out(&self, left_out: usize) {
        // Limited, because the warning recurs with all statistics as long as there are so many sessions.
        if left_out > 0 && self.line_limit.allows() {
            warn!(left_out, "statistics do not fit in one frame; the newest sessions are left out");
        }
    }

    /// Encodes statistics on a blocking thread, so that other tasks are not delayed: there may be 100 000 sessions.
    fn spawn_statistics(&self) -> StatisticsJob {
        let (state, dialect, started) = (self.state.clone(), self.dialect, self.started);
        tokio::task::spawn_blocking(move || {
            statistics::encode(dialect, &state.sessions(), started, Instant::now())
        })
    }

    fn encode_key_pool(&self, config: &Config, keys: &[OneTimeKey]) -> Vec<u8> {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| OfferedKey { id: key.id.0, public: key.public(), iv: key.iv })
            .collect();
        self.dialect.encode_key_pool(&KeyPool {
            host: config.router.peer_address.as_str(),
            port: config.router.peer_port,
            keys: &keys,
        })
    }
}

/// What is left of the loop of a link that is suspended.
type LoopRemains = (LinkWriter, KeepAliveSnapshot);

/// The loop that serves a link, with its state.
struct ServiceLoop<'a> {
    link: &'a AuthenticatedLink,
    writer: LinkWriter,
    settings: watch::Receiver<Arc<Config>>,
    config: Arc<Config>,
    keep_alive: KeepAlive,
    statistics_timer: Option<Interval>,
    statistics_job: Option<StatisticsJob>,
    key_job: Option<KeyJob>,
    /// When keys may be ordered even if the Router has plenty of them.
    next_order: Instant,
}

impl<'a> ServiceLoop<'a> {
    fn new(
        link: &'a AuthenticatedLink,
        writer: LinkWriter,
        resumed: Option<KeepAliveSnapshot>,
    ) -> Self {
        let mut settings = link.config.clone();
        let config = settings.borrow_and_update().clone();
        let (now, schedule) = (Instant::now(), link.dialect.ping_schedule());
        let keep_alive = match resumed {
            Some(snapshot) => KeepAlive::resume(schedule, &snapshot),
            None => KeepAlive::new(schedule, now),
        };
        Self {
            link,
            writer,
            settings,
            keep_alive,
            statistics_timer: statistics::create_timer(&config),
            statistics_job: None,
            key_job: None,
            next_order: now,
            config,
        }
    }

    /// Serves the link until it fails or is suspended. Between two turns nothing is half done, so it can then be resumed.
    async fn run(mut self, reader: &mut LinkReader) -> Result<Option<LoopRemains>, LinkError> {
        loop {
            let can_order_keys = self.can_order_keys();
            self.order_keys(can_order_keys);
            tokio::select! {
                () = self.link.suspend.cancelled() => return self.suspend(reader).await,
                frame = reader.read_frame() => {
                    self.on_frame(expect_frame(frame)?)?;
                    // One read may return thousands of frames: let other tasks run.
                    consume_budget().await;
                }
                flushed = self.writer.flush(), if self.writer.pending_bytes() > 0 => {
                    flushed.map_err(|error| LinkError::Closed(Some(error)))?;
                }
                generated = wait_for_keys(&mut self.key_job) => {
                    self.key_job = None;
                    let (order, keys) = generated?;
                    self.offer_keys(&order, keys)?;
                }
                () = self.link.state.capacity_freed(), if self.key_job.is_none() && can_order_keys => {}
                () = sleep_until(self.next_order), if self.key_job.is_none() && !can_order_keys => {}
                () = sleep_until(self.keep_alive.deadline()) => {
                    self.on_keep_alive_deadline(reader.take_received())?;
                }
                () = statistics::wait_for_tick(&mut self.statistics_timer), if self.statistics_job.is_none() => {
                    // The Router keeps only the latest statistics, so none are queued while it does not read.
                    self.statistics_job = self.has_room().then(|| self.link.spawn_statistics());
                }
                encoded = wait_for_statistics(&mut self.statistics_job) => {
                    self.statistics_job = None;
                    let (message, left_out) = encoded?;
                    self.link.warn_left_out(left_out);
                    self.writer.queue_message(message)?;
                }
                Ok(()) = self.settings.changed() => self.apply_settings(),
            }
        }
    }

    /// Ends the service so that the link can be resumed: keys that are being generated are offered, statistics that are being
    /// encoded are dropped, and what is queued is sent when the link is resumed. Returns `None` if more is queued than can
    /// be handed over, because the Router does not read.
    async fn suspend(mut self, reader: &mut LinkReader) -> Result<Option<LoopRemains>, LinkError> {
        if self.key_job.is_some()
            && let Ok(generated) = timeout(SUSPENDING_TIME, wait_for_keys(&mut self.key_job)).await
        {
            let (order, keys) = generated?;
            self.offer_keys(&order, keys)?;
        }
        // Keys that take longer are ordered again when the link is resumed.
        let _ = timeout(SUSPENDING_TIME, async {
            while self.writer.pending_bytes() > MAX_SUSPENDED_BYTES {
                self.writer.flush().await?;
            }
            Ok::<_, io::Error>(())
        })
        .await;
        if self.writer.pending_bytes().max(reader.buffered_bytes()) > MAX_SUSPENDED_BYTES {
            return Ok(None);
        }
        if reader.take_received() {
            self.keep_alive.on_bytes();
        }
        Ok(Some((self.writer, self.keep_alive.snapshot())))
    }

    /// Returns whether more can be queued, because the Router reads what was sent.
    fn has_room(&self) -> bool {
        self.writer.pending_bytes() < MAX_PENDING_BYTES
    }

    /// Returns whether keys may be ordered now. Otherwise missing keys are still being collected.
    fn can_order_keys(&self) -> bool {
        self.next_order <= Instant::now() || self.link.state.counts().offered < PLENTY_OF_KEYS
    }

    /// Starts to generate keys that are missing, unless some are being generated.
    fn order_keys(&mut self, can_order_keys: bool) {
        if self.key_job.is_some() || !can_order_keys || !self.has_room() {
            return;
        }
        let order = self.link.state.order(KEY_BATCH, self.link.dialect.max_offered_keys());
        self.key_job = order.map(spawn_key_generation);
        if self.key_job.is_some() {
            self.next_order = Instant::now() + KEY_COLLECTION_TIME;
        }
    }

    fn offer_keys(&mut self, order: &KeyOrder, keys: Vec<OneTimeKey>) -> Result<(), LinkError> {
        let pool = self.link.encode_key_pool(&self.config, &keys);
        // The state must know the keys first: a peer may connect as soon as the Router has them.
        if self.link.state.offer(order, keys) {
            self.writer.queue_message(pool)?;
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), LinkError> {
        match frame {
            Frame::Message(message) => self.link.process_message(&message),
            Frame::Ping(data) => self.writer.queue_frame(&Frame::Pong(data))?,
            Frame::Pong(data) => {
                let taken = self.keep_alive.on_pong(&data, Instant::now())?;
                self.link.metrics.ping.observe(taken.as_secs_f64());
                debug!(milliseconds = taken.as_millis(), "the Router answered a ping");
            }
        }
        Ok(())
    }

    fn on_keep_alive_deadline(&mut self, has_received: bool) -> Result<(), LinkError> {
        if has_received {
            self.keep_alive.on_bytes();
        }
        // `ReadReceived` needs no action: the loop reads anyway.
        if let KeepAliveAction::SendPing(data) = self.keep_alive.on_deadline(Instant::now())? {
            self.writer.queue_frame(&Frame::Ping(Bytes::copy_from_slice(&data)))?;
        }
        Ok(())
    }

    fn apply_settings(&mut self) {
        let config = self.settings.borrow_and_update().clone();
        if config.statistics_period() != self.config.statistics_period() {
            self.statistics_timer = statistics::create_timer(&config);
        }
        self.config = config;
    }
}

/// Returns the frame that was received, or why the link has ended.
fn expect_frame(frame: Result<Option<Frame>, FramingError>) -> Result<Frame, LinkError> {
    match frame {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) | Err(FramingError::Frame(FrameError::Truncated)) => Err(LinkError::Closed(None)),
        Err(FramingError::Frame(FrameError::Io(error))) => Err(LinkError::Closed(Some(error))),
        Err(FramingError::Frame(error)) => Err(LinkError::Frame(error)),
        Err(FramingError::Crypto(error)) => Err(LinkError::Sealed(error)),
    }
}

/// Generates keys on a blocking thread, so that other tasks are not delayed.
fn spawn_key_generation(order: KeyOrder) -> KeyJob {
    tokio::task::spawn_blocking(move || {
        let keys = order.generate();
        (order, keys)
    })
}

/// Waits until the keys are generated; waits for ever if none are being generated.
async fn wait_for_keys(job: &mut Option<KeyJob>) -> Result<(KeyOrder, Vec<OneTimeKey>), LinkError> {
    match job {
        None => std::future::pending().await,
        Some(job) => {
            let (order, keys) =
                job.await.map_err(|error| LinkError::Panicked(error.to_string()))?;
            Ok((order, keys?))
        }
    }
}

/// Waits until the statistics are encoded; waits for ever if none are being encoded.
async fn wait_for_statistics(
    job: &mut Option<StatisticsJob>,
) -> Result<(Vec<u8>, usize), LinkError> {
    match job {
        None => std::future::pending().await,
        Some(job) => job.await.map_err(|error| LinkError::Panicked(error.to_string())),
    }
}
