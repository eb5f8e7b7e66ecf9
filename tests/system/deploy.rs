//! The files for Prometheus and Grafana in `deploy/`: they parse, the alerts fire when they should, and only existing metrics
//! are named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use relay_lab::http::get;
use relay_lab::relay::Lab;
use relay_lab::router::Options;

use crate::harness::tests;

tests! {
    promtool_accepts_the_metrics,
    alert_rules_pass_their_tests,
    dashboard_queries_parse,
    rules_and_dashboard_name_only_metrics_that_exist,
    rules_and_dashboard_select_only_existing_label_values,
    documentation_names_every_alert,
    documentation_names_every_metric_and_label_value,
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// Runs promtool, without which the test cannot run. Returns whether it succeeded, and what it printed.
fn promtool(arguments: &[&str], input: Option<&str>) -> (bool, String) {
    use std::io::Write;

    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(deploy("prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        relay_lab::cannot_run("promtool is missing; on Debian: apt install prometheus");
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.unwrap_or_default().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

async fn exposition() -> String {
    let tls = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (tls.cert.pem(), tls.signing_key.serialize_pem());
    // A relay that reads as one with a store, since some series exist only then.
    let settings: [(&str, &str); 3] = [
        ("MetricsTlsCertificate", &certificate),
        ("MetricsTlsPrivateKey", &key),
        ("FdStore", "@aspia-relay-test-of-metrics"),
    ];
    let lab = Lab::start(Options::default(), &settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    get(lab.relay.admin(), "/metrics").await.unwrap().body
}

/// The names of the series that queries can select.
async fn series() -> BTreeSet<String> {
    exposition()
        .await
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
        .collect()
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("aspia_relay_") || word.starts_with("process_"))
        // A comment may name a family: process_*.
        .filter(|word| !word.ends_with('_'))
        .map(ToOwned::to_owned)
        .collect()
}

fn queries(panel: &serde_json::Value, found: &mut Vec<String>) {
    match panel {
        serde_json::Value::Object(members) => {
            found.extend(members.get("expr").and_then(|expr| expr.as_str()).map(ToOwned::to_owned));
            members.values().for_each(|value| queries(value, found));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

fn dashboard() -> Vec<String> {
    let text = std::fs::read_to_string(deploy("grafana/aspia-relay.json")).unwrap();
    let mut found = Vec::new();
    queries(&serde_json::from_str(&text).unwrap(), &mut found);
    assert!(found.len() > 30, "{found:?}");
    found
}

#[tokio::main(flavor = "current_thread")]
async fn promtool_accepts_the_metrics() {
    let text = exposition().await;
    let (good, said) = promtool(&["check", "metrics"], Some(&text));
    assert!(good, "{said}");
}

fn alert_rules_pass_their_tests() {
    for arguments in [
        &["check", "rules", "rules.yaml"][..],
        &["test", "rules", "rules.test.yaml"],
        &["check", "config", "--syntax-only", "prometheus.yaml"],
    ] {
        let (good, said) = promtool(arguments, None);
        assert!(good, "{arguments:?}: {said}");
    }
}

fn dashboard_queries_parse() {
    let rules: Vec<_> = dashboard()
        .iter()
        .enumerate()
        .map(|(number, expr)| {
            let expr = expr
                .replace("$__rate_interval", "5m")
                .replace("$__range", "1h")
                .replace("$job", ".+")
                .replace("$instance", ".+");
            serde_json::json!({ "record": format!("query:{number}"), "expr": expr })
        })
        .collect();
    let file = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    // promtool expects YAML, of which JSON is a subset.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queries.yaml");
    std::fs::write(&path, file.to_string()).unwrap();
    let (good, said) = promtool(&["check", "rules", path.to_str().unwrap()], None);
    assert!(good, "{said}");
}

#[tokio::main(flavor = "current_thread")]
async fn rules_and_dashboard_name_only_metrics_that_exist() {
    let series = series().await;
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    let expressions: String = rules.lines().filter(|line| !line.trim().starts_with('#')).collect();
    for name in names(&dashboard().join("\n")) {
        assert!(series.contains(&name), "{name} is not a series of this relay");
    }
    // Descriptions may name a histogram as a whole; promtool tests that the queries find something.
    for name in names(&expressions) {
        let known = series.contains(&name) || series.contains(&format!("{name}_bucket"));
        assert!(known, "{name} is not a metric of this relay");
    }
    // Recording rules have names with colons.
    let recorded: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let texts = dashboard().join("\n") + &expressions;
    let words = texts.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    for name in words.filter(|word| word.starts_with("instance:") || word.starts_with("job:")) {
        assert!(recorded.contains(name), "no rule records {name}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn rules_and_dashboard_select_only_existing_label_values() {
    let exposition = exposition().await;
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    let texts = dashboard().join("\n") + &rules;
    let mut asked = 0;
    for label in ["outcome", "event", "state", "end"] {
        for (at, _) in texts.match_indices(label) {
            let Some((_, values)) = texts[at..].split_once('"') else { continue };
            let operator = texts[at + label.len()..].split('"').next().unwrap();
            let own = !texts[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            if !own || !["=", "=~", "!=", "!~"].contains(&operator) {
                continue;
            }
            // The metric before the braces; without a metric, they hold labels of an alert.
            let Some((before, inside)) = texts[..at].rsplit_once('{') else { continue };
            if inside.contains('}') {
                continue;
            }
            let metric = before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next();
            let metric = metric.filter(|metric| metric.starts_with("aspia_relay_"));
            let series = |line: &&str| metric.is_none_or(|metric| line.starts_with(metric));
            for value in values.split('"').next().unwrap().split('|') {
                let wanted = format!("{label}=\"{value}\"");
                let known = exposition.lines().filter(series).any(|line| line.contains(&wanted));
                assert!(known, "{metric:?} has no {wanted}");
                asked += 1;
            }
        }
    }
    assert!(asked > 10, "{asked}");
}

fn documentation_names_every_alert() {
    let document = include_str!("../../docs/observability.md");
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    let mut alerts = 0;
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(document.contains(&format!("`{alert}`")), "{alert}");
        alerts += 1;
    }
    assert!(alerts > 10);
}

#[tokio::main(flavor = "current_thread")]
async fn documentation_names_every_metric_and_label_value() {
    let document = include_str!("../../docs/observability.md");
    let exposition = exposition().await;
    let lines = || exposition.lines().filter(|line| line.contains("aspia_relay_"));
    let families = lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let labels = ["state", "event", "outcome", "end"].map(|label| format!("{{{label}=\""));
    let values = lines().filter_map(|line| {
        labels.iter().find_map(|label| line.split_once(label.as_str())?.1.split('"').next())
    });
    let names: BTreeSet<&str> = families.chain(values).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(document.contains(&format!("`{name}`")), "docs/observability.md has no {name}");
    }
}
