//! The outputs of the log: for each a bounded queue and a thread that writes its lines, so that nobody who logs ever waits
//! for a reader or a disk.
//!
//! An output that does not take a line (a full disk, a reader that has gone or that hangs) is reported on another one, once
//! until it takes lines again. Lines that must be seen go to another output instead; the others are lost, and counted.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::limit::LineLimit;

/// Lines that wait for an output, of each: some megabytes at most.
const WAITING_LINES: usize = 8192;
/// An output that has not taken one line for this long is passed over by lines that must be seen.
const STALLED: Duration = Duration::from_secs(5);
/// How often it is said of one output that it does not take lines: it may come and go.
const REPORTS: (NonZero<u32>, Duration) =
    (NonZero::new(1).expect("it is not 0"), Duration::from_secs(60));
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
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err((written, error)),
        }
    }
    to.flush().map_err(|error| (written, error))
}

/// One line on its way.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    must_be_seen: bool,
    /// The outputs that did not take it, a bit for each.
    refused_by: u8,
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
    failing: AtomicBool,
    /// Whether the present failure was reported.
    reported: AtomicBool,
    /// Lines lost since it began to fail.
    lost: AtomicU64,
    /// Since when one line is being written, in nanoseconds of the process; 0 where none is.
    writing_since: AtomicU64,
    reports: LineLimit,
}

/// All outputs of a log; a clone is the same ones.
#[derive(Debug, Clone)]
pub(super) struct Outputs(Arc<Inner>);

struct Inner {
    channels: Vec<Channel>,
    began: Instant,
    stalled: Duration,
    lost: LostLines,
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
pub struct LogGuard(Outputs);

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

impl Outputs {
    /// Starts a thread for each output. `report` logs something about an output that fails, or has recovered.
    pub(super) fn start(
        outputs: Vec<Output>,
        lost: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        Self::start_with(outputs, lost, report, WAITING_LINES, STALLED)
    }

