//! A worker thread and its runtime.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::exit::abort_on_panic;

use super::slot::WorkerState;

/// A thread with a runtime of its own.
#[derive(Debug)]
pub(super) struct WorkerThread {
    pub(super) runtime: Handle,
    pub(super) state: Arc<WorkerState>,
    /// `None` once it is joined.
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts a thread that runs until `stop` is cancelled.
    pub(super) fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let state = Arc::new(WorkerState::new(number));
        let (parks, unparks) = (state.clone(), state.clone());
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .on_thread_park(move || parks.busy.park())
            .on_thread_unpark(move || unparks.busy.unpark())
            .build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new()
            .name(format!("forward-{number}"))
            .spawn(move || abort_on_panic(|| runtime.block_on(stop.cancelled())))?;
        Ok(Self { runtime: handle, state, thread: Some(thread) })
    }

    /// Waits until the thread has ended.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            // The last clone of the workers may be dropped by a session on this very thread.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic has been reported by the thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The variable that tells the test that it is its own child.
    const CHILD: &str = "ASPIA_RELAY_TEST_PANICS";

    #[test]
    fn panic_of_a_thread_outside_of_its_tasks_aborts_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let thread = std::thread::spawn(|| abort_on_panic(|| panic!("as expected")));
            let _ = thread.join();
            return;
        }
        let name =
            "workers::thread::tests::panic_of_a_thread_outside_of_its_tasks_aborts_the_process";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::null());
        let status = child.status().unwrap();
        #[cfg(unix)]
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "{status}");
        assert!(!status.success(), "{status}");
    }
}
