//! Recognises other protocols by the first bytes of a connection, which may come from a proxy, a browser, or a program
//! with the wrong port in its settings.

use std::fmt;

/// The number of bytes that are needed to tell all [`ForeignProtocol`] protocols apart.
pub const HEAD_LEN: usize = 16;

/// Signature of the binary PROXY header.
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The beginnings of HTTP requests, some of which RTSP and SIP share; HTTP/2 begins with the last one.
const METHODS: [&[u8]; 10] =
    [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"TRAC", b"PATC", b"PRI "];

/// A protocol that a relay does not speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignProtocol {
    /// The PROXY header, version 1 (text).
    ProxyV1,
    /// The PROXY header, version 2 (binary).
    ProxyV2,
    /// TLS.
    Tls,
    /// HTTP without TLS.
    Http,
    /// SSH.
    Ssh,
    /// Microsoft Remote Desktop.
    Rdp,
    /// VNC.
    Vnc,
    /// Windows file sharing.
    Smb,
    /// SOCKS, any version.
    Socks,
    /// PostgreSQL.
    PostgreSql,
    /// The protocol between Aspia 2.x programs and their Router.
    AspiaV2,
    /// The protocol between Aspia 3.0 programs and their Router.
    AspiaV3,
}

impl ForeignProtocol {
    /// Recognises a protocol by the bytes received so far, even if they are few.
    pub fn recognise(head: &[u8]) -> Option<Self> {
        let begins = |signature: &[u8]| head.starts_with(signature);
        if METHODS.iter().any(|method| begins(method)) {
            return Some(Self::Http);
        }
        // Four bytes or fewer might be empty lines of any protocol.
        if head.len() > 4 && (begins(PROXY_V2) || PROXY_V2.starts_with(head)) {
            return Some(Self::ProxyV2);
        }
        match *head {
            [b'P', b'R', b'O', b'X', ..] => Some(Self::ProxyV1),
            [0x16, 3, 0..=4, ..] => Some(Self::Tls),
            [b'S', b'S', b'H', b'-', ..] => Some(Self::Ssh),
            [b'R', b'F', b'B', b' ', ..] => Some(Self::Vnc),
            // A TPKT packet with a connection request.
            [3, 0, _, _, _, 0xe0, ..] | [3, 0, 0, _] => Some(Self::Rdp),
            [0, 0, _, _, 0xfe | 0xff, b'S', b'M', b'B', ..] => Some(Self::Smb),
            // The length, then a protocol version or a request code.
            [0, 0, _, _, 0x04, 0xd2, 0x16, 0x2e..=0x30, ..] | [0, 0, _, _, 0, 3, 0, 0 | 2, ..] => {
                Some(Self::PostgreSql)
            }
            // A header of eight bytes: the type authentication, and the length in little-endian order.
            [2, _, 0, 0, _, _, 0, 0, ..] => Some(Self::AspiaV3),
            // A length of one byte, then the first two fields of a ClientHello.
            [length, 0x08, 1..=3, 0x10, ..] if length > 0 => Some(Self::AspiaV2),
            // A greeting lists authentication methods; a version 4 request has a port.
            [5, count @ 1..=4, ..] if head.len() <= 2 + usize::from(count) => Some(Self::Socks),
            [4, 1 | 2, _, _, ..] => Some(Self::Socks),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::ProxyV1 => "a PROXY header (version 1)",
            Self::ProxyV2 => "a PROXY header (version 2)",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::Ssh => "SSH",
            Self::Rdp => "RDP",
            Self::Vnc => "VNC",
            Self::Smb => "SMB",
            Self::Socks => "SOCKS",
            Self::PostgreSql => "the protocol of PostgreSQL",
            Self::AspiaV2 => "the protocol between Aspia 2.x and its Router",
            Self::AspiaV3 => "the protocol between Aspia 3.0 and its Router",
        }
    }

