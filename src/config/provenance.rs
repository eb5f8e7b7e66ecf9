//! Where values and problems come from.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::settings::SettingKey;

/// Where the value of a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provenance {
    /// The built-in default.
    Default,
    /// A default that follows from something else, which the text names.
    Derived(String),
    /// Nowhere: a required setting is missing.
    NotSet,
    /// `relay.json`.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A secret file: one named by an environment variable that ends in `_FILE`.
    SecretFile {
        /// The file.
        path: PathBuf,
        /// The variable.
        variable: String,
    },
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived(from) => write!(f, "default ({from})"),
            Self::NotSet => f.write_str("not set"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::SecretFile { path, variable } => {
                write!(f, "file {} named by {variable}", path.display())
            }
        }
    }
}

impl Serialize for Provenance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemSource {
    /// In one value, or in one source as a whole.
    Value(Provenance),
    /// In two variables that set the same thing.
    BothVariables(String, String),
    /// In a value that conflicts with that of another setting.
    Conflict(SettingKey),
    /// In a listener's port that conflicts with the port for peers.
    ConflictWithPeers,
    /// Everywhere: nobody has configured anything.
    NothingSet,
}

impl From<Provenance> for ProblemSource {
    fn from(provenance: Provenance) -> Self {
        Self::Value(provenance)
    }
}

impl fmt::Display for ProblemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(provenance) => provenance.fmt(f),
            Self::BothVariables(one, other) => write!(f, "{one} and {other}"),
            Self::Conflict(key) => write!(f, "conflicts with {key}"),
            Self::ConflictWithPeers => {
                f.write_str("conflicts with ListenPort, or with PeerPort if that is not set")
            }
            Self::NothingSet => f.write_str("nothing is set"),
        }
    }
}

impl Serialize for ProblemSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
