//! Reads the PROXY header, version 1 or 2, with which a trusted proxy begins each connection
//! (docs/operations.md, "Behind a proxy or a load balancer").

use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::net::TcpStream;

/// The maximum number of bytes of a header of version 1, as the specification says.
const MAX_V1: usize = 107;
/// The maximum number of bytes of a header of version 2 that is accepted. The fields behind the addresses are skipped; those
/// that proxies send (an id, a host name, facts about TLS) need some hundreds.
pub const MAX_V2: usize = 2048;
/// The number of bytes that each header has at least, of either version.
const MIN: usize = 15;
/// The number of bytes of version 2 that tell how many follow.
const FIXED_V2: usize = 16;
const SIGNATURE_V1: &[u8] = b"PROXY ";
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command that says that the proxy connects on its own behalf.
const LOCAL_V2: u8 = 0x20;

/// Why a PROXY header is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The connection begins with something else.
    #[error(
        "no PROXY header: its address is in ProxyProtocolFrom, from where each connection must begin with one. Have the \
         proxy send it (HAProxy send-proxy-v2, nginx proxy_protocol on), or remove the address from ProxyProtocolFrom"
    )]
    Missing,
    /// The header cannot be read.
    #[error("its PROXY header is broken: {0}")]
    Malformed(&'static str),
    /// The header is too long.
    #[error(
        "its PROXY header has {length} bytes or more; at most {maximum} are accepted: have the proxy send fewer fields"
    )]
    Oversized {
        /// The number of bytes that it has at least.
        length: usize,
        /// The number of bytes that are accepted.
        maximum: usize,
    },
    /// The header was not complete in time.
    #[error("its PROXY header was not complete in time")]
    Timeout,
    /// The connection was closed before the first byte.
    #[error("closed before its PROXY header")]
    Closed,
    /// The connection failed.
    #[error("the connection failed before its PROXY header was complete: {0}")]
    Io(io::Error),
}

/// On whose behalf a proxy connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxySource {
    /// On behalf of a peer with this address; IPv4-mapped addresses are converted.
    Peer(SocketAddr),
    /// On its own, such as to check whether the relay listens, or for somebody whose address it does not know.
    Proxy,
}

/// Reads one header and not a byte more, since the first message follows.
#[derive(Debug)]
pub struct ProxyHeaderReader {
    bytes: Vec<u8>,
    /// How many of these bytes have been read.
    filled: usize,
}

impl Default for ProxyHeaderReader {
    fn default() -> Self {
        Self { bytes: vec![0; MIN], filled: 0 }
    }
}

