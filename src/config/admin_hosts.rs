//! `AdminHosts`: the names by which a proxy in front of the admin interface is known.

use super::parse;

/// The port of a URL that says none, by its scheme.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Names with an optional port each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdminHosts(Vec<AdminHost>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct AdminHost {
    /// In lower case, without brackets and without a dot at its end.
    name: String,
    port: Option<u16>,
}

impl AdminHosts {
    /// Reads names that are separated by commas.
    ///
    /// # Errors
    /// What is expected of the first one that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(|item| admin_host(item.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request may carry this `Host`. The port matters only where one is set: it does not tell who sent the
    /// request.
    pub fn allow_host(&self, authority: &str) -> bool {
        let Some(asked) = AdminHost::split(authority) else { return false };
        self.0.iter().any(|host| {
            let port_is_good = match (host.port, asked.port) {
                (None, _) => true,
                (Some(port), Some(asked)) => port == asked,
                (Some(port), None) => port == HTTP_PORT || port == HTTPS_PORT,
            };
            host.name == asked.name && port_is_good
        })
    }

    /// Whether a page of this `Origin` may ask. A name without a port stands for the scheme's own port: on another port of
    /// the same machine there may be pages of somebody else's.
    pub fn allow_origin(&self, origin: &str) -> bool {
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
    /// The name and the port of an authority as it stands in `Host` and `Origin`.
    fn split(authority: &str) -> Option<Self> {
        let (name, port) = match authority.rsplit_once(':') {
            // The last colon of an IPv6 address stands within brackets.
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

fn admin_host(text: &str) -> Result<AdminHost, String> {
    let expected = || {
        format!(
            "host names, each with a port where that is not the usual one (relays.example.net, relays.example.net:8443; an \
             IPv6 address in brackets), with commas between; {text:?} is none"
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
    fn a_list_is_read_and_what_is_no_name_is_refused() {
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
    fn a_host_is_allowed_by_its_name_and_by_a_port_that_is_set() {
        let any_port = hosts("relays.example.net");
        for good in ["relays.example.net", "RELAYS.example.net:8443", "relays.example.net.:1"] {
            assert!(any_port.allow_host(good), "{good}");
        }
        for bad in [
            "",
            "example.net",
            "a.relays.example.net",
            "relays.example.net.evil.example",
            "relays.example.net:x",
            "evil.example:443@relays.example.net",
        ] {
            assert!(!any_port.allow_host(bad), "{bad}");
        }
        let one_port = hosts("a.example:8443,b.example:443,[2001:db8::1]:443");
        for good in ["a.example:8443", "b.example", "b.example:443", "[2001:DB8::1]"] {
            assert!(one_port.allow_host(good), "{good}");
        }
        for bad in ["a.example", "a.example:443", "b.example:8443", "2001:db8::1", "[2001:db8::2]"]
        {
            assert!(!one_port.allow_host(bad), "{bad}");
        }
        assert!(!AdminHosts::default().allow_host(""));
    }

    #[test]
    fn an_origin_is_allowed_by_its_name_and_its_port() {
        let usual = hosts("relays.example.net");
        for good in [
            "https://relays.example.net",
            "http://relays.example.net",
            "https://Relays.Example.net:443",
            "http://relays.example.net:80",
        ] {
            assert!(usual.allow_origin(good), "{good}");
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
            assert!(!usual.allow_origin(bad), "{bad}");
        }
        let other = hosts("relays.example.net:8443");
        assert!(other.allow_origin("https://relays.example.net:8443"));
        assert!(!other.allow_origin("https://relays.example.net"));
    }
}
