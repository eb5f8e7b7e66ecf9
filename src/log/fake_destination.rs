//! A simulated destination of log lines for the unit tests of the outputs.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::destination::LogDestination;

/// What a destination does next; without steps it accepts everything.
#[derive(Default)]
pub(super) struct FakeScript {
    pub(super) steps: VecDeque<Step>,
    written: String,
}

/// How a destination treats one line.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Fail,
    Accept,
    /// Blocks until there are other steps.
    Block,
}

/// A destination that follows a script.
#[derive(Clone, Default)]
pub(super) struct FakeDestination(Arc<(Mutex<FakeScript>, Condvar)>);

impl FakeDestination {
    pub(super) fn lock(&self) -> MutexGuard<'_, FakeScript> {
        self.0.0.lock()
    }

    pub(super) fn set_steps(&self, steps: impl IntoIterator<Item = Step>) {
        self.lock().steps = steps.into_iter().collect();
        self.0.1.notify_all();
    }

    pub(super) fn written(&self) -> String {
        self.lock().written.clone()
    }
}

impl LogDestination for FakeDestination {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let mut script = self.lock();
        while matches!(script.steps.front(), Some(Step::Block)) {
            self.0.1.wait(&mut script);
        }
        if let Some(Step::Fail) = script.steps.pop_front() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        script.written += std::str::from_utf8(line).unwrap();
        Ok(())
    }
}
