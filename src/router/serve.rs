//! An authenticated link: keys out, notices in, statistics, keep-alive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::crypto::{CryptoError, Opener, Sealer};
use crate::link::handshake::Established;
use crate::link::keepalive::KeepAlive;
use crate::state::keys::{KeyId, OneTimeKey, Order, Used};
use crate::state::sessions::{End, Session, SessionId};
use crate::state::shared::SharedState;
use crate::wire::frame::{Frame, FrameError, MAX_FRAME};
use crate::wire::router::{
    KEY_ENCRYPTION_CHACHA20_POLY1305, KEY_TYPE_X25519, PEER_STATUS_ACTIVE, PeerConnection,
    REQUEST_DISCONNECT, RelayKey, RelayKeyPool, RelayStat, RelayToRouter, RouterToRelay,
};

use super::connection::{Connection, Reader, Writer};
use super::error::LinkError;
use super::metrics::RouterMetrics;

/// Keys made and sent at once: some milliseconds of work, and a message of about 15 KiB.
const KEY_BATCH: usize = 256;
/// In the 2.x dialect everything that there is room for may be on offer.
const MAX_ON_OFFER: usize = usize::MAX;
/// No more keys and no statistics are queued while this many bytes wait for the Router.
const ENOUGH_WAITING: usize = 256 * 1024;
/// How long a link that is being closed is still listened to: the Router may have given keys away meanwhile.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Room left in a frame of statistics for what surrounds the sessions.
const STATISTICS_MARGIN: usize = 1024;

/// What an authenticated link needs.
pub(super) struct Server<W> {
    pub(super) state: SharedState<W>,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) metrics: RouterMetrics,
    pub(super) started: Instant,
    pub(super) stop: CancellationToken,
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

type Made = JoinHandle<(Order, Result<Vec<OneTimeKey>, CryptoError>)>;

impl<W: Send + 'static> Server<W> {
    /// Serves the link until it ends, and says why it did; or until it is told to stop.
    pub(super) async fn run(
        self,
        connection: Connection,
        established: Established,
    ) -> Option<LinkError> {
        let _on_offer = OnOffer::begin(&self.state);
        let (mut reader, writer) = connection.split();
        let Established { sealer, mut opener, .. } = established;
        let outgoing = Outgoing { writer, sealer };
        // What is sent ends with the loop, so the Router sees the end of the relay's half.
        let served = self.serve(&mut reader, outgoing, &mut opener);
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
                    if let Frame::Message(sealed) = frame
                        && self.receive(&sealed, &mut opener).is_err()
                    {
                        return;
                    }
                }
            };
            let _ = timeout(LAST_WORDS, rest).await;
        }
        end
    }

    async fn serve(
        &self,
        reader: &mut Reader,
        mut outgoing: Outgoing,
        opener: &mut Opener,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut settings = self.config.clone();
        let mut config = settings.borrow_and_update().clone();
        let mut statistics = statistics_timer(&config);
        let mut keep_alive = KeepAlive::new(Instant::now());
        let mut making: Option<Made> = None;
        loop {
            if making.is_none() && outgoing.has_room() {
                making = self.state.order(KEY_BATCH, MAX_ON_OFFER).map(make);
            }
            tokio::select! {
                frame = reader.next() => match frame {
                    Ok(Some(Frame::Message(sealed))) => self.receive(&sealed, opener)?,
                    Ok(Some(Frame::Ping(data))) => outgoing.writer.send(Frame::Pong(data))?,
                    Ok(Some(Frame::Pong(data))) => {
                        let taken = keep_alive.on_pong(&data, Instant::now())?;
                        self.metrics.ping.observe(taken.as_secs_f64());
                        debug!(milliseconds = taken.as_millis(), "the Router answered a ping");
                    }
                    Ok(None) => return Err(LinkError::Closed(None)),
                    Err(FrameError::Io(error)) => return Err(LinkError::Closed(Some(error))),
                    Err(FrameError::Torn) => return Err(LinkError::Closed(None)),
                    Err(error) => return Err(error.into()),
                },
                flushed = outgoing.writer.flush(), if outgoing.writer.waiting() > 0 => {
                    flushed.map_err(|error| LinkError::Closed(Some(error)))?;
                }
                made = finished(&mut making) => {
                    making = None;
                    let (order, keys) = made?;
                    let pool = key_pool(&config, &keys);
                    // First known here, then there: a peer may come as soon as the Router knows.
                    if self.state.offer(&order, keys) {
                        outgoing.send(&pool)?;
                    }
                }
                () = self.state.room(), if making.is_none() => {}
                () = sleep_until(keep_alive.deadline()) => {
                    if let Some(data) = keep_alive.on_deadline(Instant::now())? {
                        outgoing.writer.send(Frame::Ping(Bytes::copy_from_slice(&data)))?;
                    }
                }
                () = tick(&mut statistics) => {
                    // The Router keeps the latest only: those that it has not taken yet are enough.
                    if outgoing.has_room() {
                        let now = Instant::now();
                        outgoing.send(&relay_stat(&self.state.sessions(), self.started, now))?;
                    }
                }
                Ok(()) = settings.changed() => {
                    let old = config;
                    config = settings.borrow_and_update().clone();
                    if old.statistics_interval != config.statistics_interval {
                        statistics = statistics_timer(&config);
                    }
                }
            }
        }
    }

    /// Takes a message of the Router. One that opens but means nothing is logged and ignored.
    fn receive(&self, sealed: &[u8], opener: &mut Opener) -> Result<(), LinkError> {
        let message = opener.open(sealed).map_err(LinkError::Sealed)?;
        let message = match RouterToRelay::decode(message.as_slice()) {
            Ok(message) => message,
            Err(error) => {
                warn!(%error, "a message of the Router cannot be read; ignored");
                return Ok(());
            }
        };
        if message == RouterToRelay::default() {
            warn!("a message of the Router says nothing that this relay knows; ignored");
        }
        if let Some(used) = message.key_used {
            match self.state.key_used(KeyId(used.key_id), Instant::now()) {
                Used::HandedOut => debug!(key = used.key_id, "key handed out"),
                Used::Already => debug!(key = used.key_id, "key was handed out before"),
                Used::Unknown => {
                    // Two peers that were faster than this message have used it up; or it is nonsense.
                    debug!(
                        key = used.key_id,
                        "the Router used a key that is not on offer; ignored"
                    );
                }
            }
        }
        if let Some(request) = message.peer_connection_request {
            let id = SessionId(request.peer_session_id);
            match request.r#type {
                REQUEST_DISCONNECT if self.state.stop_session(id, End::Disconnected) => {
                    info!(session = id.0, "the Router ends a session");
                }
                REQUEST_DISCONNECT => {
                    info!(
                        session = id.0,
                        "the Router wants to end a session that is not there; ignored"
                    );
                }
                other => warn!(request = other, "the Router asks for something unknown; ignored"),
            }
        }
        Ok(())
    }
}

