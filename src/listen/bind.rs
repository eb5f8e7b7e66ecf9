//! Binds listening sockets, and names the process that holds a port if binding fails.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::options;
use super::port_holder::{self, PortHolder};

/// The maximum number of connections that wait in the kernel until they are accepted, unless the kernel's own limit is lower
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// How an operator can find out which program holds a port.
const HOLDER_HINT: &str =
    if cfg!(windows) { "as an administrator: netstat -abno" } else { "as root: ss -ltnp" };
/// Why listening on a port may not be permitted, and what to do; followed by the name of the port's setting.
const PERMISSION_HINT: &str = if cfg!(windows) {
    "another program has exclusive use of the port, or Windows reserves it (netsh interface ipv4 show excludedportrange \
     protocol=tcp): choose another"
} else {
    "ports below 1024 need the capability CAP_NET_BIND_SERVICE, or choose a higher"
};

/// What a socket is for, so that an error can name the setting to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// Names those who connect, in the plural.
    pub callers: &'static str,
    /// The name of the setting for the address.
    pub address_setting: &'static str,
    /// The name of the setting for the port.
    pub port_setting: &'static str,
}

/// Says why an address cannot be listened on, and what to do.
#[derive(Debug)]
pub struct BindError {
    purpose: Purpose,
    address: SocketAddr,
    error: io::Error,
    holders: Vec<PortHolder>,
}

impl std::error::Error for BindError {}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { purpose, address, error, holders } = self;
        let Purpose { address_setting, port_setting, .. } = purpose;
        f.write_str(&self.summary())?;
        match error.kind() {
            // The process may hold the port on purpose, as another relay would, so this does not advise stopping it.
            io::ErrorKind::AddrInUse if holders.is_empty() => write!(
                f,
                "; this user cannot see which program holds the port ({HOLDER_HINT}). Find out what it is, or set \
                 {port_setting} to a free port"
            ),
            io::ErrorKind::AddrInUse => write!(
                f,
                "; the port is held by {}. Stop it, or set {port_setting} to a free port",
                port_holder::join(holders)
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "; {address_setting} must be an address of this machine, or empty for all"
                )
            }
            io::ErrorKind::PermissionDenied => write!(f, "; {PERMISSION_HINT} {port_setting}"),
            io::ErrorKind::InvalidInput if is_link_local(address) => write!(
                f,
                "; a link-local address needs a scope, which {address_setting} cannot have: use another address of \
                 this machine"
            ),
            _ => Ok(()),
        }
    }
}

impl BindError {
    /// Says what failed, without what to do about it.
    pub fn summary(&self) -> String {
        let Self { purpose: Purpose { callers, .. }, address, error, .. } = self;
        format!("cannot listen for {callers} on {address}: {error}")
    }

    /// Whether this process is not permitted to listen there.
    pub fn is_denied(&self) -> bool {
        self.error.kind() == io::ErrorKind::PermissionDenied
    }

    /// Returns the name of the setting for the port.
    pub fn port_setting(&self) -> &'static str {
        self.purpose.port_setting
    }

    /// Whether another process listens there.
    pub fn is_taken(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }

    /// Returns the processes that hold the port; none if they cannot be determined.
    pub fn holders(&self) -> &[PortHolder] {
        &self.holders
    }
}

/// Listens on `interface`, or on all interfaces for both IPv4 and IPv6; on a system without IPv6, for IPv4 only. The port is
/// exclusive: it is an error if another process listens on it.
///
/// # Errors
/// [`BindError`] names the process that holds the port, if it can be determined.
pub fn bind(
    purpose: Purpose,
    interface: Option<IpAddr>,
    port: u16,
) -> Result<TcpListener, BindError> {
    bind_with(purpose, interface, port, |domain| {
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
    })
}

/// Like [`bind`], but opens sockets with `open`.
pub(crate) fn bind_with(
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
            // A kernel without IPv6 may refuse either the address family or the address.
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

/// Describes where a socket listens, and for which address families if it listens on all addresses.
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
        Err(error) => format!("an unknown address ({error})"),
    }
}

fn listen(
    address: SocketAddr,
    is_dual_stack: bool,
    open: &impl Fn(Domain) -> io::Result<Socket>,
) -> io::Result<TcpListener> {
    let socket = open(Domain::for_address(address))?;
    if address.is_ipv6() {
        socket.set_only_v6(!is_dual_stack)?;
    }
    // On Unix this lets a restarted relay bind while old connections are in TIME_WAIT, and still refuses a port that another
    // process listens on. On Windows it would let two programs share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if options::INHERITED {
        // The options must be set before the first connection can be established.
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
    fn one_socket_listens_for_both_address_families() {
        let listener = bind(PEERS, None, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect(("::1", port)).unwrap();
            assert_eq!(describe(&listener), format!("[::]:{port} (IPv4 and IPv6)"));
        }
    }

    #[test]
    fn description_names_the_families_of_the_unspecified_address() {
        let listener = bind(PEERS, Some(Ipv4Addr::UNSPECIFIED.into()), 0).unwrap();
        assert!(describe(&listener).ends_with(" (IPv4 only)"));
        let listener = bind(PEERS, Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        assert_eq!(describe(&listener), listener.local_addr().unwrap().to_string());
        // A socket of the service manager may be like this.
        if let Ok(listener) = bind(PEERS, Some(Ipv6Addr::UNSPECIFIED.into()), 0) {
            assert!(describe(&listener).ends_with(" (IPv6 only)"));
        }
    }

    #[test]
    fn without_ipv6_the_socket_listens_for_ipv4_only() {
        let no_ipv6 = |domain| match domain {
            // EAFNOSUPPORT, the error of a kernel without IPv6.
            Domain::IPV6 => Err(io::Error::from_raw_os_error(97)),
            domain => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
        };
        let listener = bind_with(PEERS, None, 0, no_ipv6).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(address.is_ipv4());
        TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    }

    #[test]
    fn socket_listens_on_the_given_interface_only() {
        let listener = bind(PEERS, Some([127, 0, 0, 1].into()), 0).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
        // No machine has an address of the documentation range.
        let error = bind(PEERS, Some([192, 0, 2, 1].into()), 0).unwrap_err().to_string();
        assert!(error.contains("ListenInterface"), "{error}");
    }

    #[test]
    fn port_in_use_is_refused_on_every_interface() {
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
