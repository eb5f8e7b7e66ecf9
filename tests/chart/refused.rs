//! Values that the chart refuses, and what it says.

use aspia_relay::config::parse;
use aspia_relay::config::settings::SETTINGS;
use aspia_relay::doctor::site;
use serde_json::Value;

use crate::tools::{Case, chart, documents, template};

/// Values that are good, as far as these lines do not change them.
const GOOD: &[&str] = &[
    "router.address=router.example.com",
    "router.publicKey.existingSecret.name=router",
    "peerAddress.from=hostIP",
    "adminToken.existingSecret.name=admin",
];

/// Renders with the good values and others; `None` where Helm is missing.
fn refusal(values: &[&str]) -> Option<Result<String, String>> {
    let arguments = GOOD.iter().chain(values).flat_map(|value| ["--set-json", value]);
    // A text that is no JSON is meant as a string.
    let arguments: Vec<String> = arguments
        .map(|argument| match argument.split_once('=') {
            Some((key, value)) if serde_json::from_str::<Value>(value).is_err() => {
                format!("{key}={}", Value::from(value))
            }
            _ => argument.to_owned(),
        })
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    template(&arguments)
}

/// What is set, and words of the complaint.
const REFUSED: &[(&[&str], &[&str])] = &[
    // Missing
    (&["peerAddress.from="], &["/peerAddress/from", "hostIP", "nodeExternalIP"]),
    (&["router.address="], &["router.address is empty", "the Router"]),
    (&["router.publicKey.existingSecret.name="], &["router.publicKey is not given", "router.pub"]),
    (&["adminToken.existingSecret.name="], &["adminToken is not given", "existingSecret"]),
    (&["peerAddress.from=template"], &["peerAddress.template is empty"]),
    (&["peerAddress.from=nodeLabel", "rbac.create=true"], &["peerAddress.key is empty"]),
    // `null` removes a default
    (&["adminToken=null"], &["missing property 'adminToken'"]),
    (&["metrics.tls=null"], &["/metrics", "missing property 'tls'"]),
    // Unknown, or of the wrong type
    (&["replicas=2"], &["additional properties 'replicas' not allowed"]),
    (&["router.host=a"], &["/router", "'host' not allowed"]),
    (&["config.MaxPeers=5"], &["/config", "'MaxPeers' not allowed"]),
    (&["config.MaxPeerCount=\"100\""], &["/config/MaxPeerCount", "want integer"]),
    (&["config.MaxPeerCount=0"], &["/config/MaxPeerCount", "minimum"]),
    (&["config.RouterProtocol=\"4\""], &["/config/RouterProtocol"]),
    (&["peer.port=70000"], &["/peer/port", "maximum"]),
    (&["peerAddress.from=nodeIP"], &["/peerAddress/from", "must be one of"]),
    (&["kind=ReplicaSet"], &["/kind", "'DaemonSet'"]),
    (&["minReadySeconds=-1"], &["/minReadySeconds", "minimum"]),
    (&["minReadySeconds=10s"], &["/minReadySeconds", "want integer"]),
    // Kubernetes refuses it.
    (
        &["probes.terminationGracePeriodSeconds=0"],
        &["/probes/terminationGracePeriodSeconds", "minimum"],
    ),
    (&["probes=null"], &["missing property 'probes'"]),
    (&["dnsConfig.ndots=1"], &["/dnsConfig", "'ndots' not allowed"]),
    (
        &["dnsConfig.options=[{\"name\": \"ndots\", \"value\": 1}]"],
        &["/dnsConfig/options/0/value", "want string"],
    ),
    // An earlier version had it: what to take instead.
    (&["kind=Deployment"], &["take kind StatefulSet", "An upgrade replaces a Deployment"]),
    (&["drainTimeoutSeconds=25s"], &["/drainTimeoutSeconds", "want integer"]),
    (&["service.type=ClusterIP"], &["/service/type", "'NodePort'"]),
    (&["updateStrategy=Recreate"], &["/updateStrategy", "'OnDelete'"]),
    (&["adminToken.existingSecret.key="], &["/adminToken/existingSecret/key", "minLength"]),
    (&["router.publicKey.existingSecret.key="], &["/router/publicKey/existingSecret/key"]),
    (&["router.publicKey.existingConfigMap.key="], &["/router/publicKey/existingConfigMap/key"]),
    (&["metricsToken.existingSecret.key="], &["/metricsToken/existingSecret/key", "minLength"]),
    (&["metrics.tls.clientCa.key="], &["/metrics/tls/clientCa/key", "minLength"]),
    (&["metrics.tls.ca.key="], &["/metrics/tls/ca/key", "minLength"]),
    (&["adminToken.existingSecret.key=a: b"], &["/adminToken/existingSecret/key", "pattern"]),
    (&["nodeSelector={\"a\": true}"], &["/nodeSelector/a", "want string"]),
    // Of the wrong form
    (&["router.address=10.0.0.1:8060"], &["router.address is \"10.0.0.1:8060\"", "without a port"]),
    (&["router.address=[::1]"], &["router.address is", "without brackets"]),
    (
        &["router.publicKey.existingSecret.name=", "router.publicKey.value=abc"],
        &["router.publicKey.value is \"abc\"", "64 hex digits"],
    ),
    (
        &["peerAddress.from=template", "peerAddress.template=relay.example.com"],
        &["peerAddress.template is", "{{node}}"],
    ),
    (&["config.MaxSessionDuration=5"], &["/config/MaxSessionDuration", "want string"]),
    (&["config.MaxSessionDuration=\"5\""], &["config.MaxSessionDuration", "with a unit"]),
    (&["config.ListenInterface=nonsense"], &["config.ListenInterface is", "an IP address"]),
    (&["config.ListenInterface=10.0.0.256"], &["config.ListenInterface is", "an IP address"]),
    (&["config.ListenInterface=10.0.0.1:8070"], &["config.ListenInterface", "without a port"]),
    (&["config.ListenInterface=[::1]"], &["config.ListenInterface is", "without brackets"]),
    (
        &["podMonitor.interval=0s"],
        &["podMonitor.interval is \"0s\"", "seconds or minutes, such as 15s"],
    ),
    (&["serviceMonitor.interval=15"], &["/serviceMonitor/interval", "want string"]),
    (&["serviceMonitor.interval=\"15\""], &["serviceMonitor.interval is \"15\""]),
    (
        &["hostNetwork=false", "kind=StatefulSet", "service.nodePortRange=all"],
        &["service.nodePortRange is \"all\"", "30000-32767"],
    ),
    (&["image.digest=sha256:abc"], &["image.digest is", "64 hex digits"]),
    (&["tracing.endpoint=collector:4317"], &["tracing.endpoint is", "a URL with a port"]),
    (
        &["adminToken.existingSecret.name=", "adminToken.value=short"],
        &["adminToken.value is not shown", "16", "openssl"],
    ),
    // What does not go together
    (
        &["router.publicKey.existingConfigMap.name=a"],
        &["router.publicKey.existingConfigMap.name and router.publicKey.existingSecret.name"],
    ),
    (&["peerAddress.template={{node}}"], &["peerAddress.template", "no effect"]),
    (
        &["peerAddress.from=value", "peerAddress.value=relay.example.com"],
        &["DaemonSet one address", "kind StatefulSet"],
    ),
    (&["peerAddress.from=nodeExternalIP"], &["rbac.create", "serviceAccount.name"]),
    (
        &["peerAddress.from=nodeExternalIP", "serviceAccount.create=false", "rbac.create=true"],
        &["service account \"default\""],
    ),
    (&["rbac.create=true"], &["a right that nobody uses"]),
    (&["hostNetwork=false"], &["hostNetwork false with kind DaemonSet"]),
    (&["hostNetwork=false", "kind=StatefulSet"], &["LoadBalancer", "peerAddress.value"]),
    (
        &["hostNetwork=false", "kind=StatefulSet", "service.type=NodePort"],
        &["peer.port is 8070", "from 30000-32767 only", "service.nodePortRange"],
    ),
    (
        &["hostNetwork=false", "kind=StatefulSet", "service.type=NodePort", "peer.port=32768"],
        &["peer.port is 32768"],
    ),
    (
        &[
            "hostNetwork=false",
            "kind=StatefulSet",
            "service.type=NodePort",
            "peer.port=30070",
            "service.nodePortRange=8000-9000",
        ],
        &["peer.port is 30070", "from 8000-9000 only"],
    ),
    (
        &[
            "hostNetwork=false",
            "kind=StatefulSet",
            "service.type=NodePort",
            "peer.port=30070",
            "service.loadBalancerClass=a",
            "service.loadBalancerSourceRanges=[\"192.0.2.0/24\"]",
        ],
        &[
            "service.loadBalancerClass has no effect with service.type NodePort",
            "service.loadBalancerSourceRanges has no effect with service.type NodePort",
        ],
    ),
    (
        &["hostNetwork=false", "kind=StatefulSet", "service.nodePortRange=1-65535"],
        &["service.nodePortRange has no effect with service.type LoadBalancer"],
    ),
    (&["service.type=NodePort"], &["service.type has no effect with hostNetwork true"]),
    (
        &[
            "service.nodePortRange=1-65535",
            "service.annotations={\"a\": \"b\"}",
            "service.loadBalancerClass=a",
            "service.loadBalancerSourceRanges=[\"192.0.2.0/24\"]",
        ],
        &[
            "service.nodePortRange has no effect with hostNetwork true",
            "service.annotations has no effect with hostNetwork true",
            "service.loadBalancerClass has no effect with hostNetwork true",
            "service.loadBalancerSourceRanges has no effect with hostNetwork true",
        ],
    ),
    (&["networkPolicy.enabled=true"], &["does not apply to the host network", "firewall"]),
    (&["admin.port=8070"], &["peer.port and admin.port are both 8070"]),
    (
        &["metrics.enabled=true", "metrics.port=9000", "peer.listenPort=9000"],
        &["peer.listenPort and metrics.port are both 9000"],
    ),
    (
        &["adminToken.value=0123456789abcdef"],
        &["adminToken.value and adminToken.existingSecret.name are both given"],
    ),
    (&["metricsToken.existingSecret.name=a"], &["metricsToken is given", "metrics.enabled"]),
    (&["metrics.tls.existingSecret=a"], &["metrics.tls.existingSecret is given"]),
    (
        &["metrics.enabled=true", "metrics.tls.clientCa.existingSecret=a"],
        &["metrics.tls.clientCa.existingSecret is given", "the certificate of the relay"],
    ),
    (&["podMonitor.enabled=true"], &["podMonitor.enabled needs metrics.enabled"]),
    (
        &["metrics.enabled=true", "serviceMonitor.enabled=true"],
        &["serviceMonitor.enabled needs metricsToken or metrics.tls.existingSecret"],
    ),
    (
        &["metrics.enabled=true", "podMonitor.enabled=true", "serviceMonitor.enabled=true"],
        &["counted twice"],
    ),
    (
        &["metrics.enabled=true", "podMonitor.enabled=true", "metrics.tls.existingSecret=a"],
        &["metrics.tls.serverName is empty"],
    ),
    (
        &[
            "metrics.enabled=true",
            "podMonitor.enabled=true",
            "metrics.tls.existingSecret=a",
            "metrics.tls.clientCa.existingSecret=b",
        ],
        &["metrics.tls.scraperSecret is empty"],
    ),
    (
        &[
            "metrics.enabled=true",
            "metricsToken.existingSecret.name=a",
            "podMonitor.enabled=true",
            "podMonitor.interval=31s",
            "prometheusRule.enabled=true",
        ],
        &["podMonitor.interval is \"31s\"", "30s at most"],
    ),
    (
        &[
            "metrics.enabled=true",
            "metricsToken.existingSecret.name=a",
            "serviceMonitor.enabled=true",
            "serviceMonitor.interval=1m",
            "prometheusRule.enabled=true",
        ],
        &["serviceMonitor.interval is \"1m\"", "30s at most"],
    ),
    // What the chart sets by itself
    (&["podAnnotations={\"checksum/config\": \"a\"}"], &["podAnnotations: checksum/config is set"]),
    (
        &["podAnnotations={\"kubectl.kubernetes.io/default-container\": \"a\"}"],
        &["podAnnotations: kubectl.kubernetes.io/default-container is set by the chart"],
    ),
    (
        &["podLabels={\"app.kubernetes.io/name\": \"a\"}"],
        &["podLabels: app.kubernetes.io/name is set by the chart"],
    ),
    (
        &[
            "podMonitor.labels={\"helm.sh/chart\": \"a\"}",
            "serviceMonitor.labels={\"app.kubernetes.io/component\": \"a\"}",
            "prometheusRule.labels={\"app.kubernetes.io/instance\": \"a\"}",
            "dashboard.labels={\"app.kubernetes.io/managed-by\": \"a\"}",
        ],
        &[
            "podMonitor.labels: helm.sh/chart is",
            "serviceMonitor.labels: app.kubernetes.io/component is",
            "prometheusRule.labels: app.kubernetes.io/instance is",
            "dashboard.labels: app.kubernetes.io/managed-by is",
        ],
    ),
    (
        &["extraVolumes=[{\"name\": \"config\"}, {\"name\": \"secrets\"}]"],
        &["extraVolumes: config is the name", "extraVolumes: secrets is the name"],
    ),
    (
        &["extraVolumes=[{\"name\": \"node-address\"}, {\"name\": \"service-account-token\"}]"],
        &["extraVolumes: node-address is the", "extraVolumes: service-account-token is the"],
    ),
    (
        &["extraVolumeMounts=[{\"name\": \"a\", \"mountPath\": \"/etc/aspia/\"}]"],
        &["extraVolumeMounts: /etc/aspia/ is where the chart mounts"],
    ),
    (
        &["extraEnv=[{\"name\": \"ASPIA_RELAY_MAX_PEER_COUNT\", \"value\": \"5\"}]"],
        &["ASPIA_RELAY_MAX_PEER_COUNT is a setting of the relay", "config"],
    ),
    (
        &["extraEnv=[{\"name\": \"OTEL_EXPORTER_OTLP_HEADERS\", \"value\": \"a=b\"}]"],
        &["OTEL_EXPORTER_OTLP_HEADERS", "secretKeyRef"],
    ),
    (
        &[
            "tracing.endpoint=http://a:4318",
            "extraEnv=[{\"name\": \"OTEL_RESOURCE_ATTRIBUTES\", \"value\": \"a=b\"}]",
        ],
        &["OTEL_RESOURCE_ATTRIBUTES is set by the chart"],
    ),
    (
        &["extraEnv=[{\"name\": \"TERMINATION_MESSAGE_PATH\", \"value\": \"/dev/null\"}]"],
        &["TERMINATION_MESSAGE_PATH is set by the chart"],
    ),
];

