//! Holds the paused clock of a test still while something outside its runtime happens.
//!
//! A paused clock advances to the next timer whenever the runtime is idle. It knows nothing of a packet that is still on its way
//! through the kernel: on a busy machine, even on loopback, minutes pass on the paused clock before a reset arrives. Tokio does
//! not advance the clock while a blocking task runs, and that is what everything here uses.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use tokio::net::TcpStream;

/// The longest time, by the clock on the wall, for which a clock is held or an event is awaited.
const PATIENCE: Duration = Duration::from_secs(60);

/// A paused clock stands still while this exists. Nothing that happens meanwhile may need a timer.
#[derive(Debug)]
#[must_use = "the clock is held until this is dropped"]
pub struct HeldClock {
    _release: Sender<()>,
}

impl HeldClock {
    /// Holds the clock of the current runtime.
    pub fn hold() -> Self {
        let (release, released) = channel();
        // A test that waits for a timer by mistake fails rather than hangs: the clock goes on after a while.
        drop(tokio::task::spawn_blocking(move || {
            let _: Result<(), _> = released.recv_timeout(PATIENCE);
        }));
        Self { _release: release }
    }
}

/// Waits for something that the kernel or another thread does, with the clock held.
pub async fn held<F: Future>(event: F) -> F::Output {
    let _held = HeldClock::hold();
    event.await
}

/// A TCP connection on loopback, by the addresses of its two ends.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux shows the other end"))]
pub struct LoopbackConnection {
    here: SocketAddr,
    there: SocketAddr,
}

impl LoopbackConnection {
    /// The connection of `stream`. It may be looked at after the stream was closed.
    ///
    /// # Errors
    /// If the stream is not connected.
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self { here: stream.local_addr()?, there: stream.peer_addr()? })
    }
}

#[cfg(target_os = "linux")]
mod table {
    use super::{HeldClock, LoopbackConnection, PATIENCE};
    use std::io;
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use tokio::net::TcpStream;

    /// States of a connection whose end waits for nothing but its owner: established, and the peer has finished.
    const OPEN: [u8; 2] = [0x01, 0x08];
    /// States in which a SYN or a FIN is not acknowledged.
    const UNACKNOWLEDGED: [u8; 5] = [0x02, 0x03, 0x04, 0x0B, 0x09];
    /// The timer that asks a peer without space whether it has some now.
    const ZERO_WINDOW_PROBE: u8 = 4;
    /// How often the kernel is asked. There is no event for what is awaited.
    const PERIOD: Duration = Duration::from_millis(1);
    /// How many looks in a row must show the same.
    const LOOKS: usize = 3;

