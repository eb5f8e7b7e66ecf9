//! A kernel in memory: sockets whose peers the test plays, pipes, and calls that fail as the test wants.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::io::{Errno, Interest};

/// The size of a pipe in bytes.
pub(crate) const PIPE_SIZE: usize = 512 * 1024;

/// How many calls a poll makes at most: it moves its budget, hardly ever byte by byte.
const MAX_CALLS: u32 = 100_000;

/// What a call does instead of succeeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It fails with `EINTR`.
    Interrupted,
    /// It fails with `EAGAIN`, and the socket becomes ready later.
    NotReady,
    /// It moves at most this many bytes. A socket becomes ready later for the rest.
    Short(usize),
    /// `splice` fails with this error, and the connection is alive. Other calls succeed.
    Refused(Errno),
}

thread_local! {
    /// What the next calls do; the rest succeed.
    static FAULTS: RefCell<VecDeque<Fault>> = RefCell::default();
    static CALLS: Cell<u32> = const { Cell::new(0) };
    static OBJECTS: RefCell<HashMap<RawFd, Object>> = RefCell::default();
}

#[derive(Clone)]
enum Object {
    Socket(Arc<Mutex<Socket>>),
    Pipe(Arc<Mutex<VecDeque<u8>>>),
}

/// Starts anew, with faults for the first calls.
pub(crate) fn boot(faults: Vec<Fault>) {
    FAULTS.set(faults.into());
    OBJECTS.take();
}

/// Begins to count the calls of a poll.
pub(crate) fn begin_poll() {
    CALLS.set(0);
}

fn next_fault() -> Fault {
    CALLS.set(CALLS.get() + 1);
    assert!(CALLS.get() < MAX_CALLS, "the task spins");
    FAULTS.with_borrow_mut(VecDeque::pop_front).unwrap_or(Fault::None)
}

/// A descriptor of its own, of which only the number is used.
pub(crate) fn descriptor() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

pub(crate) fn name_socket(fd: &OwnedFd, socket: &Arc<Mutex<Socket>>) {
    name(fd, Object::Socket(socket.clone()));
}

fn name(fd: &OwnedFd, object: Object) {
    OBJECTS.with_borrow_mut(|objects| objects.insert(fd.as_raw_fd(), object));
}

fn object(fd: RawFd) -> Object {
    OBJECTS.with_borrow(|objects| objects[&fd].clone())
}

pub(crate) fn socket(fd: RawFd) -> Arc<Mutex<Socket>> {
    match object(fd) {
        Object::Socket(socket) => socket,
        Object::Pipe(_) => panic!("{fd} is a pipe"),
    }
}

pub(crate) fn open_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = (descriptor(), descriptor());
    let pipe = Arc::default();
    name(&read, Object::Pipe(Arc::clone(&pipe)));
    name(&write, Object::Pipe(pipe));
    (read, write)
}

pub(crate) fn read_pipe(fd: RawFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let Object::Pipe(pipe) = object(fd) else { panic!("{fd} is a socket") };
    let max = match next_fault() {
        Fault::Interrupted => return Err(Errno::INTR),
        Fault::Short(max) => max,
        Fault::None | Fault::NotReady | Fault::Refused(_) => usize::MAX,
    };
    let mut pipe = pipe.lock();
    if pipe.is_empty() {
        return Err(Errno::AGAIN);
    }
    let count = buffer.len().min(pipe.len()).min(max);
    pipe.drain(..count).zip(buffer).for_each(|(from, to)| *to = from);
    Ok(count)
}

pub(crate) fn splice(from: RawFd, to: RawFd, max: usize) -> Result<usize, Errno> {
    match (object(from), object(to)) {
        (Object::Socket(from), Object::Pipe(to)) => from.lock().splice_to(&mut to.lock(), max),
        (Object::Pipe(from), Object::Socket(to)) => to.lock().splice_from(&mut from.lock(), max),
        _ => panic!("neither or both are pipes"),
    }
}

