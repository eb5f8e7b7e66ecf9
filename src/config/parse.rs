//! From the text of a setting to its value. An error says what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::crypto::{KEY_LEN, PrivateKey, PublicKey};
use crate::secret::Secret;

/// Longest duration taken, in seconds: a year. Longer ones are typing errors, and would overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest name of a computer that a 3.0 Router accepts, in bytes.
const MAX_COMPUTER_NAME: usize = 64;

/// A host name or an IP address, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The name as it was written; an IPv6 address stands bare.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it means this machine and no other.
    pub fn is_loopback(&self) -> bool {
        match self.0.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.0.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The name with a port, an IPv6 address in brackets.
    pub fn with_port(&self, port: u16) -> String {
        if self.0.contains(':') {
            format!("[{}]:{port}", self.0)
        } else {
            format!("{}:{port}", self.0)
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Refuses an IPv6 address with a scope (`fe80::1%eth0`). A Router and peers could do nothing with it, and a listener
/// that lost it would listen on another interface.
fn refuse_scope(text: &str) -> Result<(), String> {
    match text.split_once('%') {
        Some((address, _)) if address.contains(':') => Err(
            "an address without a scope (what stands behind %): link-local addresses are not for relays; use another \
             address of the machine"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// A host name, an IPv4 or an IPv6 address.
///
/// # Errors
/// What is expected.
pub fn host(text: &str) -> Result<HostName, String> {
    refuse_scope(text)?;
    if text.parse::<IpAddr>().is_ok() {
        return Ok(HostName(text.to_owned()));
    }
    if text.starts_with('[') {
        return Err("an IPv6 address without brackets".into());
    }
    if let Some((_, port)) = text.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(
            "a host name or address without a port; the port is a setting of its own".into()
        );
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits alone would be an IPv4 address, and that it is not.
    let ends_in_number =
        name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() <= 253 && name.split('.').all(label_is_good) && !ends_in_number {
        Ok(HostName(text.to_owned()))
    } else {
        Err("a host name (an international one in its xn-- form), an IPv4 or an IPv6 address"
            .into())
    }
}

/// What peers dial: a [`host`], but not the address that means "all".
///
/// # Errors
/// What is expected.
pub fn peer_address(text: &str) -> Result<HostName, String> {
    let name = host(text)?;
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {
            Err("an address that peers can dial, not the one that means all interfaces".into())
        }
        _ => Ok(name),
    }
}

/// Where to listen: an address, or all, and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address; `None` is all, IPv4 and IPv6.
    pub interface: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl ListenAddress {
    /// Whether only this machine can connect to it.
    pub fn is_loopback(self) -> bool {
        self.interface.is_some_and(|address| address.to_canonical().is_loopback())
    }

    /// The address that this machine reaches it by.
    pub fn local(self) -> SocketAddr {
        let address = match self.interface {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(IpAddr::V4(any)) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            Some(address) => address,
        };
        SocketAddr::new(address, self.port)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interface {
            None => write!(f, ":{}", self.port),
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
        }
    }
}

/// `host:port`, where an empty host means all addresses of both families; `off` is `None`.
///
/// # Errors
/// What is expected.
pub fn listen_address(text: &str) -> Result<Option<ListenAddress>, String> {
    let expected = || {
        "address:port with an IP address of this machine (IPv6 in brackets), localhost or nothing \
         before the colon and a port from 1 to 65535, or off"
            .to_owned()
    };
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = number(1, u16::MAX)(port).map_err(|_| expected())?;
    let interface = match host {
        "" => None,
        _ if host.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
        _ => {
            refuse_scope(text)?;
            // The standard library knows brackets.
            one_or_all(text.parse::<SocketAddr>().map_err(|_| expected())?.ip())
        }
    };
    Ok(Some(ListenAddress { interface, port }))
}

/// A bearer token; cheap to clone.
#[derive(Debug, Clone)]
pub struct Token(Arc<Secret<String>>);

impl Token {
    /// Whether somebody who shows `other` has this token; in a time that does not tell where they differ.
    pub fn is(&self, other: &str) -> bool {
        *self == Self::new(other)
    }

    /// The text, for the one who has to show it.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    fn new(text: &str) -> Self {
        Self(Arc::new(Secret::new(text.to_owned())))
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_as(&other.0)
    }
}

impl Eq for Token {}

/// A token as it may stand in an `Authorization` header.
///
/// # Errors
/// What is expected.
pub fn token(text: &str) -> Result<Token, String> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Token::new(text))
    } else {
        Err("ASCII letters, digits and signs without blanks".into())
    }
}

/// The address of an interface; `None` is all of both families.
///
/// # Errors
/// What is expected.
pub fn interface(text: &str) -> Result<Option<IpAddr>, String> {
    refuse_scope(text)?;
    let address = text.parse().map_err(|_| {
        "an IP address of this machine (IPv6 without brackets), or \"\" for all interfaces"
            .to_owned()
    })?;
    Ok(one_or_all(address))
}

/// The address to listen on, an IPv4 one not in the form of IPv6. `::` is `None`, all of both families, as for the original
/// and for most programs; `0.0.0.0` is all of IPv4.
fn one_or_all(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    (address != IpAddr::V6(Ipv6Addr::UNSPECIFIED)).then_some(address)
}

/// A number from `min` to `max`.
pub fn number<T>(min: T, max: T) -> impl Fn(&str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    move |text| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && number >= min && number <= max => Ok(number),
            _ => Err(format!("a whole number from {min} to {max}")),
        }
    }
}

