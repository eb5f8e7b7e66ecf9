//! The threads that write the log. Each output has one, with a bounded queue, so that no thread that logs ever waits for a
//! reader or a disk.
//!
//! An output may not accept a line because its disk is full, or its reader has gone or does not read. `failover` handles
//! this. An output is checked for a stall when a line is queued for it, and periodically by the threads of the other
//! outputs: no other line may be logged for a long time.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::destination::LogDestination;
use super::failover::{LogClock, OutputQueues};
use super::lost::LostLines;
use super::queue::{LogLine, OutputMessage, OutputQueue};

/// Lines that each queue holds: some megabytes at most.
const QUEUE_CAPACITY: usize = 8192;
/// An output that has not accepted a line for this long is stalled.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time between two reports that one output fails: it may fail and recover again and again.
const REPORT_PERIOD: Duration = Duration::from_secs(60);
/// The time limit for writing the last lines when the log ends, for all outputs together.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Capacity and times of the outputs.
struct OutputOptions {
    /// Lines that each queue holds.
    capacity: usize,
    stall_timeout: Duration,
    /// How often each thread checks whether other outputs are stalled.
    check_interval: Duration,
    report_period: Duration,
    clock: LogClock,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self {
            capacity: QUEUE_CAPACITY,
            stall_timeout: STALL_TIMEOUT,
            check_interval: STALL_TIMEOUT,
            report_period: REPORT_PERIOD,
            clock: Box::new(Instant::now),
        }
    }
}

/// An output to be started.
pub(super) struct LogOutput {
    /// The output's name, for people.
    pub(super) name: String,
    /// Where its lines are written to.
    pub(super) destination: Box<dyn LogDestination>,
    /// Whether important lines go to another output if this one fails.
    pub(super) has_failover: bool,
}

/// All outputs of a log. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Outputs(Arc<OutputQueues>);

impl Outputs {
    /// Starts a thread for each output. `report` logs that an output fails, or has recovered.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(
        outputs: Vec<LogOutput>,
        lost_lines: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<(Self, LogGuard)> {
        Self::start_with(outputs, lost_lines, report, OutputOptions::default())
    }

    fn start_with(
        outputs: Vec<LogOutput>,
        lost_lines: LostLines,
        report: impl Fn(&str) + Send + Sync + 'static,
        options: OutputOptions,
    ) -> io::Result<(Self, LogGuard)> {
        let OutputOptions { capacity, stall_timeout, check_interval, report_period, clock } =
            options;
        let (queues, destinations): (_, Vec<_>) = outputs
            .into_iter()
            .map(|LogOutput { name, destination, has_failover }| {
                (OutputQueue::new(name, has_failover, capacity, report_period), destination)
            })
            .unzip();
        let queues = OutputQueues::new(queues, clock, stall_timeout, lost_lines, Box::new(report));
        let this = Self(Arc::new(queues));
        for (index, destination) in destinations.into_iter().enumerate() {
            let queues = this.0.clone();
            let thread = thread::Builder::new().name(format!("log-{index}"));
            spawn(thread, move || run_output(&queues, index, destination, check_interval))?;
        }
        Ok((this.clone(), LogGuard { outputs: this, is_finished: false }))
    }

    /// Queues a line for an output. Never blocks.
    pub(super) fn send(&self, index: usize, line: LogLine) {
        self.0.send(index, line);
    }

    /// Waits until all lines are written, or the time is over. Returns whether all lines are written.
    fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let rounds = self.0.all().len();
        let mut is_written = true;
        // A line is queued for another output only when the first one has refused it, and so on.
        for round in 1..=rounds {
            let left = deadline.saturating_duration_since(Instant::now());
            // A stalled output must not take the time of the others.
            is_written &= self.flush_once(if round == rounds { left } else { left / 2 });
        }
        is_written
    }

    fn flush_once(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let waits: Vec<_> = self
            .0
            .all()
            .iter()
            .map(|queue| {
                let (done, wait) = bounded(1);
                let left = deadline.saturating_duration_since(Instant::now()) / 2;
                queue.sender.send_timeout(OutputMessage::Flush(done), left).is_ok().then_some(wait)
            })
            .collect();
        // A stalled output has lost its last lines.
        let is_done = |wait: Option<Receiver<()>>| {
            wait.is_some_and(|wait| wait.recv_deadline(deadline).is_ok())
        };
        waits.into_iter().map(is_done).fold(true, |all, done| all & done)
    }
}

