//! The descriptor store in the chart: a second workload on the nodes of the relays.

use std::collections::BTreeSet;

use aspia_relay::cli::Arguments;
use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::open_files::MAX_PIPES;
use aspia_relay::wire::peer::MAX_FIRST_MESSAGE;
use clap::Parser;
use serde_json::{Value, json};

use super::container::variables;
use super::tools::{Case, cases, chart, documents, template};

use crate::harness::tests;

tests! {
    store_is_only_beside_relays_that_stay_on_their_node,
    store_runs_on_the_nodes_of_the_relays,
    store_is_as_confined_as_the_relay,
    relay_and_store_agree_on_address_and_token,
    address_of_the_store_belongs_to_one_release,
    memory_limit_of_the_store_allows_a_hand_over_at_full_load,
    store_is_replaced_by_hand_only,
    changes_of_the_relay_do_not_change_the_store,
    selinux_options_are_the_same_for_all_pods,
    program_accepts_the_arguments_of_the_store,
}

/// The case `name` with some values changed.
fn changed(name: &str, set: &[&str]) -> Case {
    let values = chart().join(format!("ci/{name}-values.yaml"));
    let mut arguments = vec!["--values", values.to_str().unwrap()];
    arguments.extend(set.iter().flat_map(|value| ["--set", value]));
    let rendered = template(&arguments).unwrap_or_else(|said| panic!("{name} {set:?}: {said}"));
    Case { name: format!("{name} {set:?}"), objects: documents(&rendered) }
}

/// The cases with a store: the pods of its relays and its own.
fn pods_of_stores(cases: &[Case]) -> impl Iterator<Item = (&Case, &Value)> {
    cases.iter().filter_map(|case| Some((case, &case.fd_store()?["spec"]["template"]["spec"])))
}

/// The value of a variable of a pod's container.
fn variable(pod: &Value, name: &str) -> Option<String> {
    let variables = variables(&pod["containers"][0]);
    variables.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

/// Where a pod looks for the store.
fn address(pod: &Value) -> Option<String> {
    variable(pod, "ASPIA_RELAY_FD_STORE")
}

/// The pod of the store of a release in a namespace.
fn store_of(namespace: &str, name: &str) -> Value {
    let values = chart().join("ci/daemonset-template-values.yaml");
    let name = format!("fullnameOverride={name}");
    let values = ["--values", values.to_str().unwrap(), "--namespace", namespace, "--set", &name];
    let rendered = template(&values).unwrap();
    let case = Case { name, objects: documents(&rendered) };
    case.fd_store().unwrap()["spec"]["template"]["spec"].clone()
}

fn store_is_only_beside_relays_that_stay_on_their_node() {
    let mut cases = cases();
    cases.push(changed("daemonset-template", &["fdStore.enabled=false"]));
    let mut with_store = 0;
    for case in &cases {
        let expected =
            case.workload()["kind"] == "DaemonSet" && !case.name.contains("enabled=false");
        assert_eq!(case.fd_store().is_some(), expected, "{}", case.name);
        // Without a store, a relay must not wait for one, and drains when it stops. The doctor looks for the store, too.
        for pod in [case.relay(), case.doctor()] {
            assert_eq!(address(pod).is_some(), expected, "{}", case.name);
        }
        with_store += usize::from(expected);
    }
    assert!(with_store > 5 && with_store < cases.len());
}

fn store_runs_on_the_nodes_of_the_relays() {
    for (case, pod) in pods_of_stores(&cases()) {
        for field in ["nodeSelector", "tolerations", "priorityClassName", "imagePullSecrets"] {
            assert_eq!(pod[field], case.relay()[field], "{}: {field}", case.name);
        }
        let affinity = |pod: &Value| pod["affinity"]["nodeAffinity"].clone();
        assert_eq!(affinity(pod), affinity(case.relay()), "{}", case.name);
        // Other rules, such as those that keep relays apart, are not for the store.
        assert!(pod["affinity"]["podAntiAffinity"].is_null(), "{}", case.name);
        assert!(pod["topologySpreadConstraints"].is_null(), "{}", case.name);
        // No Service and no monitor may select it as a relay, and its own selector no relay.
        let labels = |workload: &Value| workload["spec"]["template"]["metadata"]["labels"].clone();
        let (store, relay) = (case.fd_store().unwrap(), case.workload());
        let component = "app.kubernetes.io/component";
        assert_ne!(labels(store)[component], labels(relay)[component], "{}", case.name);
        assert_eq!(store["spec"]["selector"]["matchLabels"], labels(store), "{}", case.name);
        assert!(store["metadata"]["name"].as_str().unwrap().len() <= 63, "{}", case.name);
    }
}

fn store_is_as_confined_as_the_relay() {
    for (case, pod) in pods_of_stores(&cases()) {
        let name = &case.name;
        let relay = case.relay();
        assert_eq!(pod["securityContext"], relay["securityContext"], "{name}");
        for field in ["automountServiceAccountToken", "enableServiceLinks"] {
            assert_eq!(pod[field], false, "{name}: {field}");
        }
        let (store, relay) = (&pod["containers"][0], &relay["containers"][0]);
        for field in ["securityContext", "imagePullPolicy", "terminationMessagePolicy"] {
            assert_eq!(store[field], relay[field], "{name}: {field}");
        }
        // Its name belongs to the network of the node; it needs no port there, and no volume of the node.
        assert_eq!(pod["hostNetwork"], true, "{name}");
        assert!(store["ports"].is_null(), "{name}");
        assert!(pod["initContainers"].is_null(), "{name}");
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "{name}");
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume["projected"].is_object(), "{name}: {volume}");
        }
        assert_eq!(store["volumeMounts"][0]["readOnly"], true, "{name}");
        assert!(store["resources"]["limits"]["memory"].is_string(), "{name}");
    }
}