/// `true` or `false`.
///
/// # Errors
/// What is expected.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// `true` or `false`, or `1` or `0` as in files of the original.
///
/// # Errors
/// What is expected.
pub fn old_boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => boolean(text).map_err(|expected| format!("{expected}, 1 or 0")),
    }
}

/// A duration with a unit.
///
/// # Errors
/// What is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    // More units are known to the parser, `M` for months among them: a typing error for `m`. And it takes a
    // bare zero.
    let mut units = text
        .split(|c: char| !c.is_alphabetic())
        .filter(|unit| !unit.is_empty())
        .map(|unit| ["ms", "s", "m", "min", "h", "d", "day", "days"].contains(&unit))
        .peekable();
    let has_units = units.peek().is_some() && units.all(|known| known);
    match humantime::parse_duration(text) {
        Ok(duration) if has_units && duration <= MAX_DURATION => Ok(duration),
        _ => Err("a duration with a unit (ms, s, m, h, d), such as 30s, 5m or 1h30m, at most 365d"
            .into()),
    }
}

/// Bytes in a second, both directions of a session together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub NonZero<u64>);

/// Least bandwidth taken, in bytes a second: with less, not even an image of the desktop would arrive in time, and most
/// likely it is a typing error.
const MIN_BANDWIDTH: u64 = 8 * 1024;
/// Greatest, in bytes a second: more than there are networks for, and nothing that is calculated with it overflows.
const MAX_BANDWIDTH: u64 = 1 << 40;

/// A size with a unit, a second.
///
/// # Errors
/// What is expected.
pub fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    let expected = || {
        "a size with a unit a second, such as 500KiB/s or 4MiB/s, from 8KiB/s to 1TiB/s".to_owned()
    };
    let size = text.strip_suffix("/s").ok_or_else(expected)?.trim_end();
    // A number alone would be bytes; bits are not meant by anybody, and the parser does not know them.
    if !size.ends_with('B') || size.starts_with(['+', '-']) {
        return Err(expected());
    }
    let bytes = size.parse::<ByteSize>().map_err(|_| expected())?.as_u64();
    match NonZero::new(bytes) {
        Some(bytes) if (MIN_BANDWIDTH..=MAX_BANDWIDTH).contains(&bytes.get()) => {
            Ok(Bandwidth(bytes))
        }
        _ => Err(expected()),
    }
}

/// The Router's public key: 64 hex digits, the content of `router.pub`, or of `relay.pub` where the Router was set up as 3.x.
///
/// # Errors
/// What is expected.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    let mut key = [0; KEY_LEN];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| {
        format!(
            "64 hex digits, the content of the Router's router.pub, or relay.pub where it was set up as 3.x (these are {} characters)",
            text.trim().chars().count()
        )
    })?;
    let key = PublicKey(key);
    let unusable = |_| {
        "the content of the Router's router.pub, or relay.pub where it was set up as 3.x; this is no public key".to_owned()
    };
    PrivateKey::generate().and_then(|private| private.agree(&key)).map_err(unusable)?;
    Ok(key)
}

