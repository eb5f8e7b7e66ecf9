//! Parsers from the text of a setting to its value. An error says what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::crypto::{KEY_LEN, PrivateKey, PublicKey};
use crate::secret::Secret;
use crate::tls::PemSource;

/// The longest duration that is accepted: a year. Longer durations are typing errors, and would overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest computer name that a 3.0 Router accepts, in bytes.
const MAX_COMPUTER_NAME: usize = 64;

/// A host name or an IP address, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The name as it was written; an IPv6 address has no brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a loopback address or `localhost`.
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

/// Rejects an IPv6 address with a scope (`fe80::1%eth0`). A Router and peers could not use such an address, and a
/// listener without the scope would listen on another interface.
fn reject_scope(text: &str) -> Result<(), String> {
    match text.split_once('%') {
        Some((address, _)) if address.contains(':') => Err(
            "an address without a scope (the part after %): link-local addresses are not supported; use another \
             address of the machine"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// Parses a host name, an IPv4 or an IPv6 address.
///
/// # Errors
/// Says what is expected.
pub fn host(text: &str) -> Result<HostName, String> {
    reject_scope(text)?;
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
    let is_valid_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits only would belong to an IPv4 address, which this is not.
    let ends_in_number =
        name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() <= 253 && name.split('.').all(is_valid_label) && !ends_in_number {
        Ok(HostName(text.to_owned()))
    } else {
        Err("a host name (an international one in its xn-- form), an IPv4 or an IPv6 address"
            .into())
    }
}

/// Parses the address that peers dial: a [`host`], but not the unspecified address.
///
/// # Errors
/// Says what is expected.
pub fn peer_address(text: &str) -> Result<HostName, String> {
    let name = host(text)?;
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {
            Err("an address that peers can dial, not the one that means all interfaces".into())
        }
        _ => Ok(name),
    }
}

/// An address, or all addresses, and a port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address; `None` means all addresses, IPv4 and IPv6.
    pub interface: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl ListenAddress {
    /// Whether only this machine can connect to it.
    pub fn is_loopback(self) -> bool {
        self.interface.is_some_and(|address| address.to_canonical().is_loopback())
    }

    /// The address at which this machine can reach the listener.
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

/// Parses `host:port`, where an empty host means all addresses of both families; `off` is `None`.
///
/// # Errors
/// Says what is expected.
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
    let port = self::port(port).map_err(|_| expected())?;
    let interface = match host {
        "" => None,
        _ if host.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
        _ => {
            reject_scope(text)?;
            // The standard library parses brackets.
            normalise_listen_address(text.parse::<SocketAddr>().map_err(|_| expected())?.ip())
        }
    };
    Ok(Some(ListenAddress { interface, port }))
}

/// A bearer token; cheap to clone.
#[derive(Debug, Clone)]
pub struct Token(Arc<Secret<String>>);

impl Token {
    /// Whether `other` is this token. The comparison takes constant time, so that its duration does not reveal where the
    /// two differ.
    pub fn matches(&self, other: &str) -> bool {
        *self == Self::new(other)
    }

    /// The text, for a client that must present it.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The token that both sides must prove to know.
    pub fn secret(&self) -> &Secret<String> {
        &self.0
    }

    fn new(text: &str) -> Self {
        Self(Arc::new(Secret::new(text.to_owned())))
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_same_as(&other.0)
    }
}

impl Eq for Token {}

/// Parses a token that is valid in an `Authorization` header.
///
/// # Errors
/// Says what is expected.
pub fn token(text: &str) -> Result<Token, String> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Token::new(text))
    } else {
        Err("ASCII letters, digits and symbols without spaces".into())
    }
}

/// Parses the address of an interface; `None` means all addresses of both families.
///
/// # Errors
/// Says what is expected.
pub fn interface(text: &str) -> Result<Option<IpAddr>, String> {
    reject_scope(text)?;
    let address = text.parse().map_err(|_| {
        "an IP address of this machine (IPv6 without brackets), or \"\" for all interfaces"
            .to_owned()
    })?;
    Ok(normalise_listen_address(address))
}

/// Normalises an address to listen on. An IPv4-mapped address becomes IPv4. `::` becomes `None`, which means all
/// addresses of both families, as in the original and in most programs; `0.0.0.0` means all IPv4 addresses.
fn normalise_listen_address(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    (address != IpAddr::V6(Ipv6Addr::UNSPECIFIED)).then_some(address)
}

