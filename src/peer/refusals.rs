//! What is said of refused connections: not a line for each, since strangers decide how many there are; and a warning where
//! it is not strangers that are refused, but everybody behind one address.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::log::limit::LineLimit;
use crate::metrics::Label;
use crate::wire::foreign::Foreign;

use super::door::Shut;
use super::error::PeerError;
use super::first_message::FirstMessageError;
use super::metrics::Connection;
use super::origin::is_private;

/// Lines about connections refused for one reason in a [`PERIOD`], at most.
const LINES: NonZero<u32> = NonZero::new(20).expect("it is not 0");
/// How often it is said how many lines were left out.
const PERIOD: Duration = Duration::from_secs(10);
/// How often it is looked whom the refusals met, in [`PERIOD`]s.
const WINDOW: u32 = 6;
/// Refusals in a window that say something about whom they meet.
const MANY: u64 = 20;
/// Private addresses that are told apart; there are not more proxies than that.
const MAX_ADDRESSES: usize = 256;
/// How often the same warning is repeated while its reason lasts.
const REPEAT: Duration = Duration::from_secs(3600);

/// Those who report refusals.
#[derive(Debug)]
pub(super) struct Refusals {
    /// For each outcome: many of one kind do not hide the others.
    lines: Vec<LineLimit>,
    /// Of those that say that a proxy in front has every peer refused.
    proxies: LineLimit,
    seen: Mutex<Seen>,
}

/// What was refused in this period for a limit that holds for each address.
#[derive(Debug, Default)]
struct Seen {
    all: u64,
    private: HashMap<IpAddr, u64>,
    warned: Option<Instant>,
}

impl Refusals {
    pub(super) fn new() -> Self {
        let lines = Connection::ALL.iter().map(|_| LineLimit::new(LINES, PERIOD)).collect();
        let proxies = LineLimit::new(NonZero::<u32>::MIN, REPEAT);
        Self { lines, proxies, seen: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was not let in.
    pub(super) fn shut_out(&self, address: SocketAddr, why: Shut) {
        if why.is_shared() {
            self.see(address.ip());
        }
        self.say(address, why.into(), &why);
    }

    /// A connection that was let in was refused after all.
    pub(super) fn refused(&self, address: SocketAddr, outcome: Connection, why: &PeerError) {
        if why.is_shared() {
            self.see(address.ip());
        }
        if is_proxy(why) && self.proxies.allows() {
            // It is seldom a stranger, and at the usual level nobody would learn of it.
            warn!(%address, "peer refused: {why}");
        } else {
            self.say(address, outcome, why);
        }
    }

    /// Counts a refusal for a limit that holds for each address.
    fn see(&self, address: IpAddr) {
        let mut seen = self.lock();
        seen.all += 1;
        let known = seen.private.len() < MAX_ADDRESSES || seen.private.contains_key(&address);
        if known && is_private(address) {
            *seen.private.entry(address).or_default() += 1;
        }
    }

    /// Says why, unless too much has been said already.
    fn say(&self, address: SocketAddr, outcome: Connection, why: &dyn fmt::Display) {
        if !self.lines.get(outcome.index()).is_some_and(LineLimit::allows) {
            return;
        }
        if outcome == Connection::Error {
            warn!(%address, "peer lost, by a failure of this system: {why}");
        } else {
            info!(%address, "peer refused: {why}");
        }
    }

    /// Reports, period after period, for ever.
    pub(super) async fn keep_reporting(&self) {
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
        if let Some((address, refused, all)) = self.hidden_peers() {
            warn!(
                %address,
                "{refused} of {all} connections refused for the limits of their address came from private addresses, most of them from {address}: \
                 a proxy, a load balancer or NAT in front hides the addresses of the peers, and all of them share one \
                 limit. Have it keep their addresses (Docker: network_mode host; Kubernetes: hostNetwork, or \
                 externalTrafficPolicy Local), or raise PeerConnectRate (0 is no limit) and MaxPendingPeersPerAddress"
            );
        }
    }

    /// The private address that most refusals met, how many met private ones, and of how many; when that is worth a
    /// warning. There may be several proxies.
    fn hidden_peers(&self) -> Option<(IpAddr, u64, u64)> {
        let mut seen = self.lock();
        let (all, private) = (std::mem::take(&mut seen.all), std::mem::take(&mut seen.private));
        let refused = private.values().sum::<u64>();
        let (address, _) = private.into_iter().max_by_key(|(_, refused)| *refused)?;
        let is_news = seen.warned.is_none_or(|warned| warned.elapsed() >= REPEAT);
        if all < MANY || 2 * refused <= all || !is_news {
            return None;
        }
        seen.warned = Some(Instant::now());
        Some((address, refused, all))
    }
}

/// Whether a connection was refused for the header of a proxy.
fn is_proxy(why: &PeerError) -> bool {
    let PeerError::FirstMessage(FirstMessageError::Foreign(foreign)) = why else {
        return false;
    };
    matches!(foreign, Foreign::ProxyV1 | Foreign::ProxyV2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn refuse(refusals: &Refusals, address: [u8; 4], times: usize, why: Shut) {
        for _ in 0..times {
            refusals.shut_out((address, 7).into(), why);
        }
    }

    fn seen_nothing(refusals: &Refusals) {
        *refusals.lock() = Seen::default();
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_in_front_is_suspected_where_most_refusals_meet_one_private_address() {
        let refusals = Refusals::new();
        let often = Shut::TooOften(300);
        refuse(&refusals, [10, 0, 0, 1], 11, often);
        refuse(&refusals, [192, 0, 2, 1], 9, Shut::TooManyFromThere(64));
        assert_eq!(refusals.hidden_peers(), Some(([10, 0, 0, 1].into(), 11, 20)));
        // Two proxies are as good as one.
        seen_nothing(&refusals);
        refuse(&refusals, [10, 0, 0, 1], 10, often);
        refuse(&refusals, [10, 0, 0, 2], 10, often);
        refuse(&refusals, [192, 0, 2, 1], 10, often);
        assert_eq!(refusals.hidden_peers().map(|(_, refused, all)| (refused, all)), Some((20, 30)));
        // Once an hour is enough.
        refuse(&refusals, [10, 0, 0, 1], 100, often);
        assert_eq!(refusals.hidden_peers(), None);
        advance(REPEAT).await;
        refuse(&refusals, [10, 0, 0, 1], 100, often);
        assert!(refusals.hidden_peers().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_are_no_proxy() {
        let refusals = Refusals::new();
        let often = Shut::TooOften(300);
        refuse(&refusals, [192, 0, 2, 1], 1000, often);
        assert_eq!(refusals.hidden_peers(), None);
        refuse(&refusals, [10, 0, 0, 1], 10, often);
        refuse(&refusals, [192, 0, 2, 1], 10, often);
        assert_eq!(refusals.hidden_peers(), None, "no more than half");
        refuse(&refusals, [10, 0, 0, 1], 19, often);
        assert_eq!(refusals.hidden_peers(), None, "too few");
        refuse(&refusals, [10, 0, 0, 1], 100, Shut::Denied);
        assert_eq!(refusals.hidden_peers(), None, "it is on a list");
    }
}
