//! Other protocols, known by the first bytes that their callers send: a proxy, a browser or a program that is given the
//! wrong port speaks one of them where another is expected.

use std::fmt;

/// As many bytes as tell all of [`Foreign`] apart.
pub const HEAD_LEN: usize = 16;

/// The signature of the binary PROXY header.
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Requests of HTTP begin with one of these, and so do those of RTSP and SIP; HTTP/2 begins with the last.
const METHODS: [&[u8]; 10] =
    [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"TRAC", b"PATC", b"PRI "];

/// A protocol that is none of this relay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
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
    /// Microsoft's remote desktop.
    Rdp,
    /// VNC.
    Vnc,
    /// Microsoft's file sharing.
    Smb,
    /// SOCKS, of any version.
    Socks,
    /// PostgreSQL.
    PostgreSql,
    /// What Aspia programs of 2.x say to their Router.
    AspiaV2,
    /// What Aspia programs of 3.0 say to their Router.
    AspiaV3,
}

impl Foreign {
    /// Knows a protocol by the bytes that came first, of which there may be few yet.
    pub fn recognise(head: &[u8]) -> Option<Self> {
        let begins = |signature: &[u8]| head.starts_with(signature);
        if METHODS.iter().any(|method| begins(method)) {
            return Some(Self::Http);
        }
        // More than the four bytes that could be anybody's empty lines.
        if head.len() > 4 && (begins(PROXY_V2) || PROXY_V2.starts_with(head)) {
            return Some(Self::ProxyV2);
        }
        match *head {
            [b'P', b'R', b'O', b'X', ..] => Some(Self::ProxyV1),
            [0x16, 3, 0..=4, ..] => Some(Self::Tls),
            [b'S', b'S', b'H', b'-', ..] => Some(Self::Ssh),
            [b'R', b'F', b'B', b' ', ..] => Some(Self::Vnc),
            // A packet (TPKT) whose content is a request to connect.
            [3, 0, _, _, _, 0xe0, ..] | [3, 0, 0, _] => Some(Self::Rdp),
            [0, 0, _, _, 0xfe | 0xff, b'S', b'M', b'B', ..] => Some(Self::Smb),
            // Its length, then the number of a version or of what is asked for.
            [0, 0, _, _, 0x04, 0xd2, 0x16, 0x2e..=0x30, ..] | [0, 0, _, _, 0, 3, 0, 0 | 2, ..] => {
                Some(Self::PostgreSql)
            }
            // A header of eight bytes: authentication, and the length from its smallest byte.
            [2, _, 0, 0, _, _, 0, 0, ..] => Some(Self::AspiaV3),
            // A length of one byte, then the first two fields of a ClientHello.
            [length, 0x08, 1..=3, 0x10, ..] if length > 0 => Some(Self::AspiaV2),
            // A greeting names some ways to authenticate; a request of version 4 has a port.
            [5, count @ 1..=4, ..] if head.len() <= 2 + usize::from(count) => Some(Self::Socks),
            [4, 1 | 2, _, _, ..] => Some(Self::Socks),
            _ => None,
        }
    }

    /// What it is called.
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
            Self::AspiaV2 => "what Aspia 2.x says to its Router",
            Self::AspiaV3 => "what Aspia 3.0 says to its Router",
        }
    }

    /// What to do about it on the port for peers.
    pub fn remedy_for_peers(self) -> &'static str {
        match self {
            Self::ProxyV1 | Self::ProxyV2 => {
                "a proxy or load balancer in front adds it, and no peer comes through: switch it off there (HAProxy \
                 send-proxy, nginx proxy_protocol, Traefik proxyProtocol, frp proxyProtocolVersion, AWS \
                 proxy_protocol_v2)"
            }
            Self::Tls => {
                "peers bring their own encryption: a proxy in front must pass TCP on as it is, without TLS to this port"
            }
            Self::Http => {
                "this port is for peers alone: HTTP is at AdminListen and MetricsListen, and a probe of this port only \
                 connects (TCP)"
            }
            Self::AspiaV2 | Self::AspiaV3 => {
                "the Router has another address or port; this one is PeerAddress and PeerPort of a relay, which only the \
                 Router gives to Clients and Hosts"
            }
            Self::Ssh | Self::Rdp | Self::Vnc | Self::Smb | Self::Socks | Self::PostgreSql => {
                "a scanner, or a program or a port forwarding with the wrong port"
            }
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_known_by_their_first_bytes() {
        let cases: &[(&[u8], Foreign)] = &[
            (b"PROXY TCP4 203.0.113.9 192.0.2.5 51234 8070\r\n", Foreign::ProxyV1),
            (b"PROXY UNKNOWN\r\n", Foreign::ProxyV1),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Foreign::ProxyV2),
            (b"\r\n\r\n\0\r\nQ", Foreign::ProxyV2),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Foreign::Tls),
            (b"\x16\x03\x03\0", Foreign::Tls),
            (b"GET / HTTP/1.1\r\n", Foreign::Http),
            (b"HEAD", Foreign::Http),
            (b"PRI * HTTP/2.0\r\n", Foreign::Http),
            (b"CONNECT a:1 HTTP/1.1\r\n", Foreign::Http),
            (b"OPTIONS sip:a SIP/2.0\r\n", Foreign::Http),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", Foreign::Ssh),
            (b"\x03\0\0\x2b\x26\xe0\0\0\0\0\0Cookie: mstshash", Foreign::Rdp),
            (b"\x03\0\0\x13", Foreign::Rdp),
            (b"RFB 003.008\n", Foreign::Vnc),
            (b"\0\0\0\x54\xffSMBr\0\0\0", Foreign::Smb),
            (b"\0\0\0\xee\xfeSMB@\0", Foreign::Smb),
            (b"\x05\x01\0", Foreign::Socks),
            (b"\x05\x02\0\x02", Foreign::Socks),
            (b"\x04\x01\0\x50\x7f\0\0\x01\0", Foreign::Socks),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Foreign::PostgreSql),
            (b"\0\0\0\x29\0\x03\0\0user\0", Foreign::PostgreSql),
            (b"\x37\x08\x03\x10\x02\x1a\x20", Foreign::AspiaV2),
            (b"\x37\x08\x03\x10", Foreign::AspiaV2),
            (b"\x02\0\0\0\x3a\0\0\0\x08\x02", Foreign::AspiaV3),
        ];
        for (head, expected) in cases {
            assert_eq!(Foreign::recognise(head), Some(*expected), "{head:?}");
            assert!(!expected.remedy_for_peers().is_empty());
        }
    }

    #[test]
    fn what_may_be_anything_is_nothing() {
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
            assert_eq!(Foreign::recognise(head), None, "{head:?}");
        }
    }
}