    /// One end of a connection, as the kernel's table shows it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct End {
        state: u8,
        unacknowledged: u64,
        timer: u8,
    }

    impl End {
        fn is_delivered(self) -> bool {
            self.unacknowledged == 0 && !UNACKNOWLEDGED.contains(&self.state)
        }
    }

    /// The row of the connection from `local` to `remote`; `None` once the kernel has forgotten it.
    fn end(local: SocketAddr, remote: SocketAddr) -> Option<End> {
        let name = |address: SocketAddr| {
            let SocketAddr::V4(address) = address else { return None };
            let ip = u32::from_le_bytes(address.ip().octets());
            Some(format!("{ip:08X}:{:04X}", address.port()))
        };
        let (local, remote) = (name(local)?, name(remote)?);
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        table.lines().find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if columns.get(1) != Some(&local.as_str()) || columns.get(2) != Some(&remote.as_str()) {
                return None;
            }
            let first = |column: usize| columns.get(column)?.split(':').next();
            let number = |text: &str| u8::from_str_radix(text, 16).ok();
            Some(End {
                state: number(columns.get(3)?)?,
                unacknowledged: u64::from_str_radix(first(4)?, 16).ok()?,
                timer: number(first(5)?)?,
            })
        })
    }

    impl LoopbackConnection {
        fn ends(self) -> [Option<End>; 2] {
            [end(self.here, self.there), end(self.there, self.here)]
        }

        /// Whether everything that an end has sent (bytes, its FIN or a reset) has reached the other.
        fn is_delivered(self) -> bool {
            match self.ends() {
                [Some(here), Some(there)] => here.is_delivered() && there.is_delivered(),
                // The other end is gone. If it was reset, this end learns of it.
                [Some(end), None] | [None, Some(end)] => {
                    end.is_delivered() && !OPEN.contains(&end.state)
                }
                [None, None] => true,
            }
        }

        /// Waits, with the clock held, until everything that an end has sent (bytes, its FIN or a reset) has reached the other.
        ///
        /// # Panics
        /// If that takes longer than a minute of real time.
        pub async fn delivered(self) {
            let wait = move || {
                let start = Instant::now();
                while !self.is_delivered() {
                    assert!(start.elapsed() < PATIENCE, "not delivered: {:?}", self.ends());
                    std::thread::sleep(PERIOD);
                }
            };
            if let Err(error) = tokio::task::spawn_blocking(wait).await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }

        /// Returns how many bytes this end has sent that are not acknowledged.
        pub fn unacknowledged(self) -> u64 {
            end(self.here, self.there).map_or(0, |end| end.unacknowledged)
        }
    }

    /// Whether receivers without space have brought connections to a standstill.
    #[derive(Default)]
    struct Standstill {
        before: Vec<Option<End>>,
        unchanged: usize,
    }

    impl Standstill {
        /// Looks at the sending `ends` once more. A relay that is about to read closes its window for a moment, too, so they
        /// stand still only if nothing changes for a few looks, between which the runtime ran.
        fn is_reached(&mut self, ends: Vec<Option<End>>) -> bool {
            let is_full = |end: &Option<End>| end.is_some_and(|end| end.timer == ZERO_WINDOW_PROBE);
            let is_unchanged = ends.iter().all(is_full) && ends == self.before;
            self.unchanged = if is_unchanged { self.unchanged + 1 } else { 0 };
            self.before = ends;
            self.unchanged >= LOOKS
        }
    }

    /// Lets the runtime and the kernel work, with the clock held.
    async fn pause() {
        let _ = tokio::task::spawn_blocking(|| std::thread::sleep(PERIOD)).await;
    }

    /// Sends, with the clock held, until nothing more fits into the connections and the relay, because the partner does not
    /// read.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If the connections are not full after a minute of real time.
    pub async fn fill(sender: &TcpStream, partner: &TcpStream) -> io::Result<()> {
        let _held = HeldClock::hold();
        let (to_relay, to_partner) =
            (LoopbackConnection::of(sender)?, LoopbackConnection::of(partner)?);
        let (start, chunk, mut standstill) =
            (Instant::now(), vec![0; 64 * 1024], Standstill::default());
        loop {
            match sender.try_write(&chunk) {
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let ends =
                vec![end(to_relay.here, to_relay.there), end(to_partner.there, to_partner.here)];
            if standstill.is_reached(ends) {
                return Ok(());
            }
            assert!(start.elapsed() < PATIENCE, "not full: {:?}", standstill.before);
            pause().await;
        }
    }

    /// Waits, with the clock held, until a peer that reads slowly has no space for more.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If it has space after a minute of real time.
    pub async fn refilled(peer: &TcpStream) -> io::Result<()> {
        let _held = HeldClock::hold();
        let connection = LoopbackConnection::of(peer)?;
        let (start, mut standstill) = (Instant::now(), Standstill::default());
        while !standstill.is_reached(vec![end(connection.there, connection.here)]) {
            assert!(start.elapsed() < PATIENCE, "not full: {:?}", standstill.before);
            pause().await;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
pub use table::{fill, refilled};

#[cfg(not(target_os = "linux"))]
impl LoopbackConnection {
    /// Does nothing: the system does not show what is on its way.
    #[expect(clippy::unused_async, reason = "awaited on Linux")]
    pub async fn delivered(self) {}
}

/// Sends until the relay has accepted nothing for a while.
///
/// # Errors
/// If the connection fails.
#[cfg(not(target_os = "linux"))]
pub async fn fill(sender: &TcpStream, _partner: &TcpStream) -> io::Result<()> {
    let chunk = vec![0; 64 * 1024];
    loop {
        sender.writable().await?;
        match sender.try_write(&chunk) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let writable = sender.writable();
                if tokio::time::timeout(Duration::from_millis(300), writable).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}