/// A generation of Routers, as settings know it: its number in `RouterProtocol`, and where such Routers listen for relays
/// unless they were told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub number: u8,
    /// Its usual port.
    pub port: u16,
}

/// All generations that there are settings for.
pub const GENERATIONS: [Generation; 2] =
    [Generation { number: 2, port: 8060 }, Generation { number: 3, port: 8063 }];

/// Which dialect to speak to the Router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The one that it turns out to speak.
    Auto,
    /// That of this generation.
    Only(Generation),
}

/// A dialect by the number of its generation, or `auto`.
///
/// # Errors
/// What is expected.
pub fn protocol(text: &str) -> Result<Protocol, String> {
    let known = GENERATIONS.into_iter().find(|known| known.number.to_string() == text);
    match known {
        Some(generation) => Ok(Protocol::Only(generation)),
        None if text == "auto" => Ok(Protocol::Auto),
        None => {
            let numbers = GENERATIONS.map(|known| known.number.to_string()).join(" or ");
            Err(format!("auto, {numbers}"))
        }
    }
}

/// Any text.
///
/// # Errors
/// None.
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A letter or a digit of any script by its category. `char::is_alphanumeric` also takes marks, fractions and letters in
/// circles, which a 3.0 Router might refuse.
fn is_letter_or_digit(letter: char) -> bool {
    letter.general_category_group() == GeneralCategoryGroup::Letter
        || letter.general_category() == GeneralCategory::DecimalNumber
}

