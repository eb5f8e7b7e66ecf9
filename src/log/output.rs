//! The outputs of the log: for each a bounded queue and a thread that writes its lines, so that nobody who logs ever waits
//! for a reader or a disk.
//!
//! An output that does not take a line (a full disk, a reader that has gone or that hangs) is reported on another one, once
//! until it takes lines again. Lines that must be seen go to another output instead; the others are lost, and counted.
//! Whether an output hangs is looked at both when a line comes for it and now and then, by the threads of the others: the
//! line that hangs may be the last one for long.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::limit::LineLimit;

/// Lines that wait for an output, of each: some megabytes at most.
const WAITING_LINES: usize = 8192;
/// An output that has not taken one line for this long is passed over by lines that must be seen.
const STALLED: Duration = Duration::from_secs(5);
/// How often it is said of one output that it does not take lines: it may come and go.
const REPORT_PERIOD: Duration = Duration::from_secs(60);
/// How long the last lines may take when the log ends, on all outputs together.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Lines that were not written; a clone is the same count.
#[derive(Debug, Clone, Default)]
pub struct LostLines(Arc<AtomicU64>);

impl LostLines {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the lines of an output end.
pub(super) trait Destination: Send {
    /// Writes one whole line; it may block.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()>;
}

/// Writes a whole line, after a new one is begun where the one before was `torn` by an error.
pub(super) fn write_whole(to: &mut impl io::Write, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        put(to, b"\n").map_err(|(_, error)| error)?;
        *torn = false;
    }
    put(to, line).map_err(|(written, error)| {
        *torn = written > 0;
        error
    })
}

/// Writes all bytes. An error comes with how many were written before it.
fn put(to: &mut impl io::Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    /// A reader that shares a pipe may have made it one that does not block.
    const PAUSE: Duration = Duration::from_millis(10);
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err((written, error)),
        }
    }
    to.flush().map_err(|error| (written, error))
}

/// One line on its way.
#[derive(Debug, Clone)]
struct Line {
    bytes: Vec<u8>,
    must_be_seen: bool,
    /// The outputs that did not take it, a bit for each.
    refused_by: u8,
}

impl Line {
    /// Whether another output must have it where this one does not take it.
    fn is_news_for(&self, channel: &Channel) -> bool {
        // One that came from elsewhere has nobody else.
        self.must_be_seen && (channel.is_replaced || self.refused_by != 0)
    }
}

/// What an output is sent.
#[derive(Debug)]
enum Message {
    Line(Line),
    /// Something about another output, to be logged.
    Report(String),
    /// Tells when everything before it is written.
    Flush(Sender<()>),
}

/// The near end of an output.
#[derive(Debug)]
struct Channel {
    /// What it is, for people.
    name: String,
    sender: Sender<Message>,
    /// Whether lines that must be seen may come here instead of to another one.
    takes_over: bool,
    /// Whether others take over from it: not where they have the same lines anyway.
    is_replaced: bool,
    /// Whether there is a `failure`; to be looked at without a lock.
    is_failing: AtomicBool,
    failure: Mutex<Failure>,
    /// Since when one line is being written, in nanoseconds of the process; 0 where none is.
    writing_since: AtomicU64,
    /// That line, where it must be seen and another output may take it: until it is written or handed on.
    writing: Mutex<Option<Line>>,
    /// The far end, for whoever hands on what waits here in vain.
    waiting: Receiver<Message>,
    /// Held by whoever does.
    rescue: Mutex<()>,
    reports: LineLimit,
}

/// Since an output began to fail.
#[derive(Debug, Default)]
struct Failure {
    /// Whether it may be said, and said that it is over.
    may_be_said: bool,
    /// Whether another output has taken the report.
    is_reported: bool,
    /// Lines lost.
    lost: u64,
}

/// What tests change.
struct Setup {
    /// Lines that wait for an output.
    waiting: usize,
    stalled: Duration,
    /// How often it is looked whether an output hangs.
    look_every: Duration,
    report_period: Duration,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    thread: fn() -> thread::Builder,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            waiting: WAITING_LINES,
            stalled: STALLED,
            look_every: STALLED,
            report_period: REPORT_PERIOD,
            clock: Box::new(Instant::now),
            thread: thread::Builder::new,
        }
    }
}

