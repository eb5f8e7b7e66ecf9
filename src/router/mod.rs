//! The relay's link to its Router: connects, authenticates and serves the link, again and again.

mod connection;
mod connector;
pub mod error;
pub mod examine;
pub mod metrics;
mod serve;
mod statistics;
pub mod status;
pub mod suspend;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, warn};

use crate::config::Config;
use crate::deadline;
use crate::link::handshake::MachineInfo;
use crate::link::keepalive::KeepAliveSnapshot;
use crate::metrics::Label;
use crate::state::shared::SharedState;
use crate::trace::SPAN_TARGET;

use connection::RouterConnection;
use connector::{ConnectedRouter, RouterConnector};
use error::LinkError;
use metrics::{ConnectOutcome, ConnectedGauge, RouterMetrics};
use serve::{AuthenticatedLink, ServiceEnd};
use status::{CONFIRMATION_TIME, LinkStatus};
use suspend::{LinkOrigin, SuspendedLink};

/// A link that lasted this long resets the back-off: the first reconnection comes soon.
const STABLE_LINK_TIME: Duration = Duration::from_secs(30);
/// The longest time between two attempts, jitter included.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(15);

/// The task that maintains the link to the Router.
pub struct RouterTask {
    state: SharedState,
    config: watch::Receiver<Arc<Config>>,
    metrics: RouterMetrics,
    status: watch::Sender<LinkStatus>,
    started: Instant,
    stop: CancellationToken,
    suspend: CancellationToken,
}

/// How an attempt ended.
enum AttemptEnd {
    /// The relay is stopping, or was suspended while there was no link.
    Stopped,
    /// The link is suspended.
    Suspended(Box<SuspendedLink>),
    /// Another link is needed at once, for example because the settings changed.
    Reconfigured,
    /// The link failed.
    Failed(LinkFailure),
}

/// Why a link failed.
struct LinkFailure {
    error: LinkError,
    /// The time since authentication; `None` if the link was not authenticated.
    lifetime: Option<Duration>,
}

/// An authenticated link that is to be served, new or resumed.
struct ReadyLink {
    connection: RouterConnection,
    origin: LinkOrigin,
    /// Whether the Router has kept it for [`CONFIRMATION_TIME`].
    is_confirmed: bool,
    /// The pings of a link that is resumed.
    resumed: Option<KeepAliveSnapshot>,
}

impl RouterTask {
    /// Creates a task that offers the keys of `state` and reports to `status`. The uptime in the statistics counts from
    /// `started`.
    pub fn new(
        state: SharedState,
        config: watch::Receiver<Arc<Config>>,
        metrics: RouterMetrics,
        status: watch::Sender<LinkStatus>,
        started: Instant,
        stop: CancellationToken,
        suspend: CancellationToken,
    ) -> Self {
        Self { state, config, metrics, status, started, stop, suspend }
    }

    /// Suspends the next [`Self::run`] when this token is cancelled, instead of the one given at first: a token cannot be
    /// cancelled twice.
    pub fn set_suspend_token(&mut self, suspend: CancellationToken) {
        self.suspend = suspend;
    }

