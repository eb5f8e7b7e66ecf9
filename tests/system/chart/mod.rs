//! The Helm chart: it lints, renders in every mode to manifests that Kubernetes accepts and to settings that the relay
//! accepts, and refuses values that cannot work. The plain manifests in `deploy/kubernetes` equal its output.

mod container;
pub(crate) mod fd_store;
pub(crate) mod kustomize;
pub(crate) mod readme;
pub(crate) mod refused;
pub(crate) mod rollout;
pub(crate) mod security;
mod tools;

use std::collections::BTreeSet;

use aspia_relay::cli::Arguments;
use aspia_relay::config::{self, exposed, settings};
use aspia_relay::trace::settings::TraceSettings;
use clap::Parser;
use serde_json::{Value, json};

use container::Existing;
use tools::{Case, case, cases, chart, documents, run, template, template_of};

use crate::harness::tests;

tests! {
    helm_lints_every_case,
    kubernetes_schemas_accept_every_manifest,
    relay_accepts_every_configuration,
    environment_variables_name_existing_settings,
    pods_meet_the_restricted_profile,
    probes_reach_the_admin_interface,
    relays_never_share_a_host_port,
    rollout_waits_until_a_relay_stays_ready,
    pod_status_does_not_show_the_log,
    test_pod_fits_on_the_node_of_a_relay,
    test_pod_does_not_exhaust_its_deadline_waiting_for_an_address,
    test_pod_runs_beside_a_relay_or_reports_that_there_is_none,
    successful_test_pod_is_deleted,
    secrets_are_only_in_secrets,
    only_the_init_container_has_credentials,
    peer_address_comes_from_the_configured_source,
    service_preserves_peer_addresses,
    monitors_select_the_relays,
    series_go_on_where_counters_do,
    chart_has_the_rules_and_dashboard_of_deploy,
    package_renders_like_the_directory,
    chart_version_equals_the_program_version,
    notes_give_the_next_steps,
    notes_warn_of_unsuitable_values,
}

/// Versions of Kubernetes: the oldest that Chart.yaml allows, one in between, and the newest that the tool has schemas for.
const KUBERNETES: [&str; 3] = ["1.25.0", "1.31.0", "1.37.0"];
/// Kinds of the Prometheus Operator, which the tool has no schemas for.
const OPERATOR: [&str; 3] = ["PodMonitor", "ServiceMonitor", "PrometheusRule"];

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("expected an array: {value}"))
}

fn helm_lints_every_case() {
    for values in tools::values_of_cases() {
        let arguments =
            ["lint", "--strict", chart().to_str().unwrap(), "--values", values.to_str().unwrap()]
                .map(ToOwned::to_owned);
        let arguments = arguments.each_ref().map(String::as_str);
        let said = run("helm", &arguments);
        let said = said.unwrap_or_else(|error| panic!("{}: {error}", values.display()));
        assert!(!said.contains("[WARNING]"), "{}: {said}", values.display());
    }
}

fn kubernetes_schemas_accept_every_manifest() {
    let cases = cases();
    let plain = kustomize::manifests();
    let plain = Case { name: "kustomize".to_owned(), objects: plain };
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for case in cases.iter().chain([&plain]) {
        for (number, object) in case.objects.iter().enumerate() {
            let kind = object["kind"].as_str().unwrap();
            if OPERATOR.contains(&kind) {
                continue;
            }
            let path = directory.path().join(format!("{}-{number}-{kind}.json", case.name));
            std::fs::write(&path, object.to_string()).unwrap();
            files.push(path.to_str().unwrap().to_owned());
        }
    }
    let expected = files.len();
    assert!(expected > 40);
    for version in KUBERNETES {
        let mut arguments = vec!["--strict", "--kubernetes-version", version];
        arguments.extend(files.iter().map(String::as_str));
        let said = run("kubernetes-validate", &arguments);
        let said = said.unwrap_or_else(|error| panic!("{version}: {error}"));
        // A kind without a schema would only cause a warning.
        assert_eq!(said.matches(" passed for ").count(), expected, "{version}: {said}");
    }
}

