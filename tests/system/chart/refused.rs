//! Values that the chart refuses, and its messages.

use aspia_relay::config::networks::Networks;
use aspia_relay::config::parse;
use aspia_relay::config::settings::SETTINGS;
use aspia_relay::config::settings::SettingKey;
use aspia_relay::doctor::deployment;
use serde_json::Value;

use super::tools::{Case, chart, documents, template};

use crate::harness::tests;

tests! {
    invalid_values_are_refused_with_a_reason,
    valid_values_are_accepted,
    keys_and_names_must_be_strings,
    all_problems_are_reported_together,
    all_missing_values_are_named_at_once,
    chart_accepts_the_networks_that_the_relay_accepts,
    schema_knows_every_setting,
}

/// A complete set of valid values, which the tests change.
const GOOD: &[&str] = &[
    "router.address=router.example.com",
    "router.publicKey.existingSecret.name=router",
    "peerAddress.from=hostIP",
    "adminToken.existingSecret.name=admin",
];

/// Renders the chart with the valid values and `values`. Returns the manifests, or the error of Helm.
fn refusal(values: &[&str]) -> Result<String, String> {
    let arguments = GOOD.iter().chain(values).flat_map(|value| ["--set-json", value]);
    // A value that is not JSON is a string.
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

/// Values to set, and parts of the expected message.
const REFUSED: &[(&[&str], &[&str])] = &[
    // Missing
    (&["peerAddress.from="], &["peerAddress.from is empty", "hostIP", "nodeExternalIP"]),
    (&["router.address="], &["router.address is empty", "the Router"]),
    (&["router.publicKey.existingSecret.name="], &["router.publicKey is not set", "router.pub"]),
    (&["adminToken.existingSecret.name="], &["adminToken is not set", "existingSecret"]),
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
    (&["kind=Deployment"], &["use kind StatefulSet", "An upgrade replaces a Deployment"]),
    (&["drainTimeoutSeconds=25s"], &["/drainTimeoutSeconds", "want integer"]),
    (&["service.type=ClusterIP"], &["/service/type", "'NodePort'"]),
    (&["updateStrategy.type=Recreate"], &["/updateStrategy/type", "'OnDelete'"]),
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
    (&["image.digest=sha256:abc"], &["/image/digest", "sha256:[0-9a-f]{64}"]),
    (&["fdStore.image.digest=sha256:abc"], &["/fdStore/image/digest", "sha256:[0-9a-f]{64}"]),
    (&["image.repository="], &["/image/repository", "pattern"]),
    (&["image.repository=registry.example.com/Relay"], &["/image/repository", "pattern"]),
    (&["image.repository=registry.example.com/relay:1"], &["/image/repository", "pattern"]),
    (&["image.repository=https://registry.example.com/relay"], &["/image/repository"]),
    (&["fdStore.image.repository=relay@sha256"], &["/fdStore/image/repository", "pattern"]),
    (&["image.tag=\"1.0/2\""], &["/image/tag", "pattern"]),
    (&["fdStore.image.tag=\":1.0\""], &["/fdStore/image/tag", "pattern"]),
    (&["imagePullSecrets=[{\"name\": \"My_Secret\"}]"], &["/imagePullSecrets/0/name"]),
    (&["adminToken.existingSecret.name=Relay Admin"], &["/adminToken/existingSecret/name"]),
    // Lists
    (&["config.AllowPeers=192.0.2.0/24"], &["/config/AllowPeers", "want array"]),
    (&["config.AdminHosts=[\"a.example:65536\"]"], &["/config/AdminHosts/0", "pattern"]),
    (&["dnsConfig.nameservers=[\"dns.example\"]"], &["/dnsConfig/nameservers/0", "pattern"]),
    (&["tolerations=[{\"keys\": \"a\"}]"], &["/tolerations/0", "'keys' not allowed"]),
    (&["extraVolumes=[{\"emptyDir\": {}}]"], &["/extraVolumes/0", "missing property 'name'"]),
    (
        &["extraVolumeMounts=[{\"name\": \"a\", \"mountPath\": \"a\"}]"],
        &["/extraVolumeMounts/0/mountPath", "pattern"],
    ),
    (&["extraEnv=[{\"name\": \"A=B\"}]"], &["/extraEnv/0/name", "pattern"]),
    // Kubernetes requires the length.
    (
        &["service.loadBalancerSourceRanges=[\"192.0.2.1\"]"],
        &["/service/loadBalancerSourceRanges/0", "pattern"],
    ),
    (&["podSecurityContext.runAsUser=root"], &["/podSecurityContext/runAsUser", "want integer"]),
    (&["podSecurityContext.capabilities={}"], &["/podSecurityContext", "not allowed"]),
    (
        &["containerSecurityContext.capabilities.add=[\"net_raw\"]"],
        &["/containerSecurityContext/capabilities/add/0", "pattern"],
    ),
    (
        &["podSecurityContext.runAsUser=0"],
        &["podSecurityContext.runAsUser is 0", "podSecurityContext.runAsNonRoot forbids"],
    ),
    (&["updateStrategy=OnDelete"], &["/updateStrategy", "want object"]),
    (&["updateStrategy.maxUnavailable=0"], &["/updateStrategy/maxUnavailable", "minimum"]),
    (&["updateStrategy.maxUnavailable=\"0%\""], &["/updateStrategy/maxUnavailable", "pattern"]),
    (
        &["updateStrategy.maxUnavailable=2", "updateStrategy.type=OnDelete"],
        &["updateStrategy.maxUnavailable has no effect with updateStrategy.type OnDelete"],
    ),
    (
        &["updateStrategy.maxUnavailable=2", "kind=StatefulSet"],
        &["updateStrategy.maxUnavailable has no effect with kind StatefulSet"],
    ),
    (&["fdStore.timeout=60"], &["/fdStore/timeout", "want string"]),
    (&["fdStore.timeout=\"60\""], &["fdStore.timeout is \"60\"", "with a unit"]),
    (&["fdStore=null"], &["missing property 'fdStore'"]),
    (&["seLinuxOptions.levels=a"], &["/seLinuxOptions", "'levels' not allowed"]),
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
    (&["rbac.create=true"], &["a permission that peerAddress.from"]),
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
        &["adminToken.value and adminToken.existingSecret.name are both set"],
    ),
    (&["metricsToken.existingSecret.name=a"], &["metricsToken is set", "metrics.enabled"]),
    (&["metrics.tls.existingSecret=a"], &["metrics.tls.existingSecret is set"]),
    (
        &["metrics.enabled=true", "metrics.tls.clientCa.existingSecret=a"],
        &["metrics.tls.clientCa.existingSecret is set", "the certificate of the relay"],
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
        &["podMonitor.interval is \"31s\"", "at most 30s"],
    ),
    (
        &[
            "metrics.enabled=true",
            "metricsToken.existingSecret.name=a",
            "serviceMonitor.enabled=true",
            "serviceMonitor.interval=1m",
            "prometheusRule.enabled=true",
        ],
        &["serviceMonitor.interval is \"1m\"", "at most 30s"],
    ),
    // Set by the chart itself
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

fn invalid_values_are_refused_with_a_reason() {
    let good = refusal(&[]);
    good.unwrap();
    // YAML has null for a key if all lines below it are comments.
    for nothing in [
        "config=null",
        "podLabels=null",
        "nodeSelector=null",
        "resources=null",
        "dnsConfig=null",
        "affinity=null",
        "seLinuxOptions=null",
        "podSecurityContext=null",
        "containerSecurityContext=null",
        "fdStore.resources=null",
    ] {
        refusal(&[nothing]).unwrap_or_else(|said| panic!("{nothing}: {said}"));
    }
    for (values, words) in REFUSED {
        let said = refusal(values).expect_err(&format!("{values:?} were accepted"));
        for word in *words {
            assert!(said.contains(word), "{values:?}: no {word:?} in {said}");
        }
        assert!(!said.contains("nil pointer"), "{values:?}: {said}");
    }
}

/// Values that resemble refused ones, but are valid.
fn valid_values_are_accepted() {
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
        (&node_port, &["peer.port=30000", "updateStrategy.type=OnDelete"]),
        (&[], &["updateStrategy.maxUnavailable=3"]),
        (&[], &["updateStrategy.maxUnavailable=\"25%\""]),
        (&[], &["image.repository=localhost:5000/team/aspia-relay", "image.tag=v1.0_rc.1-a"]),
        (&[], &["image.repository=relay", "fdStore.image.repository=[2001:db8::1]:5000/a__b"]),
        (&[], &["podSecurityContext.runAsNonRoot=false", "podSecurityContext.runAsUser=0"]),
        (&[], &["minReadySeconds=0", "probes.terminationGracePeriodSeconds=1"]),
    ] {
        let values = [common, values].concat();
        let said = refusal(&values);
        said.unwrap_or_else(|said| panic!("{values:?}: {said}"));
    }
    // The chart accepts what the relay accepts.
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
        refusal(&[&value]).unwrap_or_else(|said| panic!("{address}: {said}"));
    }
}