    /// Maintains the link until the task is stopped or suspended. When it is stopped, it closes the link, which withdraws
    /// the keys on offer. When it is suspended, it returns the authenticated link, if there is one, and leaves its keys on
    /// offer. To continue with that link, this task or one of another process is given it as `resumed`; the state must
    /// then have its keys ([`SharedState::restore_offered`]).
    pub async fn run(&mut self, resumed: Option<SuspendedLink>) -> Option<SuspendedLink> {
        let mut backoff = Backoff::new();
        let mut failures = 0;
        let mut connector = RouterConnector::default();
        if resumed.is_none() {
            // Without their link, keys are worth nothing.
            self.state.link_lost();
        }
        let mut resumed = resumed;
        loop {
            let config = self.config.borrow_and_update().clone();
            let attempt = self.run_attempt(&config, &mut connector, &mut failures, resumed.take());
            let failure = match attempt.await {
                AttemptEnd::Stopped => return None,
                AttemptEnd::Suspended(link) => return Some(*link),
                AttemptEnd::Reconfigured => {
                    backoff = Backoff::new();
                    continue;
                }
                AttemptEnd::Failed(failure) => failure,
            };
            if failure.lifetime.is_some_and(|lifetime| lifetime >= STABLE_LINK_TIME) {
                backoff = Backoff::new();
            }
            failures += 1;
            let delay = backoff.next();
            self.report_failure(&config, &failure.error, failures, delay);
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = self.suspend.cancelled() => return None,
                () = self.wait_for_link_change(&config) => {}
                () = connector.wait_for_lookup() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    fn report_failure(&self, config: &Config, error: &LinkError, failures: u64, delay: Duration) {
        self.status.send_modify(|status| status.set_failed(failures, error.to_string()));
        let router = config.router.address.with_port(config.router.port);
        let retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        if error.needs_operator() {
            error!(router, retry_ms, "Router link: {error}");
        } else {
            warn!(router, retry_ms, "Router link: {error}");
        }
    }

    /// Waits until the current settings require another link than `config`, or allow fewer keys than are on offer.
    async fn wait_for_link_change(&self, config: &Config) {
        let changed = |new: &Arc<Config>| {
            config.needs_new_link(new) || self.state.counts().has_excess_offers()
        };
        if self.config.clone().wait_for(changed).await.is_err() {
            // The sender is gone: the settings do not change any more.
            std::future::pending::<()>().await;
        }
    }

    /// Makes or resumes one link and serves it until it fails, the settings require another one, or the relay stops.
    async fn run_attempt(
        &self,
        config: &Config,
        connector: &mut RouterConnector,
        failures: &mut u64,
        resumed: Option<SuspendedLink>,
    ) -> AttemptEnd {
        let stop = self.stop.child_token();
        let link = async {
            match resumed {
                Some(link) => self.resume_link(link, config, connector, failures, &stop).await,
                None => self.run_link(config, connector, failures, &stop).await,
            }
        };
        let mut link = pin!(catch_panic(link));
        let ended = tokio::select! {
            biased;
            () = self.wait_for_link_change(config) => {
                info!("settings of the Router link changed: reconnecting");
                stop.cancel();
                // The link is closed in order; its result does not matter.
                let _ = link.await;
                return AttemptEnd::Reconfigured;
            }
            ended = &mut link => ended,
        };
        ended.unwrap_or_else(|panic| {
            AttemptEnd::Failed(LinkFailure { error: LinkError::Panicked(panic), lifetime: None })
        })
    }

    /// Makes one link and serves it to its end.
    async fn run_link(
        &self,
        config: &Config,
        connector: &mut RouterConnector,
        failures: &mut u64,
        stop: &CancellationToken,
    ) -> AttemptEnd {
        let span = create_connect_span(config);
        let machine = machine_info(&config.router.display_name);
        let connecting = connector.connect(config, &machine, None).instrument(span.clone());
        let connected = tokio::select! {
            biased;
            () = stop.cancelled() => return AttemptEnd::Stopped,
            () = self.suspend.cancelled() => return AttemptEnd::Stopped,
            connected = connecting => connected,
        };
        match connected {
            Ok(ConnectedRouter { connection, parameters, why }) => {
                let origin = LinkOrigin::new(&parameters, config);
                span.record("aspia.router.version", origin.version.to_string());
                log_authenticated(connection.address(), &origin, why, *failures);
                let link = ReadyLink { connection, origin, is_confirmed: false, resumed: None };
                self.serve_link(link, span, failures, stop).await
            }
            Err(error) => {
                self.metrics.connects.count(record_failure(&span, &error));
                AttemptEnd::Failed(LinkFailure { error, lifetime: None })
            }
        }
    }

    /// Resumes a suspended link and serves it to its end, unless the current settings need another one.
    async fn resume_link(
        &self,
        suspended: SuspendedLink,
        config: &Config,
        connector: &mut RouterConnector,
        failures: &mut u64,
        stop: &CancellationToken,
    ) -> AttemptEnd {
        let connection = match RouterConnection::resume(&suspended.socket, &suspended.snapshot) {
            Ok(connection) => connection,
            Err(error) => {
                warn!("cannot take over the Router link: {error}; making a new one");
                suspended.close();
                self.state.link_lost();
                return AttemptEnd::Reconfigured;
            }
        };
        // The connection has a descriptor of its own.
        let SuspendedLink { socket: _, snapshot } = suspended;
        let origin = LinkOrigin::of_resumed(&connection, &snapshot);
        if origin.settings != config.link_fingerprint() {
            info!(
                "the Router link that is taken over was made with other settings: making a new one"
            );
            stop.cancel();
        }
        if !stop.is_cancelled() {
            let (router, dialect) = (connection.address(), origin.dialect);
            connector.remember(&config.router, dialect, router);
            let LinkOrigin { version, cipher, .. } = origin;
            info!(%router, %version, dialect = dialect.name(), %cipher, "Router link taken over");
        }
        let (is_confirmed, resumed) = (snapshot.is_confirmed, Some(snapshot.keep_alive));
        let link = ReadyLink { connection, origin, is_confirmed, resumed };
        match self.serve_link(link, Span::none(), failures, stop).await {
            // Only this link was stopped.
            AttemptEnd::Stopped if !self.stop.is_cancelled() && !self.suspend.is_cancelled() => {
                AttemptEnd::Reconfigured
            }
            end => end,
        }
    }

    /// Serves an authenticated link to its end.
    ///
    /// A link is counted once: when the Router has kept it for [`CONFIRMATION_TIME`], or when it ends before that. The span
    /// stays open until then, because only then it is known whether the Router denies this relay. Its end time is
    /// nevertheless that of the authentication.
    async fn serve_link(
        &self,
        link: ReadyLink,
        span: Span,
        failures: &mut u64,
        stop: &CancellationToken,
    ) -> AttemptEnd {
        let ReadyLink { connection, origin, resumed, mut is_confirmed } = link;
        let router = connection.address();
        self.status.send_modify(|status| {
            status.set_authenticated(origin.facts(router, is_confirmed), origin.age());
        });
        let _guard = UnlinkedGuard(&self.status);
        let mut served = pin!(self.service(&origin, stop).run(connection, resumed));
        let early_end = if is_confirmed {
            None
        } else {
            let left = CONFIRMATION_TIME.saturating_sub(origin.age());
            deadline::timeout(left, &mut served).await.ok()
        };
        let end = match early_end {
            Some(end) => self.count_early_end(end, &span, origin.age()),
            None => {
                drop(span);
                let _connected = self.confirm_link(failures, router, is_confirmed);
                is_confirmed = true;
                served.await
            }
        };
        match end {
            ServiceEnd::Stopped => AttemptEnd::Stopped,
            ServiceEnd::Suspended(connection, keep_alive) => AttemptEnd::Suspended(Box::new(
                origin.into_suspended(connection, keep_alive, is_confirmed),
            )),
            ServiceEnd::Failed(error) => {
                AttemptEnd::Failed(LinkFailure { error, lifetime: Some(origin.age()) })
            }
        }
    }

    fn service(&self, origin: &LinkOrigin, stop: &CancellationToken) -> AuthenticatedLink {
        AuthenticatedLink {
            state: self.state.clone(),
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            dialect: origin.dialect,
            started: self.started,
            stop: stop.clone(),
            suspend: self.suspend.clone(),
            line_limit: serve::new_line_limit(),
        }
    }

    /// Counts a link that ended before it was confirmed. A suspended link is counted when it is resumed.
    fn count_early_end(&self, end: ServiceEnd, span: &Span, lifetime: Duration) -> ServiceEnd {
        let end = match end {
            ServiceEnd::Failed(LinkError::Closed(_)) => {
                ServiceEnd::Failed(LinkError::Denied(lifetime))
            }
            end => end,
        };
        match &end {
            // A link that the relay itself ended counts as successful.
            ServiceEnd::Stopped => self.metrics.connects.count(ConnectOutcome::Ok),
            ServiceEnd::Failed(error) => self.metrics.connects.count(record_failure(span, error)),
            ServiceEnd::Suspended(..) => {}
        }
        end
    }

    /// Records that the Router keeps the link: from now on the relay is ready. The gauge shows the link as connected until
    /// the result is dropped. A link that was confirmed before it was suspended is not counted again.
    fn confirm_link(
        &self,
        failures: &mut u64,
        router: SocketAddr,
        was_confirmed: bool,
    ) -> ConnectedGauge {
        if !was_confirmed {
            self.metrics.connects.count(ConnectOutcome::Ok);
        }
        if *failures > 0 {
            // The failures were logged as warnings, and so is their end: a log level that shows one shows the other. It is
            // not logged earlier, or a Router that denies this relay would be reported as connected at every attempt.
            warn!(%router, failures, "connected to the Router again");
            *failures = 0;
        }
        self.status.send_modify(LinkStatus::set_confirmed);
        self.metrics.set_connected()
    }
}

/// Logs that the Router is authenticated.
fn log_authenticated(router: SocketAddr, origin: &LinkOrigin, why: &str, failures: u64) {
    let LinkOrigin { version, cipher, .. } = origin;
    let dialect = origin.dialect.name();
    if failures == 0 {
        info!(%router, %version, dialect, why, %cipher, "connected to the Router");
    } else {
        info!(%router, %version, dialect, why, %cipher, "authenticated to the Router");
    }
}

/// Returns the output of `work`, or the message of its panic, so that nothing a Router sends can cost more than one link.
/// Sessions are not affected.
async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, String> {
    // Guards restore the state that the work shares with other tasks when they are dropped.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// Sets the status to unlinked when it is dropped.
struct UnlinkedGuard<'a>(&'a watch::Sender<LinkStatus>);

impl Drop for UnlinkedGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(LinkStatus::set_unlinked);
    }
}

