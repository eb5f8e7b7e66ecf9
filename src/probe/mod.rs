//! `--probe`: says from any machine whether an Aspia relay answers at an address, without a key and without a
//! configuration.
//!
//! A relay never says anything by itself, so it is recognised by how it closes (docs/protocol.md, "A peer's first message"):
//! it waits for the last byte of a first message, and closes as soon as that has arrived and names an unknown key.

mod exchange;
mod outcome;
mod target;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::deadline;
use crate::dial::{self, LOOKUP_TIMEOUT, Network};

pub use outcome::ProbeOutcome;
pub use target::ProbeTarget;

/// The maximum number of addresses of a name that are probed. They are probed at the same time.
const MAX_ADDRESSES: usize = 16;

/// An address that was probed, or a name without an address.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedAddress {
    /// The address, or `None` if the name does not resolve.
    pub address: Option<SocketAddr>,
    /// What was seen there.
    pub outcome: ProbeOutcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a probe has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// What was probed.
    pub target: ProbeTarget,
    /// Each address, in the order of the resolver. Not empty.
    pub addresses: Vec<ProbedAddress>,
    /// The number of addresses that were not probed, since the name has too many.
    pub left_out: usize,
}

/// The JSON form of a [`ProbedAddress`].
#[derive(Serialize)]
struct AddressJson<'a> {
    address: Option<String>,
    outcome: &'static str,
    seconds: f64,
    seen: String,
    remedy: &'a str,
}

impl ProbeReport {
    /// Whether peers come through: a relay answers, and at every address that this machine has a route to. A peer may dial
    /// any of them.
    pub fn is_reachable(&self) -> bool {
        let mut outcomes = self.addresses.iter().map(|address| &address.outcome);
        let has_relay = outcomes.clone().any(ProbeOutcome::is_relay);
        has_relay && outcomes.all(|outcome| outcome.is_relay() || outcome.is_local())
    }

    /// The number of addresses at which no relay answers.
    pub fn failures(&self) -> usize {
        self.addresses.iter().filter(|address| !address.outcome.is_relay()).count()
    }

    /// Corrects what the errors of the system leave open: "no route" is also the answer of a router on the way, or of a firewall.
    /// `has_route` says whether this machine itself has a route to an address.
    pub fn recheck_routes(&mut self, has_route: impl Fn(SocketAddr) -> bool) {
        for probed in &mut self.addresses {
            let is_remote = probed.address.is_some_and(&has_route);
            if probed.outcome == ProbeOutcome::NoRoute && is_remote {
                probed.outcome = ProbeOutcome::Unreachable;
            }
        }
    }

