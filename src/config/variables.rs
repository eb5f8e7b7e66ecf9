//! Settings from the environment, and variables that look like settings but are not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::log;

use super::advice;
use super::file;
use super::layer::Layer;
use super::provenance::{ProblemSource, Provenance};
use super::report::{ConfigReport, shorten};
use super::settings::{self, SETTINGS, Setting};
use super::source_files::{FILE_SUFFIX, SourceFiles};
use super::sources::{PATH_VARIABLE, Sources};

/// The prefix of the variables of this program.
const PREFIX: &str = "ASPIA_RELAY_";
/// The prefix of the log's variables, whose names may be misspelt as well.
const LOG_PREFIX: &str = "ASPIA_";
/// Variables that `compose.yaml` reads itself, and passes on with the others of `.env`.
const COMPOSE_VARIABLES: &[&str] = &["ASPIA_RELAY_IMAGE", "ASPIA_RELAY_LAB_IMAGE"];
/// The maximum edit distance at which a name without [`PREFIX`] is considered misspelt.
const MAX_DISTANCE: usize = 2;

/// Reads all settings from the environment, and notes problems and variables that are not settings.
pub(super) fn read(
    sources: &Sources,
    files: &SourceFiles,
    report: &mut ConfigReport,
) -> Vec<Layer> {
    let mut ours: BTreeMap<&str, &str> = sources
        .environment
        .iter()
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    ours.remove(PATH_VARIABLE);
    let mut layers = Vec::new();
    let mut ignored = Vec::new();
    for setting in SETTINGS {
        let plain = setting.key.variable();
        let file_variable = format!("{plain}{FILE_SUFFIX}");
        match (ours.remove(plain.as_str()), ours.remove(file_variable.as_str())) {
            (Some(_), Some(_)) => report.add_problem(
                setting.key,
                None,
                ProblemSource::BothVariables(plain, file_variable),
                "one of the two variables, not both".into(),
            ),
            // What Kubernetes sets for a Service called `aspia-relay-peer` is not meant for the relay.
            (Some(value), None) if setting.key.name().ends_with("Port") && is_address(value) => {
                ignored.push(plain);
            }
            (Some(value), None) => layers.extend(from_text(setting, plain, value, report)),
            (None, Some(path)) => {
                let content = read_secret_file(path, files, sources);
                layers.extend(from_file(setting, file_variable, path, content, report));
            }
            (None, None) => {}
        }
    }
    ignored.extend(ours.iter().filter_map(|(name, value)| describe_unknown(name, value)));
    if !ignored.is_empty() {
        report.add_warning(&format!(
            "ignored environment variables that are not settings: {}",
            ignored.join(", ")
        ));
    }
    warn_about_misspelt(&sources.environment, report);
    layers
}

/// Takes a setting from the text of a variable.
fn from_text(
    setting: &Setting,
    variable: String,
    value: &str,
    report: &mut ConfigReport,
) -> Option<Layer> {
    // An emptied variable must not override a restriction in the file.
    if setting.is_original && file::trim_text(value).is_empty() {
        report.add_warning(&format!("{variable} is blank: it is treated as not set"));
        return None;
    }
    let mut layer = Layer::new(Provenance::Variable(variable));
    layer.set(setting.key, value.to_owned());
    Some(layer)
}

/// Takes a setting from the content of the secret file that a variable names.
fn from_file(
    setting: &Setting,
    variable: String,
    path: &str,
    content: Result<String, String>,
    report: &mut ConfigReport,
) -> Option<Layer> {
    match content {
        Ok(text) => {
            let path = PathBuf::from(path.trim());
            let mut layer = Layer::new(Provenance::SecretFile { path, variable });
            layer.set(setting.key, text);
            Some(layer)
        }
        Err(expected) => {
            let source = Provenance::Variable(variable);
            report.add_problem(setting.key, Some(path.to_owned()), source, expected);
            None
        }
    }
}

/// Describes a variable with the prefix that is not a setting, and suggests the one that may be meant; `None` if the
/// variable is expected.
fn describe_unknown(name: &str, value: &str) -> Option<String> {
    if COMPOSE_VARIABLES.contains(&name) {
        return None;
    }
    let shown = shorten(name);
    let meant = if is_service_link(name, value) { None } else { find_closest_variable(name) };
    Some(meant.map_or(shown.clone(), |meant| format!("{shown} (did you mean {meant}?)")))
}