/// All outputs of a log; a clone is the same ones.
#[derive(Debug, Clone)]
pub(super) struct Outputs(Arc<Inner>);

struct Inner {
    channels: Vec<Channel>,
    began: Instant,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    stalled: Duration,
    look_every: Duration,
    lost: LostLines,
    /// Whether a line that must be seen is nowhere.
    has_lost_news: AtomicBool,
    report: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.channels).finish()
    }
}

/// An output to be started.
pub(super) struct Output {
    /// What it is, for people.
    pub(super) name: String,
    /// Where its lines end.
    pub(super) destination: Box<dyn Destination>,
    /// Whether lines that must be seen may come here instead of to another one.
    pub(super) takes_over: bool,
    /// Whether others take over from it.
    pub(super) is_replaced: bool,
}

/// Has the last lines written when it is dropped, within a time.
#[derive(Debug)]
pub struct LogGuard {
    outputs: Outputs,
    is_finished: bool,
}

impl LogGuard {
    /// Has the last lines written, within a time. Whether every line that had to be seen is somewhere.
    pub fn finish(self) -> bool {
        self.finish_within(LAST_LINES)
    }

    fn finish_within(mut self, limit: Duration) -> bool {
        self.is_finished = true;
        let is_written = self.outputs.flush(limit);
        is_written && !self.outputs.0.has_lost_news.load(Ordering::Relaxed)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if !self.is_finished {
            self.outputs.flush(LAST_LINES);
        }
    }
}

impl Outputs {
    /// Starts a thread for each output. `report` logs something about an output that fails, or has recovered.
    ///
    /// # Errors
    /// In words, where a thread cannot be started.
    pub(super) fn start(
        outputs: Vec<Output>,
        lost: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        Self::start_with(outputs, lost, report, Setup::default())
    }

    fn start_with(
        outputs: Vec<Output>,
        lost: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
        setup: Setup,
    ) -> io::Result<(Self, LogGuard)> {
        let (mut channels, mut destinations) = (Vec::new(), Vec::new());
        for Output { name, destination, takes_over, is_replaced } in outputs {
            let (sender, waiting) = bounded(setup.waiting);
            destinations.push(destination);
            channels.push(Channel {
                name,
                sender,
                takes_over,
                is_replaced,
                is_failing: AtomicBool::new(false),
                failure: Mutex::default(),
                writing_since: AtomicU64::new(0),
                writing: Mutex::default(),
                waiting,
                rescue: Mutex::default(),
                reports: LineLimit::new(NonZero::<u32>::MIN, setup.report_period),
            });
        }
        let this = Self(Arc::new(Inner {
            channels,
            began: (setup.clock)(),
            clock: setup.clock,
            stalled: setup.stalled,
            look_every: setup.look_every,
            lost,
            has_lost_news: AtomicBool::new(false),
            report: Box::new(report),
        }));
        for (index, destination) in destinations.into_iter().enumerate() {
            let this = this.clone();
            (setup.thread)()
                .name(format!("log-{index}"))
                .spawn(move || this.write(index, destination))
                .map_err(|error| {
                    io::Error::other(format!(
                        "cannot start a thread that writes the log: {error}; a limit on threads or memory may be too low"
                    ))
                })?;
        }
        Ok((this.clone(), LogGuard { outputs: this, is_finished: false }))
    }

    /// Makes the writer of one output, by its number.
    pub(super) fn writer(
        &self,
        index: usize,
        must_be_seen: fn(&Metadata<'_>) -> bool,
    ) -> OutputWriter {
        OutputWriter { outputs: self.clone(), index, must_be_seen }
    }

    /// Never blocks.
    fn send(&self, index: usize, line: Line) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        let mut line = line;
        if self.is_stalled(channel) {
            self.stalls(index);
            if line.is_news_for(channel) {
                match self.send_instead(index, line, Among::Working) {
                    Ok(()) => return,
                    Err(back) => line = back,
                }
            }
        }
        match channel.sender.try_send(Message::Line(line)) {
            Err(TrySendError::Full(Message::Line(line))) => {
                let why = "too many lines wait for it already";
                self.refused(index, line, &why);
            }
            Err(TrySendError::Disconnected(Message::Line(line))) => {
                self.refused(index, line, &"its thread has ended");
            }
            _ => {}
        }
    }