/// Seals and queues.
struct Outgoing {
    writer: Writer,
    sealer: Sealer,
}

impl Outgoing {
    fn has_room(&self) -> bool {
        self.writer.waiting() < ENOUGH_WAITING
    }

    fn send(&mut self, message: &RelayToRouter) -> Result<(), LinkError> {
        let sealed = self.sealer.seal(&message.encode_to_vec())?;
        self.writer.send(Frame::Message(Bytes::from(sealed)))
    }
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

fn key_pool(config: &Config, keys: &[OneTimeKey]) -> RelayToRouter {
    let key = |key: &OneTimeKey| RelayKey {
        key_id: key.id.0,
        r#type: KEY_TYPE_X25519,
        encryption: KEY_ENCRYPTION_CHACHA20_POLY1305,
        public_key: key.public().0.to_vec(),
        iv: key.iv.0.to_vec(),
    };
    let pool = RelayKeyPool {
        peer_host: config.router.peer_address.to_string(),
        peer_port: u32::from(config.router.peer_port),
        key: keys.iter().map(key).collect(),
    };
    RelayToRouter { key_pool: Some(pool), relay_stat: None }
}

fn relay_stat(sessions: &[Arc<Session>], started: Instant, now: Instant) -> RelayToRouter {
    let seconds = |since: Instant| {
        i64::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(i64::MAX)
    };
    let mut room = MAX_FRAME - STATISTICS_MARGIN;
    let mut peer_connection = Vec::with_capacity(sessions.len());
    for session in sessions {
        let entry = PeerConnection {
            session_id: session.id.0,
            status: PEER_STATUS_ACTIVE,
            client_address: session.identity.client_address.clone(),
            client_user_name: session.identity.client_user_name.clone(),
            host_address: session.identity.host_address.clone(),
            host_id: session.identity.host_id,
            bytes_transferred: i64::try_from(session.traffic.bytes()).unwrap_or(i64::MAX),
            duration: seconds(session.started),
            idle_time: seconds(session.traffic.last_moved()),
        };
        // The entry, its tag and its length.
        let length = entry.encoded_len() + 1 + 4;
        if length > room {
            warn!(
                left_out = sessions.len() - peer_connection.len(),
                "statistics do not fit into one frame; the newest sessions are left out"
            );
            break;
        }
        room -= length;
        peer_connection.push(entry);
    }
    let stat = RelayStat { peer_connection, uptime: seconds(started) };
    RelayToRouter { key_pool: None, relay_stat: Some(stat) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::{Identity, Sessions};

    #[test]
    fn statistics_stay_within_a_frame_whatever_the_number_of_sessions() {
        let text = "x".repeat(256);
        let identity = Identity {
            client_address: text.clone(),
            client_user_name: text.clone(),
            host_address: text,
            host_id: u64::MAX,
        };
        let mut sessions = Sessions::default();
        let now = Instant::now();
        let address = ([127, 0, 0, 1], 1).into();
        for _ in 0..10_000 {
            drop(sessions.start(identity.clone(), [address; 2], now));
        }
        let message = relay_stat(&sessions.list(), now, now);
        let length = message.encoded_len();
        let listed = message.relay_stat.unwrap().peer_connection.len();
        assert!(listed < 10_000 && length < MAX_FRAME - 64, "{listed} {length}");
        // And not much less than there is room for.
        assert!(length > MAX_FRAME / 100 * 99, "{length}");
        let few = relay_stat(&sessions.list()[..5000], now, now);
        assert_eq!(few.relay_stat.unwrap().peer_connection.len(), 5000);
    }
}
