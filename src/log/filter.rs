//! Parses and checks log filters, those of `RUST_LOG` and those of `PUT /log-level`.
//!
//! A filter is a list of levels and of `target=level`, as usual for `RUST_LOG`. Other parsers take an unknown word for the
//! name of a target: `inf`, or `"info"` in quotes that Docker keeps, then silences the program without any message. This
//! parser reports such a part as a problem.

use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::target::{FATAL, SESSION, START};

/// The names of the levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The prefix of this program's targets.
const OWN: &str = "aspia_relay";
/// The source that declares the modules of this program, which [`own_parts`] reads: a separate list would become outdated.
const LIBRARY: &str = include_str!("../lib.rs");
/// Targets of this program that are not modules.
const OWN_TARGETS: [&str; 2] = [START, FATAL];
/// The most characters of a part that a problem shows.
const MAX_SHOWN: usize = 40;
/// The most problems that are reported.
const MAX_PROBLEMS: usize = 5;

/// A problem with one part of a filter, or with the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilterProblem(String);

impl FilterProblem {
    /// Joins several problems to one text.
    pub(super) fn join(problems: &[Self]) -> String {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for FilterProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A parsed filter.
#[derive(Debug)]
pub(super) struct LogFilter {
    /// The valid parts, for display.
    pub(super) text: String,
    /// What the valid parts let through.
    pub(super) targets: Targets,
    /// The problems of the other parts, or of the filter as a whole.
    pub(super) problems: Vec<FilterProblem>,
    /// Whether the valid parts set a level for this program, be it `off`.
    pub(super) is_usable: bool,
}

/// Parses a filter. The valid parts are in the result even if others are invalid.
pub(super) fn parse(text: &str) -> LogFilter {
    let mut problems = Vec::new();
    let unquoted = unquote(text.trim());
    if unquoted != text.trim() {
        problems.push(FilterProblem(format!(
            "{} is in quotes, which are for the shell only: write it without them",
            quote_beginning(text.trim())
        )));
    }
    let (mut valid, mut targets, mut is_usable) = (Vec::new(), Targets::new(), false);
    let parts = unquoted.split(',').map(str::trim).filter(|part| !part.is_empty());
    for part in parts {
        match FilterDirective::parse(part) {
            Ok(FilterDirective { target: None, level, text }) => {
                targets = targets.with_default(level);
                is_usable = true;
                valid.push(text);
            }
            Ok(FilterDirective { target: Some(target), level, text }) => {
                targets = targets.with_target(target, level);
                is_usable |= is_own_target(target);
                valid.push(text);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !is_usable {
        problems.push(FilterProblem(match valid.as_slice() {
            [] => format!("it names no level ({})", LEVELS.join(", ")),
            _ => format!(
                "it has no level for {OWN}, and would silence it: begin with a level, such as info,{}",
                quote_beginning(&valid.join(","))
            ),
        }));
    }
    let left_out = problems.len().saturating_sub(MAX_PROBLEMS);
    if left_out > 0 {
        problems.truncate(MAX_PROBLEMS);
        problems.push(FilterProblem(format!("and {left_out} more problems")));
    }
    // Errors that end the program are logged at every level.
    let targets = targets.with_target(FATAL, LevelFilter::ERROR);
    LogFilter { text: valid.join(","), targets, problems, is_usable }
}

/// Returns the part of a filter that sets the level of session records, if there is one.
pub(super) fn session_part(text: &str) -> Option<&str> {
    let target = |part: &str| part.split('=').next().map(str::trim) == Some(SESSION);
    text.split(',').map(str::trim).rfind(|part| target(part))
}

/// One part of a filter.
struct FilterDirective<'a> {
    /// `None` applies to every target.
    target: Option<&'a str>,
    level: LevelFilter,
    /// The text for display. It has only what was checked: no white space around the `=`, which may be a line break.
    text: String,
}

impl<'a> FilterDirective<'a> {
    fn parse(part: &'a str) -> Result<Self, FilterProblem> {
        let Some((target, level)) = part.split_once('=') else {
            let text = part.to_owned();
            return match parse_level(part) {
                Some(level) => Ok(Self { target: None, level, text }),
                // This is the usual short form for all levels of a target. It is accepted only for targets of this program,
                // because any other word may be a misspelt level.
                None if is_own_target(part) => {
                    check_target(part)?;
                    Ok(Self { target: Some(part), level: LevelFilter::TRACE, text })
                }
                None => Err(unknown_level(part, "")),
            };
        };
        let (target, level) = (target.trim(), level.trim());
        check_target(target)?;
        let text = format!("{target}={level}");
        let level =
            parse_level(level).ok_or_else(|| unknown_level(level, &format!("{target}=")))?;
        Ok(Self { target: Some(target), level, text })
    }
}

/// Parses a level by name or number. An empty name is not a level, although `tracing` takes it for `error`.
fn parse_level(name: &str) -> Option<LevelFilter> {
    if name.is_empty() { None } else { name.parse().ok() }
}

fn unknown_level(name: &str, before: &str) -> FilterProblem {
    let nearest = LEVELS
        .iter()
        // The name of a level is never that long.
        .filter(|_| name.len() <= MAX_SHOWN)
        .map(|level| (strsim::osa_distance(&name.to_ascii_lowercase(), level), level))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let suggestion = match nearest {
        Some((_, level)) => format!("did you mean {before}{level}?"),
        None => format!("expected {}", LEVELS.join(", ")),
    };
    let hint = if before.is_empty() { ", or target=level" } else { "" };
    FilterProblem(format!("{} is not a level{hint}; {suggestion}", quote_beginning(name)))
}

/// Checks that a target is the path of a Rust module and, if it is of this program, that the module exists.
fn check_target(target: &str) -> Result<(), FilterProblem> {
    let is_path = !target.is_empty()
        && target.chars().all(|c| c.is_ascii_alphanumeric() || ['_', ':', '-', '.'].contains(&c));
    if !is_path {
        return Err(FilterProblem(format!(
            "{} is not a target: expected the path of a module, such as {OWN}::router",
            quote_beginning(target)
        )));
    }
    let part = target.strip_prefix(OWN).and_then(|rest| rest.strip_prefix("::"));
    let part = part.map(|rest| rest.split("::").next().unwrap_or(rest));
    match part {
        Some(part) if !own_parts().any(|own| own == part) => {
            let nearest = own_parts().map(|own| (strsim::osa_distance(part, own), own)).min();
            let suggestion = match nearest.filter(|(distance, _)| *distance <= 2) {
                Some((_, own)) => format!("did you mean {OWN}::{own}?"),
                None => format!("its parts are {}", own_parts().collect::<Vec<_>>().join(", ")),
            };
            Err(FilterProblem(format!(
                "{} is not a part of {OWN}; {suggestion}",
                quote_beginning(part)
            )))
        }
        _ => Ok(()),
    }
}

/// Returns the parts of this program that can log: the first names after [`OWN`].
fn own_parts() -> impl Iterator<Item = &'static str> {
    let modules =
        LIBRARY.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.chain(OWN_TARGETS.iter().filter_map(|target| Some(target.rsplit_once("::")?.1)))
}

/// Whether a target is this program or one of its parts.
fn is_own_target(target: &str) -> bool {
    target == SESSION
        || target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Removes quotes around a text, if there are any.
fn unquote(text: &str) -> &str {
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    between('"').or_else(|| between('\'')).map_or(text, str::trim)
}

/// Quotes the beginning of a text, escaped for terminals.
fn quote_beginning(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    fn problems(text: &str) -> Vec<String> {
        parse(text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn valid_filters_have_no_problems() {
        for (text, expected) in [
            ("info", "info"),
            ("INFO", "INFO"),
            ("off", "off"),
            ("3", "3"),
            (" warn , aspia_relay::router = debug ,", "warn,aspia_relay::router=debug"),
            ("aspia_relay", "aspia_relay"),
            ("aspia_relay::peer", "aspia_relay::peer"),
            ("aspia_relay=debug", "aspia_relay=debug"),
            ("info,hyper=debug,h2::codec=off", "info,hyper=debug,h2::codec=off"),
            ("off,aspia_relay::start=info", "off,aspia_relay::start=info"),
            ("session=info", "session=info"),
            ("session", "session"),
            ("info,session=off", "info,session=off"),
        ] {
            let filter = parse(text);
            assert_eq!(problems(text), Vec::<String>::new(), "{text}");
            assert!(filter.is_usable, "{text}");
            assert_eq!(filter.text, expected);
        }
    }

    #[test]
    fn each_invalid_part_is_reported() {
        for (text, expected) in [
            ("inf", "did you mean info?"),
            ("inof,aspia_relay=info", "\"inof\" is not a level"),
            ("aspia_relay=inof", "did you mean aspia_relay=info?"),
            ("aspia_relay=", "is not a level"),
            ("=info", "is not a target"),
            ("x\ny=1", "\"x\\ny\" is not a target"),
            ("info,\u{1b}[31m=debug", "\"\\u{1b}[31m\" is not a target"),
            ("info,a b=debug", "is not a target"),
            ("info,aspia_relay::router=debug=trace", "is not a level"),
            ("info,aspia_relay::ruoter=debug", "did you mean aspia_relay::router?"),
            ("aspia_relay::nothing", "is not a part of aspia_relay"),
            ("hyper", "is not a level"),
            ("hyper=debug", "would silence it"),
            ("aspia_realy=debug", "would silence it"),
            ("", "names no level"),
            (",", "names no level"),
            ("'info", "is not a level"),
            ("information", "is not a level"),
        ] {
            let found = problems(text);
            assert!(found.iter().any(|problem| problem.contains(expected)), "{text}: {found:?}");
            assert!(!found.iter().any(|problem| problem.contains(char::is_control)), "{found:?}");
        }
    }

    #[test]
    fn white_space_around_parts_is_not_displayed() {
        for space in
            ["\n", "\r\n", "\u{b}", "\u{c}", "\u{85}", "\u{2028}", "\u{2029}", "\u{a0}", "\t"]
        {
            for text in [
                format!("info,aspia_relay::router{space}=debug"),
                format!("info,aspia_relay::router={space}debug"),
                format!("{space}info{space},{space}aspia_relay::router{space}={space}debug{space}"),
            ] {
                let filter = parse(&text);
                assert_eq!(problems(&text), Vec::<String>::new(), "{text:?}");
                assert_eq!(filter.text, "info,aspia_relay::router=debug", "{text:?}");
            }
        }
    }

    #[test]
    fn quoted_filter_is_accepted_and_reported() {
        for text in ["\"info\"", "'info'", "\" info \""] {
            let filter = parse(text);
            assert!(filter.is_usable && filter.text == "info", "{filter:?}");
            assert!(problems(text)[0].contains("without them"), "{:?}", problems(text));
        }
    }

    #[test]
    fn valid_parts_of_an_invalid_filter_apply() {
        let filter = parse("inof,aspia_relay=info");
        assert!(filter.is_usable);
        assert!(filter.targets.would_enable("aspia_relay::peer", &Level::INFO));
        assert!(!filter.targets.would_enable("hyper", &Level::ERROR));
        assert!(!parse("inf").is_usable);
        // Fatal errors are logged at every level.
        assert!(parse("off").targets.would_enable(FATAL, &Level::ERROR));
    }

    #[test]
    fn number_and_length_of_problems_are_limited() {
        let long = "x".repeat(4000);
        let many = vec![long.as_str(); 1000].join(",");
        let found = problems(&many);
        assert_eq!(found.len(), MAX_PROBLEMS + 1);
        assert!(found.iter().all(|problem| problem.len() < 200), "{found:?}");
    }

    #[test]
    fn modules_and_special_targets_are_parts_of_this_program() {
        for part in ["admin", "log", "router", "workers", "start", "fatal"] {
            assert!(own_parts().any(|own| own == part), "{part}");
        }
    }
}