/// A name that YAML would parse as another type remains a string.
fn keys_and_names_must_be_strings() {
    for text in ["null", "true", "123"] {
        let key = format!("adminToken.existingSecret.key=\"{text}\"");
        let name = format!("adminToken.existingSecret.name=\"{text}\"");
        let rendered = refusal(&[&key, &name]);
        let case = Case { name: text.to_owned(), objects: documents(&rendered.unwrap()) };
        let volumes = case.relay()["volumes"].as_array().unwrap();
        let secrets = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
        let secret = &secrets["projected"]["sources"][0]["secret"];
        assert_eq!((&secret["name"], &secret["items"][0]["key"]), (&text.into(), &text.into()));
    }
}

/// All problems are reported at once, and a token is never shown.
fn all_problems_are_reported_together() {
    let values = ["router.address=", "admin.port=8070", "adminToken.value=hush"];
    let said = refusal(&values);
    let said = said.unwrap_err();
    for word in ["router.address", "admin.port", "adminToken.value"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!said.contains("hush"), "{said}");
}

/// Somebody who installs without any values gets one list of everything that is needed.
fn all_missing_values_are_named_at_once() {
    let said = template(&[]).unwrap_err();
    for missing in
        ["router.address", "router.publicKey", "peerAddress.from is empty", "adminToken is not set"]
    {
        assert!(said.contains(missing), "no {missing:?} in {said}");
    }
    // Nothing but these: values that are not set contradict nothing.
    assert_eq!(said.matches("\n  - ").count(), 4, "{said}");
}

