//! The order in which the addresses of a name are dialled.

use std::net::SocketAddr;

/// Returns the address with another port.
pub(super) fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Returns the order in which addresses are dialled: the one that last worked, then the others in the resolver's order with
/// alternating families, and the doubtful ones at the end, the one that was tried the longest ago first.
pub(super) fn sort_for_dialling(
    addresses: Vec<SocketAddr>,
    port: u16,
    first: Option<SocketAddr>,
    doubtful: &[SocketAddr],
) -> Vec<SocketAddr> {
    let mut ordered = Vec::with_capacity(addresses.len());
    for address in addresses {
        let address = with_port(address, port);
        if !ordered.contains(&address) {
            ordered.push(address);
        }
    }
    // The sort is stable: the others keep their order.
    ordered.sort_by_key(|address| Some(*address) != first);
    let mut ordered = interleave_families(ordered);
    ordered.sort_by_key(|address| doubtful.iter().position(|doubtful| doubtful == address));
    ordered
}

/// Alternates the address families, starting with that of the first address (RFC 8305, section 4).
fn interleave_families(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut all = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        all.extend(one.next());
        all.extend(other.next());
    }
    all
}
