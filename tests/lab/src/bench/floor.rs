//! The floor: the least that a program does to join two TCP connections, so that what other forwarders cost beyond it can be seen.
//!
//! One thread waits in epoll, receives and sends, and moves bulk data through pipes. It has no timers, limits, counters, keys
//! or logs. Sockets are registered once and edge-triggered, which costs no further `epoll_ctl`: the kernel reports that a
//! socket has room only after it was full.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, connect,
    ipproto, listen, recv, send, shutdown, socket_with, sockopt,
};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Length of the queue of connections that wait to be accepted.
const QUEUE: i32 = 4096;
/// Events that one call of epoll returns at most.
const EVENTS: usize = 256;
/// What epoll identifies the listener by.
const LISTENER: u64 = u64::MAX;
/// Size of the buffer that all sessions share, in bytes.
const BUFFER: usize = 64 * 1024;
/// Reads in a row that fill the buffer before a direction gets a pipe.
const FULL_READS: u32 = 4;
/// Size of a pipe, in bytes: that of the relay's.
const PIPE_SIZE: usize = 512 * 1024;
/// A direction whose pipe gets fewer bytes at a time copies them again.
const SMALL_PIECE: usize = 16 * 1024;
/// Reads of one direction before others have their turn.
const TURN: u32 = 16;
/// Moves bytes without blocking, and without copying if possible.
const SPLICE: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// Forwards connections to `listen` to `to`, for ever, on this thread.
///
/// # Errors
/// If it cannot listen.
pub fn serve(listen: SocketAddr, to: SocketAddr) -> io::Result<()> {
    Floor::new(TcpListener::bind(listen)?, to)?.run()
}

/// Both ends of a pipe, which is empty or belongs to one direction.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn open() -> rustix::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // If this size is not permitted, the default remains.
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        Ok(Self { read, write })
    }
}

/// What all sessions share.
#[derive(Debug)]
struct Shared {
    buffer: Vec<u8>,
    /// Empty pipes that no direction uses.
    pipes: Vec<Pipe>,
}

impl Shared {
    /// An empty pipe; `None` if the system has none, so that the bytes are copied.
    fn pipe(&mut self) -> Option<Pipe> {
        self.pipes.pop().or_else(|| Pipe::open().ok())
    }
}

/// The loop and its sessions.
#[derive(Debug)]
struct Floor {
    epoll: OwnedFd,
    listener: TcpListener,
    to: SocketAddr,
    sessions: Vec<Option<Session>>,
    /// Places in `sessions` that are empty.
    free: Vec<usize>,
    shared: Shared,
}

impl Floor {
    fn new(listener: TcpListener, to: SocketAddr) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        listen(&listener, QUEUE)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Level-triggered: each event accepts one connection, without a call that finds no other.
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let shared = Shared { buffer: vec![0; BUFFER], pipes: Vec::new() };
        Ok(Self { epoll, listener, to, sessions: Vec::new(), free: Vec::new(), shared })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    end => self.attend(end, event.flags),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let near = match accept_with(&self.listener, flags) {
            Ok(near) => near,
            // The connection has gone again.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // If it fails, the peer learns that by the end of its connection.
        let _ = self.open(near);
        Ok(())
    }

    /// Connects to the far end and begins a session.
    fn open(&mut self, near: OwnedFd) -> rustix::io::Result<()> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let far = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        match connect(&far, &self.to) {
            // Until it is connected, the socket accepts no bytes, as if it was full.
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        let session = Session::new(near, far, place as u64);
        let added = session.ends.iter().try_for_each(|end| {
            sockopt::set_tcp_nodelay(&end.socket, true)?;
            epoll::add(&self.epoll, &end.socket, EventData::new_u64(end.id), End::EVENTS)
        });
        if added.is_ok() {
            self.sessions[place] = Some(session);
        } else {
            self.free.push(place);
        }
        added
    }

