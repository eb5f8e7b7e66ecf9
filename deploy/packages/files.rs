//! Generates files for packages: the manual page and the shell completions, from the definition of the command line and the
//! tables of docs/configuration.md, and the licences of the crates in the program:
//! `cargo run --example package_files -- DIRECTORY`. Not a build script, since only packages need these files.

mod notices;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use aspia_relay::cli::Arguments;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const DOCUMENT: &str = include_str!("../../docs/configuration.md");

/// Writes the manual page, the completions and the licences of crates.
#[derive(Debug, Parser)]
struct Options {
    /// Directory for the files, created if it is missing
    directory: PathBuf,
    /// The system that the program is built for, as Rust names it [default: this one]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Options { directory, target } = Options::parse();
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("aspia_relay.8"), manual()?)?;
    let licenses = notices::collect(target.as_deref())?;
    fs::write(directory.join("third-party-licenses.txt"), licenses)?;
    for (shell, name) in [
        (Shell::Bash, "aspia_relay.bash"),
        (Shell::Zsh, "_aspia_relay"),
        (Shell::Fish, "aspia_relay.fish"),
    ] {
        let mut file = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "aspia_relay", &mut file);
        fs::write(directory.join(name), file)?;
    }
    Ok(())
}

fn manual() -> Result<Vec<u8>, Box<dyn Error>> {
    let command = Arguments::command();
    let version = format!("aspia_relay {}", env!("CARGO_PKG_VERSION"));
    // No date, so that builds are reproducible.
    let man = Man::new(command).title("ASPIA_RELAY").section("8").source(version).date("");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;

    let mut more = Roff::new();
    section(&mut more, "EXIT STATUS");
    for [status, means] in table("| exit status |")? {
        entry(&mut more, &status, &means);
    }
    section(&mut more, "SIGNALS");
    for [signal, does] in table("| signal |")? {
        entry(&mut more, &signal, &does);
    }
    section(&mut more, "SETTINGS");
    more.text([roman(
        "Keys of relay.json, each with the environment variable that overrides it and, in brackets, the default. \
         Instead of a variable NAME, NAME_FILE can name a file that contains the value.",
    )]);
    for [key, variable, default, valid, applies] in table("| key | variable |")? {
        entry(&mut more, &key, &format!("{variable} [{default}]: {valid}. Applies {applies}."));
    }
    section(&mut more, "LOGS");
    for [variable, default, means] in table("| variable | default | means |")? {
        let default = if default.is_empty() { default } else { format!(" [{default}]") };
        entry(&mut more, &format!("{variable}{default}"), &means);
    }
    section(&mut more, "FILES");
    for (path, holds) in [
        (
            "/etc/aspia/relay.json",
            "the settings; created by --create-config, never overwritten or removed",
        ),
        (
            "/etc/default/aspia-relay",
            "optional environment variables of the service, one NAME=VALUE per line",
        ),
        ("/var/log/aspia-relay/aspia", "log files of the service, if ASPIA_LOG_TO_FILE is 1"),
        ("/usr/share/doc/aspia-relay", "the whole documentation, and examples"),
        (
            "/usr/share/aspia-relay",
            "alert rules for Prometheus, with a scrape configuration and modules for the blackbox exporter, and a dashboard \
             for Grafana",
        ),
    ] {
        entry(&mut more, path, holds);
    }
    section(&mut more, "SEE ALSO");
    more.text([
        bold("systemctl"),
        roman("(1), "),
        bold("journalctl"),
        roman("(1), "),
        bold("systemd.unit"),
        roman("(5)"),
    ]);
    more.to_writer(&mut page)?;
    Ok(page)
}

fn section(page: &mut Roff, name: &str) {
    page.control("SH", [name]);
}

fn entry(page: &mut Roff, name: &str, text: &str) {
    page.control("TP", []);
    page.text([bold(name)]);
    page.text([roman(text)]);
}

/// The rows of the table whose head begins with `head`, in plain text.
fn table<const COLUMNS: usize>(head: &str) -> Result<Vec<[String; COLUMNS]>, String> {
    let rows = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .map_while(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|row| {
            let cells: Vec<String> = row.split('|').map(plain).collect();
            cells
                .try_into()
                .map_err(|_| format!("not {COLUMNS} columns in docs/configuration.md: {row}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if rows.is_empty() {
        return Err(format!("docs/configuration.md has no table that begins {head:?}"));
    }
    Ok(rows)
}

/// A table cell without Markdown: backquotes and the targets of links are removed.
fn plain(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some((before, link)) = rest.split_once("](") {
        text += before;
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    text += rest;
    // Only ASCII shows correctly in every terminal.
    text.replace(['`', '[', '\\'], "").replace('–', "-").replace('…', "...").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aspia_relay::config::settings::SETTINGS;

    #[test]
    fn manual_contains_every_argument_and_setting() {
        let page = String::from_utf8(manual().unwrap()).unwrap();
        let page = page.replace("\\-", "-");
        for argument in Arguments::command().get_arguments() {
            let long = format!("--{}", argument.get_long().unwrap());
            // Those for the Windows service have no use here.
            assert_eq!(page.contains(&long), !argument.is_hide_set(), "{long}");
        }
        for setting in SETTINGS {
            assert!(page.contains(&format!("\\fB{}\\fR", setting.key)), "{}", setting.key);
            assert!(page.contains(&setting.key.variable()), "{}", setting.key);
        }
        for heading in ["EXIT STATUS", "SIGNALS", "SETTINGS", "LOGS", "FILES", "SEE ALSO"] {
            assert!(page.contains(heading), "{heading}");
        }
        assert!(page.is_ascii(), "{:?}", page.chars().find(|c| !c.is_ascii()));
    }

    #[test]
    fn markdown_is_reduced_to_plain_text() {
        assert_eq!(
            plain("the `page` of [the doctor](#the-doctor), see"),
            "the page of the doctor, see"
        );
    }
}
