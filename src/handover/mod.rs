//! Sessions that outlive the relay: what a relay keeps in the descriptor store, and how the next relay continues with it.
//!
//! While a relay runs, its keeper puts listeners, sessions and handed-out keys into the store. When it is replaced, it
//! suspends its tasks and puts everything else, too. The next relay takes all of it over, whether its predecessor
//! handed over or died.

#[cfg(target_os = "linux")]
pub mod abandoned;
#[cfg(target_os = "linux")]
pub mod contents;
pub mod entry_key;
#[cfg(target_os = "linux")]
pub mod error;
#[cfg(target_os = "linux")]
pub mod keeper;
#[cfg(target_os = "linux")]
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod notes;
#[cfg(target_os = "linux")]
pub mod relay;
#[cfg(target_os = "linux")]
pub mod store_link;
pub mod suspended;
pub mod takeover;
#[cfg(target_os = "linux")]
pub mod taking;
