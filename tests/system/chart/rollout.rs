//! What replaces pods: only what needs it. All other settings reach the relays through the files that they watch.

use aspia_relay::config::settings::{ReloadClass, SETTINGS, SettingKey};
use serde_json::Value;

use super::kustomize;
use super::tools::{Case, chart, documents, template};

use crate::harness::tests;

tests! {
    only_settings_that_need_it_replace_pods,
    without_the_watch_every_setting_replaces_pods,
    files_of_the_relay_follow_their_objects,
}

/// What the chart renders.
struct Rendered {
    /// The template of the relay's pods: a difference replaces them.
    pod: Value,
    /// The content of ConfigMaps and Secrets, which the kubelet brings into running pods.
    files: Vec<Value>,
}

fn render(set: &[&str]) -> Result<Rendered, String> {
    let set: Vec<_> = set.iter().flat_map(|value| ["--set", value]).collect();
    render_with(&set)
}

/// Renders a case with more arguments for Helm.
fn render_with(more: &[&str]) -> Result<Rendered, String> {
    let values = chart().join("ci/secrets-in-values-values.yaml");
    // With a port of its own, PeerPort is only what the Router is told.
    let mut arguments = vec!["--values", values.to_str().unwrap(), "--set", "peer.listenPort=8070"];
    arguments.extend(more);
    let case = Case { name: more.join(" "), objects: documents(&template(&arguments)?) };
    let files = case.all("ConfigMap").chain(case.all("Secret"));
    let files = files.map(|object| {
        let data = if object["kind"] == "Secret" { "stringData" } else { "data" };
        object[data].clone()
    });
    Ok(Rendered { files: files.collect(), pod: case.workload()["spec"]["template"].clone() })
}

/// Changes a setting by the values of the chart. `None` if the chart sets it by the environment or by more than one value.
fn changed(key: SettingKey) -> Option<Rendered> {
    let value = match key {
        SettingKey::RouterAddress => "router.address=other.example.com",
        SettingKey::RouterPort => "router.port=8061",
        SettingKey::RouterPublicKey => {
            "router.publicKey.value=35997E3D46BF43430AA79E76698D6CEFE9462F04B7A613D59E37D22F16936744"
        }
        SettingKey::PeerPort => "peer.port=8090",
        SettingKey::ListenPort => "peer.listenPort=8091",
        SettingKey::AdminListen => "admin.port=8072",
        SettingKey::AdminToken => "adminToken.value=fedcba9876543210",
        SettingKey::MetricsListen => "metrics.port=9478",
        SettingKey::MetricsToken => "metricsToken.value=fedcba9876543210",
        // The relay's own stop takes as long as that of its pod, which is fixed.
        SettingKey::DrainTimeout
        // In the environment.
        | SettingKey::PeerAddress
        | SettingKey::DisplayName
        | SettingKey::FdStore
        | SettingKey::FdStoreTimeout
        | SettingKey::WatchConfig
        // Volumes of the pod.
        | SettingKey::MetricsTlsCertificate
        | SettingKey::MetricsTlsPrivateKey
        | SettingKey::MetricsTlsClientCa => return None,
        key => return Some(changed_in_config(key)),
    };
    Some(render(&[value]).unwrap())
}

/// Sets a key of `config` to a value that the chart accepts, and that is not the one of the case.
fn changed_in_config(key: SettingKey) -> Rendered {
    let before = render(&[]).unwrap();
    let candidates = [
        "33",
        "true",
        "\"2\"",
        "\"33m\"",
        "\"33MiB/s\"",
        "\"192.0.2.1\"",
        "[\"192.0.2.0/24\"]",
        "[\"relay.example\"]",
    ];
    candidates
        .iter()
        .filter_map(|value| render_with(&["--set-json", &format!("config.{key}={value}")]).ok())
        .find(|rendered| rendered.files != before.files)
        .unwrap_or_else(|| panic!("no value for {key}"))
}

fn only_settings_that_need_it_replace_pods() {
    let before = render(&[]).unwrap();
    let mut seen = 0;
    for setting in SETTINGS {
        let Some(after) = changed(setting.key) else { continue };
        assert_ne!(after.files, before.files, "{}", setting.key);
        let is_replaced = after.pod != before.pod;
        assert_eq!(is_replaced, setting.reload == ReloadClass::Restart, "{}", setting.key);
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
    for neither in ["prometheusRule.enabled=true", "dashboard.enabled=true"] {
        assert_eq!(render(&[neither]).unwrap().pod, before.pod, "{neither}");
    }
    for default in ["config.ListenInterface=", "config.WorkerThreads=0"] {
        let after = render(&[default]).unwrap();
        assert_ne!(after.files, before.files, "{default}");
        assert_eq!(after.pod, before.pod, "{default}");
    }
    // The port that the relay listens on, if it is the one that peers dial.
    let one_port = |port: &str| render(&["peer.listenPort=null", port]).unwrap().pod;
    assert_ne!(one_port("peer.port=8090"), one_port("peer.port=8091"));
}

fn without_the_watch_every_setting_replaces_pods() {
    let pod = |value: &str| render(&["watchConfig=false", value]).unwrap().pod;
    let before = pod("config.MaxPeerCount=100");
    for change in
        ["config.MaxPeerCount=101", "router.port=8061", "adminToken.value=fedcba9876543210"]
    {
        assert_ne!(pod(change), before, "{change}");
    }
    assert_eq!(pod("config.MaxPeerCount=100"), before);
}

/// A file that is mounted alone (`subPath`) stays as it was when the pod started, and so does an object whose name changes with
/// its content.
fn files_of_the_relay_follow_their_objects() {
    let mut objects = super::tools::cases();
    objects.push(Case { name: "kustomize".to_owned(), objects: kustomize::manifests() });
    for case in objects {
        let container = &case.relay()["containers"][0];
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(mount["subPath"].is_null(), "{}: {mount}", case.name);
        }
        let variables = super::container::variables(container);
        let watch = variables.iter().find(|(name, _)| name == "ASPIA_RELAY_WATCH_CONFIG");
        assert_eq!(watch.unwrap().1, "true", "{}", case.name);
        for object in case.all("ConfigMap").chain(case.all("Secret")) {
            assert!(object["immutable"].is_null(), "{}: {object}", case.name);
        }
    }
    let names: Vec<_> = kustomize::manifests()
        .iter()
        .filter(|object| object["kind"] == "ConfigMap" || object["kind"] == "Secret")
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    for name in ["aspia-relay", "aspia-relay-router", "aspia-relay-admin"] {
        assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
    }
}