fn chart_accepts_the_networks_that_the_relay_accepts() {
    let accepts = |key: &str, network: &str| {
        refusal(&[&format!("config.{key}={}", Value::from(vec![network]))]).is_ok()
    };
    for network in [
        "192.0.2.0/24",
        "0.0.0.0/0",
        "255.255.255.255/32",
        "192.0.2.7",
        "::/0",
        "::1",
        "2001:db8::/32",
        "2001:DB8:0:1:2:3:4:5/128",
        "::ffff:10.0.0.0/104",
        "10.0.0.256/32",
        "10.0.0.0/33",
        "10.0.0/24",
        "2001:db8::/129",
        "relay.example.com",
        "192.0.2.0/24,10.0.0.0/8",
        "10.0.0.0/",
        " 10.0.0.0/8",
        "10.0.0.0-10.0.0.255",
        "2001:db8",
        "",
    ] {
        // Items of a list are separated by commas, and spaces around them are ignored; in an array there are neither.
        let expected = !network.contains([',', ' ']) && Networks::parse(network).is_ok();
        for key in ["AllowPeers", "DenyPeers"] {
            assert_eq!(accepts(key, network), expected, "{key}: {network:?}");
        }
    }
}

/// Every setting of the relay can be set in `config`, or is refused with the value that decides it.
fn schema_knows_every_setting() {
    let schema = std::fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let known = schema["properties"]["config"]["properties"].as_object().unwrap();
    let settings = SETTINGS.iter().map(|setting| setting.key.name());
    let settings: std::collections::BTreeSet<_> = settings.collect();
    assert_eq!(
        known.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
        settings
    );
    for key in settings {
        let form = &known[key];
        if form.get("type").is_some() || form.get("enum").is_some() {
            assert_eq!(chart_value(key), format!("config.{key}"));
            continue;
        }
        let said = refusal(&[&format!("config.{key}=a")]);
        let said = said.expect_err(key);
        // The doctor names the same value in its advice.
        let expected = format!("it comes from the value {}", chart_value(key));
        assert!(said.contains(&format!("config.{key}")) && said.contains(&expected), "{said}");
    }
}

/// The chart value that the doctor names for a setting.
fn chart_value(key: &str) -> String {
    deployment::find_chart_value(SettingKey::find(key).unwrap())
}
