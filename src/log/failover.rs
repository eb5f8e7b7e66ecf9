//! Failover between the outputs of the log, for lines that an output does not accept, or that wait for a stalled output.
//!
//! Important lines go to another output instead; the others are lost, and counted. The failure of an output is reported on
//! another output, once until the failing output accepts lines again.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;

use super::lost::LostLines;
use super::queue::{LogLine, OutputMessage, OutputQueue};

/// The source of the time; tests replace it.
pub(super) type LogClock = Box<dyn Fn() -> Instant + Send + Sync>;

/// Logs that an output fails, or that it has recovered.
pub(super) type ReportLogger = Box<dyn Fn(&str) + Send + Sync>;

/// Which outputs may take over lines of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailoverTargets {
    /// Those that are not stalled.
    Responsive,
    /// All of them, the stalled ones last.
    All,
}

/// The queues of all outputs, which take over lines from each other.
pub(super) struct OutputQueues {
    queues: Vec<OutputQueue>,
    clock: LogClock,
    started: Instant,
    stall_timeout: Duration,
    lost_lines: LostLines,
    has_lost_important_line: AtomicBool,
    report: ReportLogger,
}

impl fmt::Debug for OutputQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.queues).finish()
    }
}

impl OutputQueues {
    /// Combines queues, in the order of failover. An output is stalled once the write of one line has taken
    /// `stall_timeout`.
    pub(super) fn new(
        queues: Vec<OutputQueue>,
        clock: LogClock,
        stall_timeout: Duration,
        lost_lines: LostLines,
        report: ReportLogger,
    ) -> Self {
        let (started, has_lost_important_line) = (clock(), AtomicBool::new(false));
        Self { queues, clock, started, stall_timeout, lost_lines, has_lost_important_line, report }
    }

    /// Returns the queue with this number.
    pub(super) fn get(&self, index: usize) -> Option<&OutputQueue> {
        self.queues.get(index)
    }

    /// Returns all queues, by number.
    pub(super) fn all(&self) -> &[OutputQueue] {
        &self.queues
    }

    /// Whether an important line was lost on every output.
    pub(super) fn has_lost_important_line(&self) -> bool {
        self.has_lost_important_line.load(Ordering::Relaxed)
    }

    /// Logs a report about another output.
    pub(super) fn log_report(&self, text: &str) {
        (self.report)(text);
    }

    /// Queues a line for an output, or fails over. Never blocks.
    pub(super) fn send(&self, index: usize, mut line: LogLine) {
        let Some(queue) = self.get(index) else {
            return;
        };
        if self.is_stalled(queue) {
            self.mark_stalled(index, queue);
            if queue.needs_failover(&line) {
                match self.redirect_line(index, line, FailoverTargets::Responsive) {
                    Ok(()) => return,
                    Err(back) => line = back,
                }
            }
        }
        match queue.sender.try_send(OutputMessage::Line(line)) {
            Err(TrySendError::Full(OutputMessage::Line(line))) => {
                self.handle_refusal(index, queue, line, &"its queue is full");
            }
            Err(TrySendError::Disconnected(OutputMessage::Line(line))) => {
                self.handle_refusal(index, queue, line, &"its thread has ended");
            }
            _ => {}
        }
    }

    /// Writes a line of an output with `write`, and fails over if that fails.
    pub(super) fn write(
        &self,
        index: usize,
        line: LogLine,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) {
        let Some(queue) = self.get(index) else {
            return;
        };
        queue.begin_write(&line, self.now());
        let result = write(line.bytes());
        let was_redirected = queue.end_write(&line);
        match result {
            Ok(()) => {
                if let Some(report) = queue.note_success() {
                    self.log_report(&report);
                }
            }
            Err(error) if was_redirected => self.mark_failing(index, queue, &error),
            Err(error) => self.handle_refusal(index, queue, line, &error),
        }
    }

    /// Checks whether outputs other than `index` are stalled, and redirects their important lines.
    pub(super) fn redirect_stalled_outputs(&self, index: usize) {
        for (other, queue) in self.queues.iter().enumerate() {
            if other == index || !self.is_stalled(queue) {
                continue;
            }
            self.mark_stalled(other, queue);
            // One thread at a time is enough.
            if let Some(_redirecting) = queue.redirecting.try_lock() {
                self.redirect_current_line(other, queue);
                self.redirect_queue(other, queue);
            }
        }
    }

    /// Redirects the line on which an output is stalled. If the output writes the line after all, the line appears twice.
    fn redirect_current_line(&self, index: usize, queue: &OutputQueue) {
        let mut current_line = queue.current_line.lock();
        // By now the output may be writing another line.
        if self.is_stalled(queue)
            && let Some(line) = current_line.take()
        {
            *current_line = self.redirect_line(index, line, FailoverTargets::Responsive).err();
        }
    }

