//! Delay and reordering of packets to a namespace: the kernel queues each packet, and gets it back later. The queue
//! (`NFQUEUE`) is available in more kernels than their network emulator (`netem`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::{Namespace, run};
use crate::traffic::Stream;

/// The number of the queue.
const QUEUE: u16 = 7;
/// Maximum number of delayed packets; more are lost.
const MOST: u32 = 16_384;
/// Resolution of delays.
const LOOK: Duration = Duration::from_millis(1);

/// What passed through a wire.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Packets.
    pub packets: u64,
    /// Packets that left after one that had entered later.
    pub overtaken: u64,
}

/// Delays each packet by a different time, until it is removed.
#[derive(Debug)]
pub struct Wire<'a> {
    namespace: &'a Namespace,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Passed>>>,
}

impl<'a> Wire<'a> {
    /// Delays every TCP packet that reaches or leaves `namespace` by up to `longest`.
    ///
    /// # Errors
    /// If the kernel has no such queue, `iptables` is missing, or the user is not root.
    pub fn new(namespace: &'a Namespace, longest: Duration) -> io::Result<Self> {
        let place = File::open(namespace.path())?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, wait) = channel();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || carry(&place, longest, &stopped, &ready));
        let mut wire = Self { namespace, stop, thread: Some(thread) };
        if wait.recv().is_err() {
            return Err(wire.end().err().unwrap_or_else(|| io::Error::other("no queue")));
        }
        wire.rules("-A")?;
        Ok(wire)
    }

    /// Adds (`-A`) or deletes (`-D`) the rules that queue packets.
    fn rules(&self, what: &str) -> io::Result<()> {
        for chain in ["INPUT", "OUTPUT"] {
            let rule = format!("{what} {chain} -p tcp -j NFQUEUE --queue-num {QUEUE}");
            run(self.namespace.command("iptables").args(rule.split(' ')))?;
        }
        Ok(())
    }

    /// Removes it. Delayed packets arrive.
    ///
    /// # Errors
    /// Any error since it was created.
    pub fn take_away(mut self) -> io::Result<Passed> {
        self.rules("-D")?;
        self.end()
    }

    fn end(&mut self) -> io::Result<Passed> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().map(JoinHandle::join);
        thread.unwrap_or(Ok(Ok(Passed::default()))).map_err(|_| io::Error::other("it panicked"))?
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn carry(
    namespace: &File,
    longest: Duration,
    stop: &AtomicBool,
    ready: &Sender<()>,
) -> io::Result<Passed> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    queue.set_queue_max_len(QUEUE, MOST)?;
    queue.set_nonblocking(true);
    // The receiver may have been dropped.
    let _ = ready.send(());
    let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX).max(1);
    let mut dice = Stream::new(1);
    let mut on_the_way: BTreeMap<(Instant, u64), Message> = BTreeMap::new();
    let (mut passed, mut latest) = (Passed::default(), 0);
    loop {
        let is_over = stop.load(Ordering::Relaxed);
        loop {
            match queue.recv() {
                Ok(message) => {
                    let mut delay = [0; 8];
                    dice.fill(&mut delay);
                    let delay = Duration::from_micros(u64::from_le_bytes(delay) % longest);
                    passed.packets += 1;
                    on_the_way.insert((Instant::now() + delay, passed.packets), message);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let now = Instant::now();
        while let Some(next) = on_the_way.first_entry() {
            let (due, number) = *next.key();
            if due > now && !is_over {
                break;
            }
            let mut message = next.remove();
            message.set_verdict(Verdict::Accept);
            queue.verdict(message)?;
            passed.overtaken += u64::from(number < latest);
            latest = latest.max(number);
        }
        if is_over {
            return queue.unbind(QUEUE).map(|()| passed);
        }
        sleep(LOOK);
    }
}