#[test]
fn wrong_values_are_refused_in_words() {
    let Some(good) = refusal(&[]) else { return };
    good.unwrap();
    // As a file has it where all lines below a key are comments.
    for nothing in
        ["config=null", "podLabels=null", "nodeSelector=null", "resources=null", "dnsConfig=null"]
    {
        refusal(&[nothing]).unwrap().unwrap_or_else(|said| panic!("{nothing}: {said}"));
    }
    for (values, words) in REFUSED {
        let said = refusal(values).unwrap().expect_err(&format!("{values:?} was taken"));
        for word in *words {
            assert!(said.contains(word), "{values:?}: no {word:?} in {said}");
        }
        assert!(!said.contains("nil pointer"), "{values:?}: {said}");
    }
}

/// What looks much like the refused values, and works.
#[test]
fn good_values_are_taken() {
    let scraped = ["metrics.enabled=true", "metricsToken.existingSecret.name=a"];
    let node_port = ["hostNetwork=false", "kind=StatefulSet", "service.type=NodePort"];
    for (common, values) in [
        (&scraped[..], &["podMonitor.enabled=true", "podMonitor.interval=1m"][..]),
        (
            &scraped,
            &["podMonitor.enabled=true", "podMonitor.interval=30s", "prometheusRule.enabled=true"],
        ),
        (&node_port, &["peer.port=30000"]),
        (&node_port, &["peer.port=32767", "peer.listenPort=8070"]),
        (&node_port, &["service.nodePortRange=8000-9000"]),
        (&node_port, &["peer.port=30000", "updateStrategy=OnDelete"]),
        (&[], &["minReadySeconds=0", "probes.terminationGracePeriodSeconds=1"]),
    ] {
        let values = [common, values].concat();
        let Some(said) = refusal(&values) else { return };
        said.unwrap_or_else(|said| panic!("{values:?}: {said}"));
    }
    // The form is the relay's own.
    for address in [
        "",
        "0.0.0.0",
        "192.0.2.255",
        "::",
        "::1",
        "2001:db8:0:1:2:3:4:5",
        "fe80::1",
        "::ffff:192.0.2.1",
    ] {
        assert!(address.is_empty() || parse::interface(address).is_ok(), "{address}");
        let value = format!("config.ListenInterface=\"{address}\"");
        refusal(&[&value]).unwrap().unwrap_or_else(|said| panic!("{address}: {said}"));
    }
}

