//! The Router: its name, its port, its key, and whether it accepts this relay. No key is offered to it.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::config::parse::{GENERATIONS, RouterProtocol};
use crate::dial;
use crate::link::dialect::{Dialect, HandshakeError};
use crate::link::v2::V2;
use crate::router::error::LinkError;
use crate::router::examine::{self, RouterExamination};

use super::deployment::Deployment;
use super::report::{
    DIALECT, DoctorStep, RELAY_SESSIONS, ROUTER_KEY, ROUTER_NAME, ROUTER_PORT, WHITE_LIST,
};

/// The longest wait for the resolver; the relay also lets a lookup finish.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);
/// A lookup that takes longer than this is reported.
const SLOW_LOOK_UP: Duration = Duration::from_secs(3);
/// The longest wait for the authentication; a working Router needs far less than a second.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(15);

/// Takes the steps in order. After the first failure, the steps that depend on it are skipped.
pub(super) async fn check(config: &Config, deployment: Deployment) -> Vec<DoctorStep> {
    let mut steps = Vec::new();
    let (host, port) = (&config.router.address, config.router.port);
    let started = Instant::now();
    let resolved = timeout(RESOLVE_TIMEOUT, lookup_host((host.as_str(), port))).await;
    let resolved = resolved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let addresses: Vec<SocketAddr> = match resolved.map(Iterator::collect) {
        Ok(addresses) => addresses,
        Err(error) => {
            let error = LinkError::Resolve { host: host.to_string(), error, last_good: Vec::new() };
            steps.push(DoctorStep::failed(ROUTER_NAME, error.to_string()));
            skip(&mut steps, &[ROUTER_PORT, DIALECT, ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
            return steps;
        }
    };
    steps.push(judge_lookup(host.as_str(), &addresses, started.elapsed(), deployment));
    let attempts = addresses.into_iter().map(async |address| {
        let connected = dial::connect(&dial::SystemNetwork, address).await;
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
        let elsewhere = find_router_on_other_port(config, &bad).await;
        let failed = LinkError::Connect(bad);
        steps.push(DoctorStep::failed(ROUTER_PORT, format!("{failed}{elsewhere}")));
        skip(&mut steps, &[DIALECT, ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
        return steps;
    };
    steps.push(judge_connections(&good, bad));
    // An address that is known to accept connections.
    let examined = examine::examine_router(config, *first, AUTHENTICATION_TIMEOUT).await;
    steps.extend(judge(config, examined, *first).await);
    steps
}

/// Judges the result of the resolver, and the time that it took.
fn judge_lookup(
    host: &str,
    addresses: &[SocketAddr],
    took: Duration,
    deployment: Deployment,
) -> DoctorStep {
    let list: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let seen = format!("{host} is {}", list.join(", "));
    if took < SLOW_LOOK_UP {
        return DoctorStep::ok(ROUTER_NAME, seen);
    }
    DoctorStep::hint(
        ROUTER_NAME,
        format!(
            "{seen}, but the lookup took {} s, and the relay repeats it whenever it reconnects. Does the first name \
             server not answer, or are many search domains tried ({})?",
            took.as_secs(),
            deployment.resolver_advice()
        ),
    )
}

/// Judges a name of which some addresses accept connections and others do not.
fn judge_connections(good: &[SocketAddr], bad: Vec<(SocketAddr, io::Error)>) -> DoctorStep {
    let list: Vec<_> = good.iter().map(ToString::to_string).collect();
    let accept = if good.len() > 1 { "accept" } else { "accepts" };
    let seen = format!("{} {accept} connections", list.join(", "));
    // The relay skips addresses of a family that this machine does not have, so there is nothing to fix.
    let (no_ipv6, bad): (Vec<_>, Vec<_>) = bad.into_iter().partition(|(address, error)| {
        address.is_ipv6() && good.iter().any(SocketAddr::is_ipv4) && is_without_ipv6(error)
    });
    if !bad.is_empty() {
        return DoctorStep::hint(ROUTER_PORT, format!("{seen}, but {}", LinkError::Connect(bad)));
    }
    if no_ipv6.is_empty() {
        return DoctorStep::ok(ROUTER_PORT, seen);
    }
    let list: Vec<_> = no_ipv6.iter().map(|(address, _)| address.to_string()).collect();
    let more = format!("{} cannot be reached, since this machine has no IPv6", list.join(", "));
    DoctorStep::ok(ROUTER_PORT, format!("{seen}; {more}, so IPv4 is used"))
}

/// Whether the error is that of a machine without IPv6: no route, no address, or no such address family.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
        || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err()
}

/// Looks for a Router on the default port of the other dialect, if the default port of one dialect refuses connections.
async fn find_router_on_other_port(config: &Config, refused: &[(SocketAddr, io::Error)]) -> String {
    let ports = GENERATIONS.map(|generation| generation.port);
    let others = ports.into_iter().filter(|port| *port != config.router.port);
    if !ports.contains(&config.router.port) {
        return String::new();
    }
    for (other, (address, error)) in others.flat_map(|port| refused.iter().map(move |r| (port, r)))
    {
        let there = SocketAddr::new(address.ip(), other);
        if error.kind() == io::ErrorKind::ConnectionRefused
            && let Some(dialect) = examine::detect_dialect(config, there).await
        {
            let protocol = match config.router.protocol {
                RouterProtocol::Auto => "",
                _ => ", and RouterProtocol to auto",
            };
            return format!(
                "; but {there} is an Aspia Router of the {dialect} dialect: set RouterPort to {other}{protocol}{KEY}"
            );
        }
    }
    String::new()
}

/// The key of a 3.x Router.
const KEY: &str = ". A Router that was migrated from 2.x keeps its key: leave RouterPublicKey as it is. One that was set up \
                   as 3.x has another key for relays, the content of relay.pub";

/// Says where the Router at `address` listens for relays, if `address` may be the port for Hosts of a 3.x Router.
async fn relay_port_hint(config: &Config, address: SocketAddr) -> String {
    let mut newer = GENERATIONS.into_iter().filter(|generation| generation.number > 2);
    let Some(generation) = newer.next().filter(|newer| newer.port != address.port()) else {
        return String::new();
    };
    let there = SocketAddr::new(address.ip(), generation.port);
    match examine::detect_dialect(config, there).await {
        Some(dialect) if dialect != V2.name() => {
            format!(
                "; {there} is an Aspia Router of the {dialect} dialect: set RouterPort to {}{KEY}",
                generation.port
            )
        }
        _ => String::new(),
    }
}

/// Adds steps that are not taken.
fn skip(steps: &mut Vec<DoctorStep>, names: &[&'static str]) {
    steps.extend(names.iter().map(|name| DoctorStep::skipped(name, "not examined, see above")));
}

async fn judge(
    config: &Config,
    examined: Result<RouterExamination, LinkError>,
    address: SocketAddr,
) -> Vec<DoctorStep> {
    match examined {
        Ok(examined) => accepted_steps(examined),
        Err(error) => rejected_steps(config, &error, address).await,
    }
}

/// The steps for a Router that has authenticated the relay, whether or not it kept the link.
fn accepted_steps(examined: RouterExamination) -> Vec<DoctorStep> {
    let RouterExamination { dialect, version, cipher, local, kept } = examined;
    let white_list = match kept {
        Ok(lived) => DoctorStep::ok(
            WHITE_LIST,
            format!("it kept the link for {} s; no key was offered", lived.as_secs()),
        ),
        Err(error @ LinkError::Denied(_)) => {
            let local = local.map_or("an unknown address".into(), |local| local.to_string());
            DoctorStep::failed(
                WHITE_LIST,
                format!(
                    "{error}. The Router sees this relay as {local}, or, if NAT lies between them, as its public address"
                ),
            )
        }
        Err(error) => DoctorStep::failed(WHITE_LIST, error.to_string()),
    };
    vec![
        DoctorStep::ok(
            DIALECT,
            format!("an Aspia Router, version {version}, {dialect} dialect, {cipher}"),
        ),
        DoctorStep::ok(ROUTER_KEY, KEY_MATCHES),
        DoctorStep::ok(RELAY_SESSIONS, "it accepts relay sessions"),
        white_list,
    ]
}

/// What a Router with the right key has shown.
const KEY_MATCHES: &str = "it holds the private key for RouterPublicKey";

/// The steps for a Router with which the handshake failed, or that is not one.
async fn rejected_steps(
    config: &Config,
    error: &LinkError,
    address: SocketAddr,
) -> Vec<DoctorStep> {
    let mut steps = Vec::new();
    match error {
        LinkError::Handshake(HandshakeError::HostPort(_)) => {
            let hint = relay_port_hint(config, address).await;
            steps.push(DoctorStep::failed(DIALECT, format!("{error}{hint}")));
            skip(&mut steps, &[ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
        }
        LinkError::Handshake(HandshakeError::KeyMismatch { dialect, .. }) => {
            let hint = if *dialect == V2.name() {
                relay_port_hint(config, address).await
            } else {
                String::new()
            };
            steps.push(DoctorStep::ok(DIALECT, format!("an Aspia Router, {dialect} dialect")));
            steps.push(DoctorStep::failed(ROUTER_KEY, format!("{error}{hint}")));
            skip(&mut steps, &[RELAY_SESSIONS, WHITE_LIST]);
        }
        LinkError::Handshake(HandshakeError::RelaysNotAllowed(_)) => {
            steps.push(DoctorStep::ok(DIALECT, "an Aspia Router"));
            steps.push(DoctorStep::ok(ROUTER_KEY, KEY_MATCHES));
            steps.push(DoctorStep::failed(RELAY_SESSIONS, error.to_string()));
            skip(&mut steps, &[WHITE_LIST]);
        }
        _ => {
            let hint = other_dialect_hint(config, error, address).await;
            steps.push(DoctorStep::failed(DIALECT, format!("{error}{hint}")));
            skip(&mut steps, &[ROUTER_KEY, RELAY_SESSIONS, WHITE_LIST]);
        }
    }
    steps
}

/// Says whether another dialect works, if a fixed dialect is configured and does not work.
async fn other_dialect_hint(config: &Config, error: &LinkError, address: SocketAddr) -> String {
    let is_other_dialect_possible = matches!(
        error,
        LinkError::AuthenticationTimeout(_) | LinkError::ClosedEarly(_) | LinkError::NotARouter(_)
    );
    if !is_other_dialect_possible || config.router.protocol == RouterProtocol::Auto {
        return String::new();
    }
    let other = examine::detect_dialect(config, address).await;
    other.map_or(String::new(), |dialect| {
        format!(
            "; {address} is an Aspia Router of the {dialect} dialect: set RouterProtocol to auto"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::deployment::tests::assert_fits_pod;
    use crate::doctor::report::StepOutcome;

    #[test]
    fn slow_lookup_gives_a_hint() {
        let address: SocketAddr = "192.0.2.1:8060".parse().unwrap();
        let fast = judge_lookup(
            "router.example",
            &[address],
            Duration::from_millis(2999),
            Deployment::Machine,
        );
        assert_eq!(fast.outcome, StepOutcome::Ok, "{fast}");
        let took = Duration::from_secs(23);
        let in_pod = judge_lookup("router.example", &[address], took, Deployment::Pod).seen;
        assert!(in_pod.contains("dnsConfig"), "{in_pod}");
        assert_fits_pod(&in_pod);
        let slow = judge_lookup("router.example", &[address], took, Deployment::Machine);
        assert_eq!(slow.outcome, StepOutcome::Hint, "{slow}");
        for part in ["router.example is 192.0.2.1", "took 23 s", "ndots"] {
            assert!(slow.seen.contains(part), "{part}: {slow}");
        }
    }

    #[test]
    fn missing_ipv6_passes_if_ipv4_works() {
        let v4: SocketAddr = "192.0.2.1:8060".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:8060".parse().unwrap();
        let unreachable =
            |address| vec![(address, io::Error::from(io::ErrorKind::NetworkUnreachable))];
        let fine = judge_connections(&[v4], unreachable(v6));
        assert_eq!(fine.outcome, StepOutcome::Ok);
        assert!(fine.seen.contains("no IPv6") && fine.seen.contains("[2001:db8::1]"), "{fine}");
        // Missing IPv4, or another error, deserves a hint.
        let no_ipv4 = judge_connections(&[v6], unreachable(v4));
        assert_eq!(no_ipv4.outcome, StepOutcome::Hint);
        assert!(
            no_ipv4.seen.contains("network unreachable; this machine has no route"),
            "{no_ipv4}"
        );
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        if !is_without_ipv6(&refused) {
            assert_eq!(judge_connections(&[v4], vec![(v6, refused)]).outcome, StepOutcome::Hint);
        }
    }
}
