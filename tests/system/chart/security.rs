//! Security contexts of the chart's pods, and how many relays a rollout replaces at once.

use serde_json::{Value, json};

use super::tools::{Case, chart, documents, template};

use crate::harness::tests;

tests! {
    user_and_groups_can_be_left_to_the_cluster,
    security_contexts_are_those_of_the_values,
    only_containers_that_listen_below_1024_get_the_capability,
    rollout_replaces_as_many_relays_as_allowed,
}

/// A case with some values changed.
fn changed(name: &str, set: &[&str]) -> Case {
    let values = chart().join(format!("ci/{name}-values.yaml"));
    let mut arguments = vec!["--values", values.to_str().unwrap()];
    arguments.extend(set.iter().flat_map(|value| ["--set-json", value]));
    let rendered = template(&arguments).unwrap_or_else(|said| panic!("{name} {set:?}: {said}"));
    Case { name: format!("{name} {set:?}"), objects: documents(&rendered) }
}

/// The specs of the pods of relay, test and, if there is one, store.
fn pods(case: &Case) -> Vec<&Value> {
    let store = case.fd_store().map(|store| &store["spec"]["template"]["spec"]);
    [case.relay(), case.doctor()].into_iter().chain(store).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten()
}

/// The capabilities that a container has been given.
fn added(container: &Value) -> Value {
    container["securityContext"]["capabilities"]["add"].clone()
}

/// OpenShift gives each namespace users and groups of its own, and refuses pods that name others.
fn user_and_groups_can_be_left_to_the_cluster() {
    let values =
        "podSecurityContext={\"runAsUser\": null, \"runAsGroup\": null, \"fsGroup\": null}";
    for name in ["daemonset-template", "daemonset-node-annotation", "stateful-set-value"] {
        let case = changed(name, &[values]);
        for pod in pods(&case) {
            let expected =
                json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
            assert_eq!(pod["securityContext"], expected, "{}", case.name);
            for container in containers(pod) {
                for key in ["runAsUser", "runAsGroup"] {
                    assert!(container["securityContext"][key].is_null(), "{}", case.name);
                }
            }
        }
    }
}

fn security_contexts_are_those_of_the_values() {
    let case = changed(
        "daemonset-node-annotation",
        &[
            "podSecurityContext.fsGroupChangePolicy=\"OnRootMismatch\"",
            "podSecurityContext.runAsUser=1000680000",
            "seLinuxOptions.level=\"s0:c1,c2\"",
            "containerSecurityContext.seccompProfile={\"type\": \"RuntimeDefault\"}",
            "containerSecurityContext.readOnlyRootFilesystem=null",
        ],
    );
    for pod in pods(&case) {
        let expected = json!({
            "runAsNonRoot": true,
            "runAsUser": 1_000_680_000,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
            "seLinuxOptions": { "level": "s0:c1,c2" },
        });
        assert_eq!(pod["securityContext"], expected, "{}", case.name);
        for container in containers(pod) {
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            });
            assert_eq!(container["securityContext"], expected, "{}", case.name);
        }
    }
}

fn only_containers_that_listen_below_1024_get_the_capability() {
    let bind = json!(["NET_BIND_SERVICE"]);
    for (set, expected) in [
        (&["peer.port=443"][..], &bind),
        (&["peer.port=1023"], &bind),
        (&["peer.port=1024"], &Value::Null),
        // Peers dial 443, but the relay listens elsewhere.
        (&["peer.port=443", "peer.listenPort=8070"], &Value::Null),
        (&["peer.port=8443", "peer.listenPort=443"], &bind),
        (&["admin.port=871"], &bind),
        (&["metrics.enabled=true", "metrics.port=947"], &bind),
        (&["metrics.enabled=false", "metrics.port=947"], &Value::Null),
        (
            &["peer.port=443", "containerSecurityContext.capabilities.add=[\"NET_BIND_SERVICE\"]"],
            &bind,
        ),
        (&["peer.port=443", "containerSecurityContext=null"], &bind),
    ] {
        let case = changed("daemonset-node-annotation", set);
        let own = set.iter().any(|value| value.contains("capabilities.add"));
        for pod in pods(&case) {
            for container in containers(pod) {
                let listens = ["relay", "doctor"].iter().any(|name| container["name"] == *name);
                let expected = if listens || own { expected } else { &Value::Null };
                assert_eq!(added(container), *expected, "{}: {container}", case.name);
                let drop = &container["securityContext"]["capabilities"]["drop"];
                assert!(*drop == json!(["ALL"]) || case.name.contains("=null"), "{}", case.name);
            }
        }
    }
    let case = changed(
        "daemonset-host-ip",
        &["peer.port=443", "containerSecurityContext.capabilities.add=[\"SYS_PTRACE\"]"],
    );
    let relay = added(&case.relay()["containers"][0]);
    assert_eq!(relay, json!(["SYS_PTRACE", "NET_BIND_SERVICE"]));
}

fn rollout_replaces_as_many_relays_as_allowed() {
    for (value, expected) in [("3", json!(3)), ("\"10%\"", json!("10%"))] {
        let set = format!("updateStrategy.maxUnavailable={value}");
        let case = changed("daemonset-template", &[&set]);
        // Two relays cannot use one port of a node, so there is never a surplus one.
        let rolling = json!({ "maxUnavailable": expected, "maxSurge": 0 });
        let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": rolling });
        assert_eq!(case.workload()["spec"]["updateStrategy"], strategy, "{}", case.name);
        // A node that replaced its store at the same time would lose its sessions.
        let store = &case.fd_store().unwrap()["spec"]["updateStrategy"];
        assert_eq!(*store, json!({ "type": "OnDelete" }), "{}", case.name);
    }
}
