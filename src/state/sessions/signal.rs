//! The signal with which other tasks wake the task of a session.

use std::task::{Context, Poll};

use tokio::time::Instant;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{AtomicWaker, Mutex};

use super::cause::EndCause;

/// Wakes the task of a session and passes on the requests of other tasks.
#[derive(Debug, Default)]
pub struct SessionSignal {
    requests: Mutex<SessionRequests>,
    is_notified: AtomicBool,
    task: AtomicWaker,
}

/// The requests of other tasks to the task of a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct SessionRequests {
    /// The session should end, for this reason.
    end: Option<EndCause>,
    /// The session should end unless bytes have moved since this time, or could move now.
    idle_since: Option<Instant>,
}

impl SessionSignal {
    /// Asks the session to end. Only the first reason counts.
    pub(super) fn request_end(&self, why: EndCause) {
        self.requests.lock().end.get_or_insert(why);
        self.notify();
    }

    /// Whether the session was asked to end.
    pub(in crate::state) fn is_asked_to_end(&self) -> bool {
        self.requests.lock().end.is_some()
    }

    /// Asks the session to end if nothing has moved since `since`. The clock alone cannot tell: the process may have been
    /// stopped for a while, and bytes may be waiting.
    pub(super) fn request_idle_check(&self, since: Instant) {
        self.requests.lock().idle_since = Some(since);
        self.notify();
    }

    /// Takes the request to check whether the session is idle. Returns the time since which it seems to be. Only the session's
    /// own task may call this.
    pub fn take_idle_check(&self) -> Option<Instant> {
        self.requests.lock().idle_since.take()
    }

    /// Wakes the session's task, so that it looks at the requests.
    pub fn notify(&self) {
        self.is_notified.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Ready when the task was notified, with the reason why the session has to end, if it has to. Only the session's own
    /// task may call this; it takes no lock unless the task was notified.
    pub fn poll_signal(&self, context: &Context<'_>) -> Poll<Option<EndCause>> {
        self.task.register(context.waker());
        if !self.is_notified.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Cleared before the requests are read, so that a notification that arrives meanwhile is seen the next time.
        self.is_notified.swap(false, Ordering::AcqRel);
        Poll::Ready(self.requests.lock().end)
    }
}
