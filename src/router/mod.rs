//! The relay's link to its Router: dial, authenticate, serve, and again for ever.

mod choice;
mod connection;
pub mod error;
pub mod examine;
pub mod metrics;
mod serve;
pub mod status;

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
use crate::metrics::Label;
use crate::state::shared::SharedState;
use crate::trace::SPAN_TARGET;

use choice::{Begun, Choice};
use error::LinkError;
use metrics::{Connect, ConnectedGauge, RouterMetrics};
use status::{CONFIRMATION, LinkFacts, LinkStatus};

/// A link that lived this long was a good one: the next try comes soon.
const GOOD_LINK: Duration = Duration::from_secs(30);
/// The task that keeps the link.
pub struct RouterTask<W> {
    state: SharedState<W>,
    config: watch::Receiver<Arc<Config>>,
    metrics: RouterMetrics,
    status: watch::Sender<LinkStatus>,
    started: Instant,
    stop: CancellationToken,
}

/// How an attempt ended when nobody asked it to end.
struct Failed {
    error: LinkError,
    /// Time since authentication; `None` when it did not come so far.
    lived: Option<Duration>,
}

impl<W: Send + 'static> RouterTask<W> {
    /// A link that offers the keys of `state` and says in `status` how it is. `started` is what the statistics count the uptime from.
    pub fn new(
        state: SharedState<W>,
        config: watch::Receiver<Arc<Config>>,
        metrics: RouterMetrics,
        status: watch::Sender<LinkStatus>,
        started: Instant,
        stop: CancellationToken,
    ) -> Self {
        Self { state, config, metrics, status, started, stop }
    }

    /// Keeps the link until `stop` is cancelled, then closes it, which withdraws the keys on offer.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut failures = 0;
        let mut choice = Choice::default();
        loop {
            let config = self.config.borrow_and_update().clone();
            let link = self.stop.child_token();
            let failed = {
                let attempt = self.attempt(&config, &mut choice, &mut failures, &link);
                let mut attempt = pin!(caught(attempt));
                tokio::select! {
                    biased;
                    () = self.link_settings_changed(&config) => {
                        info!("settings of the Router link changed: connecting anew");
                        link.cancel();
                        // However that ends, it is over.
                        let _ = attempt.await;
                        backoff = Backoff::new();
                        continue;
                    }
                    failed = &mut attempt => failed,
                }
            };
            let failed = match failed {
                Ok(None) => return,
                Ok(Some(failed)) => failed,
                Err(panic) => Failed { error: LinkError::Panicked(panic), lived: None },
            };
            if failed.lived.is_some_and(|lived| lived >= GOOD_LINK) {
                backoff = Backoff::new();
            }
            failures += 1;
            self.status.send_modify(|status| status.failed(failures, failed.error.to_string()));
            let delay = backoff.next();
            let router = config.router.address.with_port(config.router.port);
            let retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            if failed.error.needs_operator() {
                error!(router, retry_ms, "Router link: {}", failed.error);
            } else {
                warn!(router, retry_ms, "Router link: {}", failed.error);
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.link_settings_changed(&config) => {}
                () = choice.looked_up() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Returns when the settings in force ask for another link than `current` does.
    async fn link_settings_changed(&self, current: &Config) {
        let changed = |new: &Arc<Config>| {
            current.needs_new_link(new) || self.state.counts().too_much_on_offer()
        };
        if self.config.clone().wait_for(changed).await.is_err() {
            // Nobody changes settings any more.
            std::future::pending::<()>().await;
        }
    }

    /// One link from dialling to its end; `None` when it ended because `stop` was cancelled.
    async fn attempt(
        &self,
        config: &Config,
        choice: &mut Choice,
        failures: &mut u64,
        stop: &CancellationToken,
    ) -> Option<Failed> {
        let span = connect_span(config);
        let machine = machine_info(&config.router.display_name);
        let begun = choice.begin(config, &machine, None).instrument(span.clone());
        let Begun { connection, established, why } = match stop.run_until_cancelled(begun).await? {
            Ok(begun) => begun,
            Err(error) => {
                self.metrics.connects.count(record_failure(&span, &error));
                return Some(Failed { error, lived: None });
            }
        };
        let since = Instant::now();
        let (router, version) = (connection.address(), established.router_version);
        let (cipher, dialect) = (established.cipher, established.dialect.name());
        span.record("aspia.router.version", version.to_string());
        if *failures == 0 {
            info!(%router, %version, dialect, why, %cipher, "connected to the Router");
        } else {
            info!(%router, %version, dialect, why, %cipher, "authenticated to the Router");
        }
        self.status.send_modify(|status| {
            let facts =
                LinkFacts { is_confirmed: false, address: router, dialect, version, cipher };
            status.authenticated(facts);
        });
        let _away = Away(&self.status);
        let server = serve::Server {
            state: self.state.clone(),
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            dialect: established.dialect,
            started: self.started,
            stop: stop.clone(),
            lines: serve::lines(),
        };
        let mut span = Some(span);
        let mut served = pin!(server.run(connection));
        // A link counts once: when it is known that the Router keeps it, or when it ends before that. Its span is kept
        // as long, since a white list shows only then; it ends where the authentication did, all the same.
        let (end, counted) = match deadline::timeout(CONFIRMATION, &mut served).await {
            Ok(end) => (end, false),
            Err(_) => {
                drop(span.take());
                let _connected = self.confirm(failures, router);
                (served.await, true)
            }
        };
        let lived = since.elapsed();
        let error = match end {
            Some(LinkError::Closed(_)) if !counted => Some(LinkError::Denied(lived)),
            end => end,
        };
        if !counted {
            // One that the relay itself gave up was good.
            let outcome = match (&error, &span) {
                (Some(error), Some(span)) => record_failure(span, error),
                (Some(error), None) => Connect::from(error),
                (None, _) => Connect::Ok,
            };
            self.metrics.connects.count(outcome);
        }
        Some(Failed { error: error?, lived: Some(lived) })
    }

    /// The Router keeps the link: from now on the relay is ready. The link counts as connected until the result is dropped.
    fn confirm(&self, failures: &mut u64, router: SocketAddr) -> ConnectedGauge {
        self.metrics.connects.count(Connect::Ok);
        if *failures > 0 {
            // Whoever was told of the failures is told of their end: warnings are shown where the line at the
            // authentication is not. Not earlier, or a Router that refuses this relay would be welcomed at every attempt.
            warn!(%router, failures, "connected to the Router again");
            *failures = 0;
        }
        self.status.send_modify(LinkStatus::confirmed);
        self.metrics.connected()
    }
}

/// What comes of it, or what it panicked with: whatever a Router sends, it costs one link and no session.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    // What it shares sets itself right when it is dropped.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// Says that the link is away when it is dropped.
struct Away<'a>(&'a watch::Sender<LinkStatus>);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.send_modify(LinkStatus::away);
    }
}

