//! What a log filter may say: the one check for `RUST_LOG` and for `PUT /log-level`.
//!
//! A filter is a list of levels and of `target=level`, as usual for `RUST_LOG`. Usual readers take a word that they do
//! not know for the name of a target: `inf`, or `"info"` in the quotes that Docker keeps, then silences the program
//! without a word. Here such a part is a problem that is named.

use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::target::{FATAL, START};

/// The levels by name.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// This program's targets begin with this.
const OWN: &str = "aspia_relay";
/// Names the parts of this program, which [`own_parts`] reads: a list beside it would become wrong one day.
const LIBRARY: &str = include_str!("../lib.rs");
/// Targets of this program that are not modules.
const OWN_TARGETS: [&str; 2] = [START, FATAL];
/// Longest part that a problem repeats, in characters.
const SHOWN: usize = 40;
/// Most problems that are named.
const MAX_PROBLEMS: usize = 5;

/// What is wrong with one part of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A filter as it was read.
#[derive(Debug)]
pub(super) struct Filter {
    /// The parts that make sense, as they are shown.
    pub(super) text: String,
    /// What they let through.
    pub(super) targets: Targets,
    /// What is wrong with the others, or with all of them together.
    pub(super) problems: Vec<Problem>,
    /// Whether the good parts say anything about this program, even that it is to be silent.
    pub(super) is_usable: bool,
}