/// The known variable that is most similar to one with the prefix, if any is.
fn find_closest_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    let (rest, suffix) = match rest.strip_suffix(FILE_SUFFIX) {
        Some(rest) => (rest, FILE_SUFFIX),
        None => (rest, ""),
    };
    // Variables that are not settings, by their names without a prefix; those of the log have another prefix.
    let path = (PATH_VARIABLE.strip_prefix(PREFIX)?, PATH_VARIABLE);
    let of_log = log::VARIABLES.iter().filter_map(|name| {
        let rest = name.strip_prefix(LOG_PREFIX)?;
        Some((rest.strip_suffix(FILE_SUFFIX).unwrap_or(rest), *name))
    });
    let others: BTreeMap<&str, &str> = of_log.chain([path]).collect();
    let known = SETTINGS.iter().map(|setting| setting.key.name()).chain(others.keys().copied());
    let meant = settings::find_most_similar(rest, known)?;
    let other = others.get(meant).map(|name| (*name).to_owned());
    Some(other.unwrap_or_else(|| format!("{}{suffix}", settings::variable(meant))))
}

/// Whether Kubernetes, or an old Docker, sets this variable for a Service whose name begins with `aspia-relay`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port_variable = name.split("_PORT_").skip(1).any(|rest| {
        let protocol = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        protocol.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"].iter().any(|known| protocol.starts_with(known))
    });
    is_port_variable
        || is_address(value)
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
}

