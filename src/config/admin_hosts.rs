//! `AdminHosts`: the names of a proxy in front of the admin listener.

use super::parse;

/// The default port of `http` URLs.
const HTTP_PORT: u16 = 80;
/// The default port of `https` URLs.
const HTTPS_PORT: u16 = 443;

/// A list of names, each with an optional port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdminHosts(Vec<AdminHost>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct AdminHost {
    /// In lower case, without brackets and without a trailing dot.
    name: String,
    port: Option<u16>,
}

impl AdminHosts {
    /// Parses names that are separated by commas.
    ///
    /// # Errors
    /// Says what is expected instead of the first invalid item.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|item| parse_admin_host(item.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request may carry this `Host`. The port is compared only if the list names one, because the port in a
    /// `Host` says nothing about who sent the request.
    pub fn allows_host(&self, authority: &str) -> bool {
        let Some(asked) = AdminHost::split(authority) else { return false };
        self.0.iter().any(|host| {
            let is_port_allowed = match (host.port, asked.port) {
                (None, _) => true,
                (Some(port), Some(asked)) => port == asked,
                (Some(port), None) => port == HTTP_PORT || port == HTTPS_PORT,
            };
            host.name == asked.name && is_port_allowed
        })
    }

    /// Whether a page of this `Origin` may send requests. A name without a port means the default port of the scheme:
    /// other ports of the same machine may serve somebody else's pages.
    pub fn allows_origin(&self, origin: &str) -> bool {
        let (default, authority) = match origin.split_once("://") {
            Some(("https", authority)) => (HTTPS_PORT, authority),
            Some(("http", authority)) => (HTTP_PORT, authority),
            _ => return false,
        };
        AdminHost::split(authority).is_some_and(|asked| {
            let asked_port = asked.port.unwrap_or(default);
            self.0
                .iter()
                .any(|host| host.name == asked.name && host.port.unwrap_or(default) == asked_port)
        })
    }
}

impl AdminHost {
    /// Splits an authority, as in `Host` and `Origin`, into name and port.
    fn split(authority: &str) -> Option<Self> {
        let (name, port) = match authority.rsplit_once(':') {
            // The last colon of an IPv6 address is within brackets.
            Some((name, port)) if !port.ends_with(']') => {
                let has_digits_only = port.bytes().all(|b| b.is_ascii_digit());
                (name, Some(port.parse().ok().filter(|_| has_digits_only)?))
            }
            _ => (authority, None),
        };
        let has_brackets = name.starts_with('[') && name.ends_with(']');
        if name.contains(':') != has_brackets {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        Some(Self { name: name.to_ascii_lowercase(), port })
    }
}

fn parse_admin_host(text: &str) -> Result<AdminHost, String> {
    let expected = || {
        format!(
            "host names, each with a port if that is not the default one (relays.example.net, relays.example.net:8443; an \
             IPv6 address in brackets), separated by commas; {text:?} is not valid"
        )
    };
    let host = AdminHost::split(text).filter(|host| host.port != Some(0)).ok_or_else(expected)?;
    parse::host(&host.name).map_err(|_| expected())?;
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> AdminHosts {
        AdminHosts::parse(text).unwrap()
    }

    #[test]
    fn invalid_names_are_rejected() {
        assert_eq!(hosts("a.example , B.example.:8443,[2001:db8::1]:443,192.0.2.1").0.len(), 4);
        for wrong in [
            "",
            "a.example,",
            "https://a.example",
            "a.example/relay",
            "a.example:0",
            "a.example:65536",
            "a.example:",
            "*.example",
            "2001:db8::1",
            "[a.example]",
            "[2001:db8::1",
            "a b",
            "user@a.example",
        ] {
            let error = AdminHosts::parse(wrong).unwrap_err();
            assert!(error.contains("relays.example.net:8443"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn hosts_match_by_name_and_by_port_if_one_is_set() {
        let any_port = hosts("relays.example.net");
        for good in ["relays.example.net", "RELAYS.example.net:8443", "relays.example.net.:1"] {
            assert!(any_port.allows_host(good), "{good}");
        }
        for bad in [
            "",
            "example.net",
            "a.relays.example.net",
            "relays.example.net.evil.example",
            "relays.example.net:x",
            "evil.example:443@relays.example.net",
        ] {
            assert!(!any_port.allows_host(bad), "{bad}");
        }
        let one_port = hosts("a.example:8443,b.example:443,[2001:db8::1]:443");
        for good in ["a.example:8443", "b.example", "b.example:443", "[2001:DB8::1]"] {
            assert!(one_port.allows_host(good), "{good}");
        }
        for bad in ["a.example", "a.example:443", "b.example:8443", "2001:db8::1", "[2001:db8::2]"]
        {
            assert!(!one_port.allows_host(bad), "{bad}");
        }
        assert!(!AdminHosts::default().allows_host(""));
    }

    #[test]
    fn origins_match_by_name_and_port() {
        let usual = hosts("relays.example.net");
        for good in [
            "https://relays.example.net",
            "http://relays.example.net",
            "https://Relays.Example.net:443",
            "http://relays.example.net:80",
        ] {
            assert!(usual.allows_origin(good), "{good}");
        }
        for bad in [
            "null",
            "",
            "relays.example.net",
            "https://relays.example.net:8443",
            "https://relays.example.net:80",
            "https://evil.example",
            "https://relays.example.net.evil.example",
            "ftp://relays.example.net",
            "https://relays.example.net/",
        ] {
            assert!(!usual.allows_origin(bad), "{bad}");
        }
        let other = hosts("relays.example.net:8443");
        assert!(other.allows_origin("https://relays.example.net:8443"));
        assert!(!other.allows_origin("https://relays.example.net"));
    }
}