/// A connection of the relay. The peer at its other end is the test.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    /// Sent by the peer and not read.
    pub(crate) received: VecDeque<u8>,
    /// Whether the peer's FIN follows.
    pub(crate) has_ended: bool,
    /// Whether the connection is over.
    pub(crate) is_reset: bool,
    /// What the next call reports, once.
    pub(crate) error: Option<Errno>,
    /// Written by the relay, and not acknowledged by the peer.
    pub(crate) sent: VecDeque<u8>,
    /// How many bytes may be unacknowledged.
    pub(crate) send_buffer: usize,
    /// Whether the relay sent a FIN.
    pub(crate) is_shut_down: bool,
    /// Whether a write has met a full buffer, so that the runtime learns when there is room.
    wants_room: bool,
    ready: Readiness,
    /// Readiness that the runtime learns of later.
    late: Readiness,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watchers: Vec<Waker>,
}

/// What the runtime knows of a socket.
#[derive(Debug, Default, Clone, Copy)]
struct Readiness {
    read: bool,
    write: bool,
    /// That the connection is over, or the peer has finished, is never forgotten.
    read_closed: bool,
    write_closed: bool,
    error: bool,
}

impl Socket {
    pub(crate) fn new(send_buffer: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { send_buffer, ..Self::default() }))
    }

    /// Registers the socket with a runtime anew, which learns what it is ready for, but not of what is late.
    pub(crate) fn register(&mut self) {
        (self.reader, self.writer) = (None, None);
        self.watchers.clear();
        self.ready = Readiness {
            read: !self.received.is_empty() || self.has_ended || self.is_reset,
            write: self.is_writable(),
            read_closed: self.has_ended || self.is_reset,
            write_closed: self.is_reset,
            error: self.error.is_some(),
        };
        self.wants_room = !self.is_writable();
    }

    pub(crate) fn is_ready(&self, interest: Interest) -> bool {
        let ready = &self.ready;
        match interest {
            Interest::Readable => ready.read || ready.read_closed,
            Interest::Writable => ready.write || ready.write_closed,
            Interest::Error => ready.error,
        }
    }

    pub(crate) fn clear_ready(&mut self, interest: Interest) {
        match interest {
            Interest::Readable => self.ready.read = false,
            Interest::Writable => self.ready.write = false,
            Interest::Error => self.ready.error = false,
        }
    }

    /// Only the last task that waits for readability or writability is woken.
    pub(crate) fn poll_ready(&mut self, interest: Interest, context: &Context<'_>) -> Poll<()> {
        if self.is_ready(interest) {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        match interest {
            Interest::Readable => self.reader = Some(waker),
            Interest::Writable => self.writer = Some(waker),
            Interest::Error => self.watchers.push(waker),
        }
        Poll::Pending
    }

    /// Wakes those who wait for what is ready now.
    fn wake(&mut self) {
        if self.is_ready(Interest::Readable) {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        if self.is_ready(Interest::Writable) {
            self.writer.take().into_iter().for_each(Waker::wake);
        }
        if self.is_ready(Interest::Error) {
            self.watchers.drain(..).for_each(Waker::wake);
        }
    }

    pub(crate) fn has_late_events(&self) -> bool {
        self.late.read || self.late.write
    }

    /// Tells the runtime what it was to learn later.
    pub(crate) fn deliver_late_events(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.ready.read |= late.read;
        self.ready.write |= late.write;
        self.wake();
    }

    /// The peer sends bytes.
    pub(crate) fn arrive(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.received.extend(bytes);
        self.ready.read = true;
        self.wake();
    }

    /// The peer sends its FIN.
    pub(crate) fn end(&mut self) {
        self.has_ended = true;
        (self.ready.read, self.ready.read_closed) = (true, true);
        self.wake();
    }

    /// The connection ends with an error. What has arrived can still be read.
    pub(crate) fn reset(&mut self, error: Errno) {
        (self.is_reset, self.error) = (true, Some(error));
        self.ready = Readiness {
            read: true,
            write: true,
            read_closed: true,
            write_closed: true,
            error: true,
        };
        self.wake();
    }

    /// The peer acknowledges up to `max` bytes, which are returned.
    pub(crate) fn acknowledge(&mut self, max: usize) -> Vec<u8> {
        let count = max.min(self.sent.len());
        let bytes = self.sent.drain(..count).collect();
        if self.wants_room && self.is_writable() {
            (self.wants_room, self.ready.write) = (false, true);
            self.wake();
        }
        bytes
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.is_reset || self.sent.len() < self.send_buffer
    }

    pub(crate) fn shut_down(&mut self) -> io::Result<()> {
        if self.is_reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.is_shut_down = true;
        Ok(())
    }

    /// Returns how many of at most `max` bytes can be read; 0 at the end of the stream.
    fn readable(&mut self, max: usize) -> Result<usize, Errno> {
        if !self.received.is_empty() {
            return Ok(max.min(self.received.len()));
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.has_ended || self.is_reset { Ok(0) } else { Err(Errno::AGAIN) }
    }

    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut max = buffer.len();
        match next_fault() {
            Fault::Interrupted => return Err(Errno::INTR),
            // As if what can be read arrived only after the call.
            Fault::NotReady if self.readable_later() => return Err(Errno::AGAIN),
            Fault::Short(short) if short < max.min(self.received.len()) => {
                self.late.read = true;
                max = short;
            }
            _ => {}
        }
        let count = self.readable(max)?;
        self.received.drain(..count).zip(buffer).for_each(|(from, to)| *to = from);
        Ok(count)
    }

    /// Whether there is something to be read, which then becomes ready later.
    fn readable_later(&mut self) -> bool {
        let is_later = !self.received.is_empty();
        self.late.read |= is_later;
        is_later
    }

    fn splice_to(&mut self, pipe: &mut VecDeque<u8>, max: usize) -> Result<usize, Errno> {
        assert!(pipe.is_empty(), "a full pipe cannot be told from an empty socket");
        let mut max = max.min(PIPE_SIZE);
        match next_fault() {
            Fault::Interrupted => return Err(Errno::INTR),
            Fault::NotReady if self.readable_later() => return Err(Errno::AGAIN),
            // The pipe is full, however few bytes that are. No event follows for the rest.
            Fault::Short(short) => max = max.min(short),
            Fault::Refused(error) => return Err(error),
            Fault::None | Fault::NotReady => {}
        }
        let count = self.readable(max)?;
        pipe.extend(self.received.drain(..count));
        Ok(count)
    }

    /// Returns how many of at most `max` bytes can be written.
    fn writable(&mut self, max: usize) -> Result<usize, Errno> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.is_reset || self.is_shut_down {
            return Err(Errno::PIPE);
        }
        let room = self.send_buffer.saturating_sub(self.sent.len());
        self.wants_room |= room < max;
        if room == 0 { Err(Errno::AGAIN) } else { Ok(max.min(room)) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut max = bytes.len();
        match next_fault() {
            Fault::Interrupted => return Err(Errno::INTR),
            Fault::NotReady if !self.is_reset => {
                self.late.write = true;
                return Err(Errno::AGAIN);
            }
            Fault::Short(short) if short < max => {
                self.late.write = true;
                max = short;
            }
            _ => {}
        }
        let count = self.writable(max)?;
        self.sent.extend(&bytes[..count]);
        Ok(count)
    }

    fn splice_from(&mut self, pipe: &mut VecDeque<u8>, max: usize) -> Result<usize, Errno> {
        let mut max = max.min(pipe.len());
        match next_fault() {
            Fault::Interrupted => return Err(Errno::INTR),
            Fault::NotReady if !self.is_reset => {
                self.late.write = true;
                return Err(Errno::AGAIN);
            }
            Fault::Short(short) => max = max.min(short),
            Fault::Refused(error) => return Err(error),
            Fault::None | Fault::NotReady => {}
        }
        let count = self.writable(max)?;
        self.sent.extend(pipe.drain(..count));
        Ok(count)
    }
}
