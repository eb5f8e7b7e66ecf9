//! Binds the socket of the store.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, chmod, flock, lstat, open, unlink};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, bind, connect, listen};

use tracing::warn;

use super::address::StoreAddress;
use super::credentials::SocketCredentials;
use super::packet;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// How often, and after which pause, the lock of the directory is tried. Another store holds it for a moment.
const LOCK_ATTEMPTS: (u32, Duration) = (20, Duration::from_millis(50));

/// Why the store cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum StoreBindError {
    /// Another process listens there.
    #[error(
        "another process (of the user with id {user}) listens at {address}: if that is a descriptor store, one is enough; \
         otherwise choose another FdStore"
    )]
    InUse {
        /// Where.
        address: StoreAddress,
        /// Its user.
        user: u32,
    },
    /// The path is taken by something else.
    #[error(
        "{0} exists and is not the socket of a descriptor store: remove it, or choose another FdStore"
    )]
    NotAStore(StoreAddress),
    /// The system's error.
    #[error(
        "cannot listen at {address}: {error}. The directory must exist, and this user must be allowed to write to it"
    )]
    System {
        /// Where.
        address: StoreAddress,
        /// The system's error.
        error: io::Error,
    },
}

/// The listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct StoreListener {
    pub(super) socket: OwnedFd,
    address: StoreAddress,
}

impl Drop for StoreListener {
    fn drop(&mut self) {
        if let Some(path) = self.address.path() {
            let _ = unlink(path);
        }
    }
}

impl StoreListener {
    /// Binds the socket. A socket file that a dead store left is replaced.
    pub(super) fn bind(address: &StoreAddress) -> Result<Self, StoreBindError> {
        let system = |error: io::Error| StoreBindError::System { address: address.clone(), error };
        let system_address = packet::system_address(address).map_err(system)?;
        // Two stores that start at once must not remove each other's file.
        let _lock = address.path().and_then(lock_directory);
        let socket = match try_bind(address, &system_address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(address, &system_address)?;
                try_bind(address, &system_address)
            }
            bound => bound,
        };
        let socket = socket.map_err(|error| system(error.into()))?;
        Ok(Self { socket, address: address.clone() })
    }
}

/// Locks the directory of the socket until the result is dropped. Without the permission to read it, or if somebody keeps it
/// locked, which any user may who can read it, nobody is kept out.
fn lock_directory(path: &Path) -> Option<OwnedFd> {
    let directory = open(path.parent()?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (attempts, pause) = LOCK_ATTEMPTS;
    for _ in 0..attempts {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(pause),
            result => return result.ok().map(|()| directory),
        }
    }
    warn!("another process keeps the directory of {} locked; going on without", path.display());
    None
}

fn try_bind(address: &StoreAddress, system_address: &SocketAddrUnix) -> Result<OwnedFd, Errno> {
    let socket = packet::create_socket(SocketFlags::NONBLOCK)
        .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    bind(&socket, system_address)?;
    if let Some(path) = address.path() {
        // Nobody can connect in between: that takes `listen`.
        chmod(path, Mode::RUSR | Mode::WUSR)?;
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the socket file of a store that has ended; fails if somebody listens.
fn remove_stale(
    address: &StoreAddress,
    system_address: &SocketAddrUnix,
) -> Result<(), StoreBindError> {
    let system =
        |error: Errno| StoreBindError::System { address: address.clone(), error: error.into() };
    let probe = packet::create_socket(SocketFlags::NONBLOCK)
        .map_err(|error| StoreBindError::System { address: address.clone(), error })?;
    let in_use = || {
        let credentials = SocketCredentials::of_peer(probe.as_fd());
        let user = credentials.map_or(u32::MAX, |credentials| credentials.user);
        StoreBindError::InUse { address: address.clone(), user }
    };
    let Some(path) = address.path() else {
        let _ = connect(&probe, system_address);
        return Err(in_use());
    };
    let file_type = FileType::from_raw_mode(lstat(path).map_err(system)?.st_mode);
    match connect(&probe, system_address) {
        _ if file_type != FileType::Socket => Err(StoreBindError::NotAStore(address.clone())),
        Err(Errno::CONNREFUSED) => unlink(path).map_err(system),
        Ok(()) | Err(Errno::AGAIN) => Err(in_use()),
        Err(Errno::PROTOTYPE) => Err(StoreBindError::NotAStore(address.clone())),
        Err(error) => Err(system(error)),
    }
}
