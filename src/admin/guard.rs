//! Access control of requests: `Host`, `Origin` and token.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};

use crate::config::admin_hosts::AdminHosts;
use crate::config::parse::Token;

/// The header in which a browser says whether a request comes from a page of the same site.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The header in which a browser says whether it navigates or a page makes the request.
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The names under which browsers may reach this relay.
#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptedHosts<'a> {
    /// Names of this machine, on any port.
    pub(super) own: &'a [String],
    /// Names of proxies in front of it.
    pub(super) proxies: &'a AdminHosts,
}

/// Checks that a request was meant for this relay and was not sent by a page of another site. Any page can make a
/// browser send requests to any address (`Origin`), also under a name that the attacker controls (`Host`). IP addresses
/// are always accepted, since no name that an attacker could control is involved.
///
/// # Errors
/// Why the request is refused, for the caller.
pub(super) fn check_site(headers: &HeaderMap, names: AcceptedHosts<'_>) -> Result<(), String> {
    check_host(headers, names)?;
    check_origin(headers, names.proxies)
}

/// Checks that a request was meant for this relay.
///
/// # Errors
/// Why the request is refused, for the caller.
pub(super) fn check_host(headers: &HeaderMap, names: AcceptedHosts<'_>) -> Result<(), String> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    if hosts.next().is_some() || !(is_own_name(host, names.own) || names.proxies.allows_host(host))
    {
        return Err(format!(
            "the Host header {host:?} is not a name of this relay; use an IP address, localhost, the machine's name \
             or PeerAddress. If it is the name of a proxy in front, add it to AdminHosts"
        ));
    }
    Ok(())
}

/// Whether a browser navigates, for example by a link or redirect, including one of another site. No page can read the
/// response to a navigation, and scripts cannot make such a request.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate")
}

/// Checks that a request was not sent by a page of another site. Pages under the names of `proxies` do not count as
/// another site, although the `Host` that a proxy forwards may be a different one.
///
/// # Errors
/// Why the request is refused, for the caller.
pub(super) fn check_origin(headers: &HeaderMap, proxies: &AdminHosts) -> Result<(), String> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let is_same = authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host));
        if origins.next().is_some() || !(is_same || proxies.allows_origin(origin)) {
            return Err(format!(
                "requests from pages of other sites are refused (Origin {origin:?}). If that is a proxy in front of this \
                 relay, add its name to AdminHosts"
            ));
        }
    }
    match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err("requests from pages of other sites are refused (Sec-Fetch-Site)".into()),
    }
}

fn is_own_name(host: &str, names: &[String]) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = without_port.strip_suffix('.').unwrap_or(without_port);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|ours| !ours.is_empty() && ours.eq_ignore_ascii_case(name))
}

/// Whether a request carries the token, if one is required.
pub(super) fn is_authorized(headers: &HeaderMap, token: Option<&Token>) -> bool {
    let Some(token) = token else {
        return true;
    };
    let presented = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    presented.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, presented)| {
        scheme.eq_ignore_ascii_case("bearer") && token.matches(presented.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn site_behind(lines: &[(&'static str, &str)], proxies: &str) -> Result<(), String> {
        let admin_hosts = if proxies.is_empty() {
            AdminHosts::default()
        } else {
            AdminHosts::parse(proxies).unwrap()
        };
        let own = ["relay.example.com".into()];
        check_site(&headers(lines), AcceptedHosts { own: &own, proxies: &admin_hosts })
    }

    fn site(lines: &[(&'static str, &str)]) -> Result<(), String> {
        site_behind(lines, "")
    }

    #[test]
    fn only_names_of_this_relay_and_ip_addresses_are_accepted_as_host() {
        for good in [
            "127.0.0.1:8071",
            "[::1]:8071",
            "[2001:db8::1]",
            "192.0.2.1",
            "localhost:1",
            "LOCALHOST",
            "Relay.Example.com:8071",
            "relay.example.com.",
        ] {
            assert_eq!(site(&[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:8071",
            "127.0.0.1.evil.example",
            "::x",
            "a@127.0.0.1",
        ] {
            assert!(site(&[("host", bad)]).is_err(), "{bad}");
        }
        assert!(site(&[]).is_err());
        let mut twice = headers(&[("host", "127.0.0.1")]);
        twice.append(HOST, "127.0.0.1".parse().unwrap());
        let proxies = AdminHosts::default();
        assert!(check_site(&twice, AcceptedHosts { own: &[], proxies: &proxies }).is_err());
    }

    #[test]
    fn pages_behind_a_configured_proxy_are_accepted_with_either_host() {
        let page = ("origin", "https://relays.example.net");
        let fetched = ("sec-fetch-site", "same-origin");
        for host in ["relays.example.net", "127.0.0.1:8071", "relay.example.com"] {
            let request = [("host", host), page, fetched];
            assert_eq!(site_behind(&request, "relays.example.net"), Ok(()), "{host}");
            assert!(site(&request).is_err(), "{host}");
            assert!(site_behind(&request, "other.example.net").is_err(), "{host}");
        }
        let refused =
            |lines: &[(&'static str, &str)]| site_behind(lines, "relays.example.net").is_err();
        // All others are refused as before.
        assert!(refused(&[("host", "evil.example"), page]));
        for host in ["relays.example.net", "127.0.0.1:8071"] {
            for origin in [
                "https://evil.example",
                "https://relays.example.net:8443",
                "null",
                "https://localhost",
            ] {
                assert!(refused(&[("host", host), ("origin", origin)]), "{host} {origin}");
            }
            for site in ["cross-site", "same-site"] {
                assert!(
                    refused(&[("host", host), page, ("sec-fetch-site", site)]),
                    "{host} {site}"
                );
            }
        }
        let mut twice = headers(&[("host", "127.0.0.1"), page]);
        twice.append(ORIGIN, "https://evil.example".parse().unwrap());
        let proxies = AdminHosts::parse("relays.example.net").unwrap();
        assert!(check_site(&twice, AcceptedHosts { own: &[], proxies: &proxies }).is_err());
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let from = |origin| site(&[("host", "127.0.0.1:8071"), ("origin", origin)]);
        assert_eq!(from("http://127.0.0.1:8071"), Ok(()));
        // A proxy may add TLS in front.
        assert_eq!(from("https://127.0.0.1:8071"), Ok(()));
        for foreign in
            ["null", "http://evil.example", "http://127.0.0.1:80", "http://localhost:8071", ""]
        {
            assert!(from(foreign).is_err(), "{foreign}");
        }
        let fetched = |how| site(&[("host", "127.0.0.1"), ("sec-fetch-site", how)]);
        assert_eq!(fetched("same-origin"), Ok(()));
        assert_eq!(fetched("none"), Ok(()));
        assert!(fetched("cross-site").is_err() && fetched("same-site").is_err());
    }

    #[test]
    fn only_the_exact_bearer_token_is_authorized() {
        let token = parse::token("s3cret").unwrap();
        let shows =
            |value: &str| is_authorized(&headers(&[("authorization", value)]), Some(&token));
        assert!(shows("Bearer s3cret") && shows("bearer s3cret"));
        for wrong in ["Bearer s3cre", "Bearer", "s3cret", "Basic s3cret", "Bearer s3cret2", ""] {
            assert!(!shows(wrong), "{wrong}");
        }
        assert!(!is_authorized(&HeaderMap::new(), Some(&token)));
        assert!(is_authorized(&HeaderMap::new(), None));
    }
}
