//! The plain manifests in `deploy/kubernetes` equal what the chart renders from the `values.yaml` beside them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tools::{documents, run, template};

use crate::harness::tests;

tests! {
    kustomize_output_equals_the_chart,
    custom_image_is_used,
    missing_file_is_named,
}

const ROUTER_KEY: &str = include_str!("../../vectors/router.pub");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// A copy of the directory, as its README instructs, without the files that the user adds.
fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder()).unwrap() {
        let (path, name) = file.map(|file| (file.path(), file.file_name())).unwrap();
        if name != "router.pub" && name != "admin-token" {
            std::fs::copy(path, directory.path().join(name)).unwrap();
        }
    }
    directory
}

/// The manifests of an installation.
pub(crate) fn manifests() -> Vec<Value> {
    let copy = copy();
    std::fs::write(copy.path().join("router.pub"), ROUTER_KEY).unwrap();
    std::fs::write(copy.path().join("admin-token"), "0123456789abcdef\n").unwrap();
    let made = run("kubectl", &["kustomize", copy.path().to_str().unwrap()]);
    documents(&made.unwrap())
}

/// An object without the metadata that only Helm or only kustomize adds.
fn plain(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        for of_helm in
            ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"]
        {
            labels.remove(of_helm);
        }
    }
    // Helm needs this annotation to roll out settings that need a new pod; with kustomize, one asks for that.
    let annotations = object.pointer_mut("/spec/template/metadata/annotations");
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.remove("checksum/config");
    }
    if let Some(Value::String(relay_json)) = object.pointer("/data/relay.json") {
        object["data"]["relay.json"] = serde_json::from_str(relay_json).unwrap();
    }
    object
}

fn kustomize_output_equals_the_chart() {
    let made = manifests();
    let mut made: Vec<_> = made.iter().map(plain).collect();
    let mut take = |kind: &str, name: &str| {
        let at = made.iter().position(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        made.remove(at.unwrap_or_else(|| panic!("no {kind} {name}")))
    };
    // Objects that the chart leaves to the user.
    let namespace = take("Namespace", "aspia-relay");
    let labels = &namespace["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(take("ConfigMap", "aspia-relay-router")["data"]["router.pub"], ROUTER_KEY);
    assert!(take("Secret", "aspia-relay-admin")["data"]["token"].is_string());

    let values = folder().join("values.yaml");
    let arguments = ["--values", values.to_str().unwrap(), "--namespace", "aspia-relay"];
    let rendered = template(&arguments);
    let mut rendered: Vec<_> = documents(&rendered.unwrap())
        .iter()
        .filter(|object| !object["metadata"]["annotations"]["helm.sh/hook"].is_string())
        .map(plain)
        .collect();
    for all in [&mut made, &mut rendered] {
        all.sort_by_key(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
    }
    assert_eq!(made, rendered);
}

/// Names an image as the README of the directory instructs.
fn custom_image_is_used() {
    let copy = copy();
    for file in ["router.pub", "admin-token"] {
        std::fs::write(copy.path().join(file), ROUTER_KEY).unwrap();
    }
    let path = copy.path().join("kustomization.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (line, name) = ("# newName: REGISTRY/aspia-relay", "newName: registry.example.com/relay");
    assert_eq!(text.matches(line).count(), 1);
    std::fs::write(&path, text.replace(line, name)).unwrap();
    let made = run("kubectl", &["kustomize", copy.path().to_str().unwrap()]);
    let made = documents(&made.unwrap());
    let daemon_set = made.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let tag = env!("CARGO_PKG_VERSION");
    assert_eq!(container["image"], format!("registry.example.com/relay:{tag}"));
}

fn missing_file_is_named() {
    let copy = copy();
    let said = run("kubectl", &["kustomize", copy.path().to_str().unwrap()]);
    assert!(said.unwrap_err().contains("router.pub"));
}