/// The test plays the kubelet: the relay itself checks the files and variables that its container would have.
fn relay_accepts_every_configuration() {
    let cases = cases();
    let existing = Existing::new();
    for case in &cases {
        for (pod, container) in [(case.relay(), "relay"), (case.doctor(), "doctor")] {
            let root = tempfile::tempdir().unwrap();
            let sources = container::sources(case, pod, container, &existing, root.path());
            let loaded = config::load(&sources)
                .unwrap_or_else(|invalid| panic!("{}: {:#?}", case.name, invalid.0.problems));
            assert_eq!(exposed::find(&sources, &loaded.report), [], "{}", case.name);
            // Some cases do without TLS inside the cluster.
            let mut warnings = loaded.report.warnings;
            warnings.retain(|warning| !warning.contains("without TLS"));
            assert_eq!(warnings, [""; 0], "{}", case.name);
            let config = loaded.config;
            let grace = case.relay()["terminationGracePeriodSeconds"].as_u64().unwrap();
            assert_eq!(config.drain_timeout.as_secs() + 10, grace, "{}", case.name);
            assert!(config.admin_token.is_some(), "{}", case.name);
            let monitors = ["PodMonitor", "ServiceMonitor"];
            if monitors.iter().any(|kind| case.all(kind).next().is_some()) {
                assert!(config.metrics_token.is_some() || config.metrics_tls().is_some());
                assert!(config.startup.metrics_listen.is_some(), "{}", case.name);
            }
            check_ports(case, &config);
            let mut warnings = Vec::new();
            let traces = TraceSettings::from_environment(&sources.environment, &mut warnings);
            // The user would mount the certificate of the collector, which does not exist here.
            warnings.retain(|warning| !warning.contains("/etc/collector/ca.crt"));
            assert_eq!(warnings, [""; 0], "{}", case.name);
            let env = array(&case.relay()["containers"][0]["env"]);
            let has_endpoint = env.iter().any(|v| v["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT");
            assert!(traces.is_some() == has_endpoint || case.name == "tracing", "{}", case.name);
        }
    }
}

/// The declared container ports, and on the host network the host ports, are those that the relay listens on.
fn check_ports(case: &Case, config: &config::Config) {
    let startup = &config.startup;
    let mut listens = vec![("peer", startup.listen_port)];
    listens.extend(startup.admin_listen.map(|listen| ("admin", listen.port)));
    listens.extend(startup.metrics_listen.map(|listen| ("metrics", listen.port)));
    let declared = array(&case.relay()["containers"][0]["ports"]);
    assert_eq!(declared.len(), listens.len(), "{}", case.name);
    let host_network = case.relay()["hostNetwork"] == true;
    for (name, number) in listens {
        let port = declared.iter().find(|port| port["name"] == name).unwrap();
        assert_eq!(port["containerPort"], number, "{}", case.name);
        let host_port = if host_network { json!(number) } else { Value::Null };
        assert_eq!(port["hostPort"], host_port, "{}", case.name);
    }
    assert_eq!(startup.admin_listen.unwrap().is_loopback(), host_network, "{}", case.name);
}

fn environment_variables_name_existing_settings() {
    let cases = cases();
    let mut known = BTreeSet::new();
    for setting in settings::SETTINGS {
        let name = setting.key.variable();
        known.insert(format!("{name}_FILE"));
        if !setting.is_secret {
            known.insert(name);
        }
    }
    for case in &cases {
        for variable in array(&case.relay()["containers"][0]["env"]) {
            let name = variable["name"].as_str().unwrap();
            assert!(!name.starts_with("ASPIA_RELAY_") || known.contains(name), "{name}");
        }
    }
}

fn pods_meet_the_restricted_profile() {
    let cases = cases();
    for case in &cases {
        for pod in [case.relay(), case.doctor()] {
            let name = &case.name;
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{name}");
            assert_eq!(security["runAsUser"], 65532, "{name}");
            assert_eq!(security["fsGroup"], 65532, "{name}");
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            assert_eq!(pod["enableServiceLinks"], false, "{name}");
            for namespace in ["hostPID", "hostIPC"] {
                assert!(pod[namespace].is_null(), "{name}");
            }
            let init = pod["initContainers"].as_array().into_iter().flatten();
            for container in init.chain(array(&pod["containers"])) {
                assert_eq!(
                    container["securityContext"],
                    json!({
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"] },
                    }),
                    "{name}"
                );
                // There is no shell in the image.
                assert!(container["command"].is_null(), "{name}");
            }
            for volume in array(&pod["volumes"]) {
                assert!(volume["hostPath"].is_null(), "{name}");
            }
        }
    }
}

fn probes_reach_the_admin_interface() {
    let cases = cases();
    for case in &cases {
        let pod = case.relay();
        let everything = case.name == "everything";
        let grace = if everything { json!(20) } else { json!(5) };
        let host_network = pod["hostNetwork"] == true;
        let dns = if host_network { json!("ClusterFirstWithHostNet") } else { Value::Null };
        for pod in [pod, case.doctor()] {
            assert_eq!(pod["dnsPolicy"], dns, "{}", case.name);
            let options = &pod["dnsConfig"]["options"];
            assert_eq!(options, &json!([{ "name": "ndots", "value": "2" }]), "{}", case.name);
        }
        assert_eq!(case.doctor()["hostNetwork"], pod["hostNetwork"], "{}", case.name);
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let probe = &pod["containers"][0][probe];
            // A hung relay cannot drain, so the grace period is short. A readiness probe restarts nothing and may not have one.
            let grace = if path == "/livez" { grace.clone() } else { Value::Null };
            assert_eq!(probe["terminationGracePeriodSeconds"], grace, "{}", case.name);
            let get = &probe["httpGet"];
            assert_eq!((&get["path"], &get["port"]), (&json!(path), &json!("admin")));
            // Elsewhere 127.0.0.1 would be the node's own loopback, and Pod Security forbids a host in a probe.
            let host = if host_network { json!("127.0.0.1") } else { Value::Null };
            assert_eq!(get["host"], host, "{}", case.name);
            assert!(get["scheme"].is_null(), "{}", case.name);
        }
    }
}