fn relay_and_store_agree_on_address_and_token() {
    for (case, pod) in pods_of_stores(&cases()) {
        let name = case.workload()["metadata"]["name"].as_str().unwrap();
        let expected = format!("@aspia-relay/relays/{name}");
        for pod in [pod, case.relay(), case.doctor()] {
            assert_eq!(address(pod).unwrap(), expected, "{}", case.name);
            // A token that the store does not know would keep the relay from it.
            let token = variable(pod, "ASPIA_RELAY_ADMIN_TOKEN_FILE").unwrap();
            assert_eq!(token, "/run/secrets/aspia-relay/admin-token", "{}", case.name);
            let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
            assert!(
                mounts.iter().any(|mount| token.starts_with(mount["mountPath"].as_str().unwrap()))
            );
        }
        let source = |pod: &Value| {
            let volumes = pod["volumes"].as_array().unwrap();
            let secrets = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
            secrets["projected"]["sources"][0].clone()
        };
        assert_eq!(source(pod), source(case.relay()), "{}", case.name);
        assert_eq!(variable(pod, "ASPIA_RELAY_FD_STORE_TIMEOUT").as_deref(), Some("60s"));
    }
    let patient = changed("daemonset-template", &["fdStore.timeout=5m"]);
    let pod = &patient.fd_store().unwrap()["spec"]["template"]["spec"];
    assert_eq!(variable(pod, "ASPIA_RELAY_FD_STORE_TIMEOUT").as_deref(), Some("5m"));
}

/// The name belongs to the network of the node, on which other releases may run as well.
fn address_of_the_store_belongs_to_one_release() {
    let (namespace, name) = ("n".repeat(62), "f".repeat(51));
    let (long_namespace, long_name) = (format!("{namespace}1"), format!("{name}1"));
    let mut seen = BTreeSet::new();
    for (namespace, name) in [
        ("a", "b-c"),
        ("a-b", "c"),
        (&*long_namespace, &*long_name),
        (&*long_namespace, &format!("{name}2")),
        (&format!("{namespace}2"), &*long_name),
    ] {
        let address = address(&store_of(namespace, name)).unwrap();
        let parsed = address.parse::<StoreAddress>();
        assert_eq!(parsed.map(|parsed| parsed.to_string()), Ok(address.clone()));
        assert!(seen.insert(address.clone()), "{address} is that of two releases");
    }
}

