//! Free ports for programs that must be given their port.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports to try: below the ephemeral ports (from 32768 on Linux, from 49152 on Windows),
/// since an outgoing connection could take a port before the program listens.
const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;
/// Distance between the first ports of processes, so that concurrent ones try different ports.
const SPREAD: u32 = 97;

/// Returns a port that is free on all addresses and that this function has not returned before.
///
/// # Errors
/// If no port is free.
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
    fn free_ports_are_returned_once() {
        let held: Vec<_> = (0..100)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap())
            .collect();
        assert_eq!(held.len(), 100);
    }
}