/// Starts a thread that writes the log.
fn spawn(thread: thread::Builder, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread.spawn(run).map(drop).map_err(|error| {
        io::Error::other(format!(
            "cannot start a thread that writes the log: {error}; a limit on threads or memory may be too low"
        ))
    })
}

/// Writes the lines of an output as they come, and checks the other outputs, until the queue is closed.
fn run_output(
    queues: &OutputQueues,
    index: usize,
    mut destination: Box<dyn LogDestination>,
    check_interval: Duration,
) {
    let Some(queue) = queues.get(index) else {
        return;
    };
    let mut last_check = Instant::now();
    loop {
        match queue.receiver.recv_timeout(check_interval) {
            Ok(OutputMessage::Line(line)) => {
                queues.write(index, line, |bytes| destination.write_line(bytes));
            }
            Ok(OutputMessage::Report(text)) => queues.log_report(&text),
            // The thread that requested the flush may have stopped waiting.
            Ok(OutputMessage::Flush(done)) => drop(done.send(())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if last_check.elapsed() >= check_interval {
            last_check = Instant::now();
            queues.redirect_stalled_outputs(index);
        }
    }
}

/// Flushes the log when it is dropped, within a second.
#[derive(Debug)]
pub struct LogGuard {
    outputs: Outputs,
    is_finished: bool,
}

impl LogGuard {
    /// Flushes the log, within a second. Returns whether every important line was written to an output.
    pub fn finish(self) -> bool {
        self.finish_within(FLUSH_TIMEOUT)
    }

    fn finish_within(mut self, limit: Duration) -> bool {
        self.is_finished = true;
        let is_written = self.outputs.flush(limit);
        is_written && !self.outputs.0.has_lost_important_line()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if !self.is_finished {
            self.outputs.flush(FLUSH_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::Mutex;

    use super::super::fake_destination::{FakeDestination, Step};
    use super::*;

    struct Log {
        outputs: Outputs,
        lost: LostLines,
        reports: Arc<Mutex<Vec<String>>>,
        /// By how much the clock was advanced, in seconds.
        clock: Arc<AtomicU64>,
    }

    /// What differs from the defaults.
    #[derive(Clone, Copy)]
    struct TestOptions {
        capacity: usize,
        stall_timeout: Duration,
        check_interval: Duration,
    }

    impl Default for TestOptions {
        fn default() -> Self {
            Self { capacity: 100, stall_timeout: Duration::MAX, check_interval: Duration::MAX }
        }
    }

    /// Outputs stall after a minute of the test clock, and the threads check this every millisecond.
    const CHECKING: TestOptions = TestOptions {
        capacity: 100,
        stall_timeout: Duration::from_secs(60),
        check_interval: Duration::from_millis(1),
    };

    fn fakes() -> [FakeDestination; 3] {
        [(); 3].map(|()| FakeDestination::default())
    }

    impl Log {
        /// stdout, stderr and a file, in this order.
        fn start(fakes: [&FakeDestination; 3], with: TestOptions) -> Self {
            let outputs = ["stdout", "stderr", "a file"].into_iter().zip(fakes).enumerate();
            let outputs = outputs.map(|(index, (name, fake))| LogOutput {
                name: name.into(),
                destination: Box::new(fake.clone()),
                has_failover: index != 2,
            });
            let (lost, reports) = (LostLines::default(), Arc::new(Mutex::new(Vec::new())));
            let reported = reports.clone();
            let report = move |text: &str| reported.lock().push(text.to_owned());
            let clock = Arc::new(AtomicU64::new(0));
            let (started, advanced) = (Instant::now(), clock.clone());
            let options = OutputOptions {
                capacity: with.capacity,
                stall_timeout: with.stall_timeout,
                check_interval: with.check_interval,
                clock: Box::new(move || {
                    started + Duration::from_secs(advanced.load(Ordering::SeqCst))
                }),
                ..OutputOptions::default()
            };
            let (outputs, guard) =
                Outputs::start_with(outputs.collect(), lost.clone(), report, options).unwrap();
            std::mem::forget(guard);
            Self { outputs, lost, reports, clock }
        }

        fn advance(&self, seconds: u64) {
            self.clock.fetch_add(seconds, Ordering::SeqCst);
        }

        /// Waits until an output is writing a line.
        fn wait_until_writing(&self, index: usize) {
            let queue = self.outputs.0.get(index).unwrap();
            wait_until(|| queue.write_duration(|| 0).is_some());
        }

        fn send(&self, index: usize, text: &str, is_important: bool) {
            self.outputs.send(index, LogLine::new(text.into(), is_important));
        }

        /// Waits until every line is written, redirected or counted.
        fn settle(&self) {
            assert!(self.outputs.flush(Duration::from_secs(60)));
        }

        fn finish(&self) -> bool {
            let guard = LogGuard { outputs: self.outputs.clone(), is_finished: false };
            guard.finish_within(Duration::from_secs(60))
        }

        fn reports(&self) -> Vec<String> {
            self.reports.lock().clone()
        }
    }

    /// Waits for a condition, or fails the test.
    fn wait_until(mut is_met: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_met() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn important_lines_of_a_failing_output_are_redirected_and_others_counted() {
        let [stdout, stderr, file] = fakes();
        let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
        log.send(0, "a\n", false);
        log.settle();
        stdout.set_steps([Step::Fail; 3]);
        for text in ["b\n", "c\n"] {
            log.send(0, text, false);
        }
        log.send(0, "error\n", true);
        log.settle();
        assert_eq!((stdout.written().as_str(), stderr.written().as_str()), ("a\n", "error\n"));
        assert_eq!(log.lost.count(), 2);
        let [report] = &log.reports()[..] else { panic!("{:?}", log.reports()) };
        assert!(report.contains("stdout") && report.contains("lines_lost_total"), "{report}");
        // The recovery is reported with the number of lost lines.
        log.send(0, "d\n", false);
        log.settle();
        assert_eq!(stdout.written(), "a\nd\n");
        assert!(log.reports()[1].contains("again; 2 lines were lost"), "{:?}", log.reports());
        // Repeated failures are reported once a minute.
        stdout.set_steps([Step::Fail, Step::Accept, Step::Fail, Step::Accept]);
        for _ in 0..4 {
            log.send(0, "e\n", false);
        }
        log.settle();
        assert_eq!(log.reports().len(), 2, "{:?}", log.reports());
        assert_eq!(log.lost.count(), 4);
    }

    #[test]
    fn line_that_all_outputs_refuse_is_lost_after_one_attempt_each() {
        let [stdout, stderr, file] = fakes();
        for fake in [&stdout, &stderr, &file] {
            fake.set_steps([Step::Fail; 100]);
        }
        let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
        log.send(0, "error\n", true);
        log.settle();
        assert_eq!(log.lost.count(), 1);
        // Each output has tried once.
        for fake in [&stdout, &stderr, &file] {
            assert_eq!(fake.lock().steps.len(), 99);
        }
    }

    #[test]
    fn lines_of_an_output_without_failover_are_not_redirected() {
        let [stdout, stderr, file] = fakes();
        file.set_steps([Step::Fail]);
        let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
        log.send(2, "error\n", true);
        log.settle();
        assert_eq!((stdout.written(), stderr.written()), (String::new(), String::new()));
        assert_eq!((log.lost.count(), log.reports().len()), (1, 1));
    }

    #[test]
    fn stalled_output_does_not_block_callers() {
        let [stdout, stderr, file] = fakes();
        stdout.set_steps([Step::Block]);
        let log = Log::start(
            [&stdout, &stderr, &file],
            TestOptions { capacity: 2, ..TestOptions::default() },
        );
        log.send(0, "a\n", false);
        log.wait_until_writing(0);
        // More lines than the queue holds: the test would not end if a caller had to wait.
        for _ in 0..9 {
            log.send(0, "a\n", false);
        }
        log.send(0, "error\n", true);
        log.outputs.flush(Duration::from_millis(1));
        wait_until(|| !stderr.written().is_empty() && !log.reports().is_empty());
        assert_eq!(stderr.written(), "error\n");
        // One is being written, and two are in the queue.
        assert_eq!(log.lost.count(), 7);
        assert!(log.reports()[0].contains("its queue is full"), "{:?}", log.reports());
        stdout.set_steps([Step::Accept]);
        log.settle();
        assert!(log.reports()[1].contains("again"), "{:?}", log.reports());
    }

    #[test]
    fn important_lines_bypass_a_stalled_output() {
        let [stdout, stderr, file] = fakes();
        stdout.set_steps([Step::Block]);
        let stall_timeout = CHECKING.stall_timeout;
        let log = Log::start(
            [&stdout, &stderr, &file],
            TestOptions { stall_timeout, ..TestOptions::default() },
        );
        log.send(0, "a\n", false);
        log.wait_until_writing(0);
        log.advance(60);
        log.send(0, "error\n", true);
        wait_until(|| !stderr.written().is_empty());
        assert_eq!(log.lost.count(), 0);
        stdout.set_steps([]);
        log.settle();
        // The stalled output does not write the redirected line as well.
        assert_eq!((stdout.written().as_str(), stderr.written().as_str()), ("a\n", "error\n"));
    }

    #[test]
    fn lasting_failure_right_after_a_recovery_is_reported_after_a_minute() {
        let [stdout, stderr, file] = fakes();
        let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
        let send = |count: usize| {
            for _ in 0..count {
                log.send(0, "a\n", false);
            }
            log.settle();
            log.reports().len()
        };
        stdout.set_steps([Step::Fail, Step::Accept]);
        assert_eq!(send(2), 2, "the failure and the recovery");
        stdout.set_steps([Step::Fail; 100]);
        log.advance(20);
        assert_eq!(send(5), 2);
        log.advance(39);
        assert_eq!(send(5), 2, "not within a minute");
        log.advance(1);
        assert_eq!(send(5), 3, "once");
        log.advance(600);
        assert_eq!(send(5), 3, "not again until it recovers");
        assert!(log.reports()[2].contains("cannot be written to stdout"), "{:?}", log.reports());
        stdout.set_steps([]);
        assert_eq!(send(1), 4);
        assert!(log.reports()[3].contains("again; 20 lines were lost"), "{:?}", log.reports());
    }

    #[test]
    fn report_that_no_output_accepts_is_sent_again() {
        let [stdout, stderr, file] = fakes();
        let log = Log::start(
            [&stdout, &stderr, &file],
            TestOptions { capacity: 1, ..TestOptions::default() },
        );
        // Both are writing a line, and their queues are full.
        for (index, fake) in [(1, &stderr), (2, &file)] {
            fake.set_steps([Step::Block]);
            log.send(index, "a\n", false);
            log.wait_until_writing(index);
            log.send(index, "b\n", false);
        }
        stdout.set_steps([Step::Fail; 2]);
        log.send(0, "lost\n", false);
        wait_until(|| log.lost.count() == 1);
        assert_eq!(log.reports(), Vec::<String>::new());
        stderr.set_steps([]);
        wait_until(|| stderr.written() == "a\nb\n");
        // This is reported within the minute because nothing was reported yet.
        log.send(0, "lost\n", false);
        wait_until(|| log.reports().len() == 1);
        file.set_steps([]);
        log.send(0, "c\n", false);
        wait_until(|| log.reports().len() == 2);
        assert!(log.reports()[1].contains("again; 2 lines were lost"), "{:?}", log.reports());
    }

    #[test]
    fn line_on_which_an_output_stalls_is_redirected_even_if_nothing_else_is_logged() {
        let [stdout, stderr, file] = fakes();
        stdout.set_steps([Step::Block]);
        let log = Log::start([&stdout, &stderr, &file], CHECKING);
        log.send(0, "Router link lost\n", true);
        log.wait_until_writing(0);
        for (text, is_important) in [("a\n", false), ("error\n", true), ("b\n", false)] {
            log.send(0, text, is_important);
        }
        log.advance(60);
        wait_until(|| stderr.written() == "Router link lost\nerror\n" && log.reports().len() == 1);
        assert!(log.reports()[0].contains("stdout: it has not accepted a line for 60 s"));
        // The write of the redirected line fails in the end. A check at that moment could change the order of the other lines.
        {
            let _no_check = log.outputs.0.get(0).unwrap().redirecting.lock();
            stdout.set_steps([Step::Fail]);
            wait_until(|| stdout.written() == "a\nb\n");
        }
        log.settle();
        assert_eq!(stdout.written(), "a\nb\n", "in order, and nothing twice");
        assert_eq!(stderr.written(), "Router link lost\nerror\n");
        assert_eq!(log.lost.count(), 0);
    }

    #[test]
    fn important_line_is_redirected_to_a_stalled_output_only_as_a_last_resort() {
        let [stdout, stderr, file] = fakes();
        stderr.set_steps([Step::Block]);
        let stall_timeout = CHECKING.stall_timeout;
        let log = Log::start(
            [&stdout, &stderr, &file],
            TestOptions { stall_timeout, ..TestOptions::default() },
        );
        log.send(1, "a\n", false);
        log.wait_until_writing(1);
        log.advance(60);
        // stderr would be the first to take over the line and the report.
        stdout.set_steps([Step::Fail]);
        log.send(0, "error\n", true);
        wait_until(|| file.written() == "error\n" && log.reports().len() == 1);
        assert!(log.reports()[0].contains("cannot be written to stdout"), "{:?}", log.reports());
        // If all the others are stalled, a stalled one is better than none.
        file.set_steps([Step::Block]);
        log.send(2, "b\n", false);
        log.wait_until_writing(2);
        log.advance(60);
        stdout.set_steps([Step::Fail]);
        log.send(0, "fatal\n", true);
        wait_until(|| stdout.lock().steps.is_empty());
        for fake in [&stderr, &file] {
            fake.set_steps([]);
        }
        log.settle();
        let both = stderr.written() + &file.written();
        assert!(both.contains("fatal\n"), "{both}");
        assert_eq!(log.lost.count(), 0);
    }

    #[test]
    fn line_refused_during_the_last_flush_is_written_by_another_output() {
        for _ in 0..50 {
            let [stdout, stderr, file] = fakes();
            for fake in [&stdout, &stderr] {
                fake.set_steps([Step::Fail]);
            }
            let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
            log.send(0, "fatal\n", true);
            assert!(log.finish());
            assert_eq!(file.written(), "fatal\n");
        }
    }

    #[test]
    fn finish_returns_whether_an_important_line_was_lost() {
        for is_important in [false, true] {
            let [stdout, stderr, file] = fakes();
            for fake in [&stdout, &stderr, &file] {
                fake.set_steps([Step::Fail; 10]);
            }
            let log = Log::start([&stdout, &stderr, &file], TestOptions::default());
            log.send(0, "fatal\n", is_important);
            assert_eq!(log.finish(), !is_important);
        }
    }

    #[test]
    fn thread_that_cannot_be_started_is_an_error() {
        // The stack is larger than the address space.
        let thread = thread::Builder::new().stack_size(usize::MAX / 2);
        let error = spawn(thread, || {}).unwrap_err().to_string();
        assert!(error.starts_with("cannot start a thread that writes the log: "), "{error}");
    }
}