/// Parses a number from `min` to `max`.
pub fn number<T>(min: T, max: T) -> impl Fn(&str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    move |text| {
        let has_digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if has_digits_only && number >= min && number <= max => Ok(number),
            _ => Err(format!("a whole number from {min} to {max}")),
        }
    }
}

/// Parses a port from 1 to 65535.
///
/// # Errors
/// Says what is expected.
pub fn port(text: &str) -> Result<u16, String> {
    number(1, u16::MAX)(text)
}

/// Parses a number of minutes from `min` to `max`, without a unit.
pub fn minutes(min: u64, max: u64) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| number(min, max)(text).map(|minutes| Duration::from_secs(60 * minutes))
}

/// Parses a number of seconds from `min` to `max`, without a unit.
pub fn seconds(min: u64, max: u64) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| number(min, max)(text).map(Duration::from_secs)
}

/// Parses a value that may be empty, which means `None`.
pub fn optional<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// Parses a value that may be empty, which means the default of its type.
pub fn or_default<T: Default>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<T, String> {
    move |text| if text.is_empty() { Ok(T::default()) } else { parse(text) }
}

/// Parses the number of a limit; 0 means no limit.
///
/// # Errors
/// Says what is expected.
pub fn number_limit(text: &str) -> Result<Option<NonZero<u32>>, String> {
    number(0, 1_000_000)(text).map(NonZero::new)
}

/// Parses PEM, or the path of a file with PEM; `None` if it is blank. Reads no file.
///
/// # Errors
/// Never; it has the signature of the other parsers.
pub fn pem(text: &str) -> Result<Option<PemSource>, String> {
    let text = text.trim();
    Ok((!text.is_empty()).then(|| PemSource::new(text)))
}

/// Parses `true` or `false`.
///
/// # Errors
/// Says what is expected.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// Parses `true` or `false`, or `1` or `0` as in files of the original.
///
/// # Errors
/// Says what is expected.
pub fn original_boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => boolean(text).map_err(|expected| format!("{expected}, 1 or 0")),
    }
}

/// Parses a duration with a unit.
///
/// # Errors
/// Says what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    // `humantime` knows more units, among them `M` for months, which is most likely a typing error for `m`. It also
    // accepts a zero without a unit.
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

/// Parses a [`duration`] as a limit; zero means no limit.
///
/// # Errors
/// Says what is expected.
pub fn duration_limit(text: &str) -> Result<Option<Duration>, String> {
    duration(text).map(|limit| (!limit.is_zero()).then_some(limit))
}

/// Bytes per second, both directions of a session together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub NonZero<u64>);

/// The lowest bandwidth that is accepted, in bytes per second. A lower one is most likely a typing error: not even one
/// image of the desktop would arrive in time.
const MIN_BANDWIDTH: u64 = 8 * 1024;
/// The highest bandwidth that is accepted, in bytes per second: faster than any network, and low enough that
/// calculations do not overflow.
const MAX_BANDWIDTH: u64 = 1 << 40;

/// Parses a size with a unit per second.
///
/// # Errors
/// Says what is expected.
pub fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    let expected = || {
        "a size with a unit per second, such as 500KiB/s or 4MiB/s, from 8KiB/s to 1TiB/s"
            .to_owned()
    };
    let size = text.strip_suffix("/s").ok_or_else(expected)?.trim_end();
    // `bytesize` takes a number without a unit as bytes, and does not know bits.
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

/// Parses the Router's public key: 64 hex digits, the content of `router.pub`, or of `relay.pub` if the Router was set
/// up as 3.x.
///
/// # Errors
/// Says what is expected.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    let mut key = [0; KEY_LEN];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| {
        format!(
            "64 hex digits, the content of the Router's router.pub, or relay.pub if it was set up as 3.x (this text has {} characters)",
            text.trim().chars().count()
        )
    })?;
    let key = PublicKey(key);
    let unusable = |_| {
        "the content of the Router's router.pub, or relay.pub if it was set up as 3.x; this is not a public key".to_owned()
    };
    PrivateKey::generate().and_then(|private| private.agree(&key)).map_err(unusable)?;
    Ok(key)
}

/// A generation of Routers: its number in `RouterProtocol`, and the default port on which such Routers listen for
/// relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The number, as in `RouterProtocol`.
    pub number: u8,
    /// The default port for relays.
    pub port: u16,
}

/// All generations of Routers.
pub const GENERATIONS: [Generation; 2] =
    [Generation { number: 2, port: 8060 }, Generation { number: 3, port: 8063 }];