fn relays_never_share_a_host_port() {
    let cases = cases();
    for case in &cases {
        let workload = case.workload();
        if workload["kind"] == "DaemonSet" {
            let expected = if case.name == "everything" {
                json!({ "type": "OnDelete" })
            } else {
                json!({
                    "type": "RollingUpdate",
                    "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 },
                })
            };
            assert_eq!(workload["spec"]["updateStrategy"], expected, "{}", case.name);
            assert_eq!(case.relay()["hostNetwork"], true, "{}", case.name);
        } else {
            // The pod of a StatefulSet has a fixed name, so the next one starts only when it is gone.
            assert_eq!(workload["kind"], "StatefulSet", "{}", case.name);
            assert_eq!(workload["spec"]["replicas"], 1, "{}", case.name);
            let name = workload["metadata"]["name"].as_str().unwrap();
            assert_eq!(workload["spec"]["serviceName"], name, "{}", case.name);
            // With the suffix of a revision, the name must fit into a label.
            assert!(name.len() <= 52, "{name}");
            // Otherwise a rollout of corrected settings would wait until the pod with the wrong settings is ready.
            assert_eq!(workload["spec"]["podManagementPolicy"], "Parallel", "{}", case.name);
            assert_eq!(workload["spec"]["updateStrategy"], json!({ "type": "RollingUpdate" }));
        }
        // The test pod must fit on a node on which a relay holds the ports.
        assert!(case.doctor()["containers"][0]["ports"].is_null(), "{}", case.name);
    }
}

/// A rollout waits for `minReadySeconds` after a relay became ready, which must be enough for another readiness probe.
fn rollout_waits_until_a_relay_stays_ready() {
    let cases = cases();
    for case in &cases {
        let expected = if case.name == "everything" { 30 } else { 10 };
        let spec = &case.workload()["spec"];
        assert_eq!(spec["minReadySeconds"], expected, "{}", case.name);
        let period = &case.relay()["containers"][0]["readinessProbe"]["periodSeconds"];
        assert!(period.as_u64().unwrap() <= expected, "{}", case.name);
    }
}

/// Everyone who may read pods can read their status, so it must not contain parts of the log.
fn pod_status_does_not_show_the_log() {
    let cases = cases();
    for case in &cases {
        for pod in [case.relay(), case.doctor()] {
            let init = pod["initContainers"].as_array().into_iter().flatten();
            for container in init.chain(array(&pod["containers"])) {
                assert_eq!(container["terminationMessagePolicy"], "File", "{}", case.name);
                let variables = container::variables(container);
                let path = variables.iter().find(|(name, _)| name == "TERMINATION_MESSAGE_PATH");
                assert_eq!(container["terminationMessagePath"], path.unwrap().1, "{}", case.name);
            }
        }
    }
}

