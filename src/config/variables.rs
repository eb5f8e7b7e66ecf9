//! Settings from the environment, and variables that look like settings and are none.

use std::collections::BTreeMap;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use crate::log;

use super::file;
use super::report::{Problem, Report, beginning};
use super::settings::{self, SETTINGS, Setting};
use super::sources::{PATH_VARIABLE, Sources};

/// Longest file read as a setting's value, in bytes: more than any key, certificate or token.
const MAX_VALUE_FILE: u64 = 64 * 1024;

/// What the variables of this program begin with.
const PREFIX: &str = "ASPIA_RELAY_";
/// Behind a variable that names a file with the value.
const OF_FILE: &str = "_FILE";
/// What the variables of the log begin with, whose names may be misspelt as well.
const PREFIX_OF_LOG: &str = "ASPIA_";
/// Variables that `compose.yaml` itself reads, and passes on with the others of `.env`.
const OF_COMPOSE: &[&str] = &["ASPIA_RELAY_IMAGE", "ASPIA_RELAY_LAB_IMAGE"];
/// Most letters that differ where a name outside of [`PREFIX`] is taken for a misspelt one.
const MAX_DISTANCE: usize = 2;

/// One setting from the environment, letter by letter: figment's own provider would take `0123` for a number.
pub(super) struct Variable {
    pub(super) setting: &'static Setting,
    text: String,
    source: String,
    /// Whether the text is the content of a file of its own.
    pub(super) from_file: bool,
}

impl Variable {
    /// All that are set; notes what is wrong with them, and which variables give no setting.
    pub(super) fn all(sources: &Sources, report: &mut Report) -> Vec<Self> {
        let mut ours: BTreeMap<&str, &str> = sources
            .environment
            .iter()
            .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        ours.remove(PATH_VARIABLE);
        let mut variables = Vec::new();
        let mut ignored = Vec::new();
        for setting in SETTINGS {
            let plain = settings::variable(setting.key);
            let of_file = format!("{plain}{OF_FILE}");
            let problem = |value: Option<&str>, source: String, expected: String| Problem {
                key: setting.key.into(),
                value: value.map(ToOwned::to_owned),
                source,
                expected,
            };
            match (ours.remove(plain.as_str()), ours.remove(of_file.as_str())) {
                (Some(_), Some(_)) => report.problems.push(problem(
                    None,
                    format!("{plain} and {of_file}"),
                    "one of the two variables, not both".into(),
                )),
                // What Kubernetes sets for a Service called `aspia-relay-peer` is not meant for us.
                (Some(value), None) if setting.key.ends_with("Port") && is_address(value) => {
                    ignored.push(plain);
                }
                // Whoever empties a variable does not mean to open what a file closes.
                (Some(value), None) if setting.original && file::trimmed(value).is_empty() => {
                    report.warn(&format!("{plain} is blank: it counts as not set"));
                }
                (Some(value), None) => variables.push(Self {
                    setting,
                    text: value.to_owned(),
                    source: format!("environment variable {plain}"),
                    from_file: false,
                }),
                (None, Some(path)) => match read_value_file(path.trim(), sources) {
                    Ok(text) => variables.push(Self {
                        setting,
                        text,
                        source: format!("file {} named by {of_file}", path.trim()),
                        from_file: true,
                    }),
                    Err(expected) => report.problems.push(problem(
                        Some(path),
                        format!("environment variable {of_file}"),
                        expected,
                    )),
                },
                (None, None) => {}
            }
        }
        ignored.extend(ours.iter().filter_map(|(name, value)| unknown(name, value)));
        if !ignored.is_empty() {
            report.warn(&format!(
                "ignored environment variables that give no setting: {}",
                ignored.join(", ")
            ));
        }
        note_misspelt(&sources.environment, report);
        variables
    }
}

/// A variable with our prefix that is none of ours, with the one that may be meant; `None` where nobody need know.
fn unknown(name: &str, value: &str) -> Option<String> {
    if OF_COMPOSE.contains(&name) {
        return None;
    }
    let shown = beginning(name);
    let meant = if is_service_link(name, value) { None } else { closest(name) };
    Some(meant.map_or(shown.clone(), |meant| format!("{shown} (did you mean {meant}?)")))
}