impl ProxyHeaderReader {
    /// Reads what is available. Pending if the header is not complete yet; call it again when there is more.
    ///
    /// # Errors
    /// All of [`ProxyHeaderError`] but the timeout.
    pub fn read(
        &mut self,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Poll<Result<ProxySource, ProxyHeaderError>> {
        loop {
            match source(&mut self.bytes[self.filled..]) {
                Ok(0) if self.filled == 0 => return Poll::Ready(Err(ProxyHeaderError::Closed)),
                Ok(0) => {
                    let ended = ProxyHeaderError::Malformed("it ends early");
                    return Poll::Ready(Err(ended));
                }
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(ProxyHeaderError::Io(error))),
            }
            match next_length(self.received()) {
                Ok(Some(length)) => self.bytes.resize(length, 0),
                Ok(None) => return Poll::Ready(parse(self.received())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Continues with what another reader received of a header that was not complete.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn resume(&mut self, mut received: &[u8]) -> Poll<Result<ProxySource, ProxyHeaderError>> {
        self.read(|bytes| match io::Read::read(&mut received, bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        })
    }

    /// Returns all bytes that were read, in the order in which they arrived.
    pub fn received(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Reads until the header is complete.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub async fn read_from(&mut self, stream: &TcpStream) -> Result<ProxySource, ProxyHeaderError> {
        loop {
            stream.readable().await.map_err(ProxyHeaderError::Io)?;
            if let Poll::Ready(source) = self.read(|bytes| stream.try_read(bytes)) {
                return source;
            }
        }
    }
}

/// Returns up to which length bytes are read next, all of which belong to the header that begins with `head`. Returns `None`
/// if `head` is a whole header.
fn next_length(head: &[u8]) -> Result<Option<usize>, ProxyHeaderError> {
    let begins =
        |signature: &[u8]| head.iter().zip(signature).all(|(byte, expected)| byte == expected);
    let is_v1 = begins(SIGNATURE_V1);
    if !is_v1 && !begins(SIGNATURE_V2) {
        return Err(ProxyHeaderError::Missing);
    }
    if head.len() < MIN {
        return Ok(Some(MIN));
    }
    if is_v1 {
        // The end of the line is found only by reading it, so byte by byte.
        return match head.len() {
            _ if head.contains(&b'\n') => Ok(None),
            length if length >= MAX_V1 => {
                Err(ProxyHeaderError::Oversized { length, maximum: MAX_V1 })
            }
            length => Ok(Some(length + 1)),
        };
    }
    let &[high, low] = head.get(FIXED_V2 - 2..FIXED_V2).unwrap_or_default() else {
        return Ok(Some(FIXED_V2));
    };
    let length = FIXED_V2 + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2 {
        return Err(ProxyHeaderError::Oversized { length, maximum: MAX_V2 });
    }
    Ok((head.len() < length).then_some(length))
}

/// Parses a whole header.
fn parse(header: &[u8]) -> Result<ProxySource, ProxyHeaderError> {
    if header.starts_with(SIGNATURE_V2) && header.get(SIGNATURE_V2.len()) == Some(&LOCAL_V2) {
        // Everything else in it is to be ignored, also addresses of a family that does not exist.
        return Ok(ProxySource::Proxy);
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => match parsed.proxied_address() {
            None => Ok(ProxySource::Proxy),
            Some(address) if address.protocol == Protocol::Stream => {
                let source = address.source;
                Ok(ProxySource::Peer((source.ip().to_canonical(), source.port()).into()))
            }
            Some(_) => Err(ProxyHeaderError::Malformed("it names UDP, and peers use TCP")),
        },
        _ => Err(ProxyHeaderError::Malformed(
            "expected PROXY TCP4, TCP6 or UNKNOWN of version 1, or version 2 with complete addresses",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE_V2, &[command, family], &length, rest].concat()
    }

    fn v4_rest() -> Vec<u8> {
        [&[203, 0, 113, 9, 192, 0, 2, 5][..], &51234_u16.to_be_bytes(), &8070_u16.to_be_bytes()]
            .concat()
    }

    fn v6_rest(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &7_u16.to_be_bytes(), &8_u16.to_be_bytes()].concat()
    }

    /// Reads a header from bytes after which the connection is closed; also returns what is left of them.
    fn read(mut wire: &[u8]) -> (Result<ProxySource, ProxyHeaderError>, &[u8]) {
        match ProxyHeaderReader::default().read(|bytes| wire.read(bytes)) {
            Poll::Ready(source) => (source, wire),
            Poll::Pending => panic!("nothing blocks"),
        }
    }

    fn peer(address: &str) -> ProxySource {
        ProxySource::Peer(address.parse().unwrap())
    }

    fn valid() -> Vec<(Vec<u8>, ProxySource)> {
        let with_fields = [v4_rest(), vec![4, 0, 200], vec![0; 200]].concat();
        vec![
            (
                b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n".to_vec(),
                peer("203.0.113.9:51234"),
            ),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), peer("1.2.3.4:1")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 8\r\n".to_vec(), peer("[2001:db8::1]:7")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 7 8\r\n".to_vec(), peer("192.0.2.1:7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), ProxySource::Proxy),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), ProxySource::Proxy),
            (v2(0x21, 0x11, &v4_rest()), peer("203.0.113.9:51234")),
            (v2(0x21, 0x11, &with_fields), peer("203.0.113.9:51234")),
            (v2(0x21, 0x21, &v6_rest("2001:db8::1")), peer("[2001:db8::1]:7")),
            (v2(0x21, 0x21, &v6_rest("::ffff:192.0.2.1")), peer("192.0.2.1:7")),
            (v2(0x20, 0, &[]), ProxySource::Proxy),
            (v2(0x20, 0xff, &[9; 3]), ProxySource::Proxy),
            (v2(0x21, 0, &[]), ProxySource::Proxy),
        ]
    }

    #[test]
    fn reads_exactly_one_header_however_it_is_split() {
        for (header, expected) in valid() {
            let wire = [&header[..], b"\n first message"].concat();
            let (source, rest) = read(&wire);
            assert_eq!((source.unwrap(), rest), (expected, &b"\n first message"[..]));
            for cut in 0..header.len() {
                let (mut first, mut second) = wire.split_at(cut);
                let mut reader = ProxyHeaderReader::default();
                assert!(reader.resume(first).is_pending(), "{cut} of {header:?}");
                assert_eq!(reader.received(), first);
                // What was received may go on in another process.
                let mut other = ProxyHeaderReader::default();
                assert!(other.resume(reader.received()).is_pending());
                let Poll::Ready(source) = other.read(|bytes| second.read(bytes)) else {
                    panic!("the rest is there")
                };
                assert_eq!((source.unwrap(), second), (expected, &b"\n first message"[..]));
                // The connection ends in the middle.
                let ended = read(std::mem::take(&mut first)).0.unwrap_err();
                assert_eq!(matches!(ended, ProxyHeaderError::Closed), cut == 0, "{ended}");
                assert_eq!(matches!(ended, ProxyHeaderError::Malformed(_)), cut > 0, "{ended}");
            }
        }
    }

    #[test]
    fn each_kind_of_invalid_header_has_an_error_of_its_own() {
        let error = |wire: &[u8]| read(wire).0.unwrap_err();
        for missing in [
            &b"\0\0\0\x55 a first message"[..],
            b"\0",
            b"GET / HTTP/1.1\r\n",
            b"PROXYTCP4",
            b"\r\n\r\n\r",
        ] {
            assert!(matches!(error(missing), ProxyHeaderError::Missing), "{missing:?}");
        }
        let malformed: [&[u8]; 9] = [
            b"PROXY TCP4 203.0.113.9 192.0.2.5 51234\r\n",
            b"PROXY TCP4 203.0.113.999 192.0.2.5 51234 8070\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 7 8\r\n",
            b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 65536\r\n",
            b"PROXY TCP5 203.0.113.9 192.0.2.5 51234 8070\r\n",
            b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\n",
            &v2(0x31, 0x11, &v4_rest()),
            &v2(0x21, 0x12, &v4_rest()),
            &v2(0x21, 0x11, &v4_rest()[..11]),
        ];
        for malformed in malformed {
            assert!(matches!(error(malformed), ProxyHeaderError::Malformed(_)), "{malformed:?}");
        }
        let long_line = [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat();
        assert!(matches!(error(&long_line), ProxyHeaderError::Oversized { length: MAX_V1, .. }));
        assert!(read(&v2(0x21, 0x11, &[v4_rest(), vec![0; MAX_V2 - 28]].concat())).0.is_ok());
        let long = v2(0x21, 0x11, &[0; MAX_V2]);
        // It is refused before its bytes are read.
        assert!(matches!(error(&long[..16]), ProxyHeaderError::Oversized { .. }));
    }

    proptest! {
        /// Whatever arrives, in pieces of whatever size, the reader ends within its bounds and never takes bytes that follow.
        #[test]
        fn hostile_bytes_never_panic_and_never_need_more_than_the_bound(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            tail in prop::collection::vec(any::<u8>(), 0..3000),
            is_random in any::<bool>(),
            piece in 1_usize..64,
        ) {
            let cases = valid();
            let mut wire = if is_random { Vec::new() } else { which.get(&cases).0.clone() };
            for (at, byte) in changes {
                if !wire.is_empty() {
                    let at = at.index(wire.len());
                    wire[at] = byte;
                }
            }
            wire.extend(tail);
            let (mut rest, mut reader) = (wire.as_slice(), ProxyHeaderReader::default());
            let end = reader.read(|bytes| {
                let length = bytes.len().min(piece);
                rest.read(&mut bytes[..length])
            });
            prop_assert!(end.is_ready());
            prop_assert!(reader.bytes.len() <= MAX_V2);
            prop_assert_eq!(reader.received(), &wire[..wire.len() - rest.len()]);
            if let Poll::Ready(Ok(_)) = end {
                // Exactly what was read is a header; nothing shorter is.
                let header = reader.received();
                prop_assert!(read(header).0.is_ok());
                prop_assert!(read(&header[..header.len() - 1]).0.is_err());
            }
        }
    }
}