    fn now(&self) -> u64 {
        // Not 0, which is no time.
        u64::try_from(((self.0.clock)() - self.0.began).as_nanos())
            .map_or(u64::MAX, |now| now.saturating_add(1))
    }

    fn is_stalled(&self, channel: &Channel) -> bool {
        let since = channel.writing_since.load(Ordering::Relaxed);
        since != 0 && Duration::from_nanos(self.now().saturating_sub(since)) >= self.0.stalled
    }

    /// Writes what comes, for ever.
    fn write(&self, index: usize, mut destination: Box<dyn Destination>) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        let mut looked = Instant::now();
        loop {
            match channel.waiting.recv_timeout(self.0.look_every) {
                Ok(Message::Line(line)) => self.write_line(index, line, destination.as_mut()),
                Ok(Message::Report(text)) => (self.0.report)(&text),
                // Whoever waited may have given up.
                Ok(Message::Flush(done)) => drop(done.send(())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= self.0.look_every {
                looked = Instant::now();
                self.look_after_others(index);
            }
        }
    }

    fn write_line(&self, index: usize, line: Line, destination: &mut dyn Destination) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        let may_be_handed_on = line.is_news_for(channel);
        if may_be_handed_on {
            *lock(&channel.writing) = Some(line.clone());
        }
        channel.writing_since.store(self.now(), Ordering::Relaxed);
        let written = destination.write_line(&line.bytes);
        channel.writing_since.store(0, Ordering::Relaxed);
        let was_handed_on = may_be_handed_on && lock(&channel.writing).take().is_none();
        match written {
            Ok(()) => self.works(channel),
            Err(error) if was_handed_on => self.fails(index, &error),
            Err(error) => self.refused(index, line, &error),
        }
    }

    /// Looks whether another output hangs, and hands on what must be seen of what waits there.
    fn look_after_others(&self, index: usize) {
        for (other, channel) in self.0.channels.iter().enumerate() {
            if other == index || !self.is_stalled(channel) {
                continue;
            }
            self.stalls(other);
            // Where somebody else is doing it, that is enough.
            if let Ok(_rescue) = channel.rescue.try_lock() {
                self.rescue_line(other, channel);
                self.rescue_queue(other, channel);
            }
        }
    }

    /// Hands on the line that an output hangs with. Should it be written there after all, it is seen twice.
    fn rescue_line(&self, index: usize, channel: &Channel) {
        let mut writing = lock(&channel.writing);
        // By now it may be another line, which does not hang.
        if self.is_stalled(channel)
            && let Some(line) = writing.take()
        {
            *writing = self.send_instead(index, line, Among::Working).err();
        }
    }

    /// Hands on what must be seen of what waits for an output that hangs. The rest goes to the end of its queue, in its
    /// order.
    fn rescue_queue(&self, index: usize, channel: &Channel) {
        for message in channel.waiting.try_iter().take(channel.waiting.len()) {
            let left = match message {
                Message::Line(line) if line.is_news_for(channel) => {
                    self.send_instead(index, line, Among::Working).err().map(Message::Line)
                }
                Message::Report(text) => self.send_report(index, text, Among::Working).err(),
                other => Some(other),
            };
            if let Some(Err(TrySendError::Full(Message::Line(line)))) =
                left.map(|message| channel.sender.try_send(message))
            {
                self.lose(channel, &line);
            }
        }
    }

    /// An output did not take a line.
    fn refused(&self, index: usize, mut line: Line, why: &dyn std::fmt::Display) {
        self.fails(index, why);
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        if line.is_news_for(channel) {
            match self.send_instead(index, line, Among::All) {
                Ok(()) => return,
                Err(back) => line = back,
            }
        }
        self.lose(channel, &line);
    }