    /// Does what an event of an end makes possible. A session that has failed ends for both peers.
    fn attend(&mut self, end: u64, flags: EventFlags) {
        let Ok(place) = usize::try_from(end / 2) else { return };
        // It may have ended earlier in the same batch of events.
        let Some(Some(session)) = self.sessions.get_mut(place) else { return };
        let side = usize::from(end % 2 == 1);
        let done = session.attend(side, flags, &self.epoll, &mut self.shared);
        if done.unwrap_or(true) {
            self.sessions[place] = None;
            self.free.push(place);
        }
    }
}

/// Two peers.
#[derive(Debug)]
struct Session {
    ends: [End; 2],
}

impl Session {
    fn new(near: OwnedFd, far: OwnedFd, place: u64) -> Self {
        Self { ends: [End::new(near, 2 * place), End::new(far, 2 * place + 1)] }
    }

    /// Forwards in the directions that an event of one end concerns. Returns whether the session is over.
    fn attend(
        &mut self,
        side: usize,
        flags: EventFlags,
        epoll: &OwnedFd,
        shared: &mut Shared,
    ) -> rustix::io::Result<bool> {
        let ended = EventFlags::RDHUP | EventFlags::HUP;
        if flags.contains(EventFlags::ERR) {
            return Err(Errno::CONNRESET);
        }
        self.ends[side].has_hung_up |= flags.intersects(ended);
        if flags.intersects(EventFlags::IN | ended) && !self.ends[side].is_blocked() {
            self.forward(side, epoll, shared)?;
        }
        if flags.contains(EventFlags::OUT) && self.ends[1 - side].is_blocked() {
            self.forward(1 - side, epoll, shared)?;
        }
        Ok(self.ends.iter().all(|end| end.is_done))
    }

    /// Forwards from one end to the other.
    fn forward(
        &mut self,
        from: usize,
        epoll: &OwnedFd,
        shared: &mut Shared,
    ) -> rustix::io::Result<()> {
        let [near, far] = &mut self.ends;
        let (from, to) = if from == 0 { (near, far) } else { (far, near) };
        if from.is_done || !from.forward(&to.socket, shared)? {
            return Ok(());
        }
        // Reports the socket again, although nothing new has arrived.
        epoll::modify(epoll, &from.socket, EventData::new_u64(from.id), End::EVENTS)
    }
}

/// One end of a session, and the direction from it to the other end.
#[derive(Debug)]
struct End {
    socket: OwnedFd,
    /// What epoll identifies it by.
    id: u64,
    /// Whether the kernel has reported the end of its stream, to which it must now be read.
    has_hung_up: bool,
    /// Whether its stream has ended and the other end has been told.
    is_done: bool,
    /// Bytes that the other end's socket has not accepted yet.
    rest: Vec<u8>,
    /// Reads in a row that filled the buffer.
    full_reads: u32,
    /// The pipe, while there is bulk data.
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    in_pipe: usize,
}

impl End {
    const EVENTS: EventFlags =
        EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

    fn new(socket: OwnedFd, id: u64) -> Self {
        Self {
            socket,
            id,
            has_hung_up: false,
            is_done: false,
            rest: Vec::new(),
            full_reads: 0,
            pipe: None,
            in_pipe: 0,
        }
    }

    /// Whether bytes wait for room in the other end's socket. Nothing is read meanwhile.
    fn is_blocked(&self) -> bool {
        !self.rest.is_empty() || self.in_pipe > 0
    }

