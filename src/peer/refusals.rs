//! Logs refused connections. The number of lines is limited, since strangers decide how many connections are refused. A warning
//! is logged if the peers behind a proxy are refused because they share the limits of one address.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::log::limit::LineLimit;
use crate::metrics::Label;
use crate::wire::foreign::ForeignProtocol;

use super::error::{PeerError, Rejected};
use super::first_message::FirstMessageError;
use super::metrics::PeerOutcome;
use super::origin::is_private;

/// The maximum number of lines in a [`PERIOD`] about connections that are refused for the same reason.
const LINES: NonZero<u32> = NonZero::new(20).expect("it is not 0");
/// How often the number of lines that were left out is logged.
const PERIOD: Duration = Duration::from_secs(10);
/// How often refusals are summarised by address, in [`PERIOD`]s.
const WINDOW: u32 = 6;
/// The minimum number of refusals in a window for a warning.
const MIN_REFUSALS: u64 = 20;
/// The maximum number of private addresses that are counted separately; nobody has that many proxies.
const MAX_ADDRESSES: usize = 256;
/// How often a warning is repeated while its reason lasts.
const REPEAT: Duration = Duration::from_secs(3600);

/// Logs refusals.
#[derive(Debug)]
pub(super) struct RefusalLog {
    /// One limit for each outcome, so that many refusals of one kind do not hide the others.
    lines: Vec<LineLimit>,
    /// Limits the warnings about a proxy because of whose header every peer is refused.
    proxies: LineLimit,
    per_address: Mutex<PerAddressRefusals>,
}

/// What was refused in this window because of a limit for each address.
#[derive(Debug, Default)]
struct PerAddressRefusals {
    all: u64,
    private: HashMap<IpAddr, u64>,
    warned: Option<Instant>,
}

impl RefusalLog {
    pub(super) fn new() -> Self {
        let lines = PeerOutcome::ALL.iter().map(|_| LineLimit::new(LINES, PERIOD)).collect();
        let proxies = LineLimit::new(NonZero::<u32>::MIN, REPEAT);
        Self { lines, proxies, per_address: Mutex::default() }
    }

    /// Logs a connection that was not admitted.
    pub(super) fn log_rejected(&self, address: SocketAddr, why: Rejected) {
        if why.is_per_address() {
            self.count(address.ip());
        }
        self.log(address, why.into(), &why);
    }

    /// Logs a connection that was admitted and refused later.
    pub(super) fn log_refused(&self, address: SocketAddr, outcome: PeerOutcome, why: &PeerError) {
        if why.is_per_address() {
            self.count(address.ip());
        }
        if matches!(why, PeerError::HealthCheck) {
            // A proxy checks every few seconds.
            debug!(%address, "{why}");
        } else if is_proxy_header(why) && self.proxies.allows() {
            // This is rarely caused by a stranger, and at the usual log level nobody would notice.
            warn!(%address, "peer refused: {why}");
        } else {
            self.log(address, outcome, why);
        }
    }

    /// Counts a refusal because of a limit for each address.
    fn count(&self, address: IpAddr) {
        let mut refusals = self.per_address.lock();
        refusals.all += 1;
        let private = &mut refusals.private;
        let has_entry = private.len() < MAX_ADDRESSES || private.contains_key(&address);
        if has_entry && is_private(address) {
            *private.entry(address).or_default() += 1;
        }
    }

    /// Logs why a connection was refused, unless there were too many such lines already.
    fn log(&self, address: SocketAddr, outcome: PeerOutcome, why: &dyn fmt::Display) {
        if !self.lines.get(outcome.index()).is_some_and(LineLimit::allows) {
            return;
        }
        if outcome == PeerOutcome::Error {
            warn!(%address, "peer lost because of a failure of this system: {why}");
        } else {
            info!(%address, "peer refused: {why}");
        }
    }

    /// Logs summaries, period after period. Never returns.
    pub(super) async fn run(&self) {
        for number in (0..WINDOW).cycle() {
            sleep(PERIOD).await;
            self.report_left_out();
            if number == 0 {
                self.report_hidden_peers();
            }
        }
    }

    fn report_left_out(&self) {
        let left_out: u64 = self.lines.iter().map(LineLimit::take_left_out).sum();
        if left_out > 0 {
            info!(
                left_out,
                "more peers were refused in the last {} s; aspia_relay_peer_connections_total counts them by reason",
                PERIOD.as_secs()
            );
        }
    }

