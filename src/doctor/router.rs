//! From the Router's name to what it thinks of this relay. No key is offered.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::config::parse::{GENERATIONS, Protocol};
use crate::dial;
use crate::link::dialect::{Dialect, HandshakeError};
use crate::link::second::SECOND;
use crate::router::error::LinkError;
use crate::router::examine::{self, Examined};

use super::report::{
    DIALECT, RELAY_SESSIONS, ROUTER_KEY, ROUTER_NAME, ROUTER_PORT, Step, WHITE_LIST,
};
use super::site::Site;

/// Time for the resolver: the relay lets a look-up finish, too.
const RESOLVE: Duration = Duration::from_secs(60);
/// A look-up that takes longer than this is worth a word.
const SLOW: Duration = Duration::from_secs(3);
/// Time for the authentication: a Router that works needs far less than a second.
const AUTHENTICATE: Duration = Duration::from_secs(15);

/// Takes the steps, as far as they lead.
pub(super) async fn check(config: &Config, site: Site) -> Vec<Step> {
    let mut steps = Vec::new();
    let (host, port) = (&config.router.address, config.router.port);
    let asked = Instant::now();
    let resolved = timeout(RESOLVE, lookup_host((host.as_str(), port))).await;
    let resolved = resolved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let addresses: Vec<SocketAddr> = match resolved.map(Iterator::collect) {
        Ok(addresses) => addresses,
        Err(error) => {
            let error = LinkError::Resolve { host: host.to_string(), error, last_good: Vec::new() };
            steps.push(Step::failed(ROUTER_NAME, error.to_string()));
            rest(&mut steps, &[ROUTER_PORT, DIALECT, ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
            return steps;
        }
    };
    steps.push(name(host.as_str(), &addresses, asked.elapsed(), site));
    let attempts = addresses.into_iter().map(async |address| {
        let connected = dial::connect(&dial::System, address).await;
        (address, connected.map(drop))
    });
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (address, connected) in join_all(attempts).await {
        match connected {
            Ok(()) => good.push(address),
            Err(error) => bad.push((address, error)),
        }
    }
    let Some(first) = good.first() else {
        let elsewhere = on_the_other_port(config, &bad).await;
        let failed = LinkError::Connect(bad);
        steps.push(Step::failed(ROUTER_PORT, format!("{failed}{elsewhere}")));
        rest(&mut steps, &[DIALECT, ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
        return steps;
    };
    steps.push(connections(&good, bad));
    // To where it is known that somebody answers.
    let examined = examine::examine(config, *first, AUTHENTICATE).await;
    steps.extend(judge(config, examined, *first).await);
    steps
}

/// What the resolver says, and how long that took.
fn name(host: &str, addresses: &[SocketAddr], took: Duration, site: Site) -> Step {
    let list: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let seen = format!("{host} is {}", list.join(", "));
    if took < SLOW {
        return Step::ok(ROUTER_NAME, seen);
    }
    Step::hint(
        ROUTER_NAME,
        format!(
            "{seen}, but the look-up took {} s, and the relay needs it whenever it connects anew. Does the first name server \
             not answer, or are many search domains tried ({})?",
            took.as_secs(),
            site.resolver()
        ),
    )
}

/// What it means that some addresses take connections, and some may not.
fn connections(good: &[SocketAddr], bad: Vec<(SocketAddr, io::Error)>) -> Step {
    let list: Vec<_> = good.iter().map(ToString::to_string).collect();
    let takes = if good.len() > 1 { "take" } else { "takes" };
    let seen = format!("{} {takes} connections", list.join(", "));
    // The relay passes over an address of a family that this machine does not have: nothing to mend.
    let (no_ipv6, bad): (Vec<_>, Vec<_>) = bad.into_iter().partition(|(address, error)| {
        address.is_ipv6() && good.iter().any(SocketAddr::is_ipv4) && is_without_ipv6(error)
    });
    if !bad.is_empty() {
        return Step::hint(ROUTER_PORT, format!("{seen}, but {}", LinkError::Connect(bad)));
    }
    if no_ipv6.is_empty() {
        return Step::ok(ROUTER_PORT, seen);
    }
    let list: Vec<_> = no_ipv6.iter().map(|(address, _)| address.to_string()).collect();
    let more = format!("{} cannot be reached, since this machine has no IPv6", list.join(", "));
    Step::ok(ROUTER_PORT, format!("{seen}; {more}: IPv4 does"))
}

/// Whether a connection over IPv6 fails so on a machine without IPv6: without a route, an address or the family.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
        || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err()
}

/// Whether a Router listens on the usual port of the other dialect, where the usual port of one is refused.
async fn on_the_other_port(config: &Config, refused: &[(SocketAddr, io::Error)]) -> String {
    let ports = GENERATIONS.map(|generation| generation.port);
    let others = ports.into_iter().filter(|port| *port != config.router.port);
    if !ports.contains(&config.router.port) {
        return String::new();
    }
    for (other, (address, error)) in others.flat_map(|port| refused.iter().map(move |r| (port, r)))
    {
        let there = SocketAddr::new(address.ip(), other);
        if error.kind() == io::ErrorKind::ConnectionRefused
            && let Some(dialect) = examine::dialect_at(config, there).await
        {
            let protocol = match config.router.protocol {
                Protocol::Auto => "",
                _ => ", and RouterProtocol to auto",
            };
            return format!(
                "; but {there} is an Aspia Router of the {dialect} dialect: set RouterPort to {other}{protocol}{KEY}"
            );
        }
    }
    String::new()
}

/// Which key a 3.x Router has.
const KEY: &str = ". A Router that was migrated from 2.x keeps its key: RouterPublicKey stays. One that was set up as 3.x \
                   has another one for relays, the content of relay.pub";

/// Where the Router at `address` listens for relays, if what answers there may be a 3.x on its port for Hosts.
async fn behind_host_port(config: &Config, address: SocketAddr) -> String {
    let mut newer = GENERATIONS.into_iter().filter(|generation| generation.number > 2);
    let Some(generation) = newer.next().filter(|newer| newer.port != address.port()) else {
        return String::new();
    };
    let there = SocketAddr::new(address.ip(), generation.port);
    match examine::dialect_at(config, there).await {
        Some(dialect) if dialect != SECOND.name() => {
            format!(
                "; {there} is an Aspia Router of the {dialect} dialect: set RouterPort to {}{KEY}",
                generation.port
            )
        }
        _ => String::new(),
    }
}

/// Steps that were not taken.
fn rest(steps: &mut Vec<Step>, names: &[&'static str]) {
    steps.extend(names.iter().map(|name| Step::skipped(name, "not looked at: see above")));
}

async fn judge(
    config: &Config,
    examined: Result<Examined, LinkError>,
    address: SocketAddr,
) -> Vec<Step> {
    let mut steps = Vec::new();
    match examined {
        Ok(Examined { dialect, version, cipher, local, kept }) => {
            steps.push(Step::ok(
                DIALECT,
                format!("an Aspia Router, version {version}, {dialect} dialect, {cipher}"),
            ));
            steps.push(Step::ok(ROUTER_KEY, "it holds the private key for RouterPublicKey"));
            steps.push(Step::ok(RELAY_SESSIONS, "it takes relay sessions"));
            steps.push(match kept {
                Ok(lived) => Step::ok(
                    WHITE_LIST,
                    format!("it kept the link for {} s; no key was offered", lived.as_secs()),
                ),
                Err(error @ LinkError::Denied(_)) => {
                    let local = local.map_or("an address that is not known".into(), |local| local.to_string());
                    Step::failed(
                        WHITE_LIST,
                        format!(
                            "{error}. The Router sees this relay as {local}, or, where addresses are translated on the \
                             way (NAT), as the public address of what translates them"
                        ),
                    )
                }
                Err(error) => Step::failed(WHITE_LIST, error.to_string()),
            });
        }
        Err(error) => {
            let text = error.to_string();
            match error {
                LinkError::Handshake(HandshakeError::HostPort(_)) => {
                    let there = behind_host_port(config, address).await;
                    steps.push(Step::failed(DIALECT, format!("{text}{there}")));
                    rest(&mut steps, &[ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
                }
                LinkError::Handshake(HandshakeError::KeyMismatch { dialect, .. }) => {
                    let there = if dialect == SECOND.name() {
                        behind_host_port(config, address).await
                    } else {
                        String::new()
                    };
                    steps.push(Step::ok(DIALECT, format!("an Aspia Router, {dialect} dialect")));
                    steps.push(Step::failed(ROUTER_KEY, format!("{text}{there}")));
                    rest(&mut steps, &[RELAY_SESSIONS, WHITE_LIST]);
                }
                LinkError::Handshake(HandshakeError::RelaysNotAllowed(_)) => {
                    steps.push(Step::ok(DIALECT, "an Aspia Router"));
                    steps
                        .push(Step::ok(ROUTER_KEY, "it holds the private key for RouterPublicKey"));
                    steps.push(Step::failed(RELAY_SESSIONS, text));
                    rest(&mut steps, &[WHITE_LIST]);
                }
                LinkError::AuthenticationTimeout(_)
                | LinkError::ClosedEarly(_)
                | LinkError::NotARouter(_)
                    if config.router.protocol != Protocol::Auto =>
                {
                    let other = examine::dialect_at(config, address).await;
                    let remedy = other.map_or(String::new(), |dialect| {
                        format!(
                            "; {address} is an Aspia Router of the {dialect} dialect: set RouterProtocol to auto"
                        )
                    });
                    steps.push(Step::failed(DIALECT, format!("{text}{remedy}")));
                    rest(&mut steps, &[ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
                }
                _ => {
                    steps.push(Step::failed(DIALECT, text));
                    rest(&mut steps, &[ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
                }
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Outcome;
    use crate::doctor::site::tests::is_for_a_pod;

    #[test]
    fn a_slow_look_up_is_worth_a_word() {
        let address: SocketAddr = "192.0.2.1:8060".parse().unwrap();
        let fast = name("router.example", &[address], Duration::from_millis(2999), Site::Machine);
        assert_eq!(fast.outcome, Outcome::Ok, "{fast}");
        let took = Duration::from_secs(23);
        let in_pod = name("router.example", &[address], took, Site::Pod).seen;
        assert!(in_pod.contains("dnsConfig"), "{in_pod}");
        is_for_a_pod(&in_pod);
        let slow = name("router.example", &[address], took, Site::Machine);
        assert_eq!(slow.outcome, Outcome::Hint, "{slow}");
        for part in ["router.example is 192.0.2.1", "took 23 s", "ndots"] {
            assert!(slow.seen.contains(part), "{part}: {slow}");
        }
    }

    #[test]
    fn a_machine_without_ipv6_needs_no_hint_where_ipv4_works() {
        let v4: SocketAddr = "192.0.2.1:8060".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:8060".parse().unwrap();
        let unreachable =
            |address| vec![(address, io::Error::from(io::ErrorKind::NetworkUnreachable))];
        let fine = connections(&[v4], unreachable(v6));
        assert_eq!(fine.outcome, Outcome::Ok);
        assert!(fine.seen.contains("no IPv6") && fine.seen.contains("[2001:db8::1]"), "{fine}");
        // The other way round, or for another reason, it is worth a look.
        let no_ipv4 = connections(&[v6], unreachable(v4));
        assert_eq!(no_ipv4.outcome, Outcome::Hint);
        assert!(
            no_ipv4.seen.contains("network unreachable; this machine has no route"),
            "{no_ipv4}"
        );
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        if !is_without_ipv6(&refused) {
            assert_eq!(connections(&[v4], vec![(v6, refused)]).outcome, Outcome::Hint);
        }
    }
}