    /// Moves bytes to `to` until there are none or `to` accepts no more. Returns whether it stopped before that, for the sake
    /// of other directions.
    fn forward(&mut self, to: &OwnedFd, shared: &mut Shared) -> rustix::io::Result<bool> {
        if !self.flush(to)? {
            return Ok(false);
        }
        for _ in 0..TURN {
            let is_more = match &self.pipe {
                Some(_) => self.splice(to, shared)?,
                None => self.copy(to, shared)?,
            };
            if !is_more || self.is_blocked() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends what waits. Returns whether everything has been sent.
    fn flush(&mut self, to: &OwnedFd) -> rustix::io::Result<bool> {
        if !self.rest.is_empty() {
            let sent = send_all(to, &self.rest)?;
            self.rest.drain(..sent);
        }
        if let Some(pipe) = &self.pipe {
            while self.in_pipe > 0
                && let Some(moved) =
                    unless_blocked(splice(&pipe.read, None, to, None, self.in_pipe, SPLICE))?
            {
                self.in_pipe -= moved;
            }
        }
        Ok(!self.is_blocked())
    }

    /// Receives and sends once. Returns whether there may be more to receive.
    fn copy(&mut self, to: &OwnedFd, shared: &mut Shared) -> rustix::io::Result<bool> {
        let buffer = &mut shared.buffer;
        let received =
            unless_blocked(recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()))?;
        let Some((read, _)) = received else { return Ok(false) };
        if read == 0 {
            return self.finish(to);
        }
        let sent = send_all(to, &buffer[..read])?;
        self.rest.extend_from_slice(&buffer[sent..read]);
        let is_full = read == buffer.len();
        self.full_reads = if is_full { self.full_reads + 1 } else { 0 };
        if self.full_reads == FULL_READS {
            self.full_reads = 0;
            self.pipe = shared.pipe();
        }
        // After less than a full buffer there is nothing left but, possibly, the end.
        Ok(is_full || self.has_hung_up)
    }

    /// Fills the empty pipe and empties it again. Returns whether there may be more to receive.
    fn splice(&mut self, to: &OwnedFd, shared: &mut Shared) -> rustix::io::Result<bool> {
        let Some(pipe) = &self.pipe else { return Ok(false) };
        let received = splice(&self.socket, None, &pipe.write, None, PIPE_SIZE, SPLICE);
        let Some(moved) = unless_blocked(received)? else { return Ok(false) };
        if moved == 0 {
            return self.finish(to);
        }
        self.in_pipe = moved;
        if self.flush(to)? && moved < SMALL_PIECE {
            shared.pipes.extend(self.pipe.take());
        }
        // Its pages may be all in use before all its bytes are, so only an empty socket shows that there is nothing left.
        Ok(true)
    }

    /// Tells the other end that the stream is over.
    fn finish(&mut self, to: &OwnedFd) -> rustix::io::Result<bool> {
        self.is_done = true;
        shutdown(to, Shutdown::Write)?;
        Ok(false)
    }
}

/// Sends until everything is sent or the socket is full. Returns how many bytes were sent.
fn send_all(to: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len()
        && let Some(more) = unless_blocked(send(to, &bytes[sent..], SendFlags::NOSIGNAL))?
    {
        sent += more;
    }
    Ok(sent)
}

/// The result of a system call; `None` if it would have to wait.
fn unless_blocked<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::sockets::connected_pair;
    use crate::traffic;

    /// Bytes with which a direction uses its pipe.
    const LARGE: u64 = 16 * 1024 * 1024;
    /// Bytes for a fast reader.
    const BULK: usize = 256 * 1024 * 1024;
    /// Socket buffers of a slow session, in bytes.
    const SMALL_BUFFER: usize = 128 * 1024;
    /// Longest duration of a test.
    const LONGEST: Duration = Duration::from_secs(60);

    /// A floor on a thread that ends with the test's process, and the far end behind it.
    struct Bench {
        front: SocketAddr,
        far: tokio::net::TcpListener,
    }

    impl Bench {
        async fn start() -> Self {
            Self::with(TcpListener::bind("127.0.0.1:0").unwrap()).await
        }

        async fn with(listener: TcpListener) -> Self {
            let far = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let front = listener.local_addr().unwrap();
            let floor = Floor::new(listener, far.local_addr().unwrap()).unwrap();
            std::thread::spawn(move || floor.run());
            Self { front, far }
        }