/// A key that YAML would take for something else stays the text that it is.
#[test]
fn keys_and_names_are_texts() {
    for text in ["null", "true", "123"] {
        let key = format!("adminToken.existingSecret.key=\"{text}\"");
        let name = format!("adminToken.existingSecret.name=\"{text}\"");
        let Some(rendered) = refusal(&[&key, &name]) else { return };
        let case = Case { name: text.to_owned(), objects: documents(&rendered.unwrap()) };
        let volumes = case.relay()["volumes"].as_array().unwrap();
        let secrets = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
        let secret = &secrets["projected"]["sources"][0]["secret"];
        assert_eq!((&secret["name"], &secret["items"][0]["key"]), (&text.into(), &text.into()));
    }
}

/// Everything that is wrong is said at once, and a token is not shown.
#[test]
fn all_problems_are_said_at_once() {
    let values = ["router.address=", "admin.port=8070", "adminToken.value=hush"];
    let Some(said) = refusal(&values) else { return };
    let said = said.unwrap_err();
    for word in ["router.address", "admin.port", "adminToken.value"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!said.contains("hush"), "{said}");
}

/// Every setting of the relay can be set in `config`, or is refused with the value that decides it.
#[test]
fn every_setting_is_known() {
    let schema = std::fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let known = schema["properties"]["config"]["properties"].as_object().unwrap();
    let settings = SETTINGS.iter().map(|setting| setting.key);
    let settings: std::collections::BTreeSet<_> = settings.collect();
    assert_eq!(
        known.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
        settings
    );
    for key in settings {
        let form = &known[key];
        if form.get("type").is_some() || form.get("enum").is_some() {
            assert_eq!(site::value_of(key), format!("config.{key}"));
            continue;
        }
        let Some(said) = refusal(&[&format!("config.{key}=a")]) else { return };
        let said = said.expect_err(key);
        // The doctor names the same value, where it tells to change the setting.
        let expected = format!("it comes from the value {}", site::value_of(key));
        assert!(said.contains(&format!("config.{key}")) && said.contains(&expected), "{said}");
    }
}