    fn start_with(
        outputs: Vec<Output>,
        lost: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
        waiting: usize,
        stalled: Duration,
    ) -> io::Result<(Self, LogGuard)> {
        let (mut channels, mut ends) = (Vec::new(), Vec::new());
        for Output { name, destination, takes_over, is_replaced } in outputs {
            let (sender, receiver) = bounded(waiting);
            ends.push((destination, receiver));
            channels.push(Channel {
                name,
                sender,
                takes_over,
                is_replaced,
                failing: AtomicBool::new(false),
                reported: AtomicBool::new(false),
                lost: AtomicU64::new(0),
                writing_since: AtomicU64::new(0),
                reports: LineLimit::new(REPORTS.0, REPORTS.1),
            });
        }
        let report = Box::new(report);
        let inner = Inner { channels, began: Instant::now(), stalled, lost, report };
        let this = Self(Arc::new(inner));
        for (index, (destination, receiver)) in ends.into_iter().enumerate() {
            let this = this.clone();
            std::thread::Builder::new()
                .name(format!("log-{index}"))
                .spawn(move || this.write(index, destination, &receiver))
                .map_err(|error| {
                    io::Error::other(format!(
                        "cannot start a thread that writes the log: {error}; a limit on threads or memory may be too low"
                    ))
                })?;
        }
        Ok((this.clone(), LogGuard(this)))
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
            let seconds = self.0.stalled.as_secs();
            self.fails(index, &format_args!("it has not taken a line for {seconds} s"));
            if line.must_be_seen && channel.is_replaced {
                match self.send_instead(index, line) {
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
        u64::try_from(self.0.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn is_stalled(&self, channel: &Channel) -> bool {
        let since = channel.writing_since.load(Ordering::Relaxed);
        since != 0 && Duration::from_nanos(self.now().saturating_sub(since)) >= self.0.stalled
    }

    /// Writes what comes, for ever.
    fn write(
        &self,
        index: usize,
        mut destination: Box<dyn Destination>,
        messages: &Receiver<Message>,
    ) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        for message in messages {
            match message {
                Message::Line(line) => {
                    channel.writing_since.store(self.now(), Ordering::Relaxed);
                    let written = destination.write_line(&line.bytes);
                    channel.writing_since.store(0, Ordering::Relaxed);
                    match written {
                        Ok(()) => self.works(channel),
                        Err(error) => self.refused(index, line, &error),
                    }
                }
                Message::Report(text) => (self.0.report)(&text),
                // Whoever waited may have given up.
                Message::Flush(done) => drop(done.send(())),
            }
        }
    }

    /// An output did not take a line.
    fn refused(&self, index: usize, line: Line, why: &dyn std::fmt::Display) {
        self.fails(index, why);
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        let is_lost =
            !(line.must_be_seen && channel.is_replaced) || self.send_instead(index, line).is_err();
        if is_lost {
            self.0.lost.add();
            channel.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives a line to another output; gives it back where there is none.
    fn send_instead(&self, index: usize, mut line: Line) -> Result<(), Line> {
        line.refused_by |= bit(index);
        for (other, channel) in self.0.channels.iter().enumerate() {
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

    /// Notes that an output does not take lines, and has it said on another one.
    fn fails(&self, index: usize, why: &dyn std::fmt::Display) {
        let Some(channel) = self.0.channels.get(index) else {
            return;
        };
        if channel.failing.swap(true, Ordering::Relaxed) || !channel.reports.allows() {
            return;
        }
        channel.reported.store(true, Ordering::Relaxed);
        let text = format!(
            "the log cannot be written to {}: {why}. Lines that are lost are counted in \
             aspia_relay_log_lines_lost_total",
            channel.name
        );
        let mut message = Message::Report(text);
        for (other, channel) in self.0.channels.iter().enumerate() {
            if other == index {
                continue;
            }
            match channel.sender.try_send(message) {
                Ok(()) => return,
                Err(error) => message = error.into_inner(),
            }
        }
    }

    /// Notes that an output took a line.
    fn works(&self, channel: &Channel) {
        // Nearly always: without a write that other threads would notice.
        if !channel.failing.load(Ordering::Relaxed)
            || !channel.failing.swap(false, Ordering::Relaxed)
        {
            return;
        }
        let lost = channel.lost.swap(0, Ordering::Relaxed);
        if channel.reported.swap(false, Ordering::Relaxed) {
            (self.0.report)(&format!(
                "the log can be written to {} again; {lost} lines were lost",
                channel.name
            ));
        }
    }

    /// Returns when all lines are written, or the time is over.
    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let waits: Vec<_> = self
            .0
            .channels
            .iter()
            .filter_map(|channel| {
                let (done, wait) = bounded(1);
                let left = deadline.saturating_duration_since(Instant::now()) / 2;
                channel.sender.send_timeout(Message::Flush(done), left).is_ok().then_some(wait)
            })
            .collect();
        for wait in waits {
            // One that hangs has lost its last lines.
            let _ = wait.recv_deadline(deadline);
        }
    }
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
    use std::sync::{Condvar, Mutex, PoisonError};

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
        fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
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
    }

    impl Log {
        /// stdout, stderr and a file, in this order.
        fn start(fakes: [&Fake; 3], waiting: usize, stalled: Duration) -> Self {
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
            let (outputs, guard) =
                Outputs::start_with(outputs.collect(), lost.clone(), report, waiting, stalled)
                    .unwrap();
            std::mem::forget(guard);
            Self { outputs, lost, reports }
        }

        fn say(&self, index: usize, text: &str, must_be_seen: bool) {
            let line = Line { bytes: text.into(), must_be_seen, refused_by: 0 };
            self.outputs.send(index, line);
        }

        /// Until every line, and what became of it, is where it belongs.
        fn settle(&self) {
            for _ in 0..3 {
                self.outputs.flush(Duration::from_secs(60));
            }
        }

        fn reports(&self) -> Vec<String> {
            self.reports.lock().unwrap().clone()
        }
    }

    const NEVER: Duration = Duration::MAX;

    #[test]
    fn what_must_be_seen_goes_to_another_output_and_the_rest_is_counted() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        let log = Log::start([&stdout, &stderr, &file], 100, NEVER);
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
        let log = Log::start([&stdout, &stderr, &file], 100, NEVER);
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
        let log = Log::start([&stdout, &stderr, &file], 100, NEVER);
        log.say(2, "error\n", true);
        log.settle();
        assert_eq!((stdout.written(), stderr.written()), (String::new(), String::new()));
        assert_eq!((log.lost.count(), log.reports().len()), (1, 1));
    }

    #[test]
    fn one_that_hangs_holds_up_nobody() {
        let [stdout, stderr, file] = [(); 3].map(|()| Fake::default());
        stdout.plan([Step::Hang]);
        let log = Log::start([&stdout, &stderr, &file], 2, NEVER);
        // More than it holds: the test ends, so nobody waited.
        for _ in 0..10 {
            log.say(0, "a\n", false);
        }
        log.say(0, "error\n", true);
        log.outputs.flush(Duration::from_millis(1));
        while stderr.written().is_empty() || log.reports().is_empty() {
            std::thread::yield_now();
        }
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
        let log = Log::start([&stdout, &stderr, &file], 100, Duration::ZERO);
        log.say(0, "a\n", false);
        while log.outputs.0.channels[0].writing_since.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        log.say(0, "error\n", true);
        while stderr.written().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(log.lost.count(), 0);
        stdout.plan([]);
        log.settle();
        // And it does not get the line as well.
        assert_eq!((stdout.written().as_str(), stderr.written().as_str()), ("a\n", "error\n"));
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
