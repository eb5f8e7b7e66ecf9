//! The bounded queue of one output of the log, and the state of that output: whether it is writing, and whether it fails.

use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::limit::LineLimit;

/// A line in a queue.
#[derive(Debug, Clone)]
pub(super) struct LogLine {
    bytes: Vec<u8>,
    is_important: bool,
    /// The outputs that did not accept the line, one bit each.
    refused_by: u8,
}

impl LogLine {
    /// Creates a line that no output has refused yet.
    pub(super) fn new(bytes: Vec<u8>, is_important: bool) -> Self {
        Self { bytes, is_important, refused_by: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Notes that the output with this number did not accept the line.
    pub(super) fn add_refusal(&mut self, index: usize) {
        self.refused_by |= output_bit(index);
    }

    pub(super) fn was_refused_by(&self, index: usize) -> bool {
        self.refused_by & output_bit(index) != 0
    }
}

fn output_bit(index: usize) -> u8 {
    u32::try_from(index).ok().and_then(|index| 1_u8.checked_shl(index)).unwrap_or(0)
}

/// A message to the thread of an output.
#[derive(Debug)]
pub(super) enum OutputMessage {
    Line(LogLine),
    /// A report about another output, to be logged.
    Report(String),
    /// A request to answer when everything before it has been written.
    Flush(Sender<()>),
}

/// The queue of one output.
#[derive(Debug)]
pub(super) struct OutputQueue {
    /// The output's name, for people.
    name: String,
    pub(super) sender: Sender<OutputMessage>,
    /// Read by the output's own thread, and by a thread that redirects the lines if this output is stalled.
    pub(super) receiver: Receiver<OutputMessage>,
    /// Whether important lines go to another output if this one fails. Unnecessary if another output has them anyway.
    has_failover: bool,
    /// Whether there is a `failure`; can be read without a lock.
    is_failing: AtomicBool,
    failure: Mutex<FailureReport>,
    /// When the write of the current line began, in nanoseconds since the start of the log; 0 if none is being written.
    writing_since: AtomicU64,
    /// The line being written, if it needs failover, until it is written or redirected.
    pub(super) current_line: Mutex<Option<LogLine>>,
    /// Held while the lines of this queue are redirected.
    pub(super) redirecting: Mutex<()>,
    report_limit: LineLimit,
}

/// What has happened since an output began to fail.
#[derive(Debug, Default)]
struct FailureReport {
    /// Whether the failure, and then the recovery, may be reported.
    is_allowed: bool,
    /// Whether another output has accepted the report.
    is_sent: bool,
    lost_lines: u64,
}

impl OutputQueue {
    /// Creates the queue of an output, for up to `capacity` messages. A failure is reported once in each `report_period`.
    pub(super) fn new(
        name: String,
        has_failover: bool,
        capacity: usize,
        report_period: Duration,
    ) -> Self {
        let (sender, receiver) = bounded(capacity);
        Self {
            name,
            sender,
            receiver,
            has_failover,
            is_failing: AtomicBool::new(false),
            failure: Mutex::default(),
            writing_since: AtomicU64::new(0),
            current_line: Mutex::default(),
            redirecting: Mutex::default(),
            report_limit: LineLimit::new(NonZero::<u32>::MIN, report_period),
        }
    }

    /// Whether another output must write the line if this one does not.
    pub(super) fn needs_failover(&self, line: &LogLine) -> bool {
        // A line that was redirected here is on no other output.
        line.is_important && (self.has_failover || line.refused_by != 0)
    }

    /// Notes that the write of a line begins, `now` nanoseconds (not 0) after the start of the log.
    pub(super) fn begin_write(&self, line: &LogLine, now: u64) {
        if self.needs_failover(line) {
            *self.current_line.lock() = Some(line.clone());
        }
        self.writing_since.store(now, Ordering::Relaxed);
    }

    /// Notes that the write of a line has ended. Returns whether the line was redirected meanwhile.
    pub(super) fn end_write(&self, line: &LogLine) -> bool {
        self.writing_since.store(0, Ordering::Relaxed);
        self.needs_failover(line) && self.current_line.lock().take().is_none()
    }

    /// Returns how long the write of the current line has taken; `None` if no line is being written.
    pub(super) fn write_duration(&self, now: impl FnOnce() -> u64) -> Option<Duration> {
        match self.writing_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_nanos(now().saturating_sub(since))),
        }
    }

    /// Counts a line of this output that was lost.
    pub(super) fn add_lost_line(&self) {
        self.failure.lock().lost_lines += 1;
    }

    /// Notes that the output does not accept lines, and reports it with `send`, which returns whether that succeeded.
    pub(super) fn note_failure(
        &self,
        why: &dyn fmt::Display,
        now: Instant,
        send: impl FnOnce(String) -> bool,
    ) {
        let mut failure = self.failure.lock();
        self.is_failing.store(true, Ordering::Relaxed);
        if failure.is_sent {
            return;
        }
        // If an output fails and recovers again and again, only some failures are reported, but a lasting one always is.
        failure.is_allowed |= self.report_limit.allows_at(now);
        if failure.is_allowed {
            failure.is_sent = send(format!(
                "the log cannot be written to {}: {why}. Lost lines are counted in \
                 aspia_relay_log_lines_lost_total",
                self.name
            ));
        }
    }

    /// Notes that the output has written a line. Returns the report of a recovery, if there is one.
    pub(super) fn note_success(&self) -> Option<String> {
        // In the usual case nothing is written that other threads share.
        if !self.is_failing.load(Ordering::Relaxed) {
            return None;
        }
        let failure = {
            let mut failure = self.failure.lock();
            self.is_failing.store(false, Ordering::Relaxed);
            std::mem::take(&mut *failure)
        };
        failure.is_allowed.then(|| {
            let lost = failure.lost_lines;
            format!("the log can be written to {} again; {lost} lines were lost", self.name)
        })
    }
}
