//! Where settings come from.

use std::path::{Path, PathBuf};

/// The default path of the configuration file.
pub const DEFAULT_PATH: &str =
    if cfg!(windows) { r"C:\ProgramData\aspia\relay.json" } else { "/etc/aspia/relay.json" };

/// The variable that names another file, as `--config` does.
pub const PATH_VARIABLE: &str = "ASPIA_RELAY_CONFIG";

/// Where settings come from. Injected, so that no test changes the environment of its process.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The file.
    pub path: PathBuf,
    /// Whether the file was named explicitly, so that it must exist.
    pub is_path_explicit: bool,
    /// The environment.
    pub environment: Vec<(String, String)>,
}

impl Sources {
    /// The sources of this process: `--config`, else `ASPIA_RELAY_CONFIG`, else the default path.
    pub fn of_process(argument: Option<PathBuf>) -> Self {
        let environment: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| {
                // A value that is not UTF-8 is kept with replacement characters: no setting accepts them, so that
                // the value is reported under its name instead of being ignored.
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        // Taken unchanged from the system, because a path need not be UTF-8.
        let not_utf8 = std::env::var_os(PATH_VARIABLE).filter(|path| path.to_str().is_none());
        Self::new(argument.or(not_utf8.map(PathBuf::from)), environment)
    }

    /// Sources with a given environment.
    pub fn new(argument: Option<PathBuf>, environment: Vec<(String, String)>) -> Self {
        let named = argument.or_else(|| {
            let variable = environment.iter().find(|(name, _)| name == PATH_VARIABLE);
            // A blank name is one that somebody meant to fill in; such a file does not exist.
            let value = variable.map(|(_, value)| value).filter(|value| !value.is_empty());
            value.map(|value| PathBuf::from(value.trim()))
        });
        Self {
            is_path_explicit: named.is_some(),
            path: named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)),
            environment,
        }
    }

    /// The value of a variable, if it is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value =
            self.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Whether this process seems to run in a container. Podman, LXC, systemd-nspawn and this project's image (under any
    /// runtime) set the variable `container`.
    pub fn is_in_container(&self) -> bool {
        self.variable("KUBERNETES_SERVICE_HOST").is_some()
            || self.variable("container").is_some()
            || Path::new("/.dockerenv").exists()
            || Path::new("/run/.containerenv").exists()
    }
}
