//! Who may ask: hosts, origins, tokens.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};

use crate::config::admin_hosts::AdminHosts;
use crate::config::parse::Token;

/// What a browser says of where a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What a browser asks for: to go to an address, or what a page asks.
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The names of this relay.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    /// Its own; on any port.
    pub(super) own: &'a [String],
    /// Those of a proxy in front of it.
    pub(super) of_proxies: &'a AdminHosts,
}

/// Checks that a request was meant for this relay and not sent by a page of somebody else's: browsers can be made
/// to ask any address by any page (`Origin`), also under a name of the attacker's (`Host`). Any IP address is good, since
/// no name of anybody's stands in between.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_site(headers: &HeaderMap, names: Names<'_>) -> Result<(), String> {
    check_host(headers, names)?;
    check_origin(headers, names.of_proxies)
}

/// Checks that a request was meant for this relay.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_host(headers: &HeaderMap, names: Names<'_>) -> Result<(), String> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
    if hosts.next().is_some() || !(is_ours(host, names.own) || names.of_proxies.allow_host(host)) {
        return Err(format!(
            "the Host header {host:?} is no name of this relay; use an IP address, localhost, the machine's name \
             or PeerAddress. If it is the name of a proxy in front, put it into AdminHosts"
        ));
    }
    Ok(())
}

/// Whether a browser goes to an address, as by a link or a redirect, also by one of another site. No page reads the answer
/// to that; scripts cannot ask so.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate")
}

/// Checks that no page of another site sent a request. A page that a proxy shows under another name than the one by
/// which it asks is none of another site if that name is among `of_proxies`.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_origin(headers: &HeaderMap, of_proxies: &AdminHosts) -> Result<(), String> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let is_same = authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host));
        if origins.next().is_some() || !(is_same || of_proxies.allow_origin(origin)) {
            return Err(format!(
                "requests from pages of other sites are refused (Origin {origin:?}). If that is a proxy in front of this \
                 relay, put its name into AdminHosts"
            ));
        }
    }
    match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err("requests from pages of other sites are refused (Sec-Fetch-Site)".into()),
    }
}

fn is_ours(host: &str, names: &[String]) -> bool {
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

/// Whether a request shows the token, where one is needed.
pub(super) fn is_authorized(headers: &HeaderMap, token: Option<&Token>) -> bool {
    let Some(token) = token else {
        return true;
    };
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    shown.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, shown)| {
        scheme.eq_ignore_ascii_case("bearer") && token.is(shown.trim())
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
        let of_proxies = if proxies.is_empty() {
            AdminHosts::default()
        } else {
            AdminHosts::parse(proxies).unwrap()
        };
        let own = ["relay.example.com".into()];
        check_site(&headers(lines), Names { own: &own, of_proxies: &of_proxies })
    }

    fn site(lines: &[(&'static str, &str)]) -> Result<(), String> {
        site_behind(lines, "")
    }

    #[test]
    fn hosts() {
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
        let of_proxies = AdminHosts::default();
        assert!(check_site(&twice, Names { own: &[], of_proxies: &of_proxies }).is_err());
    }

    #[test]
    fn a_proxy_keeps_the_host_or_writes_its_own() {
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
        // Whoever else asks is refused as before.
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
        let of_proxies = AdminHosts::parse("relays.example.net").unwrap();
        assert!(check_site(&twice, Names { own: &[], of_proxies: &of_proxies }).is_err());
    }

    #[test]
    fn origins() {
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
    fn tokens() {
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
