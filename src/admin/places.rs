//! Places for connections: so many in all, and so many for one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections at once, for each listener; those beyond are closed.
const MAX_CONNECTIONS: usize = 64;
/// Of these, for one address: more than the six of a browser and the one or two of a scraper. One stranger shall not
/// keep all others from asking. This machine itself may have all places: a proxy or a tunnel there stands for many.
const MAX_PER_ADDRESS: usize = 8;
/// Bits of an IPv6 address that stand for one caller: the rest is everybody's own to choose.
const IPV6_PREFIX: u32 = 64;

/// The places of one listener; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place, taken until it is dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is free again"]
pub(super) struct Place {
    places: Places,
    caller: IpAddr,
}

impl Places {
    /// A place for a caller; `None` where there is none.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let caller = caller(address);
        let limit = if caller.is_loopback() { MAX_CONNECTIONS } else { MAX_PER_ADDRESS };
        let mut taken = self.lock();
        let own = taken.get(&caller).copied().unwrap_or(0);
        // At most one entry for each place: this is a short sum.
        if own >= limit || taken.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        taken.insert(caller, own + 1);
        Some(Place { places: self.clone(), caller })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            // What nobody holds is not remembered: the map is as small as the listener.
            if *own == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

/// Who calls from an address: one for each IPv4 address, one for each IPv6 network.
fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = address.to_bits() >> (Ipv6Addr::BITS - IPV6_PREFIX);
            Ipv6Addr::from_bits(network << (Ipv6Addr::BITS - IPV6_PREFIX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(places: &Places, address: &str, count: usize) -> Vec<Place> {
        (0..count).map_while(|_| places.take(address.parse().unwrap())).collect()
    }

    #[test]
    fn one_address_gets_a_few_places_and_gives_them_back() {
        let places = Places::default();
        let mut stranger = take(&places, "192.0.2.1", 20);
        assert_eq!(stranger.len(), 8);
        // The same in its IPv6 form.
        assert!(take(&places, "::ffff:192.0.2.1", 1).is_empty());
        let others = take(&places, "192.0.2.2", 20);
        assert_eq!(others.len(), 8);
        stranger.pop();
        assert_eq!(take(&places, "192.0.2.1", 2).len(), 1);
        drop((stranger, others));
        assert!(places.lock().is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let places = Places::default();
        let stranger: Vec<_> = (0..20)
            .map_while(|host| places.take(format!("2001:db8:0:1:{host}::1").parse().unwrap()))
            .collect();
        assert_eq!(stranger.len(), 8);
        assert_eq!(take(&places, "2001:db8:0:2::1", 20).len(), 8);
    }

    #[test]
    fn all_together_have_a_limit_and_this_machine_no_other() {
        for this in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
            let places = Places::default();
            let all = take(&places, this, 100);
            assert_eq!(all.len(), 64, "{this}");
            assert!(take(&places, "192.0.2.1", 1).is_empty());
            drop(all);
        }
        let places = Places::default();
        let many: Vec<_> =
            (0..20).flat_map(|host| take(&places, &format!("192.0.2.{host}"), 8)).collect();
        assert_eq!(many.len(), 64);
    }
}
