//! Where settings come from.

use std::path::{Path, PathBuf};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str =
    if cfg!(windows) { r"C:\ProgramData\aspia\relay.json" } else { "/etc/aspia/relay.json" };

/// The variable that names another file, like `--config`.
pub const PATH_VARIABLE: &str = "ASPIA_RELAY_CONFIG";

/// Where settings come from. Injected, so that no test touches the environment of its process.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The file.
    pub path: PathBuf,
    /// Whether somebody named the file: then it must exist.
    pub path_is_explicit: bool,
    /// The environment.
    pub environment: Vec<(String, String)>,
}

impl Sources {
    /// The sources of this process: `--config`, else `ASPIA_RELAY_CONFIG`, else the default path.
    pub fn of_process(argument: Option<PathBuf>) -> Self {
        let environment: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| {
                // A value that is not UTF-8 is kept with replacement characters: no setting takes them, so
                // that it is reported under its name instead of being passed over.
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        // As the system has it: a path need not be UTF-8.
        let not_utf8 = std::env::var_os(PATH_VARIABLE).filter(|path| path.to_str().is_none());
        Self::new(argument.or(not_utf8.map(PathBuf::from)), environment)
    }

    /// Sources with a given environment.
    pub fn new(argument: Option<PathBuf>, environment: Vec<(String, String)>) -> Self {
        let named = argument.or_else(|| {
            let variable = environment.iter().find(|(name, _)| name == PATH_VARIABLE);
            // A blank one is a name that somebody meant to fill in: there is no such file.
            let value = variable.map(|(_, value)| value).filter(|value| !value.is_empty());
            value.map(|value| PathBuf::from(value.trim()))
        });
        Self {
            path_is_explicit: named.is_some(),
            path: named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)),
            environment,
        }
    }

    /// The value of a variable, where it has one.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value =
            self.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Whether this process seems to run in a container. Podman, LXC, systemd-nspawn and this project's image set the
    /// variable `container`, whatever the runtime.
    pub fn in_container(&self) -> bool {
        self.variable("KUBERNETES_SERVICE_HOST").is_some()
            || self.variable("container").is_some()
            || Path::new("/.dockerenv").exists()
            || Path::new("/run/.containerenv").exists()
    }
}
