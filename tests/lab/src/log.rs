//! Captures the relay's log in tests.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

/// Longest wait for a line.
pub const PATIENCE: Duration = Duration::from_secs(600);

static INSTALLED: Once = Once::new();

thread_local! {
    static CAPTURE: RefCell<Option<Text>> = const { RefCell::new(None) };
}

/// The lines logged on this thread while it lives. That suffices for tests on a single-threaded runtime.
///
/// One subscriber serves the whole process and sorts by thread: subscribers of single threads come and go while
/// other tests run, and `tracing` could then decide for all threads that a line has no subscriber.
pub struct CapturedLog {
    text: Text,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<String>>);

struct Writer(Option<Text>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(text) = &self.0 {
            let mut text = text.0.lock();
            text.push_str(&String::from_utf8_lossy(bytes));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ByThread;

impl MakeWriter<'_> for ByThread {
    type Writer = Writer;

    fn make_writer(&self) -> Writer {
        Writer(CAPTURE.with_borrow(Clone::clone))
    }
}

impl CapturedLog {
    /// Starts to capture lines from debug level up.
    pub fn start() -> Self {
        INSTALLED.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_ansi(false)
                .with_writer(ByThread)
                .finish();
            // A test binary that installs another one captures nothing, and its tests fail.
            let _ = tracing::subscriber::set_global_default(subscriber);
        });
        let text = Text::default();
        CAPTURE.set(Some(text.clone()));
        Self { text }
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        self.text.0.lock().clone()
    }

    /// Waits until the log contains `expected`. Returns the line.
    ///
    /// # Panics
    /// If the line does not appear within [`PATIENCE`] of the runtime's clock.
    pub async fn line(&self, expected: &str) -> String {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no line with {expected:?} in\n{}", self.text());
            if let Some(line) = self.text().lines().find(|line| line.contains(expected)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for CapturedLog {
    fn drop(&mut self) {
        CAPTURE.set(None);
    }
}