/// The variable that one with our prefix is most like, if it is like any.
fn closest(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    let (rest, of_file) = match rest.strip_suffix(OF_FILE) {
        Some(rest) => (rest, OF_FILE),
        None => (rest, ""),
    };
    // Variables that name no setting, by what they are without our prefix; those of the log have another one.
    let path = (PATH_VARIABLE.strip_prefix(PREFIX)?, PATH_VARIABLE);
    let of_log = log::VARIABLES.iter().filter_map(|name| {
        let rest = name.strip_prefix(PREFIX_OF_LOG)?;
        Some((rest.strip_suffix(OF_FILE).unwrap_or(rest), *name))
    });
    let others: BTreeMap<&str, &str> = of_log.chain([path]).collect();
    let known = SETTINGS.iter().map(|setting| setting.key).chain(others.keys().copied());
    let meant = settings::most_alike(rest, known)?;
    let other = others.get(meant).map(|name| (*name).to_owned());
    Some(other.unwrap_or_else(|| format!("{}{of_file}", settings::variable(meant))))
}

/// Whether it is one of the variables that Kubernetes, or an old Docker, makes for a Service whose name begins as ours.
fn is_service_link(name: &str, value: &str) -> bool {
    let of_port = name.split("_PORT_").skip(1).any(|rest| {
        let protocol = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        protocol.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"].iter().any(|known| protocol.starts_with(known))
    });
    of_port
        || is_address(value)
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
}

fn is_address(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// Warns of variables without our prefix whose names are nearly ours: misspelt before or in the prefix, in lower case,
/// or of the log.
fn note_misspelt(environment: &[(String, String)], report: &mut Report) {
    let plain = |name: &str| name.replace(['_', '-', '.'], "").to_uppercase();
    let variables = SETTINGS.iter().map(|setting| settings::variable(setting.key));
    let known: Vec<(String, String)> = variables
        .flat_map(|name| [format!("{name}{OF_FILE}"), name])
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
            report.warn(&format!(
                "ignored the environment variable {}; did you mean {meant}?",
                beginning(name)
            ));
        }
    }
}

fn read_value_file(path: &str, sources: &Sources) -> Result<String, String> {
    let path = Path::new(path);
    let content = file::read_at_most(path, MAX_VALUE_FILE).map_err(|error| {
        let advice = file::how_to_read(&error, path, sources);
        format!("the path of a file that can be read ({error}){advice}")
    })?;
    let text = file::text(&content).map_err(|why| format!("a file of UTF-8 text; it is {why}"))?;
    match text.trim() {
        "" => Err("a file that is not empty".into()),
        text => Ok(text.to_owned()),
    }
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let values = Dict::from([(self.setting.key.to_owned(), Value::from(self.text.clone()))]);
        Ok(Profile::Default.collect(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_that_is_meant_is_named() {
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
            assert_eq!(closest(name).as_deref(), meant, "{name}");
        }
    }

    #[test]
    fn what_others_make_is_no_misspelling() {
        for name in [
            "ASPIA_RELAY_SERVICE_HOST",
            "ASPIA_RELAY_SERVICE_PORT",
            "ASPIA_RELAY_SERVICE_PORT_PEERS",
            "ASPIA_RELAY_PORT_8070_TCP",
            "ASPIA_RELAY_METRICS_PORT_9477_TCP_ADDR",
            "ASPIA_RELAY_PEER_PORT_8070_UDP_PROTO",
        ] {
            assert_eq!(unknown(name, "10.0.0.1").as_deref(), Some(name));
        }
        assert_eq!(
            unknown("ASPIA_RELAY_PORT", "tcp://10.0.0.1:1").as_deref(),
            Some("ASPIA_RELAY_PORT")
        );
        assert_eq!(unknown("ASPIA_RELAY_IMAGE", "aspia-relay:0.1.0"), None);
        // A port that somebody did mean to set.
        let meant = unknown("ASPIA_RELAY_PEER_PORTS", "8070").unwrap();
        assert!(meant.contains("did you mean ASPIA_RELAY_PEER_PORT?"), "{meant}");
    }

    #[test]
    fn a_misspelt_prefix_is_seen_and_other_programs_are_left_alone() {
        let warnings = |name: &str| {
            let mut report = Report::default();
            note_misspelt(&[(name.to_owned(), "x".to_owned())], &mut report);
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
        // What Kubernetes makes for a Service of the Router.
        let mut report = Report::default();
        let link = ("ASPIA_ROUTER_PORT".to_owned(), "tcp://10.0.0.1:8060".to_owned());
        note_misspelt(&[link], &mut report);
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}