    /// Redirects the important lines in the queue of a stalled output. The others go to the end of the queue, in order.
    fn redirect_queue(&self, index: usize, queue: &OutputQueue) {
        for message in queue.receiver.try_iter().take(queue.receiver.len()) {
            let targets = FailoverTargets::Responsive;
            let kept = match message {
                OutputMessage::Line(line) if queue.needs_failover(&line) => {
                    self.redirect_line(index, line, targets).err().map(OutputMessage::Line)
                }
                OutputMessage::Report(text) => self.redirect_report(index, text, targets).err(),
                other => Some(other),
            };
            if let Some(Err(TrySendError::Full(OutputMessage::Line(line)))) =
                kept.map(|message| queue.sender.try_send(message))
            {
                self.drop_line(queue, &line);
            }
        }
    }

    /// Returns the nanoseconds since the start of the log; never 0, which stands for no time.
    fn now(&self) -> u64 {
        u64::try_from(((self.clock)() - self.started).as_nanos())
            .map_or(u64::MAX, |now| now.saturating_add(1))
    }

    /// Whether the write of one line has taken too long.
    fn is_stalled(&self, queue: &OutputQueue) -> bool {
        let duration = queue.write_duration(|| self.now());
        duration.is_some_and(|duration| duration >= self.stall_timeout)
    }

    /// Handles a line that an output did not accept.
    fn handle_refusal(
        &self,
        index: usize,
        queue: &OutputQueue,
        mut line: LogLine,
        why: &dyn fmt::Display,
    ) {
        self.mark_failing(index, queue, why);
        if queue.needs_failover(&line) {
            match self.redirect_line(index, line, FailoverTargets::All) {
                Ok(()) => return,
                Err(back) => line = back,
            }
        }
        self.drop_line(queue, &line);
    }

    fn drop_line(&self, queue: &OutputQueue, line: &LogLine) {
        self.lost_lines.increment();
        queue.add_lost_line();
        if queue.needs_failover(line) {
            self.has_lost_important_line.store(true, Ordering::Relaxed);
        }
    }

    /// Iterates over the outputs other than `index`, the responsive ones first.
    fn other_queues(
        &self,
        index: usize,
        targets: FailoverTargets,
    ) -> impl Iterator<Item = (usize, &OutputQueue)> {
        let others = self.queues.iter().enumerate().filter(move |(other, _)| *other != index);
        let responsive = others.clone().filter(|(_, queue)| !self.is_stalled(queue));
        let stalled = others.filter(|(_, queue)| self.is_stalled(queue));
        responsive.chain(stalled.filter(move |_| targets == FailoverTargets::All))
    }

    /// Queues a line for another output. Returns the line if no output accepts it.
    fn redirect_line(
        &self,
        index: usize,
        mut line: LogLine,
        targets: FailoverTargets,
    ) -> Result<(), LogLine> {
        line.add_refusal(index);
        for (other, queue) in self.other_queues(index, targets) {
            if line.was_refused_by(other) {
                continue;
            }
            match queue.sender.try_send(OutputMessage::Line(line)) {
                Ok(()) => return Ok(()),
                Err(error) => match error.into_inner() {
                    OutputMessage::Line(back) => line = back,
                    OutputMessage::Report(_) | OutputMessage::Flush(_) => return Ok(()),
                },
            }
        }
        Err(line)
    }

    /// Has the thread of another output log a report. Returns the report if no output accepts it.
    fn redirect_report(
        &self,
        index: usize,
        text: String,
        targets: FailoverTargets,
    ) -> Result<(), OutputMessage> {
        let mut message = OutputMessage::Report(text);
        for (_, queue) in self.other_queues(index, targets) {
            match queue.sender.try_send(message) {
                Ok(()) => return Ok(()),
                Err(error) => message = error.into_inner(),
            }
        }
        Err(message)
    }

    /// Notes that an output is stalled.
    fn mark_stalled(&self, index: usize, queue: &OutputQueue) {
        let seconds = self.stall_timeout.as_secs();
        self.mark_failing(
            index,
            queue,
            &format_args!("it has not accepted a line for {seconds} s"),
        );
    }

    /// Notes that an output does not accept lines, and has another output report it.
    fn mark_failing(&self, index: usize, queue: &OutputQueue, why: &dyn fmt::Display) {
        queue.note_failure(why, (self.clock)(), |text| {
            self.redirect_report(index, text, FailoverTargets::All).is_ok()
        });
    }
}