/// A test pod that cannot be scheduled prints nothing, and its deadline never starts.
fn test_pod_fits_on_the_node_of_a_relay() {
    let cases = cases();
    for case in &cases {
        let (relay, test) = (case.relay(), case.doctor());
        assert!(test["priorityClassName"].is_null(), "{}", case.name);
        let tolerations = array(&test["tolerations"]);
        let cordoned = json!({
            "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule",
        });
        assert!(tolerations.contains(&cordoned), "{}", case.name);
        for of_relay in relay["tolerations"].as_array().into_iter().flatten() {
            assert!(tolerations.contains(of_relay), "{}: {of_relay}", case.name);
        }
        let init = test["initContainers"].as_array().into_iter().flatten();
        for container in init.chain(array(&test["containers"])) {
            let resources = &container["resources"];
            let little = json!({ "cpu": "10m", "memory": "32Mi" });
            assert_eq!(resources["requests"], little, "{}", case.name);
            // The doctor compares the settings with this limit.
            let of_relay = &relay["containers"][0]["resources"]["limits"]["memory"];
            assert_eq!(&resources["limits"]["memory"], of_relay, "{}", case.name);
        }
    }
    let everything = case("everything");
    assert_eq!(everything.relay()["priorityClassName"], "public");
    assert_eq!(everything.relay()["containers"][0]["resources"]["requests"]["memory"], "512Mi");
}

/// If the test runs on a node without a relay, perhaps nobody ever gives that node an address.
fn test_pod_does_not_exhaust_its_deadline_waiting_for_an_address() {
    let cases = cases();
    let arguments = |pod: &Value| {
        let args = array(&pod["initContainers"][0]["args"]).clone();
        let args = args.into_iter().map(|argument| argument.as_str().unwrap().to_owned());
        Arguments::try_parse_from(std::iter::once("aspia_relay".to_owned()).chain(args)).unwrap()
    };
    let mut waiting = 0;
    for case in cases.iter().filter(|case| case.relay()["initContainers"].is_array()) {
        assert_eq!(arguments(case.relay()).wait_at_most, None, "{}", case.name);
        let wait = arguments(case.doctor()).wait_at_most.unwrap().as_secs();
        // The last request may take 20 s more; the remaining time is for the doctor.
        let deadline = case.doctor()["activeDeadlineSeconds"].as_u64().unwrap();
        assert!(wait + 20 + 240 <= deadline, "{}: {wait} {deadline}", case.name);
        waiting += 1;
    }
    assert!(waiting > 3);
}

/// If peers dial an address of the node, the test must run on a node with a relay.
fn test_pod_runs_beside_a_relay_or_reports_that_there_is_none() {
    let mut cases = cases();
    let values = chart().join("ci/pod-network-node-port-values.yaml");
    let values = ["--values", values.to_str().unwrap()];
    for (name, from) in [
        ("host", &["--set", "peerAddress.from=hostIP,rbac.create=false"][..]),
        ("value", &["--set", "peerAddress.from=value,peerAddress.value=a.b,rbac.create=false"]),
    ] {
        let rendered = template(&[&values, from].concat()).unwrap();
        cases.push(Case { name: name.to_owned(), objects: documents(&rendered) });
    }
    for case in &cases {
        let name = case.name.as_str();
        let pod = case.doctor();
        assert!(
            pod["activeDeadlineSeconds"].as_u64().unwrap() < 300,
            "Helm waits for 5 min: {name}"
        );
        let host_network = pod["hostNetwork"] == true;
        let terms = &pod["affinity"]["podAffinity"];
        let terms = &terms["requiredDuringSchedulingIgnoredDuringExecution"];
        if !host_network && ["pod-network-load-balancer", "value"].contains(&name) {
            assert!(terms.is_null(), "{name}");
            continue;
        }
        let [term] = &array(terms)[..] else { panic!("{name}: {terms}") };
        assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
        // All relays have these labels, and so has the test pod: if there is no relay, its own labels satisfy the rule.
        let labels = term["labelSelector"]["matchLabels"].as_object().unwrap();
        let of_relays = &case.workload()["spec"]["template"]["metadata"]["labels"];
        let of_test = &case.only("Pod")["metadata"]["labels"];
        for (key, value) in labels {
            assert_eq!((&of_relays[key], &of_test[key]), (value, value), "{name}");
        }
        assert!(labels.contains_key("app.kubernetes.io/instance"), "{name}: {labels:?}");
        // The program accepts the arguments. In the pod network, the doctor does not see the relay of its node.
        let arguments = array(&pod["containers"][0]["args"]);
        let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
        let arguments = Arguments::try_parse_from(std::iter::once("aspia_relay").chain(arguments));
        let arguments = arguments.unwrap();
        assert_eq!((arguments.doctor, arguments.running), (true, host_network), "{name}");
    }
}