/// A store that runs out of memory during a hand-over takes all sessions of the node with it.
fn memory_limit_of_the_store_allows_a_hand_over_at_full_load() {
    let case = changed("daemonset-template", &[]);
    let container = &case.fd_store().unwrap()["spec"]["template"]["spec"]["containers"][0];
    let limit = container["resources"]["limits"]["memory"].as_str().unwrap();
    let limit: usize = limit.strip_suffix("Mi").unwrap().parse().unwrap();
    let (kib, mib) = (1024, 1024 * 1024);
    // The defaults of MaxPeerCount and MaxPendingPeers; the numbers are those of docs/operations.md.
    let (sessions, pending) = (100, 1024);
    let under_way = MAX_PIPES * 512 * kib + 2 * sessions * 64 * kib + pending * MAX_FIRST_MESSAGE;
    let own = 8 * mib + sessions * 512;
    // The allocator and the message that is being decoded take some as well.
    assert!(limit * mib > (under_way + own) * 3 / 2, "{limit} MiB");
}

/// Between two relays, the sessions of a node are only in its store: the two must never be replaced together.
fn store_is_replaced_by_hand_only() {
    for case in &cases() {
        let Some(store) = case.fd_store() else { continue };
        assert_eq!(store["spec"]["updateStrategy"], json!({ "type": "OnDelete" }), "{}", case.name);
    }
}

fn changes_of_the_relay_do_not_change_the_store() {
    let store = |set: &[&str]| {
        let case = changed("daemonset-template", set);
        case.fd_store().unwrap()["spec"]["template"].clone()
    };
    let before = store(&["fdStore.image.tag=1.0.0"]);
    let image = before["spec"]["containers"][0]["image"].as_str().unwrap();
    assert_eq!(image, "ghcr.io/aspia-relay/aspia-relay:1.0.0");
    let digest = format!("image.digest=sha256:{}", "0".repeat(64));
    for change in [
        "image.tag=2.0.0",
        digest.as_str(),
        "config.MaxPeerCount=500",
        "peer.port=443",
        "peer.listenPort=9000",
        "router.port=8063",
        "drainTimeoutSeconds=60",
        "podAnnotations.a=b",
        "podLabels.a=b",
        "resources.limits.memory=1Gi",
        "tracing.endpoint=http://collector:4318",
    ] {
        let set = ["fdStore.image.tag=1.0.0", change];
        assert_eq!(store(&set), before, "{change}");
        // Nor where the relay looks for it: the store keeps its pods, with the sockets of the old relay.
        let relay = changed("daemonset-template", &set);
        assert_eq!(address(relay.relay()), address(&before["spec"]), "{change}");
    }
    // By default it has the image of the relay, whatever decides that.
    for set in [&[][..], &["image.tag=2.0.0"], &[digest.as_str()], &["image.repository=a.b/c"]] {
        let case = changed("daemonset-template", set);
        let image = &case.relay()["containers"][0]["image"];
        let store = &case.fd_store().unwrap()["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(store, image, "{set:?}");
    }
    let own = format!("fdStore.image.digest=sha256:{}", "1".repeat(64));
    let image = store(&["image.tag=2.0.0", "fdStore.image.repository=a.b/c", &own]);
    let image = image["spec"]["containers"][0]["image"].as_str().unwrap();
    assert_eq!(image, format!("a.b/c@sha256:{}", "1".repeat(64)));
}

/// Nodes that enforce SELinux let two pods pass each other sockets only if they have the same level.
fn selinux_options_are_the_same_for_all_pods() {
    let level = "s0:c123\\,c456";
    let case = changed("daemonset-template", &[&format!("seLinuxOptions.level={level}")]);
    let store = &case.fd_store().unwrap()["spec"]["template"]["spec"];
    for pod in [store, case.relay(), case.doctor()] {
        let options = &pod["securityContext"]["seLinuxOptions"];
        assert_eq!(options, &json!({ "level": "s0:c123,c456" }));
    }
}
fn program_accepts_the_arguments_of_the_store() {
    for (case, pod) in pods_of_stores(&cases()) {
        let container = &pod["containers"][0];
        let parse = |arguments: &Value| {
            let arguments = arguments.as_array().unwrap().iter().map(|argument| argument.as_str());
            let arguments = arguments.map(Option::unwrap);
            Arguments::try_parse_from(std::iter::once("aspia_relay").chain(arguments)).unwrap()
        };
        assert!(parse(&container["args"]).fd_store, "{}", case.name);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let command = container[probe]["exec"]["command"].as_array().unwrap();
            assert_eq!(command[0], "/usr/local/bin/aspia_relay", "{}", case.name);
            let arguments = parse(&json!(command[1..]));
            assert!(arguments.healthcheck.is_some() && arguments.fd_store, "{}", case.name);
        }
    }
}