/// A name as a Router accepts it: letters and digits of any script, `. - _ + ( )` and blanks, at most 64 bytes,
/// never empty.
pub fn computer_name(text: &str) -> String {
    let mut name = String::new();
    for letter in text.trim().chars() {
        let letter = match letter {
            _ if is_letter_or_digit(letter) || ".-_+() ".contains(letter) => letter,
            _ => '_',
        };
        if name.len() + letter.len_utf8() > MAX_COMPUTER_NAME {
            break;
        }
        name.push(letter);
    }
    match name.trim() {
        "" => "aspia-relay".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        let listen = |text| listen_address(text).unwrap().unwrap();
        assert_eq!(listen_address("off"), Ok(None));
        assert_eq!(listen(":9").interface, None);
        assert!(!listen(":9").is_loopback() && !listen("0.0.0.0:9").is_loopback());
        for loopback in ["127.0.0.1:9", "localhost:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert!(listen(loopback).is_loopback(), "{loopback}");
        }
        assert_eq!(listen("[::]:9"), listen(":9"));
        assert_eq!(listen("[::ffff:0.0.0.0]:9"), listen("0.0.0.0:9"));
        assert_eq!(listen("0.0.0.0:9").local().to_string(), "127.0.0.1:9");
        assert_eq!(listen(":9").to_string(), ":9");
        for bad in ["9", "::1:9", "example.com:9", "127.0.0.1:0", "127.0.0.1:", "on"] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn interfaces() {
        let all_of_ipv4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert_eq!(interface("::"), Ok(None));
        assert_eq!(interface("0.0.0.0"), Ok(Some(all_of_ipv4)));
        assert_eq!(interface("::ffff:0.0.0.0"), Ok(Some(all_of_ipv4)));
        assert_eq!(interface("::1"), Ok(Some(Ipv6Addr::LOCALHOST.into())));
        for bad in ["eth0", "[::]", "*", "192.0.2.1:80"] {
            interface(bad).unwrap_err();
        }
    }

    #[test]
    fn scopes_are_refused_and_never_dropped() {
        let scoped = ["fe80::1%eth0", "fe80::1%2", "::1%lo", "[fe80::1%eth0]"];
        for address in scoped {
            let refusals = [
                host(address).unwrap_err(),
                peer_address(address).unwrap_err(),
                interface(address).unwrap_err(),
                listen_address(&format!("[{}]:9", address.trim_matches(['[', ']']))).unwrap_err(),
            ];
            for refusal in refusals {
                assert!(refusal.contains("without a scope"), "{address}: {refusal}");
            }
        }
    }

    #[test]
    fn tokens_show_nothing() {
        let token = token("abc").unwrap();
        assert!(token.is("abc") && !token.is("abd") && !token.is(""));
        assert_eq!(format!("{token:?}"), "Token([redacted])");
        assert!(super::token("a b").is_err());
    }

    #[test]
    fn hosts() {
        for good in [
            "router.example.com",
            "r",
            "a.b.",
            "my_host",
            "192.0.2.1",
            "2001:db8::1",
            "::1",
            "xn--bcher-kva.de",
        ] {
            assert_eq!(host(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "1.2.3",
            "256.1.1.1",
            "10.0.0.1:8060",
            "[::1]",
            "[::1]:80",
            "a b",
            "http://x",
            "bücher.de",
            &"a".repeat(64),
        ] {
            host(bad).expect_err(bad);
        }
        assert!(host("10.0.0.1:8060").unwrap_err().contains("port"));
        assert!(host("[::1]").unwrap_err().contains("brackets"));
        assert_eq!(host("::1").unwrap().with_port(5), "[::1]:5");
        assert_eq!(host("a.example").unwrap().with_port(5), "a.example:5");
        for all in ["0.0.0.0", "::"] {
            peer_address(all).expect_err(all);
        }
    }

    #[test]
    fn numbers() {
        let port = number(1u16, u16::MAX);
        assert_eq!(port("8070"), Ok(8070));
        assert_eq!(port("65535"), Ok(65535));
        for bad in ["", "0", "65536", "-1", "+1", " 1", "1.0", "1e3", "x", "99999999999999999999"] {
            assert_eq!(port(bad), Err("a whole number from 1 to 65535".into()), "{bad}");
        }
    }

    #[test]
    fn booleans_and_durations() {
        assert_eq!((boolean("true"), boolean("False")), (Ok(true), Ok(false)));
        for bad in ["", "1", "yes", "tru"] {
            boolean(bad).unwrap_err();
        }
        assert_eq!((old_boolean("1"), old_boolean("0")), (Ok(true), Ok(false)));
        for bad in ["", "2", "01", "yes"] {
            assert_eq!(old_boolean(bad), Err("true or false, 1 or 0".into()));
        }
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "0", "5", "-1s", "1y", "5M", "1month", "9999999999h", "s", "366d"] {
            duration(bad).expect_err(bad);
        }
    }

    #[test]
    fn bandwidths() {
        let bytes = |text| bandwidth(text).map(|bandwidth| bandwidth.0.get());
        assert_eq!(bytes("4MiB/s"), Ok(4 << 20));
        assert_eq!(bytes("4 MiB/s"), Ok(4 << 20));
        assert_eq!(bytes("500kB/s"), Ok(500_000));
        assert_eq!(bytes("1.5MiB/s"), Ok(3 << 19));
        assert_eq!(bytes("65536B/s"), Ok(65536));
        for bad in [
            "",
            "/s",
            "4MiB",
            "4/s",
            "4M/s",
            "-4MiB/s",
            "0B/s",
            "1B/s",
            "2TiB/s",
            "4Mbit/s",
            "MiB/s",
            "4MiB/m",
            "1e9B/s",
            "99999999999999999999EiB/s",
        ] {
            bandwidth(bad).expect_err(bad);
        }
    }

    #[test]
    fn public_keys() {
        let good = include_str!("../../tests/vectors/router.pub");
        assert_eq!(public_key(good), public_key(&format!(" {}\r\n", good.to_lowercase())));
        public_key(good).unwrap();
        for bad in [&good[1..], &good.replace('0', "g"), &"00".repeat(32), "", &good.repeat(2)] {
            public_key(bad).expect_err(bad);
        }
    }

    #[test]
    fn names_are_cleaned() {
        assert_eq!(computer_name("relay-1.example (a+b)_"), "relay-1.example (a+b)_");
        assert_eq!(computer_name("узел 7"), "узел 7");
        assert_eq!(computer_name("a/b\u{7}c"), "a_b_c");
        // Digits of another script are; fractions, letters in circles and marks are not.
        assert_eq!(computer_name("٣½Ⓐ\u{93e}"), "٣___");
        assert_eq!(computer_name("  \t "), "aspia-relay");
        assert_eq!(computer_name(&"й".repeat(60)), "й".repeat(32));
    }
}