/// The dialect to speak to the Router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterProtocol {
    /// The dialect that the Router turns out to speak.
    Auto,
    /// The dialect of this generation.
    Only(Generation),
}

/// Parses the number of a generation, or `auto`.
///
/// # Errors
/// Says what is expected.
pub fn protocol(text: &str) -> Result<RouterProtocol, String> {
    let known = GENERATIONS.into_iter().find(|known| known.number.to_string() == text);
    match known {
        Some(generation) => Ok(RouterProtocol::Only(generation)),
        None if text == "auto" => Ok(RouterProtocol::Auto),
        None => {
            let numbers = GENERATIONS.map(|known| known.number.to_string()).join(" or ");
            Err(format!("auto, {numbers}"))
        }
    }
}

/// Accepts any text.
///
/// # Errors
/// Never; it has the signature of the other parsers.
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Whether a character is a letter or a digit of any script, by its category. `char::is_alphanumeric` also accepts
/// marks, fractions and circled letters, which a 3.0 Router might refuse.
fn is_letter_or_digit(letter: char) -> bool {
    letter.general_category_group() == GeneralCategoryGroup::Letter
        || letter.general_category() == GeneralCategory::DecimalNumber
}

/// Turns a name into one that a Router accepts: letters and digits of any script, `. - _ + ( )` and spaces, at most 64
/// bytes, never empty.
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
    fn listen_addresses_are_parsed() {
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
    fn interface_addresses_are_parsed() {
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
    fn addresses_with_a_scope_are_rejected() {
        let scoped = ["fe80::1%eth0", "fe80::1%2", "::1%lo", "[fe80::1%eth0]"];
        for address in scoped {
            let errors = [
                host(address).unwrap_err(),
                peer_address(address).unwrap_err(),
                interface(address).unwrap_err(),
                listen_address(&format!("[{}]:9", address.trim_matches(['[', ']']))).unwrap_err(),
            ];
            for error in errors {
                assert!(error.contains("without a scope"), "{address}: {error}");
            }
        }
    }

    #[test]
    fn tokens_are_compared_and_redacted() {
        let token = token("abc").unwrap();
        assert!(token.matches("abc") && !token.matches("abd") && !token.matches(""));
        assert_eq!(format!("{token:?}"), "Token([redacted])");
        assert!(super::token("a b").is_err());
    }

    #[test]
    fn host_names_are_parsed() {
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
    fn numbers_are_parsed() {
        assert_eq!(port("8070"), Ok(8070));
        assert_eq!(port("65535"), Ok(65535));
        for bad in ["", "0", "65536", "-1", "+1", " 1", "1.0", "1e3", "x", "99999999999999999999"] {
            assert_eq!(port(bad), Err("a whole number from 1 to 65535".into()), "{bad}");
        }
    }

    #[test]
    fn booleans_and_durations_are_parsed() {
        assert_eq!((boolean("true"), boolean("False")), (Ok(true), Ok(false)));
        for bad in ["", "1", "yes", "tru"] {
            boolean(bad).unwrap_err();
        }
        assert_eq!((original_boolean("1"), original_boolean("0")), (Ok(true), Ok(false)));
        for bad in ["", "2", "01", "yes"] {
            assert_eq!(original_boolean(bad), Err("true or false, 1 or 0".into()));
        }
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "0", "5", "-1s", "1y", "5M", "1month", "9999999999h", "s", "366d"] {
            duration(bad).expect_err(bad);
        }
    }

    #[test]
    fn bandwidths_are_parsed() {
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
    fn public_keys_are_parsed() {
        let good = include_str!("../../tests/vectors/router.pub");
        assert_eq!(public_key(good), public_key(&format!(" {}\r\n", good.to_lowercase())));
        public_key(good).unwrap();
        for bad in [&good[1..], &good.replace('0', "g"), &"00".repeat(32), "", &good.repeat(2)] {
            public_key(bad).expect_err(bad);
        }
    }

    #[test]
    fn characters_that_a_router_refuses_are_replaced_in_computer_names() {
        assert_eq!(computer_name("relay-1.example (a+b)_"), "relay-1.example (a+b)_");
        assert_eq!(computer_name("узел 7"), "узел 7");
        assert_eq!(computer_name("a/b\u{7}c"), "a_b_c");
        // Digits of other scripts are accepted; fractions, circled letters and marks are not.
        assert_eq!(computer_name("٣½Ⓐ\u{93e}"), "٣___");
        assert_eq!(computer_name("  \t "), "aspia-relay");
        assert_eq!(computer_name(&"й".repeat(60)), "й".repeat(32));
    }
}
