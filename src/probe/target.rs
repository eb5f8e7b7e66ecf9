//! What `--probe` is asked to probe.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::config::parse::{self, HostName};

/// The default of `PeerPort`.
const DEFAULT_PORT: u16 = 8070;

/// A host name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The name or the address.
    pub host: HostName,
    /// The port.
    pub port: u16,
}

impl fmt::Display for ProbeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host.with_port(self.port))
    }
}

/// Parses `HOST`, `HOST:PORT`, `::1`, `[::1]` and `[::1]:PORT`. Without a port it is the default of `PeerPort`.
impl FromStr for ProbeTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = split_port(text).ok_or_else(|| {
            "expected HOST or HOST:PORT; an IPv6 address with a port in brackets, [2001:db8::1]:8070"
                .to_owned()
        })?;
        let expected = |what| format!("expected {what}");
        let port = port.map_or(Ok(DEFAULT_PORT), parse::port).map_err(expected)?;
        let host = parse::host(host).map_err(expected)?;
        Ok(Self { host, port })
    }
}

/// Splits the port off; `None` if brackets do not hold an IPv6 address.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        return match port {
            "" => Some((address, None)),
            port => Some((address, Some(port.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        // More than one colon: an IPv6 address without brackets, which has no port.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, port)) => Some((host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, u16)> {
        let target: ProbeTarget = text.parse().ok()?;
        Some((target.host.to_string(), target.port))
    }

    #[test]
    fn names_and_addresses_parse_with_and_without_a_port() {
        for (text, host, port) in [
            ("relay.example.com", "relay.example.com", 8070),
            ("relay.example.com:9070", "relay.example.com", 9070),
            ("192.0.2.1", "192.0.2.1", 8070),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("::1", "::1", 8070),
            ("2001:db8::1", "2001:db8::1", 8070),
            ("[::1]", "::1", 8070),
            ("[2001:db8::1]:8071", "2001:db8::1", 8071),
        ] {
            assert_eq!(parsed(text), Some((host.to_owned(), port)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_expected() {
        for text in [
            "",
            ":8070",
            "relay:",
            "relay:0",
            "relay:65536",
            "relay:http",
            "[::1",
            "[::1]8070",
            "[::1]:",
            "[192.0.2.1]:8070",
            "::1:8070:relay",
            "http://relay.example.com",
            "http://relay.example.com:8070",
            "fe80::1%eth0",
            "two words",
        ] {
            let error = text.parse::<ProbeTarget>().unwrap_err();
            assert!(error.starts_with("expected "), "{text}: {error}");
        }
    }

    #[test]
    fn default_port_is_that_of_the_settings() {
        let config = crate::config::testing::config(&[]);
        assert_eq!(config.router.peer_port, DEFAULT_PORT);
    }

    #[test]
    fn target_is_shown_with_its_port() {
        let shown = |text: &str| text.parse::<ProbeTarget>().unwrap().to_string();
        assert_eq!(shown("::1"), "[::1]:8070");
        assert_eq!(shown("relay:1"), "relay:1");
    }
}
