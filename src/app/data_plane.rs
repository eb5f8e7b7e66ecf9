//! The worker threads, and how they move bytes.

use crate::forward::TransferMethod;
use crate::open_files::MAX_PIPES;
use crate::workers::Workers;

/// The worker threads, and how they move bytes.
#[derive(Debug, Clone)]
pub struct DataPlane {
    /// The threads on which sessions live.
    pub workers: Workers,
    /// How bytes are moved.
    pub method: TransferMethod,
    /// Maximum number of pipes that are open at once.
    pub max_pipes: usize,
}

impl DataPlane {
    /// Moves bytes on these worker threads, by the default method.
    pub fn on(workers: Workers) -> Self {
        Self { workers, method: TransferMethod::Adaptive, max_pipes: MAX_PIPES }
    }
}
