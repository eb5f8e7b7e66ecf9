//! A socket to listen on, and who holds the port where that fails.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::options;
use super::port_holder::{self, Holder};

/// Connections that the kernel keeps until they are accepted; it lowers this to its own limit
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Who sees the program that holds a port, and how.
const WHO_SEES: &str = if cfg!(windows) {
    "an administrator sees it: netstat -abno"
} else {
    "root sees it: ss -ltnp"
};
/// Why a port may not be listened on, and what to do; the setting of the port follows.
const NOT_PERMITTED: &str = if cfg!(windows) {
    "another program has the port for itself alone, or Windows keeps it (netsh interface ipv4 show excludedportrange \
     protocol=tcp): choose another"
} else {
    "ports below 1024 need the capability CAP_NET_BIND_SERVICE, or choose a higher"
};

/// What a socket is for, so that an error can name the setting to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// Who connects, in the plural.
    pub callers: &'static str,
    /// The setting of the address.
    pub address_setting: &'static str,
    /// The setting of the port.
    pub port_setting: &'static str,
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    purpose: Purpose,
    address: SocketAddr,
    error: io::Error,
    holders: Vec<Holder>,
}

impl std::error::Error for BindError {}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { purpose, address, error, holders } = self;
        let Purpose { address_setting, port_setting, .. } = purpose;
        f.write_str(&self.what_failed())?;
        match error.kind() {
            // Whoever it is may be what is wanted, such as another relay.
            io::ErrorKind::AddrInUse if holders.is_empty() => write!(
                f,
                "; the program that holds the port cannot be seen by this user ({WHO_SEES}). Find out what it is, or set \
                 {port_setting} to a free port"
            ),
            io::ErrorKind::AddrInUse => write!(
                f,
                "; the port is held by {}. Stop it, or set {port_setting} to a free port",
                port_holder::list(holders)
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "; {address_setting} must be an address of this machine, or empty for all"
                )
            }
            io::ErrorKind::PermissionDenied => write!(f, "; {NOT_PERMITTED} {port_setting}"),
            io::ErrorKind::InvalidInput if is_link_local(address) => write!(
                f,
                "; a link-local address is none without a scope, which {address_setting} cannot have: use another \
                 address of this machine"
            ),
            _ => Ok(()),
        }
    }
}

impl BindError {
    /// What failed, without what to do about it.
    pub fn what_failed(&self) -> String {
        let Self { purpose: Purpose { callers, .. }, address, error, .. } = self;
        format!("cannot listen for {callers} on {address}: {error}")
    }

    /// Whether the system allows nobody like this process to listen there.
    pub fn is_denied(&self) -> bool {
        self.error.kind() == io::ErrorKind::PermissionDenied
    }

    /// The setting of the port.
    pub fn port_setting(&self) -> &'static str {
        self.purpose.port_setting
    }

    /// An error as of a port below 1024.
    #[cfg(test)]
    pub(crate) fn denied(purpose: Purpose, port: u16) -> Self {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let error = io::ErrorKind::PermissionDenied.into();
        Self { purpose, address, error, holders: Vec::new() }
    }

    /// Whether somebody else listens there.
    pub fn is_taken(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }

    /// Who that is; nobody where it cannot be found out.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }
}

/// Listens on `interface`, or on all interfaces for IPv4 and IPv6 alike. Where the system has no IPv6, on
/// IPv4 alone. Exclusive: a port that somebody listens on already is an error.
///
/// # Errors
/// [`BindError`] says who holds the port, where that can be found out.
pub fn bind(
    purpose: Purpose,
    interface: Option<IpAddr>,
    port: u16,
) -> Result<TcpListener, BindError> {
    bind_with(purpose, interface, port, |domain| {
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
    })
}

