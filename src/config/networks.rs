//! Lists of networks in CIDR form.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Networks of both families. IPv4 networks that are written as IPv4-mapped IPv6 ones are IPv4 networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Reads networks that are separated by commas; an address alone is a network of one. Those that overlap or adjoin
    /// become one.
    ///
    /// # Errors
    /// What is expected of the first one that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        // An empty item is one that somebody meant to fill in: without it the list would be another one, or none.
        let networks =
            text.split(',').map(str::trim).map(network).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(IpNet::aggregate(&networks)))
    }

    /// Whether an address is in one of them. `address` is canonical: no IPv4-mapped one.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether all addresses in these are in `others`, too.
    pub fn is_within(&self, others: &Self) -> bool {
        // Both are aggregated: a network that is covered is covered by one.
        let covered = |network| others.0.iter().any(|other| other.contains(network));
        self.0.iter().all(covered)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, network) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let expected = || {
        format!(
            "networks in CIDR form, such as 192.0.2.0/24 or 2001:db8::/32, or addresses, with commas between; \
             {text:?} is none"
        )
    };
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| expected())?,
    };
    if network.addr() != network.network() {
        // Whether the address or the length is wrong cannot be known, and a list that lets in too many is worse than none.
        return Err(format!(
            "a network that ends where its prefix does: {text} is an address inside {}; write that, or {}/{}",
            network.trunc(),
            network.addr(),
            network.max_prefix_len()
        ));
    }
    Ok(unmapped(network))
}

/// The IPv4 network that an IPv4-mapped one means.
fn unmapped(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let inner = match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED => v6
            .addr()
            .to_ipv4_mapped()
            .and_then(|address| Ipv4Net::new(address, v6.prefix_len() - MAPPED).ok()),
        _ => None,
    };
    inner.map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(list: &str, address: &str) -> bool {
        Networks::parse(list).unwrap().contain(address.parse().unwrap())
    }

    #[test]
    fn of_both_families() {
        assert!(contains("10.0.0.0/8, 2001:db8::/32", "10.255.0.1"));
        assert!(contains("10.0.0.0/8,2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("10.0.0.0/8,2001:db8::/32", "11.0.0.0"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("2001:db8::1", "2001:db8::1") && !contains("2001:db8::1", "2001:db8::"));
    }

    #[test]
    fn mapped_networks_are_those_that_they_mean() {
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(contains("::ffff:192.0.2.7", "192.0.2.7"));
        assert!(contains("::ffff:0.0.0.0/96", "192.0.2.7"));
    }

    #[test]
    fn some_cover_others() {
        let networks = |text| Networks::parse(text).unwrap();
        let within = |inner, outer| networks(inner).is_within(&networks(outer));
        assert!(within("10.1.0.0/16,192.0.2.1", "10.0.0.0/9,10.128.0.0/9,192.0.2.0/24"));
        assert!(!within("10.1.0.0/16,192.0.3.1", "10.0.0.0/8,192.0.2.0/24"));
        assert!(!within("10.0.0.0/8", "10.0.0.0/9"));
    }

    #[test]
    fn what_is_none_is_named() {
        for bad in
            ["10.0.0.0/33", "", "10.0.0/8", "example.com", "10.0.0.0/8;10.0.0.1", "all", "1/2/3"]
        {
            let error = Networks::parse(&format!("192.0.2.1,{bad}")).unwrap_err();
            assert!(error.contains(&format!("{bad:?} is none")), "{error}");
        }
        let error = Networks::parse("10.1.2.3/8").unwrap_err();
        assert!(error.contains("10.0.0.0/8") && error.contains("10.1.2.3/32"), "{error}");
    }

    #[test]
    fn they_are_shown_as_they_are_understood() {
        let networks = Networks::parse("10.0.0.0/9, 10.128.0.0/9,::ffff:192.0.2.1").unwrap();
        assert_eq!(networks.to_string(), "10.0.0.0/8, 192.0.2.1/32");
    }
}