/// Records in the span of an attempt why it failed. Returns the outcome that it counts as.
fn record_failure(span: &Span, error: &LinkError) -> ConnectOutcome {
    let outcome = ConnectOutcome::from(error);
    span.record("error.type", outcome.name());
    span.record("otel.status_code", "error");
    span.record("otel.status_description", error.to_string());
    outcome
}

/// Creates the span of one attempt, from dialling to the end of the authentication.
fn create_connect_span(config: &Config) -> Span {
    tracing::info_span!(
        target: SPAN_TARGET,
        "router.connect",
        "otel.kind" = "client",
        "otel.status_code" = Empty,
        "otel.status_description" = Empty,
        "server.address" = config.router.address.as_str(),
        // Signed: the exporter turns other integers into strings.
        "server.port" = i64::from(config.router.port),
        "network.transport" = "tcp",
        "network.peer.address" = Empty,
        "network.peer.port" = Empty,
        "aspia.router.version" = Empty,
        "error.type" = Empty,
    )
}

/// Describes this machine in the words that Routers know.
fn machine_info(computer_name: &str) -> MachineInfo {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    MachineInfo {
        cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
        os_name: match std::env::consts::OS {
            "windows" => "Windows",
            "macos" => "macOS",
            _ => "Linux",
        }
        .to_owned(),
        computer_name: computer_name.to_owned(),
        arch: match std::env::consts::ARCH {
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned(),
    }
}

/// The delay before the next attempt: at most 1 s at first, at most [`MAX_RETRY_DELAY`] later, with jitter, so that the
/// relays of a restarted Router do not all come back at once.
struct Backoff(ExponentialBackoff);

impl Backoff {
    fn new() -> Self {
        // Jitter adds up to the delay itself, hence the half.
        let delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(MAX_RETRY_DELAY / 2)
            .with_jitter()
            .without_max_times();
        Self(delays.build())
    }

    fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(MAX_RETRY_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delay_starts_below_1_s_and_never_exceeds_15_s() {
        for _ in 0..100 {
            let mut backoff = Backoff::new();
            let delays: Vec<_> = (0..20).map(|_| backoff.next()).collect();
            assert!(delays[0] <= Duration::from_secs(1), "{delays:?}");
            assert!(delays.iter().all(|d| *d <= MAX_RETRY_DELAY), "{delays:?}");
            assert!(delays[5..].iter().all(|d| *d >= MAX_RETRY_DELAY / 2), "{delays:?}");
        }
    }

    #[test]
    fn retries_in_both_dialects_stay_below_30_connections_a_minute() {
        const CONNECTIONS_PER_ATTEMPT: usize = crate::link::DIALECTS.len();

        for _ in 0..100 {
            let mut backoff = Backoff::new();
            let mut attempts = vec![Duration::ZERO];
            while attempts.len() < 50 {
                attempts.push(attempts[attempts.len() - 1] + backoff.next());
            }
            for start in &attempts {
                let minute = *start..=*start + Duration::from_secs(60);
                let within = attempts.iter().filter(|at| minute.contains(*at)).count();
                assert!(within * CONNECTIONS_PER_ATTEMPT < 30, "{within} {attempts:?}");
            }
        }
    }

    #[tokio::test]
    async fn panic_is_returned_as_an_error() {
        let overflow = async |a: u8| a.checked_add(1).expect("too large");
        assert_eq!(catch_panic(overflow(1)).await, Ok(2));
        assert_eq!(catch_panic(overflow(255)).await.unwrap_err(), "too large");
        assert_eq!(
            catch_panic(async { panic!("{} bytes", 7) }).await,
            Err::<(), _>("7 bytes".into())
        );
    }

    #[test]
    fn retry_delays_of_relays_differ() {
        let delays: std::collections::HashSet<_> = (0..20).map(|_| Backoff::new().next()).collect();
        assert!(delays.len() > 10, "{delays:?}");
    }

    #[test]
    fn machine_is_described_in_words_that_routers_know() {
        let machine = machine_info("relay");
        assert!(machine.cpu_cores > 0);
        assert!(["Linux", "Windows", "macOS"].contains(&machine.os_name.as_str()));
        assert!(["x86", "x86_64", "arm", "arm64"].contains(&machine.arch.as_str()));
    }
}
