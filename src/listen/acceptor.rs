//! Accepts connections without registering them with the runtime: most are passed to other threads, and each registration has
//! a cost.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

#[cfg(target_os = "linux")]
use tokio::io::{Interest, unix::AsyncFd};

/// A listening socket that is registered with the runtime.
#[derive(Debug)]
pub struct Acceptor {
    #[cfg(target_os = "linux")]
    listener: AsyncFd<TcpListener>,
    #[cfg(not(target_os = "linux"))]
    listener: tokio::net::TcpListener,
}

#[cfg(target_os = "linux")]
impl Acceptor {
    /// Registers a non-blocking socket with the runtime.
    ///
    /// # Errors
    /// The kernel cannot register more sockets.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: a listener of the standard library owns its descriptor, always returns the same one, and closes it only
        // when it is dropped, and the registration never outlives the descriptor.
        #[expect(unsafe_code, reason = "the safe way also registers each accepted connection")]
        let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE)? };
        Ok(Self { listener })
    }

    /// Returns the address that the socket listens on.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.get_ref().local_addr()
    }

    /// Accepts the next connection, which is non-blocking. Waits only if none is available.
    ///
    /// # Errors
    /// The error of the system call.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let mut ready = self.listener.readable().await?;
            if let Ok(accepted) = ready.try_io(|listener| accept_now(listener.get_ref())) {
                return accepted;
            }
        }
    }
}

/// Accepts a connection with one system call; the standard library needs two.
#[cfg(target_os = "linux")]
fn accept_now(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    use rustix::net::{SocketFlags, acceptfrom_with};

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, address) = acceptfrom_with(listener, flags)?;
    let address = address.ok_or(io::Error::from(io::ErrorKind::ConnectionAborted))?;
    Ok((socket.into(), address.try_into()?))
}

#[cfg(not(target_os = "linux"))]
impl Acceptor {
    /// Registers a non-blocking socket with the runtime.
    ///
    /// # Errors
    /// The kernel cannot register more sockets.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { listener: tokio::net::TcpListener::from_std(listener)? })
    }

    /// Returns the address that the socket listens on.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts the next connection, which is non-blocking. Waits only if none is available.
    ///
    /// # Errors
    /// The error of the system call.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = self.listener.accept().await?;
        Ok((stream.into_std()?, address))
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Acceptor {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsSocket for Acceptor {
    fn as_socket(&self) -> std::os::windows::io::BorrowedSocket<'_> {
        self.listener.as_socket()
    }
}