    /// Returns what the operator should do if this protocol arrives on the peer port.
    pub fn remedy_for_peers(self) -> &'static str {
        match self {
            Self::ProxyV1 | Self::ProxyV2 => {
                "a proxy or load balancer in front adds it, no peer can connect, and its address is not in ProxyProtocolFrom: add it \
                 there, or disable the header in the proxy (HAProxy send-proxy, nginx proxy_protocol, Traefik \
                 proxyProtocol, frp proxyProtocolVersion, AWS proxy_protocol_v2)"
            }
            Self::Tls => {
                "peers encrypt their connections themselves: a proxy in front must forward plain TCP to this port, without TLS"
            }
            Self::Http => {
                "this port is only for peers: HTTP is served at AdminListen and MetricsListen, and a probe of this port must \
                 only connect (TCP)"
            }
            Self::AspiaV2 | Self::AspiaV3 => {
                "the Router has another address or port; this is PeerAddress and PeerPort of a relay, which Clients and Hosts \
                 get from the Router"
            }
            Self::Ssh | Self::Rdp | Self::Vnc | Self::Smb | Self::Socks | Self::PostgreSql => {
                "a scanner, or a program or port forwarding with the wrong port"
            }
        }
    }
}

impl fmt::Display for ForeignProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_recognised_by_their_first_bytes() {
        let cases: &[(&[u8], ForeignProtocol)] = &[
            (b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n", ForeignProtocol::ProxyV1),
            (b"PROXY UNKNOWN\r\n", ForeignProtocol::ProxyV1),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", ForeignProtocol::ProxyV2),
            (b"\r\n\r\n\0\r\nQ", ForeignProtocol::ProxyV2),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", ForeignProtocol::Tls),
            (b"\x16\x03\x03\0", ForeignProtocol::Tls),
            (b"GET / HTTP/1.1\r\n", ForeignProtocol::Http),
            (b"HEAD", ForeignProtocol::Http),
            (b"PRI * HTTP/2.0\r\n", ForeignProtocol::Http),
            (b"CONNECT a:1 HTTP/1.1\r\n", ForeignProtocol::Http),
            (b"OPTIONS sip:a SIP/2.0\r\n", ForeignProtocol::Http),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", ForeignProtocol::Ssh),
            (b"\x03\0\0\x2b\x26\xe0\0\0\0\0\0Cookie: mstshash", ForeignProtocol::Rdp),
            (b"\x03\0\0\x13", ForeignProtocol::Rdp),
            (b"RFB 003.008\n", ForeignProtocol::Vnc),
            (b"\0\0\0\x54\xffSMBr\0\0\0", ForeignProtocol::Smb),
            (b"\0\0\0\xee\xfeSMB@\0", ForeignProtocol::Smb),
            (b"\x05\x01\0", ForeignProtocol::Socks),
            (b"\x05\x02\0\x02", ForeignProtocol::Socks),
            (b"\x04\x01\0\x50\x7f\0\0\x01\0", ForeignProtocol::Socks),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", ForeignProtocol::PostgreSql),
            (b"\0\0\0\x29\0\x03\0\0user\0", ForeignProtocol::PostgreSql),
            (b"\x37\x08\x03\x10\x02\x1a\x20", ForeignProtocol::AspiaV2),
            (b"\x37\x08\x03\x10", ForeignProtocol::AspiaV2),
            (b"\x02\0\0\0\x3a\0\0\0\x08\x02", ForeignProtocol::AspiaV3),
        ];
        for (head, expected) in cases {
            assert_eq!(ForeignProtocol::recognise(head), Some(*expected), "{head:?}");
            assert!(!expected.remedy_for_peers().is_empty());
        }
    }

    #[test]
    fn ambiguous_bytes_are_not_recognised() {
        let cases: &[&[u8]] = &[
            b"",
            b"\0",
            b"\r\n\r\n",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x7e\x08\x07\x12\x20",
            b"hello",
            b"\x16\x03",
            b"\x05",
            b"\0\0\x40\x01",
        ];
        for head in cases {
            assert_eq!(ForeignProtocol::recognise(head), None, "{head:?}");
        }
    }
}