fn is_address(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// Warns about variables without the prefix whose names are similar to known ones: with a misspelt prefix, in lower
/// case, or a misspelt variable of the log.
fn warn_about_misspelt(environment: &[(String, String)], report: &mut ConfigReport) {
    let plain = |name: &str| name.replace(['_', '-', '.'], "").to_uppercase();
    let variables = SETTINGS.iter().map(|setting| setting.key.variable());
    let known: Vec<(String, String)> = variables
        .flat_map(|name| [format!("{name}{FILE_SUFFIX}"), name])
        .chain([PATH_VARIABLE].iter().chain(log::VARIABLES).map(|name| (*name).to_owned()))
        .map(|name| (plain(&name), name))
        .collect();
    for (name, value) in environment {
        let is_ours = name.starts_with(PREFIX) || log::VARIABLES.contains(&name.as_str());
        if value.is_empty() || is_ours || is_service_link(name, value) {
            continue;
        }
        let given = plain(name);
        let without_relay = given.strip_prefix("ASPIA").map(|rest| format!("ASPIARELAY{rest}"));
        let meant = known
            .iter()
            .map(|(known, meant)| (strsim::damerau_levenshtein(known, &given), known, meant))
            .min_by_key(|(distance, ..)| *distance)
            .filter(|(distance, ..)| *distance <= MAX_DISTANCE)
            .map(|(.., meant)| meant)
            .or_else(|| {
                let known = known.iter().find(|(known, _)| Some(known) == without_relay.as_ref());
                known.map(|(_, meant)| meant)
            });
        if let Some(meant) = meant {
            report.add_warning(&format!(
                "ignored the environment variable {}; did you mean {meant}?",
                shorten(name)
            ));
        }
    }
}

/// Returns the text of the secret file at `path`. The error says what is expected instead.
fn read_secret_file(path: &str, files: &SourceFiles, sources: &Sources) -> Result<String, String> {
    let Some(content) = files.named(path) else {
        return Err("the path of a file that can be read".into());
    };
    let content = content.as_ref().map_err(|error| {
        let advice = advice::for_unreadable_file(error, Path::new(path.trim()), sources);
        format!("the path of a file that can be read ({error}){advice}")
    })?;
    let text = file::decode_text(content.expose())
        .map_err(|why| format!("a file of UTF-8 text; it is {why}"))?;
    match text.trim() {
        "" => Err("a file that is not empty".into()),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_variables_get_a_suggestion() {
        for (name, meant) in [
            ("ASPIA_RELAY_ROUTER_PUBKEY", Some("ASPIA_RELAY_ROUTER_PUBLIC_KEY")),
            ("ASPIA_RELAY_ROUTER_PUBKEY_FILE", Some("ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE")),
            ("ASPIA_RELAY_ALLOW_PEER", Some("ASPIA_RELAY_ALLOW_PEERS")),
            ("ASPIA_RELAY_MAXPEERCOUNT", Some("ASPIA_RELAY_MAX_PEER_COUNT")),
            ("ASPIA_RELAY_CONFIG_PATH", Some("ASPIA_RELAY_CONFIG")),
            ("ASPIA_RELAY_LOG_LEVEL", Some("ASPIA_LOG_LEVEL")),
            ("ASPIA_RELAY_LOGLEVL", Some("ASPIA_LOG_LEVEL")),
            ("ASPIA_RELAY_LOG_TO_FILE", Some("ASPIA_LOG_TO_FILE")),
            ("ASPIA_RELAY_LOG_FORMAT", Some("ASPIA_LOG_FORMAT")),
            ("ASPIA_RELAY_MAX_LOG_TOTAL_SIZE", Some("ASPIA_MAX_LOG_TOTAL_SIZE")),
            ("ASPIA_RELAY_ADMIN_TOKEN_FIL", Some("ASPIA_RELAY_ADMIN_TOKEN")),
            ("ASPIA_RELAY_ZEBRA", None),
        ] {
            assert_eq!(find_closest_variable(name).as_deref(), meant, "{name}");
        }
    }

    #[test]
    fn service_links_of_kubernetes_get_no_suggestion() {
        for name in [
            "ASPIA_RELAY_SERVICE_HOST",
            "ASPIA_RELAY_SERVICE_PORT",
            "ASPIA_RELAY_SERVICE_PORT_PEERS",
            "ASPIA_RELAY_PORT_8070_TCP",
            "ASPIA_RELAY_METRICS_PORT_9477_TCP_ADDR",
            "ASPIA_RELAY_PEER_PORT_8070_UDP_PROTO",
        ] {
            assert_eq!(describe_unknown(name, "10.0.0.1").as_deref(), Some(name));
        }
        assert_eq!(
            describe_unknown("ASPIA_RELAY_PORT", "tcp://10.0.0.1:1").as_deref(),
            Some("ASPIA_RELAY_PORT")
        );
        assert_eq!(describe_unknown("ASPIA_RELAY_IMAGE", "aspia-relay:0.1.0"), None);
        // A port that somebody meant to set.
        let meant = describe_unknown("ASPIA_RELAY_PEER_PORTS", "8070").unwrap();
        assert!(meant.contains("did you mean ASPIA_RELAY_PEER_PORT?"), "{meant}");
    }

    #[test]
    fn misspelt_prefixes_are_detected_and_foreign_variables_are_not_reported() {
        let warnings = |name: &str| {
            let mut report = ConfigReport::default();
            warn_about_misspelt(&[(name.to_owned(), "x".to_owned())], &mut report);
            report.warnings.join("\n")
        };
        for (name, meant) in [
            ("ASPIA_RELEY_PEER_ADDRESS", "ASPIA_RELAY_PEER_ADDRESS"),
            ("ASPIARELAY_PEER_PORT", "ASPIA_RELAY_PEER_PORT"),
            ("aspia_relay_router_address", "ASPIA_RELAY_ROUTER_ADDRESS"),
            ("ASPIA_ADMIN_TOKEN_FILE", "ASPIA_RELAY_ADMIN_TOKEN_FILE"),
            ("ASPIA_LOG_LEVL", "ASPIA_LOG_LEVEL"),
            ("ASPIA_LOGLEVEL", "ASPIA_LOG_LEVEL"),
            ("ASPIA_MAX_LOG_TOTALSIZ", "ASPIA_MAX_LOG_TOTAL_SIZE"),
        ] {
            assert!(warnings(name).ends_with(&format!("did you mean {meant}?")), "{name}");
        }
        for name in log::VARIABLES.iter().copied().chain([
            "ASPIA_RELAY_PEER_PORT",
            "ASPIA_HOST_KEY",
            "PATH",
            "RUST_LOG",
            "HOSTNAME",
        ]) {
            assert_eq!(warnings(name), "", "{name}");
        }
        // Kubernetes sets this for a Service of the Router.
        let mut report = ConfigReport::default();
        let link = ("ASPIA_ROUTER_PORT".to_owned(), "tcp://10.0.0.1:8060".to_owned());
        warn_about_misspelt(&[link], &mut report);
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}
