//! Lists of networks in CIDR form.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// A list of networks of both families. IPv4 networks that are written as IPv4-mapped IPv6 ones are IPv4 networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Parses networks that are separated by commas; an address alone is a network of one. Networks that overlap or
    /// adjoin are merged.
    ///
    /// # Errors
    /// Says what is expected instead of the first invalid item.
    pub fn parse(text: &str) -> Result<Self, String> {
        // An empty item is one that somebody meant to fill in: without it, the list would mean something else.
        let networks =
            text.split(',').map(str::trim).map(parse_network).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(IpNet::aggregate(&networks)))
    }

    /// Whether one of the networks contains `address`, which must be canonical: not IPv4-mapped.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether every address in these networks is also in `others`.
    pub fn is_within(&self, others: &Self) -> bool {
        // Both lists are aggregated, so a covered network is covered by a single other network.
        let covered = |network| others.0.iter().any(|other| other.contains(network));
        self.0.iter().all(covered)
    }

    /// Returns a network that contains every address of its family, if there is one.
    pub fn universal(&self) -> Option<&impl fmt::Display> {
        self.0.iter().find(|network| network.prefix_len() == 0)
    }

    /// Whether the list is empty.
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

fn parse_network(text: &str) -> Result<IpNet, String> {
    let expected = || {
        format!(
            "networks in CIDR form, such as 192.0.2.0/24 or 2001:db8::/32, or addresses, separated by commas; \
             {text:?} is neither"
        )
    };
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| expected())?,
    };
    if network.addr() != network.network() {
        // Either the address or the length is wrong; a list that admits too many is worse than none.
        return Err(format!(
            "a network without host bits: {text} is an address inside {}; write that, or {}/{}",
            network.trunc(),
            network.addr(),
            network.max_prefix_len()
        ));
    }
    Ok(unmap(network))
}

/// Converts an IPv4-mapped network to the IPv4 network that it stands for.
fn unmap(network: IpNet) -> IpNet {
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
        Networks::parse(list).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn networks_of_both_families_contain_their_addresses() {
        assert!(contains("10.0.0.0/8, 2001:db8::/32", "10.255.0.1"));
        assert!(contains("10.0.0.0/8,2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("10.0.0.0/8,2001:db8::/32", "11.0.0.0"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("2001:db8::1", "2001:db8::1") && !contains("2001:db8::1", "2001:db8::"));
    }

    #[test]
    fn ipv4_mapped_networks_are_ipv4_networks() {
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(contains("::ffff:192.0.2.7", "192.0.2.7"));
        assert!(contains("::ffff:0.0.0.0/96", "192.0.2.7"));
    }

    #[test]
    fn a_list_is_within_a_list_that_covers_it() {
        let networks = |text| Networks::parse(text).unwrap();
        let within = |inner, outer| networks(inner).is_within(&networks(outer));
        assert!(within("10.1.0.0/16,192.0.2.1", "10.0.0.0/9,10.128.0.0/9,192.0.2.0/24"));
        assert!(!within("10.1.0.0/16,192.0.3.1", "10.0.0.0/8,192.0.2.0/24"));
        assert!(!within("10.0.0.0/8", "10.0.0.0/9"));
    }

    #[test]
    fn errors_quote_the_invalid_item() {
        for bad in
            ["10.0.0.0/33", "", "10.0.0/8", "example.com", "10.0.0.0/8;10.0.0.1", "all", "1/2/3"]
        {
            let error = Networks::parse(&format!("192.0.2.1,{bad}")).unwrap_err();
            assert!(error.contains(&format!("{bad:?} is neither")), "{error}");
        }
        let error = Networks::parse("10.1.2.3/8").unwrap_err();
        assert!(error.contains("10.0.0.0/8") && error.contains("10.1.2.3/32"), "{error}");
    }

    #[test]
    fn networks_are_displayed_merged() {
        let networks = Networks::parse("10.0.0.0/9, 10.128.0.0/9,::ffff:192.0.2.1").unwrap();
        assert_eq!(networks.to_string(), "10.0.0.0/8, 192.0.2.1/32");
    }
}
