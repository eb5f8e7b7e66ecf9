//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::warn;

use crate::log::limit::LineLimit;

use super::acceptor::Acceptor;

/// The longest delay after a failure to accept.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// How often to check whether descriptors are available again.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How many warnings of each kind are logged in a [`WARNING_PERIOD`]. They are limited because anyone can cause them.
const WARNINGS: NonZero<u32> = NonZero::new(2).expect("it is not 0");
const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// What may help when connections cannot be accepted, if the system limits open files.
const OPEN_FILES_HINT: &str =
    if cfg!(unix) { "; if there are too many open files, raise the limit (ulimit -n)" } else { "" };

/// Tells whether connections are being accepted. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct AcceptStatus(Arc<AtomicBool>);

impl AcceptStatus {
    /// Whether the loop runs and its last attempt did not fail.
    pub fn is_accepting(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_accepting: bool) {
        self.0.store(is_accepting, Ordering::Relaxed);
    }
}

/// Whether to accept one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptDecision {
    /// Accept it now.
    Accept,
    /// Yield first: the tasks of existing connections run, and some of them end.
    YieldFirst,
    /// Wait for capacity; until then, connections stay in the kernel's backlog.
    Wait,
}

/// Resets the status when the loop ends for any reason, such as being dropped.
struct AcceptGuard<'a>(&'a AcceptStatus);

impl Drop for AcceptGuard<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Logs that connections cannot be accepted, at a limited rate.
struct AcceptWarnings<'a> {
    callers: &'a str,
    shortages: LineLimit,
    failures: LineLimit,
}

impl<'a> AcceptWarnings<'a> {
    fn new(callers: &'a str) -> Self {
        let limit = || LineLimit::new(WARNINGS, WARNING_PERIOD);
        Self { callers, shortages: limit(), failures: limit() }
    }

    fn warn_of_shortage(&self) {
        if self.shortages.allows() {
            let (callers, left_out) = (self.callers, self.shortages.take_left_out());
            warn!(
                left_out,
                "no descriptors are left for more {callers}: no connections are accepted until some have ended. Raise the limit on \
                 open files (ulimit -n, LimitNOFILE, ulimits of the container)"
            );
        }
    }

    fn warn_of_failure(&self, error: &io::Error, delay: Duration) {
        if self.failures.allows() {
            let (callers, left_out) = (self.callers, self.failures.take_left_out());
            warn!(
                %error,
                left_out,
                "cannot accept connections of {callers}, retrying in {delay:?}{OPEN_FILES_HINT}"
            );
        }
    }

    /// Logs how many warnings were left out in a period that is over, unless a later warning has reported them.
    fn report_left_out(&self) {
        for (limit, what) in [
            (&self.shortages, "no descriptors were left"),
            (&self.failures, "accepting connections failed"),
        ] {
            if let Some(left_out) = limit.take_overdue() {
                let (callers, seconds) = (self.callers, WARNING_PERIOD.as_secs());
                warn!(
                    left_out,
                    "{what} for {callers}; more such warnings within {seconds} s were left out"
                );
            }
        }
    }
}

/// Accepts connections until the future is dropped, and passes each to `handle` with the address it comes from. It accepts all
/// that are available before it yields to other tasks, within tokio's cooperative budget. It does not spin when accepting
/// fails, nor while `decide` returns [`AcceptDecision::Wait`]: connections then stay in the kernel's backlog. `callers` names
/// those who connect, for the log.
pub async fn accept(
    acceptor: &Acceptor,
    callers: &str,
    status: &AcceptStatus,
    decide: impl Fn() -> AcceptDecision,
    mut handle: impl FnMut(std::net::TcpStream, SocketAddr),
) {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(MAX_DELAY)
        .without_max_times();
    let mut backoff = None;
    status.set(true);
    let _guard = AcceptGuard(status);
    let warnings = AcceptWarnings::new(callers);
    loop {
        match decide() {
            AcceptDecision::Accept => {}
            // After that, connections that were about to end have ended.
            AcceptDecision::YieldFirst => tokio::task::yield_now().await,
            AcceptDecision::Wait => {
                status.set(false);
                warnings.warn_of_shortage();
                while decide() == AcceptDecision::Wait {
                    tokio::time::sleep(CAPACITY_CHECK_INTERVAL).await;
                }
                status.set(true);
            }
        }
        warnings.report_left_out();
        match acceptor.accept().await {
            Ok((stream, address)) => {
                backoff = None;
                status.set(true);
                // An IPv6 socket reports IPv4 connections with a mapped address.
                handle(stream, SocketAddr::new(address.ip().to_canonical(), address.port()));
                tokio::task::coop::consume_budget().await;
            }
            // The peer closed the connection before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                status.set(false);
                let delay =
                    backoff.get_or_insert_with(|| delays.build()).next().unwrap_or(MAX_DELAY);
                warnings.warn_of_failure(&error, delay);
                tokio::time::sleep(delay).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test(start_paused = true)]
    async fn repeated_failures_cause_a_few_warnings_and_a_count() {
        let log = relay_lab::log::CapturedLog::start();
        let warnings = AcceptWarnings::new("strangers");
        let (error, delay) = (io::Error::from_raw_os_error(24), Duration::from_millis(10));
        let lines = |text: &str| log.text().lines().filter(|line| line.contains(text)).count();
        for _ in 0..10_000 {
            warnings.warn_of_failure(&error, delay);
            warnings.warn_of_shortage();
            warnings.report_left_out();
        }
        assert_eq!((lines("cannot accept"), lines("no descriptors are left")), (2, 2));
        tokio::time::advance(WARNING_PERIOD).await;
        warnings.report_left_out();
        warnings.report_left_out();
        assert_eq!(lines("left_out=9998"), 2, "{}", log.text());
        warnings.warn_of_failure(&error, delay);
        assert_eq!(lines("cannot accept"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn loop_does_not_spin_while_connections_wait_for_capacity() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let acceptor = Acceptor::new(listener).unwrap();
        let _first = TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
        let (decision, checks) = (Cell::new(AcceptDecision::Wait), Cell::new(0));
        let (status, accepted) = (AcceptStatus::default(), Cell::new(0));
        let decide = || {
            checks.set(checks.get() + 1);
            decision.get()
        };
        let accept = accept(&acceptor, "strangers", &status, decide, |_, _| {
            accepted.set(accepted.get() + 1);
        });
        let watch = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!status.is_accepting());
            assert_eq!(accepted.get(), 0);
            assert!((100..=202).contains(&checks.get()), "{}", checks.get());
            decision.set(AcceptDecision::YieldFirst);
            while accepted.get() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(status.is_accepting());
        };
        tokio::select! {
            () = accept => {}
            () = watch => {}
        }
        assert_eq!(accepted.get(), 1);
    }
}