    fn report_hidden_peers(&self) {
        if let Some((address, refused, all)) = self.find_hidden_peers() {
            warn!(
                %address,
                "{refused} of {all} connections that were refused because of limits for their address came from private \
                 addresses, most of them from {address}: \
                 a proxy, a load balancer or NAT in front hides the addresses of the peers, and all of them share one \
                 limit. Have it keep their addresses (Docker: network_mode host; Kubernetes: hostNetwork, or \
                 externalTrafficPolicy Local), or raise PeerConnectRate (0 is no limit) and MaxPendingPeersPerAddress"
            );
        }
    }

    /// If the refusals are worth a warning, returns the private address that was refused most often, the number of refusals of
    /// private addresses, and the number of all refusals. There may be several proxies.
    fn find_hidden_peers(&self) -> Option<(IpAddr, u64, u64)> {
        let mut refusals = self.per_address.lock();
        let all = std::mem::take(&mut refusals.all);
        let private = std::mem::take(&mut refusals.private);
        let refused = private.values().sum::<u64>();
        let (address, _) = private.into_iter().max_by_key(|(_, refused)| *refused)?;
        let is_new = refusals.warned.is_none_or(|warned| warned.elapsed() >= REPEAT);
        if all < MIN_REFUSALS || 2 * refused <= all || !is_new {
            return None;
        }
        refusals.warned = Some(Instant::now());
        Some((address, refused, all))
    }
}

/// Whether a connection was refused because it began with a PROXY header that was not expected, or had no good one.
fn is_proxy_header(why: &PeerError) -> bool {
    if matches!(why, PeerError::ProxyHeader(_)) {
        return true;
    }
    let PeerError::FirstMessage(FirstMessageError::ForeignProtocol(foreign)) = why else {
        return false;
    };
    matches!(foreign, ForeignProtocol::ProxyV1 | ForeignProtocol::ProxyV2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn refuse(refusals: &RefusalLog, address: [u8; 4], times: usize, why: Rejected) {
        for _ in 0..times {
            refusals.log_rejected((address, 7).into(), why);
        }
    }

    fn reset(refusals: &RefusalLog) {
        *refusals.per_address.lock() = PerAddressRefusals::default();
    }

    #[tokio::test(start_paused = true)]
    async fn proxy_is_suspected_when_most_refusals_are_of_private_addresses() {
        let refusals = RefusalLog::new();
        let too_often = Rejected::TooOften(300);
        refuse(&refusals, [10, 0, 0, 1], 11, too_often);
        refuse(&refusals, [192, 0, 2, 1], 9, Rejected::AddressLimit(64));
        assert_eq!(refusals.find_hidden_peers(), Some(([10, 0, 0, 1].into(), 11, 20)));
        // Two proxies are reported like one.
        reset(&refusals);
        refuse(&refusals, [10, 0, 0, 1], 10, too_often);
        refuse(&refusals, [10, 0, 0, 2], 10, too_often);
        refuse(&refusals, [192, 0, 2, 1], 10, too_often);
        assert_eq!(
            refusals.find_hidden_peers().map(|(_, refused, all)| (refused, all)),
            Some((20, 30))
        );
        // The warning is repeated once an hour only.
        refuse(&refusals, [10, 0, 0, 1], 100, too_often);
        assert_eq!(refusals.find_hidden_peers(), None);
        advance(REPEAT).await;
        refuse(&refusals, [10, 0, 0, 1], 100, too_often);
        assert!(refusals.find_hidden_peers().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn refused_strangers_are_not_taken_for_a_proxy() {
        let refusals = RefusalLog::new();
        let too_often = Rejected::TooOften(300);
        refuse(&refusals, [192, 0, 2, 1], 1000, too_often);
        assert_eq!(refusals.find_hidden_peers(), None);
        refuse(&refusals, [10, 0, 0, 1], 10, too_often);
        refuse(&refusals, [192, 0, 2, 1], 10, too_often);
        assert_eq!(refusals.find_hidden_peers(), None, "no more than half");
        refuse(&refusals, [10, 0, 0, 1], 19, too_often);
        assert_eq!(refusals.find_hidden_peers(), None, "too few");
        refuse(&refusals, [10, 0, 0, 1], 100, Rejected::Denied);
        assert_eq!(refusals.find_hidden_peers(), None, "it is on a list");
    }
}
