//! The count of log lines that were not written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the lines that were not written. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct LostLines(Arc<AtomicU64>);

impl LostLines {
    /// Returns the number of lost lines.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