    /// The report as lines for people: one for each address, followed by what to do.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ProbedAddress { address, outcome, elapsed } in &self.addresses {
            let mark = match outcome {
                outcome if outcome.is_relay() => '✓',
                outcome if outcome.is_local() => '–',
                _ => '✗',
            };
            let place =
                address.map_or_else(|| self.target.host.to_string(), |address| address.to_string());
            lines.push(format!("{mark} {place}: {outcome} ({:.1} s)", elapsed.as_secs_f64()));
            lines.push(format!("    {}", outcome.remedy()));
        }
        if self.left_out > 0 {
            lines.push(format!("– {} more addresses were not probed", self.left_out));
        }
        lines
    }

    /// The report as JSON.
    pub fn json(&self) -> serde_json::Value {
        let addresses = self.addresses.iter().map(|probed| AddressJson {
            address: probed.address.map(|address| address.to_string()),
            outcome: probed.outcome.name(),
            // A float of milliseconds has no digits that mean nothing.
            seconds: (probed.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            seen: probed.outcome.to_string(),
            remedy: probed.outcome.remedy(),
        });
        serde_json::json!({
            "host": self.target.host.as_str(),
            "port": self.target.port,
            "reachable": self.is_reachable(),
            "addresses": addresses.collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }
}

/// Whether this machine has a route to an address. Sends nothing.
pub fn has_route(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

/// Probes every address of the target at the same time. A lookup takes at most [`LOOKUP_TIMEOUT`], an address at most 12 s.
pub async fn run<N>(network: &N, target: &ProbeTarget) -> ProbeReport
where
    N: Network,
    N::Connection: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let (addresses, left_out) = match resolve(network, target).await {
        Ok(mut addresses) => {
            let left_out = addresses.len().saturating_sub(MAX_ADDRESSES);
            addresses.truncate(MAX_ADDRESSES);
            let probes = addresses.into_iter().map(|address| probe_address(network, address));
            (join_all(probes).await, left_out)
        }
        Err(outcome) => {
            (vec![ProbedAddress { address: None, outcome, elapsed: start.elapsed() }], 0)
        }
    };
    ProbeReport { target: target.clone(), addresses, left_out }
}

/// Looks the target up. Each address is returned once.
async fn resolve<N: Network>(
    network: &N,
    target: &ProbeTarget,
) -> Result<Vec<SocketAddr>, ProbeOutcome> {
    let lookup = network.resolve(target.host.as_str(), target.port);
    let resolved = deadline::timeout(LOOKUP_TIMEOUT, lookup)
        .await
        .map_err(|_| ProbeOutcome::LookupTimedOut)?
        .map_err(|error| ProbeOutcome::NameNotFound(error.to_string()))?;
    let mut addresses = Vec::new();
    for address in resolved {
        let address = SocketAddr::new(address.ip().to_canonical(), target.port);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(ProbeOutcome::NameNotFound("it has no address".to_owned()));
    }
    Ok(addresses)
}

async fn probe_address<N>(network: &N, address: SocketAddr) -> ProbedAddress
where
    N: Network,
    N::Connection: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let outcome = match dial::connect(network, address).await {
        Ok(mut connection) => exchange::examine(&mut connection).await,
        Err(error) => classify_connect_error(&error),
    };
    ProbedAddress { address: Some(address), outcome, elapsed: start.elapsed() }
}

/// The error of a machine without IPv6, for which the standard library has no kind.
#[cfg(unix)]
const NO_FAMILY: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
/// WSAEAFNOSUPPORT.
#[cfg(windows)]
const NO_FAMILY: i32 = 10047;

fn classify_connect_error(error: &io::Error) -> ProbeOutcome {
    use io::ErrorKind as Kind;

    if error.raw_os_error() == Some(NO_FAMILY) {
        return ProbeOutcome::NoRoute;
    }
    match error.kind() {
        Kind::ConnectionRefused => ProbeOutcome::Refused,
        Kind::TimedOut => ProbeOutcome::TimedOut,
        Kind::NetworkUnreachable | Kind::NetworkDown | Kind::AddrNotAvailable => {
            ProbeOutcome::NoRoute
        }
        Kind::HostUnreachable => ProbeOutcome::Unreachable,
        Kind::ConnectionReset | Kind::ConnectionAborted => ProbeOutcome::ResetAtOnce,
        _ => ProbeOutcome::ConnectFailed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use crate::dial::Lookup;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What answers at an address.
    #[derive(Debug, Clone, Copy)]
    enum Service {
        /// Waits for the whole message, like a relay.
        Relay,
        /// Connects after a time, and then is a relay.
        Slow(Duration),
        /// Says something after a time.
        Speaks(Duration, &'static [u8]),
        /// Answers what it is sent.
        Answers(&'static [u8]),
        /// Closes after a time, whatever arrives.
        Closes(Duration),
        /// Closes when it has read so many bytes.
        ClosesAfter(usize),
        Silent,
        Fails(io::ErrorKind),
        /// Never answers.
        Drops,
    }

    impl Service {
        async fn serve(self, mut stream: DuplexStream) {
            let mut bytes = vec![0; 1024];
            match self {
                Self::Relay | Self::Slow(_) => {
                    let length = stream.read_u32().await.unwrap() as usize;
                    stream.read_exact(&mut bytes[..length]).await.unwrap();
                }
                Self::Speaks(after, text) => {
                    sleep(after).await;
                    stream.write_all(text).await.unwrap();
                }
                Self::Answers(text) => {
                    let _ = stream.read(&mut bytes).await;
                    stream.write_all(text).await.unwrap();
                }
                Self::Closes(after) => sleep(after).await,
                Self::ClosesAfter(count) => {
                    stream.read_exact(&mut bytes[..count]).await.unwrap();
                }
                Self::Silent | Self::Fails(_) | Self::Drops => std::future::pending().await,
            }
        }
    }

    struct FakeServices {
        lookup: Result<Vec<SocketAddr>, &'static str>,
        services: HashMap<SocketAddr, Service>,
    }

    impl FakeServices {
        fn new(services: &[(&str, Service)]) -> Self {
            let services = services.iter().map(|(address, service)| {
                (SocketAddr::new(address.parse().unwrap(), 8070), *service)
            });
            let services: Vec<_> = services.collect();
            let lookup = Ok(services.iter().map(|(address, _)| *address).collect());
            Self { lookup, services: services.into_iter().collect() }
        }
    }

    impl Network for FakeServices {
        type Connection = DuplexStream;

        fn resolve(&self, _host: &str, _port: u16) -> Lookup {
            let lookup = self.lookup.clone().map_err(io::Error::other);
            Box::pin(async move { lookup })
        }

        async fn connect(&self, address: SocketAddr) -> io::Result<DuplexStream> {
            let service = self.services[&address];
            match service {
                Service::Fails(kind) => return Err(kind.into()),
                Service::Drops => std::future::pending().await,
                Service::Slow(after) => sleep(after).await,
                _ => {}
            }
            let (near, far) = duplex(1024);
            tokio::spawn(service.serve(far));
            Ok(near)
        }
    }

    fn target() -> ProbeTarget {
        "relay.example".parse().unwrap()
    }

    async fn probe(services: &[(&str, Service)]) -> ProbeReport {
        run(&FakeServices::new(services), &target()).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_reaction_has_an_outcome_of_its_own() {
        use io::ErrorKind as Kind;

        let now = Duration::ZERO;
        let other = |text: &[u8]| ProbeOutcome::OtherProtocol(text.to_vec());
        for (service, expected) in [
            (Service::Relay, ProbeOutcome::Relay),
            (Service::Slow(4 * SECOND), ProbeOutcome::Relay),
            (Service::Silent, ProbeOutcome::Silent),
            (Service::Closes(now), ProbeOutcome::ClosedAtOnce),
            (Service::ClosesAfter(4), ProbeOutcome::ClosedEarly),
            (Service::ClosesAfter(20), ProbeOutcome::ClosedEarly),
            // A proxy that tries to reach its backend three times, a second apart.
            (Service::Closes(3 * SECOND), ProbeOutcome::ClosedEarly),
            (Service::Speaks(now, b"SSH-2.0-OpenSSH_9.2p1\r\n"), ProbeOutcome::Ssh),
            (Service::Speaks(2 * SECOND, b"SSH-2.0-slow\r\n"), ProbeOutcome::Ssh),
            (Service::Speaks(5 * SECOND, b"SSH-2.0-very slow\r\n"), ProbeOutcome::Ssh),
            (Service::Speaks(now, b"220 mail\r\n"), other(b"220 mail\r\n")),
            (Service::Answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProbeOutcome::Http),
            (Service::Answers(b"\x15\x03\x01\0\x02\x02\x46"), ProbeOutcome::Tls),
            (Service::Answers(b"\0\x01"), other(b"\0\x01")),
            (Service::Fails(Kind::ConnectionRefused), ProbeOutcome::Refused),
            (Service::Fails(Kind::ConnectionReset), ProbeOutcome::ResetAtOnce),
            (Service::Fails(Kind::NetworkUnreachable), ProbeOutcome::NoRoute),
            (Service::Fails(Kind::HostUnreachable), ProbeOutcome::Unreachable),
            (
                Service::Fails(Kind::PermissionDenied),
                ProbeOutcome::ConnectFailed("permission denied".to_owned()),
            ),
            (Service::Drops, ProbeOutcome::TimedOut),
        ] {
            let start = Instant::now();
            let report = probe(&[("192.0.2.1", service)]).await;
            let [probed] = &report.addresses[..] else { panic!("{report:?}") };
            assert_eq!(probed.outcome, expected, "{service:?}");
            assert_eq!(report.is_reachable(), expected == ProbeOutcome::Relay);
            assert!(start.elapsed() <= 12 * SECOND, "{service:?}: {:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn address_without_a_route_on_the_way_is_a_failure() {
        let no_route = Service::Fails(io::ErrorKind::NetworkUnreachable);
        let mut report = probe(&[("192.0.2.1", Service::Relay), ("192.0.2.2", no_route)]).await;
        report.recheck_routes(|_| false);
        assert!(report.is_reachable(), "{report:?}");
        report.recheck_routes(|_| true);
        assert!(!report.is_reachable(), "{report:?}");
        assert_eq!(report.addresses[1].outcome, ProbeOutcome::Unreachable);
        assert!(has_route(([127, 0, 0, 1], 9).into()));
    }

    #[test]
    fn every_outcome_has_a_name_a_text_and_a_remedy() {
        let error = || "an error".to_owned();
        let outcomes = [
            ProbeOutcome::Relay,
            ProbeOutcome::Silent,
            ProbeOutcome::ClosedAtOnce,
            ProbeOutcome::ResetAtOnce,
            ProbeOutcome::ClosedEarly,
            ProbeOutcome::Http,
            ProbeOutcome::Tls,
            ProbeOutcome::Ssh,
            ProbeOutcome::OtherProtocol(b"\x1b[2Jhello".to_vec()),
            ProbeOutcome::Refused,
            ProbeOutcome::TimedOut,
            ProbeOutcome::NoRoute,
            ProbeOutcome::Unreachable,
            ProbeOutcome::ConnectFailed(error()),
            ProbeOutcome::NameNotFound(error()),
            ProbeOutcome::LookupTimedOut,
        ];
        let names: HashSet<_> = outcomes.iter().map(ProbeOutcome::name).collect();
        let texts: HashSet<_> = outcomes.iter().map(ToString::to_string).collect();
        assert_eq!((names.len(), texts.len()), (outcomes.len(), outcomes.len()));
        assert!(outcomes.iter().all(|outcome| !outcome.remedy().is_empty()));
        // What strangers send must not control the terminal.
        assert!(texts.iter().all(|text| !text.contains('\x1b')), "{texts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_reported_and_all_are_probed_at_the_same_time() {
        let start = Instant::now();
        let report = probe(&[
            ("192.0.2.1", Service::Relay),
            ("2001:db8::1", Service::Drops),
            ("192.0.2.2", Service::Silent),
        ])
        .await;
        assert!(start.elapsed() < 8 * SECOND, "{:?}", start.elapsed());
        assert_eq!((report.is_reachable(), report.failures()), (false, 2));
        let lines = report.lines();
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert!(lines[0].starts_with("✓ 192.0.2.1:8070: closed the connection on an unknown key"));
        assert!(lines[2].starts_with("✗ [2001:db8::1]:8070: timed out"), "{lines:?}");
        assert!(lines[3].starts_with("    a firewall drops the packets"), "{lines:?}");
        let json = report.json();
        assert_eq!((&json["host"], &json["port"]), (&"relay.example".into(), &8070.into()));
        assert_eq!(json["reachable"], false);
        assert_eq!(json["addresses"][1]["address"], "[2001:db8::1]:8070");
        assert_eq!(json["addresses"][1]["outcome"], "timed_out");
        assert_eq!(json["addresses"][1]["seconds"], 5.0);
    }

    #[tokio::test(start_paused = true)]
    async fn family_that_this_machine_lacks_does_not_make_the_relay_unreachable() {
        let no_route = Service::Fails(io::ErrorKind::NetworkUnreachable);
        let report = probe(&[("192.0.2.1", Service::Relay), ("2001:db8::1", no_route)]).await;
        assert!(report.is_reachable());
        assert!(report.lines()[2].starts_with("– [2001:db8::1]:8070: no route"), "{report:?}");
        assert!(!probe(&[("2001:db8::1", no_route)]).await.is_reachable());
        #[cfg(unix)]
        assert_eq!(
            classify_connect_error(&io::Error::from_raw_os_error(NO_FAMILY)),
            ProbeOutcome::NoRoute
        );
    }

    #[tokio::test(start_paused = true)]
    async fn name_that_does_not_resolve_is_an_outcome_too() {
        let mut services = FakeServices::new(&[]);
        let report = run(&services, &target()).await;
        assert_eq!(
            report.addresses[0].outcome,
            ProbeOutcome::NameNotFound("it has no address".to_owned())
        );
        services.lookup = Err("no such name");
        let report = run(&services, &target()).await;
        assert!(!report.is_reachable());
        assert!(report.lines()[0].starts_with("✗ relay.example: name not found: no such name"));
        assert_eq!(report.json()["addresses"][0]["outcome"], "name_not_found");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_probed_once_each_and_not_more_than_16() {
        let mut services = FakeServices::new(&[("192.0.2.1", Service::Relay)]);
        let address = "192.0.2.1:8070".parse().unwrap();
        let mapped = "[::ffff:192.0.2.1]:8070".parse().unwrap();
        services.lookup = Ok(vec![address, mapped, address]);
        assert_eq!(run(&services, &target()).await.addresses.len(), 1);
        let many: Vec<_> = (1..=20).map(|last| format!("192.0.2.{last}")).collect();
        let many: Vec<_> = many.iter().map(|ip| (ip.as_str(), Service::Relay)).collect();
        let report = probe(&many).await;
        assert_eq!((report.addresses.len(), report.left_out), (MAX_ADDRESSES, 4));
        assert!(report.lines().last().unwrap().starts_with("– 4 more addresses"));
    }
}
