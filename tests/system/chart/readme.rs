//! The table of values in the chart's README equals the comments in `values.yaml`, and the command in
//! docs/install-kubernetes.md works.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::tools::{Case, chart, documents, run};

use crate::harness::tests;

tests! {
    readme_documents_every_value,
    documented_helm_install_works,
}

const ROUTER_KEY: &str = include_str!("../../vectors/router.pub");
const BEGIN: &str = "<!-- values -->\n";
const END: &str = "<!-- /values -->\n";

/// A documented value.
struct Documented {
    path: String,
    text: String,
    section: String,
}

/// The values with a comment that begins with `# -- `, each with its section (`# === `).
fn documented(values: &str) -> Vec<Documented> {
    let mut found = Vec::new();
    let mut section = String::new();
    let mut comment: Option<String> = None;
    // The keys that enclose the line, with their indentation.
    let mut above: Vec<(usize, String)> = Vec::new();
    for line in values.lines() {
        let text = line.trim_start();
        let indentation = line.len() - text.len();
        if let Some(title) = text.strip_prefix("# === ") {
            title.clone_into(&mut section);
        } else if let Some(begin) = text.strip_prefix("# -- ") {
            comment = Some(begin.to_owned());
        } else if let (Some(more), Some(comment)) = (text.strip_prefix("# "), &mut comment) {
            *comment += " ";
            *comment += more;
        } else if let Some((key, _)) = text.split_once(':').filter(|_| !text.starts_with('#')) {
            above.retain(|(outer, _)| *outer < indentation);
            above.push((indentation, key.to_owned()));
            if let Some(text) = comment.take() {
                let path: Vec<_> = above.iter().map(|(_, key)| key.as_str()).collect();
                found.push(Documented { path: path.join("."), text, section: section.clone() });
            }
        }
    }
    found
}

/// Collects the paths of all values that are not objects or are empty objects.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &below, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

fn table(values: &str) -> String {
    let parsed: Value = serde_saphyr::from_str(values).unwrap();
    let documented = documented(values);
    let mut all = Vec::new();
    leaves(&parsed, "", &mut all);
    for leaf in all {
        let is_documented = |known: &&Documented| {
            leaf == known.path || leaf.starts_with(&format!("{}.", known.path))
        };
        assert!(documented.iter().any(|known| is_documented(&known)), "{leaf} has no comment");
    }
    let mut table = String::new();
    let mut section = "";
    for value in &documented {
        if value.section != section {
            section = &value.section;
            let _ = write!(
                table,
                "\n### {section}\n\n| value | default | means |\n| --- | --- | --- |\n"
            );
        }
        let pointer = format!("/{}", value.path.replace('.', "/"));
        let default = parsed.pointer(&pointer).unwrap_or_else(|| panic!("no {pointer}"));
        let text = value.text.replace('|', "\\|");
        let _ = writeln!(table, "| `{}` | `{default}` | {text} |", value.path);
    }
    table + "\n"
}

fn readme_documents_every_value() {
    let path = chart().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let values = std::fs::read_to_string(chart().join("values.yaml")).unwrap();
    let made = format!("{head}{BEGIN}{}{END}{tail}", table(&values));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, made).unwrap();
    } else {
        assert!(
            readme == made,
            "README.md of the chart is not in step with values.yaml; \
             run: UPDATE=1 cargo test --test system chart::readme"
        );
    }
}

/// The command that begins with `helm install`, with its continued lines.
fn helm_install(document: &str) -> String {
    let mut lines = document.lines().skip_while(|line| !line.starts_with("helm install "));
    let mut command = String::new();
    for line in &mut lines {
        command = command + line + "\n";
        if !line.ends_with('\\') {
            break;
        }
    }
    assert!(!command.is_empty(), "docs/install-kubernetes.md has no helm install");
    assert!(
        !lines.any(|line| line.starts_with("helm install ")),
        "docs/install-kubernetes.md has several"
    );
    command
}

/// Runs the command in a shell exactly as documented, in a directory like a clone with `router.pub` in it, except that Helm
/// renders instead of installing.
fn documented_helm_install_works() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(repository.join("docs/install-kubernetes.md")).unwrap();
    let command = helm_install(&document).replacen("helm install", "helm template", 1);
    // Without Helm the test is ignored; the shell below would merely fail.
    run("helm", &["version"]).unwrap();
    let clone = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository.join("helm"), clone.path().join("helm")).unwrap();
    std::fs::write(clone.path().join("router.pub"), ROUTER_KEY).unwrap();
    let script = format!("cd '{}'\n{command}", clone.path().display());
    let rendered = run("sh", &["-euc", &script]);
    let rendered = rendered.unwrap_or_else(|said| panic!("{command}{said}"));
    let case = Case { name: "install-kubernetes.md".to_owned(), objects: documents(&rendered) };
    let map = case.only("ConfigMap");
    assert_eq!(map["metadata"]["namespace"], "relays");
    let relay_json = map["data"]["relay.json"].as_str().unwrap();
    let relay_json: Value = serde_json::from_str(relay_json).unwrap();
    assert_eq!(relay_json["RouterAddress"], "router.example.com");
    assert_eq!(relay_json["RouterPublicKey"], ROUTER_KEY.trim());
    let env = case.relay()["containers"][0]["env"].as_array().unwrap();
    let address = env.iter().find(|variable| variable["name"] == "ASPIA_RELAY_PEER_ADDRESS");
    assert_eq!(address.unwrap()["value"], "$(NODE_NAME).relay.example.com");
}
