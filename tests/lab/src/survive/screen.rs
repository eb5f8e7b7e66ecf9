//! Shows a run while it goes on: a line that changes on a terminal, below the rows of the table.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::interval;

use super::prober::Probes;
use super::session::Load;
use crate::say;

/// Interval of changes.
const EVERY: Duration = Duration::from_millis(200);

/// The table.
pub(super) struct Screen {
    line: ProgressBar,
    phase: Arc<Mutex<String>>,
    ticker: AbortHandle,
}

impl Screen {
    /// Shows `load` and `probes` until it is dropped.
    pub(super) fn new(load: Arc<Load>, probes: Arc<Probes>) -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        line.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        let phase = Arc::new(Mutex::new(String::new()));
        let (bar, now) = (line.clone(), phase.clone());
        let ticker = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            let mut before = load.verified.load(Ordering::Relaxed);
            loop {
                ticks.tick().await;
                let verified = load.verified.load(Ordering::Relaxed);
                let rate = (verified - before) as f64 / EVERY.as_secs_f64() / 1024.0 / 1024.0;
                before = verified;
                let refused = probes.read().refused;
                let phase = now.lock().clone();
                bar.set_message(format!("{phase}   {rate:.1} MiB/s verified   {refused} refused"));
                bar.tick();
            }
        });
        Self { line, phase, ticker: ticker.abort_handle() }
    }

    /// Says what is done now.
    pub(super) fn phase(&self, text: impl Into<String>) {
        *self.phase.lock() = text.into();
    }

    /// Prints a line above.
    pub(super) fn print(&self, text: &str) {
        self.line.suspend(|| say(text));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.ticker.abort();
        self.line.finish_and_clear();
    }
}
