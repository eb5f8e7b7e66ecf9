//! Ports for programs that must be told theirs before they listen.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Those that are given: below the ports that systems give to connections (from 32768 on Linux, from 49152 on Windows),
/// since a connection of anybody's could have a port in the moment before the program listens.
const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;
/// Processes begin this far from each other, so that those that run at once try others.
const SPREAD: u32 = 97;

/// A port that is free on all addresses, and that this function has not given before.
///
/// # Errors
/// When none is.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = std::process::id().wrapping_mul(SPREAD) % u32::from(COUNT);
    for _ in 0..COUNT {
        let next = begin + u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from(next % u32::from(COUNT)).unwrap_or(0);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_and_given_once() {
        let held: Vec<_> = (0..100)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap())
            .collect();
        assert_eq!(held.len(), 100);
    }
}