    fn lose(&self, channel: &Channel, line: &Line) {
        self.0.lost.add();
        lock(&channel.failure).lost += 1;
        if line.is_news_for(channel) {
            self.0.has_lost_news.store(true, Ordering::Relaxed);
        }
    }

    /// The other outputs, those that do not hang first.
    fn others(&self, index: usize, among: Among) -> impl Iterator<Item = (usize, &Channel)> {
        let others = self.0.channels.iter().enumerate().filter(move |(other, _)| *other != index);
        let working = others.clone().filter(|(_, channel)| !self.is_stalled(channel));
        let stalled = others.filter(|(_, channel)| self.is_stalled(channel));
        working.chain(stalled.filter(move |_| among == Among::All))
    }

    /// Gives a line to another output; gives it back where there is none.
    fn send_instead(&self, index: usize, mut line: Line, among: Among) -> Result<(), Line> {
        line.refused_by |= bit(index);
        for (other, channel) in self.others(index, among) {
            if !channel.takes_over || line.refused_by & bit(other) != 0 {
                continue;
            }
            match channel.sender.try_send(Message::Line(line)) {
                Ok(()) => return Ok(()),
                Err(error) => match error.into_inner() {
                    Message::Line(back) => line = back,
                    Message::Report(_) | Message::Flush(_) => return Ok(()),
                },
            }
        }
        Err(line)
    }

    /// Has something said of an output by the thread of another one; gives it back where there is none.
    fn send_report(&self, index: usize, text: String, among: Among) -> Result<(), Message> {
        let mut message = Message::Report(text);
        for (_, channel) in self.others(index, among) {
            match channel.sender.try_send(message) {
                Ok(()) => return Ok(()),
                Err(error) => message = error.into_inner(),
            }
        }
        Err(message)
    }

    /// Notes that an output hangs.
    fn stalls(&self, index: usize) {
        let seconds = self.0.stalled.as_secs();
        self.fails(index, &format_args!("it has not taken a line for {seconds} s"));
    }

    /// Notes that an output does not take lines, and has it said on another one.
    fn fails(&self, index: usize, why: &dyn std::fmt::Display) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        let mut failure = lock(&channel.failure);
        channel.is_failing.store(true, Ordering::Relaxed);
        if failure.is_reported {
            return;
        }
        // One that comes and goes may be silent at first; but not when it does not come back.
        failure.may_be_said |= channel.reports.allows_at((self.0.clock)());
        if failure.may_be_said {
            let text = format!(
                "the log cannot be written to {}: {why}. Lines that are lost are counted in \
                 aspia_relay_log_lines_lost_total",
                channel.name
            );
            failure.is_reported = self.send_report(index, text, Among::All).is_ok();
        }
    }

    /// Notes that an output took a line.
    fn works(&self, channel: &Channel) {
        // Nearly always: without a write that other threads would notice.
        if !channel.is_failing.load(Ordering::Relaxed) {
            return;
        }
        let failure = {
            let mut failure = lock(&channel.failure);
            channel.is_failing.store(false, Ordering::Relaxed);
            std::mem::take(&mut *failure)
        };
        if failure.may_be_said {
            (self.0.report)(&format!(
                "the log can be written to {} again; {} lines were lost",
                channel.name, failure.lost
            ));
        }
    }

    /// Waits until all lines are written, or the time is over; whether they are.
    fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let rounds = self.0.channels.len();
        let mut is_written = true;
        // What one output refuses, another one has only after that, and so on.
        for round in 1..=rounds {
            let left = deadline.saturating_duration_since(Instant::now());
            // One that hangs must not take the time of the others.
            is_written &= self.flush_once(if round == rounds { left } else { left / 2 });
        }
        is_written
    }

    fn flush_once(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let waits: Vec<_> = self
            .0
            .channels
            .iter()
            .map(|channel| {
                let (done, wait) = bounded(1);
                let left = deadline.saturating_duration_since(Instant::now()) / 2;
                channel.sender.send_timeout(Message::Flush(done), left).is_ok().then_some(wait)
            })
            .collect();
        // One that hangs has lost its last lines.
        let is_done = |wait: Option<Receiver<()>>| {
            wait.is_some_and(|wait| wait.recv_deadline(deadline).is_ok())
        };
        waits.into_iter().map(is_done).fold(true, |all, done| all & done)
    }
}