fn bind_with(
    purpose: Purpose,
    interface: Option<IpAddr>,
    port: u16,
    open: impl Fn(Domain) -> io::Result<Socket>,
) -> Result<TcpListener, BindError> {
    let attempt = |address: IpAddr| {
        let address = SocketAddr::new(address, port);
        listen(address, interface.is_none(), &open).map_err(|error| (address, error))
    };
    let result = match interface {
        Some(address) => attempt(address),
        None => attempt(Ipv6Addr::UNSPECIFIED.into()).or_else(|(address, error)| {
            // A kernel without IPv6 knows neither the family nor the address.
            if error.kind() == io::ErrorKind::AddrInUse {
                Err((address, error))
            } else {
                attempt(Ipv4Addr::UNSPECIFIED.into())
            }
        }),
    };
    result.map_err(|(address, error)| {
        let holders = match error.kind() {
            io::ErrorKind::AddrInUse => port_holder::find(port),
            _ => Vec::new(),
        };
        BindError { purpose, address, error, holders }
    })
}

fn is_link_local(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local())
}

/// Where a socket listens, in words: where that is everywhere, also for which families.
pub fn describe(listener: &TcpListener) -> String {
    let families = |address: &SocketAddr| {
        let only_v6 = || SockRef::from(listener).only_v6().unwrap_or(false);
        match address {
            address if !address.ip().is_unspecified() => "",
            SocketAddr::V4(_) => " (IPv4 only)",
            SocketAddr::V6(_) if only_v6() => " (IPv6 only)",
            SocketAddr::V6(_) => " (IPv4 and IPv6)",
        }
    };
    match listener.local_addr() {
        Ok(address) => format!("{address}{}", families(&address)),
        Err(error) => format!("an address that the system does not tell ({error})"),
    }
}

fn listen(
    address: SocketAddr,
    dual_stack: bool,
    open: &impl Fn(Domain) -> io::Result<Socket>,
) -> io::Result<TcpListener> {
    let socket = open(Domain::for_address(address))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    // On Unix this lets a restarted relay bind while old connections are in TIME_WAIT, and still refuses a port
    // that somebody listens on. On Windows it would let two programs share the port, so not there.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if options::INHERITED {
        // Before the first connection can be completed.
        options::set(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    const PEERS: Purpose = Purpose {
        callers: "peers",
        address_setting: "ListenInterface",
        port_setting: "ListenPort",
    };

    #[test]
    fn one_port_for_both_families() {
        let listener = bind(PEERS, None, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect(("::1", port)).unwrap();
            assert_eq!(describe(&listener), format!("[::]:{port} (IPv4 and IPv6)"));
        }
    }

    #[test]
    fn families_are_named_where_the_address_does_not_tell_them() {
        let listener = bind(PEERS, Some(Ipv4Addr::UNSPECIFIED.into()), 0).unwrap();
        assert!(describe(&listener).ends_with(" (IPv4 only)"));
        let listener = bind(PEERS, Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        assert_eq!(describe(&listener), listener.local_addr().unwrap().to_string());
        // A socket of the service manager may be so.
        if let Ok(listener) = bind(PEERS, Some(Ipv6Addr::UNSPECIFIED.into()), 0) {
            assert!(describe(&listener).ends_with(" (IPv6 only)"));
        }
    }

    #[test]
    fn without_ipv6_it_is_ipv4_alone() {
        let no_ipv6 = |domain| match domain {
            // What a kernel without IPv6 answers: EAFNOSUPPORT.
            Domain::IPV6 => Err(io::Error::from_raw_os_error(97)),
            domain => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        };
        let listener = bind_with(PEERS, None, 0, no_ipv6).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(address.is_ipv4());
        TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    }

    #[test]
    fn one_interface_is_one_interface() {
        let listener = bind(PEERS, Some([127, 0, 0, 1].into()), 0).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
        // An address of the documentation range is nobody's.
        let error = bind(PEERS, Some([192, 0, 2, 1].into()), 0).unwrap_err().to_string();
        assert!(error.contains("ListenInterface"), "{error}");
    }

    #[test]
    fn a_taken_port_is_refused_whatever_the_interface() {
        let first = bind(PEERS, None, 0).unwrap();
        let port = first.local_addr().unwrap().port();
        for interface in [None, Some([127, 0, 0, 1].into()), Some(Ipv4Addr::UNSPECIFIED.into())] {
            let error = bind(PEERS, interface, port).unwrap_err().to_string();
            assert!(error.contains("ListenPort"), "{error}");
            #[cfg(target_os = "linux")]
            assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        }
    }
}