/// Helm shows the output of a test and then deletes its pod. A pod that failed is kept for inspection.
fn successful_test_pod_is_deleted() {
    let cases = cases();
    for case in &cases {
        let annotations = &case.only("Pod")["metadata"]["annotations"];
        let policies = |name: &str| {
            let policies = annotations[name].as_str().unwrap().split(',');
            policies.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(policies("helm.sh/hook"), ["test"]);
        let deleted = policies("helm.sh/hook-delete-policy");
        assert_eq!(deleted, ["before-hook-creation", "hook-succeeded"], "{}", case.name);
        let shown = policies("helm.sh/hook-output-log-policy");
        assert_eq!(shown, ["hook-succeeded", "hook-failed"], "{}", case.name);
    }
}

fn secrets_are_only_in_secrets() {
    let cases = cases();
    for case in &cases {
        for object in &case.objects {
            if object["kind"] == "Secret" {
                continue;
            }
            let text = object.to_string();
            for token in ["5b0dd0c6f3a9e2c4", "0123456789abcdef"] {
                assert!(!text.contains(token), "{}: {}", case.name, object["kind"]);
            }
        }
        for map in case.all("ConfigMap") {
            let Some(relay_json) = map["data"]["relay.json"].as_str() else { continue };
            let relay_json: Value = serde_json::from_str(relay_json).unwrap();
            for setting in settings::SETTINGS.iter().filter(|setting| setting.is_secret) {
                let value = &relay_json[setting.key.name()];
                let is_path = value.as_str().is_some_and(|value| value.starts_with("/run/"));
                assert!(value.is_null() || is_path, "{}: {}", case.name, setting.key);
            }
        }
    }
    let own = case("secrets-in-values");
    let secret = &own.only("Secret")["stringData"];
    assert_eq!(
        secret,
        &json!({ "admin-token": "5b0dd0c6f3a9e2c4", "metrics-token": "0123456789abcdef" })
    );
}

/// Permission to read Nodes is granted only on request, and only the container that uses it gets the token.
fn only_the_init_container_has_credentials() {
    let cases = cases();
    for case in &cases {
        let asks = ["node-annotation", "node-label", "external-ip", "node-port", "everything"]
            .iter()
            .any(|name| case.name.ends_with(name));
        for account in case.all("ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false, "{}", case.name);
        }
        for pod in [case.relay(), case.doctor()] {
            assert_eq!(pod["initContainers"].is_array(), asks, "{}", case.name);
            assert_eq!(pod.to_string().contains("serviceAccountToken"), asks, "{}", case.name);
            let mounts = array(&pod["containers"][0]["volumeMounts"]);
            for mount in mounts {
                assert_ne!(mount["name"], "service-account-token", "{}", case.name);
                assert_eq!(mount["readOnly"], true, "{}", case.name);
            }
        }
        let role = case.all("ClusterRole").next();
        assert_eq!(role.is_some(), asks && !case.name.ends_with("node-label"), "{}", case.name);
        if let Some(role) = role {
            assert_eq!(
                role["rules"],
                json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }])
            );
            let subject = &case.only("ClusterRoleBinding")["subjects"][0];
            assert_eq!(subject["name"], case.relay()["serviceAccountName"]);
            assert_eq!(subject["namespace"], "relays");
        }
    }
}