/// Which outputs may take what is another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Among {
    /// Those that do not hang.
    Working,
    /// Where there are none, those that hang, too.
    All,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bit(index: usize) -> u8 {
    u32::try_from(index).ok().and_then(|index| 1_u8.checked_shl(index)).unwrap_or(0)
}

/// Makes what takes the lines of an output, and knows which of them must be seen.
#[derive(Debug)]
pub(super) struct OutputWriter {
    outputs: Outputs,
    index: usize,
    must_be_seen: fn(&Metadata<'_>) -> bool,
}

impl<'a> MakeWriter<'a> for OutputWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { outputs: &self.outputs, index: self.index, must_be_seen: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> LineWriter<'a> {
        LineWriter { must_be_seen: (self.must_be_seen)(event), ..self.make_writer() }
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct LineWriter<'a> {
    outputs: &'a Outputs,
    index: usize,
    must_be_seen: bool,
}

impl io::Write for LineWriter<'_> {
    /// A whole line at a time, as `tracing_subscriber` gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (bytes, must_be_seen) = (line.to_vec(), self.must_be_seen);
        self.outputs.send(self.index, Line { bytes, must_be_seen, refused_by: 0 });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Condvar;

    use super::*;

    /// What a destination does next; without a plan it takes everything.
    #[derive(Default)]
    struct Script {
        steps: VecDeque<Step>,
        written: String,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Fail,
        Take,
        /// Does not return until there is another step.
        Hang,
    }

    #[derive(Clone, Default)]
    struct Fake(Arc<(Mutex<Script>, Condvar)>);

    impl Fake {
        fn lock(&self) -> MutexGuard<'_, Script> {
            self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn plan(&self, steps: impl IntoIterator<Item = Step>) {
            self.lock().steps = steps.into_iter().collect();
            self.0.1.notify_all();
        }

        fn written(&self) -> String {
            self.lock().written.clone()
        }
    }