/// Puts down in the span of an attempt why it failed. Gives the outcome that it counts as.
fn record_failure(span: &Span, error: &LinkError) -> Connect {
    let outcome = Connect::from(error);
    span.record("error.type", outcome.name());
    span.record("otel.status_code", "error");
    span.record("otel.status_description", error.to_string());
    outcome
}

/// The span of one attempt, from dialling to the end of the authentication.
fn connect_span(config: &Config) -> Span {
    tracing::info_span!(
        target: SPAN_TARGET,
        "router.connect",
        "otel.kind" = "client",
        "otel.status_code" = Empty,
        "otel.status_description" = Empty,
        "server.address" = config.router.address.as_str(),
        // Signed: the exporter makes texts of other numbers.
        "server.port" = i64::from(config.router.port),
        "network.transport" = "tcp",
        "network.peer.address" = Empty,
        "network.peer.port" = Empty,
        "aspia.router.version" = Empty,
        "error.type" = Empty,
    )
}

/// What the Router is told about this machine, in the words that it knows.
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

/// The time to the next try: at most 1 s at first, at most 15 s later, with jitter, so that the relays of a
/// Router that was restarted do not come back all at once.
struct Backoff(ExponentialBackoff);

impl Backoff {
    fn new() -> Self {
        // Jitter adds up to as much again.
        let delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_millis(7500))
            .with_jitter()
            .without_max_times();
        Self(delays.build())
    }

    fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_soon_at_first_and_never_more_than_15_s_apart() {
        for _ in 0..100 {
            let mut backoff = Backoff::new();
            let delays: Vec<_> = (0..20).map(|_| backoff.next()).collect();
            assert!(delays[0] <= Duration::from_secs(1), "{delays:?}");
            assert!(delays.iter().all(|d| *d <= Duration::from_secs(15)), "{delays:?}");
            assert!(delays[5..].iter().all(|d| *d >= Duration::from_millis(7500)), "{delays:?}");
        }
    }

    #[test]
    fn a_3_0_router_gets_fewer_than_30_connections_a_minute_even_in_two_dialects() {
        const CONNECTIONS_A_TRY: usize = crate::link::DIALECTS.len();

        for _ in 0..100 {
            let mut backoff = Backoff::new();
            let mut tries = vec![Duration::ZERO];
            while tries.len() < 50 {
                tries.push(tries[tries.len() - 1] + backoff.next());
            }
            for start in &tries {
                let minute = *start..=*start + Duration::from_secs(60);
                let within = tries.iter().filter(|at| minute.contains(*at)).count();
                assert!(within * CONNECTIONS_A_TRY < 30, "{within} {tries:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_like_any_other() {
        let overflow = async |a: u8| a.checked_add(1).expect("too large");
        assert_eq!(caught(overflow(1)).await, Ok(2));
        assert_eq!(caught(overflow(255)).await.unwrap_err(), "too large");
        assert_eq!(caught(async { panic!("{} bytes", 7) }).await, Err::<(), _>("7 bytes".into()));
    }

    #[test]
    fn jitter_spreads_the_relays() {
        let delays: std::collections::HashSet<_> = (0..20).map(|_| Backoff::new().next()).collect();
        assert!(delays.len() > 10, "{delays:?}");
    }

    #[test]
    fn this_machine_is_described_in_the_routers_words() {
        let machine = machine_info("relay");
        assert!(machine.cpu_cores > 0);
        assert!(["Linux", "Windows", "macOS"].contains(&machine.os_name.as_str()));
        assert!(["x86", "x86_64", "arm", "arm64"].contains(&machine.arch.as_str()));
    }
}