fn peer_address_comes_from_the_configured_source() {
    let address = |name: &str| {
        let case = case(name);
        let root = tempfile::tempdir().unwrap();
        let sources =
            container::sources(&case, case.relay(), "relay", &Existing::new(), root.path());
        let config = config::load(&sources).unwrap().config;
        let init = &case.relay()["initContainers"][0]["args"];
        (config.router.peer_address.as_str().to_owned(), init.clone())
    };
    let args =
        |from: &str| json!(["--node-address", from, "--output", "/run/aspia-relay/peer-address"]);
    for (name, expected, init) in [
        ("daemonset-host-ip", "203.0.113.7", Value::Null),
        ("daemonset-template", "node-1.example.com.relay.example.com", Value::Null),
        ("stateful-set-value", "relay.example.com", Value::Null),
        ("daemonset-node-annotation", "198.51.100.7", args("annotation=example.com/relay-address")),
        ("daemonset-node-label", "198.51.100.7", args("label=example.com/relay-address")),
        ("daemonset-external-ip", "198.51.100.7", args("external-ip")),
    ] {
        let found = address(name);
        assert_eq!(found, (expected.to_owned(), init.clone()), "{name}");
        // And the program takes them.
        let arguments = init.as_array().into_iter().flatten();
        let arguments = arguments.map(|argument| argument.as_str().unwrap());
        let arguments = Arguments::try_parse_from(std::iter::once("aspia_relay").chain(arguments));
        assert_eq!(arguments.unwrap().node_address.is_some(), init.is_array(), "{name}");
    }
}

fn service_preserves_peer_addresses() {
    let case = case("pod-network-load-balancer");
    let service = &case.only("Service")["spec"];
    assert_eq!(service["externalTrafficPolicy"], "Local");
    assert_eq!(service["publishNotReadyAddresses"], true);
    // The Service selects only the pod of the StatefulSet, by a label that the controller sets.
    let mut selector = service["selector"].as_object().unwrap().clone();
    let name = case.workload()["metadata"]["name"].as_str().unwrap();
    assert_eq!(
        selector.remove("statefulset.kubernetes.io/pod-name"),
        Some(json!(format!("{name}-0")))
    );
    assert_eq!(case.workload()["spec"].get("ordinals"), None, "the first pod is 0");
    let labels = &case.workload()["spec"]["template"]["metadata"]["labels"];
    for (key, value) in &selector {
        assert_eq!(&labels[key], value);
    }
    // The test pod is not a relay, so the selector must not match it.
    let of_test = case.only("Pod")["metadata"]["labels"].as_object().unwrap();
    assert!(service["selector"].as_object().unwrap().iter().any(|(k, v)| of_test[k] != *v));
    assert_eq!(case.relay()["nodeSelector"], Value::Null);
    let policy = &case.only("NetworkPolicy")["spec"];
    assert_eq!(policy["ingress"][0], json!({ "ports": [{ "port": "peer" }] }));
    let out: Vec<_> = array(&policy["egress"])
        .iter()
        .flat_map(|rule| array(&rule["ports"]))
        .map(|port| port["port"].clone())
        .collect();
    assert_eq!(out, [53, 53, 8060, 4318]);

    let case = tools::case("pod-network-node-port");
    let name = case.workload()["metadata"]["name"].as_str().unwrap();
    let selector = &case.only("Service")["spec"]["selector"];
    assert_eq!(selector["statefulset.kubernetes.io/pod-name"], format!("{name}-0"));
    let port = &case.only("Service")["spec"]["ports"][0];
    assert_eq!((&port["nodePort"], &port["targetPort"]), (&json!(30070), &json!("peer")));
}

fn monitors_select_the_relays() {
    let case = case("monitoring-pod-monitor-tls");
    let spec = &case.only("PodMonitor")["spec"];
    let labels = &case.workload()["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    let endpoint = &spec["podMetricsEndpoints"][0];
    check_endpoint(endpoint);
    assert_eq!(endpoint["scheme"], "https");
    assert_eq!(
        endpoint["tlsConfig"],
        json!({
            "serverName": "relay.example.com",
            "ca": { "secret": { "name": "relay-metrics-tls", "key": "ca.crt" } },
            "cert": { "secret": { "name": "prometheus-client", "key": "tls.crt" } },
            "keySecret": { "name": "prometheus-client", "key": "tls.key" },
        })
    );

    let case = tools::case("monitoring-service-monitor");
    let spec = &case.only("ServiceMonitor")["spec"];
    let service = case.only("Service");
    for (key, value) in spec["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][key], value);
    }
    // Metrics matter most when a relay has lost its Router and is not ready.
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["ports"][0]["name"], "metrics");
    let endpoint = &spec["endpoints"][0];
    check_endpoint(endpoint);
    assert_eq!(endpoint["scheme"], "http");
    assert_eq!(
        endpoint["authorization"],
        json!({ "credentials": { "name": "relay-metrics", "key": "scrape" } })
    );
}