    impl Destination for Fake {
        fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
            let mut script = self.lock();
            while matches!(script.steps.front(), Some(Step::Hang)) {
                script = self.0.1.wait(script).unwrap();
            }
            if let Some(Step::Fail) = script.steps.pop_front() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            script.written += std::str::from_utf8(line).unwrap();
            Ok(())
        }
    }

    struct Log {
        outputs: Outputs,
        lost: LostLines,
        reports: Arc<Mutex<Vec<String>>>,
        /// How far the clock was turned, in seconds.
        clock: Arc<AtomicU64>,
    }

    /// What is given instead of the usual.
    #[derive(Clone, Copy)]
    struct With {
        waiting: usize,
        stalled: Duration,
        look_every: Duration,
    }

    impl Default for With {
        fn default() -> Self {
            Self { waiting: 100, stalled: Duration::MAX, look_every: Duration::MAX }
        }
    }

    /// An output hangs after a minute of the clock, and that is looked at all the time.
    const LOOKING: With = With {
        waiting: 100,
        stalled: Duration::from_secs(60),
        look_every: Duration::from_millis(1),
    };

    impl Log {
        /// stdout, stderr and a file, in this order.
        fn start(fakes: [&Fake; 3], with: With) -> Self {
            let outputs = ["stdout", "stderr", "a file"].into_iter().zip(fakes).enumerate();
            let outputs = outputs.map(|(index, (name, fake))| Output {
                name: name.into(),
                destination: Box::new(fake.clone()),
                takes_over: true,
                is_replaced: index != 2,
            });
            let (lost, reports) = (LostLines::default(), Arc::new(Mutex::new(Vec::new())));
            let told = reports.clone();
            let report = move |text: &str| told.lock().unwrap().push(text.to_owned());
            let clock = Arc::new(AtomicU64::new(0));
            let (began, turned) = (Instant::now(), clock.clone());
            let setup = Setup {
                waiting: with.waiting,
                stalled: with.stalled,
                look_every: with.look_every,
                clock: Box::new(move || began + Duration::from_secs(turned.load(Ordering::SeqCst))),
                ..Setup::default()
            };
            let (outputs, guard) =
                Outputs::start_with(outputs.collect(), lost.clone(), report, setup).unwrap();
            std::mem::forget(guard);
            Self { outputs, lost, reports, clock }
        }

        fn advance(&self, seconds: u64) {
            self.clock.fetch_add(seconds, Ordering::SeqCst);
        }

        /// Until an output hangs with a line.
        fn hangs(&self, index: usize) {
            let since = &self.outputs.0.channels[index].writing_since;
            until(|| since.load(Ordering::SeqCst) != 0);
        }

        fn say(&self, index: usize, text: &str, must_be_seen: bool) {
            let line = Line { bytes: text.into(), must_be_seen, refused_by: 0 };
            self.outputs.send(index, line);
        }

        /// Until every line, and what became of it, is where it belongs.
        fn settle(&self) {
            assert!(self.outputs.flush(Duration::from_secs(60)));
        }

        fn finish(&self) -> bool {
            let guard = LogGuard { outputs: self.outputs.clone(), is_finished: false };
            guard.finish_within(Duration::from_secs(60))
        }

        fn reports(&self) -> Vec<String> {
            self.reports.lock().unwrap().clone()
        }
    }

    /// Waits for what happens, or the test fails.
    fn until(mut happens: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !happens() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn what_must_be_seen_goes_to_another_output_and_the_rest_is_counted() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        let log = Log::start([&stdout, &stderr, &file], With::default());
        log.say(0, "a\n", false);
        log.settle();
        stdout.plan([Step::Fail; 3]);
        for text in ["b\n", "c\n"] {
            log.say(0, text, false);
        }
        log.say(0, "error\n", true);
        log.settle();
        assert_eq!((stdout.written().as_str(), stderr.written().as_str()), ("a\n", "error\n"));
        assert_eq!(log.lost.count(), 2);
        let [report] = &log.reports()[..] else { panic!("{:?}", log.reports()) };
        assert!(report.contains("stdout") && report.contains("lines_lost_total"), "{report}");
        // It takes lines again, which is said with what it cost.
        log.say(0, "d\n", false);
        log.settle();
        assert_eq!(stdout.written(), "a\nd\n");
        assert!(log.reports()[1].contains("again; 2 lines were lost"), "{:?}", log.reports());
        // Once a minute is enough for one that comes and goes.
        stdout.plan([Step::Fail, Step::Take, Step::Fail, Step::Take]);
        for _ in 0..4 {
            log.say(0, "e\n", false);
        }
        log.settle();
        assert_eq!(log.reports().len(), 2, "{:?}", log.reports());
        assert_eq!(log.lost.count(), 4);
    }

    #[test]
    fn where_all_fail_lines_are_lost_and_nothing_goes_round_in_circles() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        for fake in [&stdout, &stderr, &file] {
            fake.plan([Step::Fail; 100]);
        }
        let log = Log::start([&stdout, &stderr, &file], With::default());
        log.say(0, "error\n", true);
        log.settle();
        assert_eq!(log.lost.count(), 1);
        // Each of them has tried it once.
        for fake in [&stdout, &stderr, &file] {
            assert_eq!(fake.lock().steps.len(), 99);
        }
    }

    #[test]
    fn the_lines_of_a_file_are_elsewhere_already() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        file.plan([Step::Fail]);
        let log = Log::start([&stdout, &stderr, &file], With::default());
        log.say(2, "error\n", true);
        log.settle();
        assert_eq!((stdout.written(), stderr.written()), (String::new(), String::new()));
        assert_eq!((log.lost.count(), log.reports().len()), (1, 1));
    }

    #[test]
    fn one_that_hangs_holds_up_nobody() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        stdout.plan([Step::Hang]);
        let log = Log::start([&stdout, &stderr, &file], With { waiting: 2, ..With::default() });
        // More than it holds: the test ends, so nobody waited.
        for _ in 0..10 {
            log.say(0, "a\n", false);
        }
        log.say(0, "error\n", true);
        log.outputs.flush(Duration::from_millis(1));
        until(|| !stderr.written().is_empty() && !log.reports().is_empty());
        assert_eq!(stderr.written(), "error\n");
        assert!((7..=8).contains(&log.lost.count()), "{}", log.lost.count());
        assert!(log.reports()[0].contains("too many lines wait"), "{:?}", log.reports());
        stdout.plan([Step::Take]);
        log.settle();
        assert!(log.reports()[1].contains("again"), "{:?}", log.reports());
    }

    #[test]
    fn one_that_has_not_taken_a_line_for_long_is_passed_over() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        stdout.plan([Step::Hang]);
        let stalled = LOOKING.stalled;
        let log = Log::start([&stdout, &stderr, &file], With { stalled, ..With::default() });
        log.say(0, "a\n", false);
        log.hangs(0);
        log.advance(60);
        log.say(0, "error\n", true);
        until(|| !stderr.written().is_empty());
        assert_eq!(log.lost.count(), 0);
        stdout.plan([]);
        log.settle();
        // And it does not get the line as well.
        assert_eq!((stdout.written().as_str(), stderr.written().as_str()), ("a\n", "error\n"));
    }

    #[test]
    fn a_failure_that_comes_back_at_once_and_stays_is_said_after_a_minute() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        let log = Log::start([&stdout, &stderr, &file], With::default());
        let say = |count: usize| {
            for _ in 0..count {
                log.say(0, "a\n", false);
            }
            log.settle();
            log.reports().len()
        };
        stdout.plan([Step::Fail, Step::Take]);
        assert_eq!(say(2), 2, "that it fails, and that it is over");
        stdout.plan([Step::Fail; 100]);
        log.advance(20);
        assert_eq!(say(5), 2);
        log.advance(39);
        assert_eq!(say(5), 2, "not within a minute");
        log.advance(1);
        assert_eq!(say(5), 3, "once");
        log.advance(600);
        assert_eq!(say(5), 3, "until it is over");
        assert!(log.reports()[2].contains("cannot be written to stdout"), "{:?}", log.reports());
        stdout.plan([]);
        assert_eq!(say(1), 4);
        assert!(log.reports()[3].contains("again; 20 lines were lost"), "{:?}", log.reports());
    }

    #[test]
    fn a_report_that_nobody_takes_is_offered_again() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        let log = Log::start([&stdout, &stderr, &file], With { waiting: 1, ..With::default() });
        // Both have a line in the works and another one waiting.
        for (index, fake) in [(1, &stderr), (2, &file)] {
            fake.plan([Step::Hang]);
            log.say(index, "a\n", false);
            log.hangs(index);
            log.say(index, "b\n", false);
        }
        stdout.plan([Step::Fail; 2]);
        log.say(0, "lost\n", false);
        until(|| log.lost.count() == 1);
        assert_eq!(log.reports(), Vec::<String>::new());
        stderr.plan([]);
        until(|| stderr.written() == "a\nb\n");
        // Within the minute, since nothing was said yet.
        log.say(0, "lost\n", false);
        until(|| log.reports().len() == 1);
        file.plan([]);
        log.say(0, "c\n", false);
        until(|| log.reports().len() == 2);
        assert!(log.reports()[1].contains("again; 2 lines were lost"), "{:?}", log.reports());
    }

    #[test]
    fn a_line_that_hangs_is_seen_elsewhere_though_nothing_else_is_logged() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        stdout.plan([Step::Hang]);
        let log = Log::start([&stdout, &stderr, &file], LOOKING);
        log.say(0, "Router link lost\n", true);
        log.hangs(0);
        for (text, must_be_seen) in [("a\n", false), ("error\n", true), ("b\n", false)] {
            log.say(0, text, must_be_seen);
        }
        log.advance(60);
        until(|| stderr.written() == "Router link lost\nerror\n" && log.reports().len() == 1);
        assert!(log.reports()[0].contains("stdout: it has not taken a line for 60 s"));
        // It refuses the line after all, which is handed on already.
        stdout.plan([Step::Fail]);
        log.settle();
        assert_eq!(stdout.written(), "a\nb\n", "in their order, and nothing twice");
        assert_eq!(stderr.written(), "Router link lost\nerror\n");
        assert_eq!(log.lost.count(), 0);
    }

    #[test]
    fn what_must_be_seen_is_not_given_to_another_output_that_hangs() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        stderr.plan([Step::Hang]);
        let stalled = LOOKING.stalled;
        let log = Log::start([&stdout, &stderr, &file], With { stalled, ..With::default() });
        log.say(1, "a\n", false);
        log.hangs(1);
        log.advance(60);
        // stderr would be the first to take over, and to tell.
        stdout.plan([Step::Fail]);
        log.say(0, "error\n", true);
        until(|| file.written() == "error\n" && log.reports().len() == 1);
        assert!(log.reports()[0].contains("cannot be written to stdout"), "{:?}", log.reports());
        // Where all the others hang, they are better than nobody.
        file.plan([Step::Hang]);
        log.say(2, "b\n", false);
        log.hangs(2);
        log.advance(60);
        stdout.plan([Step::Fail]);
        log.say(0, "fatal\n", true);
        until(|| stdout.lock().steps.is_empty());
        for fake in [&stderr, &file] {
            fake.plan([]);
        }
        log.settle();
        let both = stderr.written() + &file.written();
        assert!(both.contains("fatal\n"), "{both}");
        assert_eq!(log.lost.count(), 0);
    }

    #[test]
    fn what_one_output_refuses_at_the_very_end_is_written_by_another() {
        for _ in 0..50 {
            let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
            for fake in [&stdout, &stderr] {
                fake.plan([Step::Fail]);
            }
            let log = Log::start([&stdout, &stderr, &file], With::default());
            log.say(0, "fatal\n", true);
            assert!(log.finish());
            assert_eq!(file.written(), "fatal\n");
        }
    }

    #[test]
    fn the_end_knows_whether_what_must_be_seen_is_somewhere() {
        for must_be_seen in [false, true] {
            let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
            for fake in [&stdout, &stderr, &file] {
                fake.plan([Step::Fail; 10]);
            }
            let log = Log::start([&stdout, &stderr, &file], With::default());
            log.say(0, "fatal\n", must_be_seen);
            assert_eq!(log.finish(), !must_be_seen);
        }
    }

    #[test]
    fn a_thread_that_cannot_be_started_is_named() {
        let output = Output {
            name: "stdout".into(),
            destination: Box::new(Fake::default()),
            takes_over: true,
            is_replaced: true,
        };
        // More than there are addresses.
        let thread = || thread::Builder::new().stack_size(usize::MAX / 2);
        let setup = Setup { thread, ..Setup::default() };
        let started = Outputs::start_with(vec![output], LostLines::default(), |_| {}, setup);
        let error = started.unwrap_err().to_string();
        assert!(error.starts_with("cannot start a thread that writes the log: "), "{error}");
    }

    /// Takes so many bytes, and then none.
    struct Disk {
        written: Vec<u8>,
        size: usize,
    }

    impl io::Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.size - self.written.len()) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                count => {
                    self.written.extend_from_slice(&bytes[..count]);
                    Ok(count)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_torn_line_a_new_one_begins() {
        let (mut disk, mut torn) = (Disk { written: Vec::new(), size: 8 }, false);
        let mut write = |disk: &mut Disk, line: &str| write_whole(disk, line.as_bytes(), &mut torn);
        assert!(write(&mut disk, "first\n").is_ok());
        assert!(write(&mut disk, "second\n").is_err());
        // Still full.
        assert!(write(&mut disk, "third\n").is_err());
        disk.size = 100;
        assert!(write(&mut disk, "fourth\n").is_ok());
        assert!(write(&mut disk, "fifth\n").is_ok());
        assert_eq!(disk.written, b"first\nse\nfourth\nfifth\n");
    }
}
