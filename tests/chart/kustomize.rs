//! The plain manifests in `deploy/kubernetes`: what the chart makes of the values that stand beside them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tools::{documents, run, template};

const ROUTER_KEY: &str = include_str!("../vectors/router.pub");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// A copy of the folder, as its README tells to make one, without the files that the user puts there.
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

/// The manifests of an installation; `None` where kubectl is missing.
pub(crate) fn manifests() -> Option<Vec<Value>> {
    let copy = copy();
    std::fs::write(copy.path().join("router.pub"), ROUTER_KEY).unwrap();
    std::fs::write(copy.path().join("admin-token"), "0123456789abcdef\n").unwrap();
    let made = run("kubectl", &["kustomize", copy.path().to_str().unwrap()])?;
    Some(documents(&made.unwrap()))
}

/// An object without what only Helm, or only kustomize, puts on it.
fn plain(object: &Value, generated: &[(String, String)]) -> Value {
    let mut text = object.to_string();
    for (with_hash, name) in generated {
        text = text.replace(with_hash, name);
    }
    let mut object: Value = serde_json::from_str(&text).unwrap();
    if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        for of_helm in
            ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"]
        {
            labels.remove(of_helm);
        }
    }
    // What this one does for Helm, the hash in the name of a ConfigMap does for kustomize.
    let annotations = object.pointer_mut("/spec/template/metadata/annotations");
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.remove("checksum/config");
    }
    if let Some(Value::String(relay_json)) = object.pointer("/data/relay.json") {
        object["data"]["relay.json"] = serde_json::from_str(relay_json).unwrap();
    }
    object
}

/// Names of ConfigMaps and Secrets with their hash, and without.
fn generated(objects: &[Value]) -> Vec<(String, String)> {
    let generated = ["ConfigMap", "Secret"];
    objects
        .iter()
        .filter(|object| generated.iter().any(|kind| object["kind"] == *kind))
        .map(|object| {
            let name = object["metadata"]["name"].as_str().unwrap();
            (name.to_owned(), name.rsplit_once('-').unwrap().0.to_owned())
        })
        .collect()
}

#[test]
fn it_makes_what_the_chart_makes() {
    let Some(made) = manifests() else { return };
    let generated = generated(&made);
    assert_eq!(generated.len(), 3);
    let mut made: Vec<_> = made.iter().map(|object| plain(object, &generated)).collect();
    let mut take = |kind: &str, name: &str| {
        let at = made.iter().position(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        made.remove(at.unwrap_or_else(|| panic!("no {kind} {name}")))
    };
    // What the chart leaves to the user.
    let namespace = take("Namespace", "aspia-relay");
    let labels = &namespace["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(take("ConfigMap", "aspia-relay-router")["data"]["router.pub"], ROUTER_KEY);
    assert!(take("Secret", "aspia-relay-admin")["data"]["token"].is_string());

    let values = folder().join("values.yaml");
    let arguments = ["--values", values.to_str().unwrap(), "--namespace", "aspia-relay"];
    let Some(rendered) = template(&arguments) else { return };
    let mut rendered: Vec<_> = documents(&rendered.unwrap())
        .iter()
        .filter(|object| !object["metadata"]["annotations"]["helm.sh/hook"].is_string())
        .map(|object| plain(object, &[]))
        .collect();
    for all in [&mut made, &mut rendered] {
        all.sort_by_key(|object| object["kind"].to_string());
    }
    assert_eq!(made, rendered);
}

/// As README.md says to name an image of one's own.
#[test]
fn an_image_of_ones_own_is_taken() {
    let copy = copy();
    for file in ["router.pub", "admin-token"] {
        std::fs::write(copy.path().join(file), ROUTER_KEY).unwrap();
    }
    let path = copy.path().join("kustomization.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (line, name) = ("# newName: REGISTRY/aspia-relay", "newName: registry.example.com/relay");
    assert_eq!(text.matches(line).count(), 1);
    std::fs::write(&path, text.replace(line, name)).unwrap();
    let Some(made) = run("kubectl", &["kustomize", copy.path().to_str().unwrap()]) else { return };
    let made = documents(&made.unwrap());
    let daemon_set = made.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let tag = env!("CARGO_PKG_VERSION");
    assert_eq!(container["image"], format!("registry.example.com/relay:{tag}"));
}

#[test]
fn a_forgotten_file_is_named() {
    let copy = copy();
    let Some(said) = run("kubectl", &["kustomize", copy.path().to_str().unwrap()]) else { return };
    assert!(said.unwrap_err().contains("router.pub"));
}