/// A relay goes on with the counters of its predecessor: they are one series, whatever the name of the pod.
fn series_go_on_where_counters_do() {
    let drops_pod = |name: &str, set: &str| {
        let values = chart().join(format!("ci/{name}-values.yaml"));
        let rendered = template(&["--values", values.to_str().unwrap(), "--set", set]).unwrap();
        let case = Case { name: name.to_owned(), objects: documents(&rendered) };
        let mut endpoints = ["PodMonitor", "ServiceMonitor"].iter().flat_map(|kind| case.all(kind));
        let spec = &endpoints.next().unwrap()["spec"];
        let endpoint = spec.get("podMetricsEndpoints").unwrap_or(&spec["endpoints"])[0].clone();
        let dropped = json!({ "action": "labeldrop", "regex": "pod" });
        array(&endpoint["relabelings"]).contains(&dropped)
    };
    for name in ["monitoring-pod-monitor-tls", "monitoring-service-monitor"] {
        assert!(drops_pod(name, "fdStore.enabled=true"), "{name}");
        assert!(!drops_pod(name, "fdStore.enabled=false"), "{name}");
    }
}

fn check_endpoint(endpoint: &Value) {
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&json!("metrics"), &json!("/metrics")));
    // The rules select jobs by this prefix.
    let job = array(&endpoint["relabelings"]).iter().find(|rule| rule["targetLabel"] == "job");
    assert_eq!(job.unwrap()["replacement"], "aspia-relay");
}

/// The entries of `files/` are links to `deploy/`, so the chart renders and packages those files.
fn chart_has_the_rules_and_dashboard_of_deploy() {
    let deploy = |path: &str| {
        let path = chart().join("../../deploy").join(path);
        std::fs::read_to_string(path).unwrap()
    };
    let case = case("monitoring-pod-monitor-tls");
    let rules: Value = serde_saphyr::from_str(&deploy("prometheus/rules.yaml")).unwrap();
    assert_eq!(case.only("PrometheusRule")["spec"], rules);
    let dashboard = case.all("ConfigMap").find(|map| map["data"]["aspia-relay.json"].is_string());
    let dashboard = dashboard.unwrap();
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(dashboard["data"]["aspia-relay.json"], deploy("grafana/aspia-relay.json"));
}

fn package_renders_like_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let destination = directory.path().to_str().unwrap();
    let folder = chart();
    let arguments = ["package", folder.to_str().unwrap(), "--destination", destination];
    let packaged = run("helm", &arguments);
    packaged.unwrap();
    let package = directory.path().join(concat!("aspia-relay-", env!("CARGO_PKG_VERSION"), ".tgz"));
    let values = folder.join("ci/everything-values.yaml");
    let values = ["--values", values.to_str().unwrap()];
    let of_package = template_of(package.to_str().unwrap(), &values).unwrap();
    assert_eq!(documents(&of_package), documents(&template(&values).unwrap()));
}

fn chart_version_equals_the_program_version() {
    let chart = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&chart).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// The notes of a case with some values changed. Only `helm install` renders them; a dry run needs no cluster.
fn notes(name: &str, set: &[&str]) -> String {
    let chart = chart();
    let values = chart.join(format!("ci/{name}-values.yaml"));
    let mut arguments = vec![
        "install",
        "aspia-relay",
        chart.to_str().unwrap(),
        "--namespace=relays",
        "--dry-run=client",
        "--values",
        values.to_str().unwrap(),
    ];
    arguments.extend(set.iter().flat_map(|value| ["--set", value]));
    let said = run("helm", &arguments).unwrap_or_else(|said| panic!("{name} {set:?}: {said}"));
    said.split_once("\nNOTES:\n").unwrap().1.to_owned()
}