        /// Opens a session; one at a time, so that the two ends belong together.
        async fn open(&self) -> (TcpStream, TcpStream) {
            let client = TcpStream::connect(self.front).await.unwrap();
            (client, self.far.accept().await.unwrap().0)
        }
    }

    async fn in_time(test: impl Future<Output = ()>) {
        timeout(LONGEST, test).await.unwrap();
    }

    /// Sends a stream to its end.
    async fn send(mut to: impl tokio::io::AsyncWrite + Unpin, seed: u64, length: u64) {
        traffic::send(&mut to, seed, length).await.unwrap();
        to.shutdown().await.unwrap();
    }

    /// Receives a stream to its end.
    async fn receive(mut from: impl tokio::io::AsyncRead + Unpin, seed: u64, length: u64) {
        traffic::verify(&mut from, seed, length, |_| {}).await.unwrap();
        assert_eq!(from.read(&mut [0]).await.unwrap(), 0, "more than was sent");
    }

    /// Sends verified data both ways at the same time.
    async fn both_ways(client: TcpStream, host: TcpStream, seed: u64, length: u64) {
        let (client, host) = (client.into_split(), host.into_split());
        tokio::join!(
            send(client.1, seed, length),
            receive(host.0, seed, length),
            send(host.1, seed + 1, length),
            receive(client.0, seed + 1, length),
        );
    }

