//! The configuration: what the operator wrote ([`raw::RawSettings`]) and what the relay runs with ([`Config`]).
//!
//! [`load()`] merges defaults, `relay.json` and the environment through figment, derives the defaults that follow from
//! other settings, checks everything, and reports all problems at once. A [`Config`] is always valid: nothing downstream
//! checks a setting again.
//!
//! A setting is one row of the table in [`settings`] and one field of [`Config`].

pub mod admin_hosts;
mod advice;
mod checks;
mod create;
mod derived;
mod difference;
pub mod exposed;
mod file;
mod json;
mod layer;
mod load;
mod metrics_tls;
mod mounted_file;
pub mod networks;
pub mod parse;
pub mod provenance;
mod raw;
mod reader;
pub mod report;
pub mod settings;
mod source_files;
pub mod sources;
mod store;
mod store_config;
mod types;
mod variables;

pub use create::{CreateError, DEFAULT_FILE, create_default_file};
pub use load::{InvalidConfig, LoadedConfig, load, reload};
pub use metrics_tls::tls_part_setting;
pub use source_files::SourceDigest;
pub use store_config::{StoreConfig, load_store_config};
pub use types::{Config, RouterConfig, StartupConfig};

#[cfg(test)]
pub(crate) mod testing;
