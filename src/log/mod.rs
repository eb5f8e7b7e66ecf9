//! The log. The original's variables keep their meaning, and important lines are logged at every level.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `ASPIA_LOG_LEVEL` | 0 information, 1 errors, 2 fatal errors only (default) |
//! | `ASPIA_LOG_TO_STDOUT`, `ASPIA_LOG_TO_FILE` | 0 off, any other number on |
//! | `ASPIA_MAX_LOG_FILE_SIZE`, `ASPIA_MAX_LOG_FILE_AGE` | bytes; days, 0 = keep |
//! | `ASPIA_MAX_LOG_TOTAL_SIZE` | bytes of all files together, 0 = no limit; not in the original |
//! | `ASPIA_LOG_FORMAT` | `text` (default) or `json` |
//! | `RUST_LOG` | overrides the level: `info`, `aspia_relay::router=debug` and the like |
//!
//! Important lines are errors, warnings and the startup line. They go to stderr unless stdout has them already. A
//! Windows service has neither: its important lines go to the log files, whatever the level is. `failover` handles the lines
//! of an output that fails.

mod destination;
mod environment;
mod failover;
mod files;
mod filter;
mod format;
mod handle;
mod json;
pub mod limit;
mod lost;
mod outputs;
mod queue;
mod settings;
mod stdio;
mod subscriber;
mod target;
mod variable;
mod writer;

pub use handle::{ChangedFilter, LogHandle};
pub use lost::LostLines;
pub use outputs::LogGuard;
pub use settings::LogSettings;
pub use subscriber::SpanLayer;
pub use target::{FATAL, SESSION, START};
pub use variable::VARIABLES;

#[cfg(test)]
mod fake_destination;