    #[tokio::test]
    async fn small_messages_pass_both_ways() {
        in_time(async {
            let (mut client, mut host) = Bench::start().await.open().await;
            for size in [1, 64, 4096, BUFFER - 1, BUFFER, BUFFER + 1] {
                let mut message = traffic::Stream::bytes(1, size);
                client.write_all(&message).await.unwrap();
                message.fill(0);
                host.read_exact(&mut message).await.unwrap();
                assert_eq!(message, traffic::Stream::bytes(1, size), "{size} bytes there");
                host.write_all(&message).await.unwrap();
                message.fill(0);
                client.read_exact(&mut message).await.unwrap();
                assert_eq!(message, traffic::Stream::bytes(1, size), "{size} bytes back");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn large_transfers_pass_both_ways_through_pipes() {
        in_time(async {
            let (client, host) = Bench::start().await.open().await;
            both_ways(client, host, 1, LARGE).await;
        })
        .await;
    }

    #[tokio::test]
    async fn direction_has_a_pipe_only_while_there_is_bulk_data() {
        in_time(async {
            let (mut peer, near) = connected_pair().await.unwrap();
            let (far, mut partner) = connected_pair().await.unwrap();
            let mut end = End::new(near.into_std().unwrap().into(), 0);
            let far = far.into_std().unwrap().into();
            let mut shared = Shared { buffer: vec![0; BUFFER], pipes: Vec::new() };
            let sending = tokio::spawn(async move {
                traffic::send(&mut peer, 1, LARGE).await.unwrap();
                peer
            });
            let receiving = tokio::spawn(async move {
                traffic::verify(&mut partner, 1, LARGE, |_| {}).await.unwrap();
                partner
            });
            let mut has_had_pipe = false;
            while !receiving.is_finished() {
                end.forward(&far, &mut shared).unwrap();
                has_had_pipe |= end.pipe.is_some();
                tokio::task::yield_now().await;
            }
            assert!(has_had_pipe);
            let (mut peer, mut partner) = (sending.await.unwrap(), receiving.await.unwrap());
            peer.write_all(b"x").await.unwrap();
            let receiving = tokio::spawn(async move { partner.read_u8().await });
            while !receiving.is_finished() {
                end.forward(&far, &mut shared).unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(receiving.await.unwrap().unwrap(), b'x');
            assert!(end.pipe.is_none() && !shared.pipes.is_empty(), "{end:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn bulk_data_for_a_fast_reader_does_not_stall() {
        in_time(async {
            let bench = Bench::start().await;
            let mut ends = JoinSet::new();
            for _ in 0..4 {
                let (client, host) = bench.open().await;
                let (mut to, mut from) = (client.into_std().unwrap(), host.into_std().unwrap());
                to.set_nonblocking(false).unwrap();
                to.set_write_timeout(Some(LONGEST)).unwrap();
                from.set_nonblocking(false).unwrap();
                from.set_read_timeout(Some(LONGEST)).unwrap();
                // On threads of their own, so that the reader keeps up: otherwise the floor would always find full sockets.
                ends.spawn_blocking(move || {
                    let chunk = vec![7; 128 * 1024];
                    for _ in 0..BULK / chunk.len() {
                        to.write_all(&chunk).unwrap();
                    }
                });
                ends.spawn_blocking(move || {
                    let mut buffer = vec![0; 256 * 1024];
                    let mut received = 0;
                    while let read @ 1.. = from.read(&mut buffer).unwrap() {
                        received += read;
                    }
                    assert_eq!(received, BULK);
                });
            }
            while let Some(ended) = ends.join_next().await {
                ended.unwrap();
            }
        })
        .await;
    }

    #[tokio::test]
    async fn slow_reader_gets_every_byte_and_stops_only_its_own_session() {
        in_time(async {
            // The kernel keeps less than is sent.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            SockRef::from(&listener).set_recv_buffer_size(SMALL_BUFFER).unwrap();
            let bench = Bench::with(listener).await;
            let (client, host) = bench.open().await;
            SockRef::from(&client).set_send_buffer_size(SMALL_BUFFER).unwrap();
            SockRef::from(&host).set_recv_buffer_size(SMALL_BUFFER).unwrap();
            let sending = tokio::spawn(send(client.into_split().1, 1, LARGE));
            let (fast, far) = bench.open().await;
            both_ways(fast, far, 2, LARGE).await;
            assert!(!sending.is_finished(), "nobody has read");
            receive(host, 1, LARGE).await;
            sending.await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn peer_that_has_finished_sending_still_receives() {
        in_time(async {
            for size in [0, 1, LARGE] {
                let (mut client, mut host) = Bench::start().await.open().await;
                tokio::join!(send(&mut client, 1, size), receive(&mut host, 1, size));
                tokio::join!(send(&mut host, 2, LARGE), receive(&mut client, 2, LARGE));
            }
        })
        .await;
    }

    #[tokio::test]
    async fn many_connections_are_served_at_the_same_time() {
        in_time(async {
            let bench = Bench::start().await;
            let mut sessions = JoinSet::new();
            for number in 0..200 {
                let (client, host) = bench.open().await;
                sessions.spawn(both_ways(client, host, 2 * number, 128 * 1024 + number));
            }
            while let Some(ended) = sessions.join_next().await {
                ended.unwrap();
            }
        })
        .await;
    }

    #[tokio::test]
    async fn connection_that_is_reset_ends_that_of_its_partner_and_no_other() {
        in_time(async {
            let bench = Bench::start().await;
            let (other, far) = bench.open().await;
            for is_host in [false, true] {
                let (client, host) = bench.open().await;
                let (gone, mut left) = if is_host { (host, client) } else { (client, host) };
                SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
                drop(gone);
                // The end of the stream, or an error: the connection is over.
                assert!(matches!(left.read(&mut [0]).await, Ok(0) | Err(_)));
            }
            both_ways(other, far, 1, LARGE).await;
        })
        .await;
    }

    #[tokio::test]
    async fn partner_that_leaves_ends_the_session_of_one_who_sends() {
        in_time(async {
            let (mut client, host) = Bench::start().await.open().await;
            drop(host);
            let chunk = [7; 64 * 1024];
            while client.write_all(&chunk).await.is_ok() {}
        })
        .await;
    }

    #[tokio::test]
    async fn connection_ends_if_nobody_listens_at_the_far_end() {
        in_time(async {
            let Bench { front, far } = Bench::start().await;
            drop(far);
            let mut client = TcpStream::connect(front).await.unwrap();
            assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        })
        .await;
    }
}