fn notes_give_the_next_steps() {
    let host = notes("daemonset-template", &[]);
    for word in [
        "kubectl label namespace relays pod-security.kubernetes.io/enforce=privileged",
        "kubectl label node NODE aspia-relay/public-node=true",
        "allow TCP port 8070 from everywhere, and forward port 443, which peers dial, to it",
        "aspia_relay --healthcheck",
        "aspia_relay --probe ADDRESS:443    # from outside the cluster",
        "helm test -n relays aspia-relay",
        "kubectl rollout status -n relays daemonset/aspia-relay",
        "kubectl get daemonset -n relays aspia-relay    # look at DESIRED first",
        "Do not upgrade while the Router is unreachable",
        "so that the relays drain, before you take the admin token from another Secret or key,",
        "kubectl delete daemonset -n relays aspia-relay-fd-store --cascade=foreground",
    ] {
        assert!(host.contains(word), "no {word:?} in {host}");
    }
    assert!(!host.contains("WARNING"), "{host}");
    let warned = notes("secrets-in-values", &[]);
    for word in ["adminToken.value", "metricsToken.value", "existingSecret", "private"] {
        assert!(warned.contains(word), "no {word:?} in {warned}");
    }
    assert!(!warned.contains("0123456789abcdef"), "{warned}");
    let pod_network = notes("pod-network-load-balancer", &[]);
    assert!(pod_network.contains("kubectl get service -n relays aspia-relay"), "{pod_network}");
    assert!(!pod_network.contains("pod-security"), "{pod_network}");
    assert!(!pod_network.contains("while the Router is unreachable"), "{pod_network}");
    let on_delete = notes("daemonset-template", &["updateStrategy.type=OnDelete"]);
    assert!(on_delete.contains("kubectl delete pod -n relays POD"), "{on_delete}");
    for wrong in ["rollout status", "while the Router is unreachable"] {
        assert!(!on_delete.contains(wrong), "{wrong:?} in {on_delete}");
    }
    // This comes before a command that succeeds even without a single relay.
    let at = |word: &str| host.find(word).unwrap_or_else(|| panic!("no {word:?} in {host}"));
    assert!(at("DESIRED first") < at("rollout status"), "{host}");
    let one = notes("stateful-set-value", &[]);
    assert!(one.contains("rollout status -n relays statefulset/aspia-relay"), "{one}");
    for wrong in ["DESIRED", "fd-store"] {
        assert!(!one.contains(wrong), "{wrong:?} in {one}");
    }
    let one = notes("stateful-set-value", &["updateStrategy.type=OnDelete"]);
    assert!(one.contains("kubectl delete pod -n relays POD"), "{one}");
    let waits = notes("daemonset-node-annotation", &[]);
    for word in ["kubectl logs -n relays POD -c node-address", "aspia-relay-doctor"] {
        assert!(waits.contains(word), "no {word:?} in {waits}");
    }
}

/// Values that work until the load is high, or until alert rules expect other values.
fn notes_warn_of_unsuitable_values() {
    let memory = "resources.limits.memory is";
    let interval = "Monitor.interval is 1m";
    for (set, warned) in [
        // 32 MiB + 160 KiB × 100 + 24 KiB × 1024 are 71.6 MiB, 75104256 bytes.
        (&["resources.limits.memory=72Mi"][..], None),
        (&["resources.limits.memory=71Mi"], Some(memory)),
        (&["resources.limits.memory=75104255"], Some(memory)),
        (&["resources.limits.memory=75104256"], None),
        (&["resources.limits.memory=0.06Gi"], Some(memory)),
        (&["resources.limits.memory=76M"], None),
        (&["resources.limits.memory=75M"], Some(memory)),
        (&["resources.limits.memory=null"], None),
        (&["config.MaxPeerCount=10000"], Some("256Mi, but the program may take 1619 MiB")),
        (&["config.MaxPeerCount=10000", "resources.limits.memory=8Gi"], None),
        (&["config.MaxPendingPeers=100000"], Some(memory)),
        (
            &["serviceMonitor.enabled=false", "podMonitor.enabled=true", "podMonitor.interval=1m"],
            Some(interval),
        ),
        (&["serviceMonitor.interval=1m"], Some(interval)),
        (&["serviceMonitor.interval=30s"], None),
    ] {
        let said = notes("monitoring-service-monitor", set);
        match warned {
            Some(words) => assert!(said.contains(words), "{set:?}: no {words:?} in {said}"),
            None => assert!(!said.contains(memory) && !said.contains(interval), "{set:?}: {said}"),
        }
    }
}