/// Reads a filter. The parts that make sense are in the result even where others do not.
pub(super) fn parse(text: &str) -> Filter {
    let mut problems = Vec::new();
    let unquoted = unquote(text.trim());
    if unquoted != text.trim() {
        problems.push(Problem(format!(
            "{} is in quotes, which belong to the shell: write it without them",
            shown(text.trim())
        )));
    }
    let (mut good, mut targets, mut is_usable) = (Vec::new(), Targets::new(), false);
    let parts = unquoted.split(',').map(str::trim).filter(|part| !part.is_empty());
    for part in parts {
        match Directive::parse(part) {
            Ok(Directive { target: None, level, text }) => {
                targets = targets.with_default(level);
                is_usable = true;
                good.push(text);
            }
            Ok(Directive { target: Some(target), level, text }) => {
                targets = targets.with_target(target, level);
                is_usable |= is_own(target);
                good.push(text);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !is_usable {
        problems.push(Problem(match good.as_slice() {
            [] => format!("it names no level ({})", LEVELS.join(", ")),
            _ => format!(
                "it says nothing about {OWN}, and would silence it: begin with a level, such as info,{}",
                shown(&good.join(","))
            ),
        }));
    }
    let left_out = problems.len().saturating_sub(MAX_PROBLEMS);
    if left_out > 0 {
        problems.truncate(MAX_PROBLEMS);
        problems.push(Problem(format!("and {left_out} problems more")));
    }
    // What ends the program is in the log at every level.
    let targets = targets.with_target(FATAL, LevelFilter::ERROR);
    Filter { text: good.join(","), targets, problems, is_usable }
}

/// One part of a filter.
struct Directive<'a> {
    /// `None` is everything.
    target: Option<&'a str>,
    level: LevelFilter,
    /// How it is shown: only what was checked, so no white space, which may be a line break, around the `=`.
    text: String,
}

impl<'a> Directive<'a> {
    fn parse(part: &'a str) -> Result<Self, Problem> {
        let Some((target, level)) = part.split_once('=') else {
            let text = part.to_owned();
            return match level_of(part) {
                Some(level) => Ok(Self { target: None, level, text }),
                // The usual short form for everything that a target says; only of this program, since any other word may
                // be a misspelt level.
                None if is_own(part) => {
                    check_target(part)?;
                    Ok(Self { target: Some(part), level: LevelFilter::TRACE, text })
                }
                None => Err(no_level(part, "")),
            };
        };
        let (target, level) = (target.trim(), level.trim());
        check_target(target)?;
        let text = format!("{target}={level}");
        let level = level_of(level).ok_or_else(|| no_level(level, &format!("{target}=")))?;
        Ok(Self { target: Some(target), level, text })
    }
}

/// A level by its name or number; no name is none, though `tracing` takes it for `error`.
fn level_of(name: &str) -> Option<LevelFilter> {
    if name.is_empty() { None } else { name.parse().ok() }
}

fn no_level(name: &str, before: &str) -> Problem {
    let nearest = LEVELS
        .iter()
        // Nothing that long is nearly a level.
        .filter(|_| name.len() <= SHOWN)
        .map(|level| (strsim::osa_distance(&name.to_ascii_lowercase(), level), level))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let suggestion = match nearest {
        Some((_, level)) => format!("did you mean {before}{level}?"),
        None => format!("expected {}", LEVELS.join(", ")),
    };
    let hint = if before.is_empty() { ", or target=level" } else { "" };
    Problem(format!("{} is no level{hint}; {suggestion}", shown(name)))
}

/// Targets are paths of Rust; of this program, paths that exist.
fn check_target(target: &str) -> Result<(), Problem> {
    let is_path = !target.is_empty()
        && target.chars().all(|c| c.is_ascii_alphanumeric() || ['_', ':', '-', '.'].contains(&c));
    if !is_path {
        return Err(Problem(format!(
            "{} is no target: expected the path of a module, such as {OWN}::router",
            shown(target)
        )));
    }
    let part = target.strip_prefix(OWN).and_then(|rest| rest.strip_prefix("::"));
    let part = part.map(|rest| rest.split("::").next().unwrap_or(rest));
    match part {
        Some(part) if !own_parts().any(|own| own == part) => {
            let nearest = own_parts().map(|own| (strsim::osa_distance(part, own), own)).min();
            let suggestion = match nearest.filter(|(distance, _)| *distance <= 2) {
                Some((_, own)) => format!("did you mean {OWN}::{own}?"),
                None => format!("it has {}", own_parts().collect::<Vec<_>>().join(", ")),
            };
            Err(Problem(format!("{} is no part of {OWN}; {suggestion}", shown(part))))
        }
        _ => Ok(()),
    }
}

/// The parts of this program that log, by the first name below [`OWN`].
fn own_parts() -> impl Iterator<Item = &'static str> {
    let modules =
        LIBRARY.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.chain(OWN_TARGETS.iter().filter_map(|target| Some(target.rsplit_once("::")?.1)))
}

/// Whether a target is this program or a part of it.
fn is_own(target: &str) -> bool {
    target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What stands between quotes of one kind; what is not in quotes, as it is.
fn unquote(text: &str) -> &str {
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    between('"').or_else(|| between('\'')).map_or(text, str::trim)
}

/// Some of a text, as nothing that a terminal would act on.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
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
    fn usual_filters_have_no_problem() {
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
        ] {
            let filter = parse(text);
            assert_eq!(problems(text), Vec::<String>::new(), "{text}");
            assert!(filter.is_usable, "{text}");
            assert_eq!(filter.text, expected);
        }
    }

    #[test]
    fn every_part_that_makes_no_sense_is_named() {
        for (text, expected) in [
            ("inf", "did you mean info?"),
            ("inof,aspia_relay=info", "\"inof\" is no level"),
            ("aspia_relay=inof", "did you mean aspia_relay=info?"),
            ("aspia_relay=", "is no level"),
            ("=info", "is no target"),
            ("x\ny=1", "\"x\\ny\" is no target"),
            ("info,\u{1b}[31m=debug", "\"\\u{1b}[31m\" is no target"),
            ("info,a b=debug", "is no target"),
            ("info,aspia_relay::router=debug=trace", "is no level"),
            ("info,aspia_relay::ruoter=debug", "did you mean aspia_relay::router?"),
            ("aspia_relay::nothing", "is no part of aspia_relay"),
            ("hyper", "is no level"),
            ("hyper=debug", "would silence it"),
            ("aspia_realy=debug", "would silence it"),
            ("", "names no level"),
            (",", "names no level"),
            ("'info", "is no level"),
            ("information", "is no level"),
        ] {
            let found = problems(text);
            assert!(found.iter().any(|problem| problem.contains(expected)), "{text}: {found:?}");
            assert!(!found.iter().any(|problem| problem.contains(char::is_control)), "{found:?}");
        }
    }

    #[test]
    fn white_space_around_the_parts_is_not_shown() {
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
    fn what_is_in_quotes_is_taken_and_said() {
        for text in ["\"info\"", "'info'", "\" info \""] {
            let filter = parse(text);
            assert!(filter.is_usable && filter.text == "info", "{filter:?}");
            assert!(problems(text)[0].contains("without them"), "{:?}", problems(text));
        }
    }

    #[test]
    fn the_good_parts_hold() {
        let filter = parse("inof,aspia_relay=info");
        assert!(filter.is_usable);
        assert!(filter.targets.would_enable("aspia_relay::peer", &Level::INFO));
        assert!(!filter.targets.would_enable("hyper", &Level::ERROR));
        assert!(!parse("inf").is_usable);
        // At every level.
        assert!(parse("off").targets.would_enable(FATAL, &Level::ERROR));
    }

    #[test]
    fn problems_are_few_and_short() {
        let long = "x".repeat(4000);
        let many = vec![long.as_str(); 1000].join(",");
        let found = problems(&many);
        assert_eq!(found.len(), MAX_PROBLEMS + 1);
        assert!(found.iter().all(|problem| problem.len() < 200), "{found:?}");
    }

    #[test]
    fn the_parts_of_this_program_are_known() {
        for part in ["admin", "log", "router", "workers", "start", "fatal"] {
            assert!(own_parts().any(|own| own == part), "{part}");
        }
    }
}
