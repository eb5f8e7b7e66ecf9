//! Compares the machine with what the settings need.

use std::time::SystemTime;

use crate::clock;
use crate::config::Config;
use crate::memory;
use crate::open_files;

/// Raises the limit on open files to what the settings need. Returns warnings if the machine has too little for them or
/// its clock cannot be right.
pub(crate) fn prepare(config: &Config) -> Vec<String> {
    let memory = memory::available().and_then(|bytes| memory::warning(config, bytes));
    let checks = [open_files::raise_limit(config), memory, clock::warning(SystemTime::now())];
    checks.into_iter().flatten().collect()
}
