//! A proxy between a relay and its descriptor store, which fails at the message that a test chooses.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::protocol::{MAX_MESSAGE, MAX_MESSAGE_DESCRIPTORS};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
    recvmsg, sendmsg, socket_with,
};

/// What happens at the chosen message.
pub enum StoreFault {
    /// The function is called, and the proxy goes on.
    Call(Box<dyn FnOnce() + Send>),
    /// The connection is closed.
    Close,
    /// Nothing is forwarded on this connection any more, which stays open.
    Hang,
    /// The relay receives bytes that are no message.
    Garbage,
}

impl fmt::Debug for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Call(_) => "Call",
            Self::Close => "Close",
            Self::Hang => "Hang",
            Self::Garbage => "Garbage",
        })
    }
}

#[derive(Debug, Default)]
struct ProxyState {
    /// The faults to come, each with the number of messages that are still forwarded before it.
    faults: VecDeque<(usize, StoreFault)>,
    begun: usize,
}

impl ProxyState {
    /// Counts a message that was forwarded. Returns whether the next fault is due.
    fn count_message(&mut self) -> bool {
        let Some((left, _)) = self.faults.front_mut() else { return false };
        *left = left.saturating_sub(1);
        *left == 0
    }
}

/// The proxy. Relays connect to its own address; it connects to the store for each of them.
#[derive(Debug)]
pub struct StoreProxy {
    address: StoreAddress,
    state: Arc<Mutex<ProxyState>>,
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// A connection of a relay and that to the store.
struct ProxiedConnection {
    sides: [OwnedFd; 2],
    is_hanging: bool,
}

impl StoreProxy {
    /// Listens at `address` for relays, and forwards to the store at `store`.
    ///
    /// # Errors
    /// The system's error.
    pub fn start(address: StoreAddress, store: StoreAddress) -> io::Result<Self> {
        let listener = seqpacket()?;
        rustix::net::bind(&listener, &system_address(&address)?)?;
        rustix::net::listen(&listener, 16)?;
        let state = Arc::new(Mutex::new(ProxyState::default()));
        let (stopped, stop) = io::pipe()?;
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            // The test sees that the store does not answer.
            let _ = serve(&listener, &stopped.into(), &store, &shared);
        });
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// The address for the relay.
    pub fn address(&self) -> &StoreAddress {
        &self.address
    }

    /// Fails once, after `messages` more messages in both directions have been forwarded; with 0, before the next one.
    pub fn fail_after(&self, messages: usize, fault: StoreFault) {
        self.fail_in_turn([(messages, fault)]);
    }

    /// Fails several times, each after as many more messages since the fault before.
    pub fn fail_in_turn(&self, faults: impl IntoIterator<Item = (usize, StoreFault)>) {
        let faults = faults.into_iter().collect();
        *self.state.lock() = ProxyState { faults, begun: 0 };
    }

    /// Calls off the faults that have not begun.
    pub fn disarm(&self) {
        self.state.lock().faults.clear();
    }

    /// The number of faults that have begun.
    pub fn begun_faults(&self) -> usize {
        self.state.lock().begun
    }

    /// Whether a fault has begun.
    pub fn has_failed(&self) -> bool {
        self.begun_faults() > 0
    }
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn system_address(address: &StoreAddress) -> io::Result<SocketAddrUnix> {
    Ok(match address {
        StoreAddress::Path(path) => SocketAddrUnix::new(path.as_path())?,
        StoreAddress::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    })
}

fn serve(
    listener: &OwnedFd,
    stopped: &OwnedFd,
    store: &StoreAddress,
    state: &Mutex<ProxyState>,
) -> io::Result<()> {
    let mut connections: Vec<ProxiedConnection> = Vec::new();
    loop {
        let mut asked = vec![PollFd::new(stopped, PollFlags::IN)];
        asked.push(PollFd::new(listener, PollFlags::IN));
        for connection in &connections {
            let events = if connection.is_hanging { PollFlags::empty() } else { PollFlags::IN };
            asked.extend(connection.sides.iter().map(|side| PollFd::new(side, events)));
        }
        poll(&mut asked, None)?;
        let ready: Vec<bool> = asked.iter().map(|asked| !asked.revents().is_empty()).collect();
        if ready[0] {
            return Ok(());
        }
        let mut number = 0;
        connections.retain_mut(|connection| {
            let sides = [ready[2 + 2 * number], ready[3 + 2 * number]];
            number += 1;
            (0..2).filter(|side| sides[*side]).all(|from| connection.forward(from, state).is_some())
        });
        if ready[1] {
            let relay = accept_with(listener, SocketFlags::CLOEXEC)?;
            let to_store = seqpacket()?;
            // Without a store, the relay sees that the connection is closed.
            if connect(&to_store, &system_address(store)?).is_ok() {
                connections.push(ProxiedConnection { sides: [relay, to_store], is_hanging: false });
            }
        }
    }
}

impl ProxiedConnection {
    /// Forwards a message from one side to the other; `None` if the connection is over.
    fn forward(&mut self, from: usize, state: &Mutex<ProxyState>) -> Option<()> {
        if self.is_hanging {
            // One of them has closed it.
            return None;
        }
        if state.lock().faults.front().is_some_and(|(left, _)| *left == 0) {
            self.fail(state)?;
            if self.is_hanging {
                return Some(());
            }
        }
        let (bytes, descriptors) = receive(&self.sides[from])?;
        send(&self.sides[1 - from], &bytes, &descriptors)?;
        let is_due = state.lock().count_message();
        if is_due { self.fail(state) } else { Some(()) }
    }

    fn fail(&mut self, state: &Mutex<ProxyState>) -> Option<()> {
        let fault = {
            let mut state = state.lock();
            let (_, fault) = state.faults.pop_front()?;
            // Before the fault itself, so that a test that calls it off sees either no fault or one that has begun.
            state.begun += 1;
            fault
        };
        match fault {
            StoreFault::Call(function) => function(),
            StoreFault::Close => return None,
            StoreFault::Hang => self.is_hanging = true,
            StoreFault::Garbage => {
                send(&self.sides[0], b"\xff\xff\xff garbage", &[])?;
            }
        }
        Some(())
    }
}

fn receive(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    (received.bytes > 0).then_some((bytes, descriptors))
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> Option<()> {
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return None;
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).ok().map(|_| ())
}
