//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::warn;

use crate::log::limit::LineLimit;

use super::acceptor::Acceptor;

/// Longest pause after a failure to accept.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked whether there is room again.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);
/// Lines about no room, and as many about failures to accept, in this time: both come and go as strangers do.
const COMPLAINTS: (NonZero<u32>, Duration) =
    (NonZero::new(2).expect("it is not 0"), Duration::from_secs(60));

/// What may help when connections cannot be accepted, where the system limits files.
const TOO_MANY_FILES: &str =
    if cfg!(unix) { "; if there are too many open files, raise the limit (ulimit -n)" } else { "" };

/// Whether connections are accepted at the moment; for those who report.
#[derive(Debug, Clone, Default)]
pub struct Accepting(Arc<AtomicBool>);

impl Accepting {
    /// Whether the loop runs and its last try did not fail.
    pub fn is_well(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, well: bool) {
        self.0.store(well, Ordering::Relaxed);
    }
}

/// Whether there is room for one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Enough,
    /// Only when those who are here have had their turn, and some have gone.
    Crowded,
    /// There is none: more are left to wait.
    None,
}

/// Lowers the flag when the loop ends, however it ends.
struct Running<'a>(&'a Accepting);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// What is said when connections cannot be accepted.
struct Complaints<'a> {
    callers: &'a str,
    rooms: LineLimit,
    failures: LineLimit,
}

impl<'a> Complaints<'a> {
    fn new(callers: &'a str) -> Self {
        let limit = || LineLimit::new(COMPLAINTS.0, COMPLAINTS.1);
        Self { callers, rooms: limit(), failures: limit() }
    }

    fn no_room(&self) {
        if self.rooms.allows() {
            let (callers, left_out) = (self.callers, self.rooms.take_left_out());
            warn!(
                left_out,
                "no descriptors are left for more {callers}: accepting waits until some have gone. Raise the limit on \
                 open files (ulimit -n, LimitNOFILE, ulimits of the container)"
            );
        }
    }

    fn failed(&self, error: &io::Error, delay: Duration) {
        if self.failures.allows() {
            let (callers, left_out) = (self.callers, self.failures.take_left_out());
            warn!(
                %error,
                left_out,
                "cannot accept connections of {callers}, trying again in {delay:?}{TOO_MANY_FILES}"
            );
        }
    }

    /// Says how many lines were left out, where none says so that comes later.
    fn report_left_out(&self) {
        for (limit, what) in
            [(&self.rooms, "there was no room"), (&self.failures, "accepting failed")]
        {
            if let Some(left_out) = limit.overdue() {
                let (callers, seconds) = (self.callers, COMPLAINTS.1.as_secs());
                warn!(left_out, "{what} for {callers} so often more within {seconds} s");
            }
        }
    }
}

/// Accepts connections until it is dropped, and passes on each with the address that it comes from. As many as are there
/// in one go, up to what a task may do at a time; then it is the turn of those who got them, and of everybody else.
/// Does not spin when accepting fails, nor while there is no room: then connections wait with the system. `callers` is
/// who connects, for the log.
pub async fn accept(
    acceptor: &Acceptor,
    callers: &str,
    accepting: &Accepting,
    room: impl Fn() -> Room,
    mut take: impl FnMut(std::net::TcpStream, SocketAddr),
) {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(MAX_PAUSE)
        .without_max_times();
    let mut backoff = None;
    accepting.set(true);
    let _running = Running(accepting);
    let complaints = Complaints::new(callers);
    loop {
        match room() {
            Room::Enough => {}
            // Then those who go have gone, and it is known who they are.
            Room::Crowded => tokio::task::yield_now().await,
            Room::None => {
                accepting.set(false);
                complaints.no_room();
                while room() == Room::None {
                    tokio::time::sleep(LOOK_FOR_ROOM).await;
                }
                accepting.set(true);
            }
        }
        complaints.report_left_out();
        match acceptor.accept().await {
            Ok((stream, address)) => {
                backoff = None;
                accepting.set(true);
                // Those over IPv4 come through an IPv6 socket with a mapped address.
                take(stream, SocketAddr::new(address.ip().to_canonical(), address.port()));
                tokio::task::coop::consume_budget().await;
            }
            // It was gone before we looked: no trouble of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                accepting.set(false);
                let delay =
                    backoff.get_or_insert_with(|| delays.build()).next().unwrap_or(MAX_PAUSE);
                complaints.failed(&error, delay);
                tokio::time::sleep(delay).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test(start_paused = true)]
    async fn failures_that_come_and_go_are_a_few_lines_and_a_count() {
        let log = relay_lab::log::CapturedLog::start();
        let complaints = Complaints::new("strangers");
        let (error, delay) = (io::Error::from_raw_os_error(24), Duration::from_millis(10));
        let lines = |text: &str| log.text().lines().filter(|line| line.contains(text)).count();
        for _ in 0..10_000 {
            complaints.failed(&error, delay);
            complaints.no_room();
            complaints.report_left_out();
        }
        assert_eq!((lines("cannot accept"), lines("no descriptors are left")), (2, 2));
        tokio::time::advance(COMPLAINTS.1).await;
        complaints.report_left_out();
        complaints.report_left_out();
        assert_eq!(lines("left_out=9998"), 2, "{}", log.text());
        complaints.failed(&error, delay);
        assert_eq!(lines("cannot accept"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_connections_wait_and_nothing_spins() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let acceptor = Acceptor::new(listener).unwrap();
        let _first = TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
        let (room, looks, taken) = (Cell::new(Room::None), Cell::new(0), Cell::new(0));
        let accepting = Accepting::default();
        let look = || {
            looks.set(looks.get() + 1);
            room.get()
        };
        let accept = accept(&acceptor, "strangers", &accepting, look, |_, _| {
            taken.set(taken.get() + 1);
        });
        let watch = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!accepting.is_well());
            assert_eq!(taken.get(), 0);
            assert!((100..=202).contains(&looks.get()), "{}", looks.get());
            room.set(Room::Crowded);
            while taken.get() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(accepting.is_well());
        };
        tokio::select! {
            () = accept => {}
            () = watch => {}
        }
        assert_eq!(taken.get(), 1);
    }
}
