//! How the relay is operated where the doctor runs, so that its advice can be followed there. On a machine somebody edits
//! files and sends signals; in a pod of Kubernetes there is no shell, and settings are values of the chart.

use crate::config::settings::SETTINGS;
use crate::config::sources::Sources;
use crate::listen::bind::BindError;
use crate::open_files;

use super::report::{CONFIGURATION, MEMORY, Outcome, RUNNING_RELAY, Step, TRACE_COLLECTOR};

/// Where the doctor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// A machine, or a container that somebody started on one.
    Machine,
    /// A pod of Kubernetes.
    Pod,
}

/// Settings that values of the chart with other names decide.
const VALUES: &[(&str, &str)] = &[
    ("RouterAddress", "router.address"),
    ("RouterPort", "router.port"),
    ("RouterPublicKey", "router.publicKey"),
    ("PeerAddress", "peerAddress"),
    ("PeerPort", "peer.port"),
    ("ListenPort", "peer.listenPort"),
    ("DrainTimeout", "drainTimeoutSeconds"),
    ("AdminListen", "admin.port"),
    ("AdminToken", "adminToken"),
    ("MetricsListen", "metrics.enabled and metrics.port"),
    ("MetricsToken", "metricsToken"),
    ("MetricsTlsCertificate", "metrics.tls.existingSecret"),
    ("MetricsTlsPrivateKey", "metrics.tls.existingSecret"),
    ("MetricsTlsClientCa", "metrics.tls.clientCa"),
];

/// The command that starts the doctor beside the relay that runs.
const INSIDE: &str = "kubectl exec POD -- /usr/local/bin/aspia_relay --doctor";

/// Where settings are in manifests that the chart did not make, those of `deploy/kubernetes` for example.
const WITHOUT_CHART: &str =
    "without the chart, settings are in relay.json and in env of the container";

/// The value of the chart that decides a setting.
pub fn value_of(setting: &str) -> String {
    let found = VALUES.iter().find(|(key, _)| *key == setting);
    found.map_or_else(|| format!("config.{setting}"), |(_, value)| (*value).to_owned())
}

impl Site {
    /// Where this process runs, by its environment.
    pub fn of(sources: &Sources) -> Self {
        let is_set = |(name, value): &(String, String)| {
            name == "KUBERNETES_SERVICE_HOST" && !value.is_empty()
        };
        if sources.environment.iter().any(is_set) { Self::Pod } else { Self::Machine }
    }

    /// How the relay takes over a configuration that has changed.
    pub(super) fn reload(self) -> String {
        match self {
            Self::Machine => {
                let signal =
                    if cfg!(windows) { "sc control aspia-relay paramchange" } else { "SIGHUP" };
                format!(
                    "reloading ({signal}) lets it read the settings again, a restart also those that reloading cannot \
                     change. Or the doctor was not started with the environment of the relay"
                )
            }
            Self::Pod => "a new pod does, which `kubectl rollout restart` makes of each once it has drained (where \
                 updateStrategy is OnDelete, that replaces nothing: `kubectl delete pod POD`, one after the other). Do not \
                 do that while the Router is away"
                .to_owned(),
        }
    }

    /// What takes over the settings that reloading cannot change.
    pub(super) fn restart(self) -> &'static str {
        match self {
            Self::Machine => "a restart",
            Self::Pod => "a new pod",
        }
    }

    /// Where it is decided how names are looked up.
    pub(super) fn resolver(self) -> &'static str {
        match self {
            Self::Machine => "nameserver, search and ndots in /etc/resolv.conf",
            Self::Pod => {
                "dnsConfig of the pod, a value of the chart, decides: an option ndots of 1, or the Router's name with a \
                 dot at its end, spares the search; the DNS of the cluster is the kube-system pods with the label \
                 k8s-app=kube-dns"
            }
        }
    }

    /// The file that gives addresses names here alone.
    pub(super) fn hosts_file(self) -> &'static str {
        match self {
            Self::Machine if cfg!(windows) => r"C:\Windows\System32\drivers\etc\hosts",
            Self::Machine => "/etc/hosts",
            // On the host network the kubelet makes that of the pod of it.
            Self::Pod => "/etc/hosts of the node",
        }
    }

    /// What to do where too few files may be open.
    pub(super) fn more_open_files(self) -> &'static str {
        match self {
            Self::Machine => open_files::REMEDY,
            Self::Pod => "Raise the limit, which is that of the container runtime on the node",
        }
    }

    /// Why a port cannot be listened on, and what to do.
    pub(super) fn cannot_listen(self, error: &BindError) -> String {
        if self == Self::Pod && error.is_denied() {
            return format!(
                "{}; the pod has no capability, and ports below 1024 need net.ipv4.ip_unprivileged_port_start on the node. \
                 Set {} to a port from 1024",
                error.what_failed(),
                error.port_setting()
            );
        }
        error.to_string()
    }

    /// How to see which program it is that holds a port.
    pub(super) fn to_see_holder(self) -> String {
        match self {
            Self::Machine if cfg!(windows) => {
                "An administrator sees which: netstat -abno".to_owned()
            }
            Self::Machine => {
                "Run the doctor as root or as the relay's user to see which".to_owned()
            }
            Self::Pod => format!("In the relay's own pod the doctor sees it: {INSIDE}"),
        }
    }

    /// How to ask a relay of another user for what only the holder of the token may know.
    pub(super) fn as_its_user(self) -> String {
        match self {
            Self::Machine => "if that is the relay's user, run the doctor as that user".to_owned(),
            Self::Pod => format!("if that is the relay, ask it in its own pod: {INSIDE}"),
        }
    }

    /// How to ask a relay whose process cannot be seen.
    pub(super) fn where_it_runs(self) -> String {
        match self {
            Self::Machine => {
                "run the doctor where the relay runs, in the same container".to_owned()
            }
            Self::Pod => format!("ask it in its own pod: {INSIDE}"),
        }
    }

    /// Why there may be no relay where one must run.
    pub(super) fn no_relay(self) -> &'static str {
        match self {
            Self::Machine => "start it, or see in its log why it ended",
            Self::Pod => {
                "does any node have the labels of nodeSelector? `kubectl get daemonset,statefulset` says how many relays \
                 there are to be (DESIRED), `kubectl get pods` and `kubectl describe pod` what keeps them"
            }
        }
    }

    /// What to add to a step that is not as it should be: how to change there what it speaks of.
    pub(super) fn remedies(self, step: &Step) -> Vec<String> {
        let is_good = match step.outcome {
            Outcome::Ok => true,
            // Other steps are left out with good reason, while this one tells how it could be taken.
            Outcome::Skipped => step.step != RUNNING_RELAY,
            Outcome::Failed | Outcome::Hint => false,
        };
        if self == Self::Machine || is_good {
            return Vec::new();
        }
        let mut remedies = Vec::new();
        match step.step {
            MEMORY => remedies.push(
                "the limit is resources.limits.memory of the container, a value of the chart".to_owned(),
            ),
            TRACE_COLLECTOR => remedies.push(
                "in the values of the chart, the endpoint is tracing.endpoint, and other variables are in extraEnv; \
                 without the chart, all of them are in env of the container"
                    .to_owned(),
            ),
            // What the container before this one should have written.
            CONFIGURATION if step.seen.contains("PeerAddress") => remedies.push(
                "where the node gives the address (peerAddress.from), the container node-address waited for it, and its \
                 log says why there is none: kubectl logs POD -c node-address"
                    .to_owned(),
            ),
            _ => {}
        }
        let is_named = |key: &str| {
            let mut words = step.seen.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|word| word == key)
        };
        let named = SETTINGS.iter().map(|setting| setting.key).filter(|key| is_named(key));
        let named: Vec<_> = named.map(|key| format!("{key} is {}", value_of(key))).collect();
        if !named.is_empty() {
            remedies
                .push(format!("in the values of the chart, {}; {WITHOUT_CHART}", named.join(", ")));
        }
        remedies
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::kind::Kind;

    /// That nothing in this advice can be done on a machine only.
    pub(in crate::doctor) fn is_for_a_pod(advice: &str) {
        for machine in [
            "SIGHUP",
            "as root",
            "root sees",
            "as that user",
            "same container",
            "resolv.conf",
            "ulimit",
            "LimitNOFILE",
            "CAP_NET_BIND_SERVICE",
            "a restart",
            "in /etc/hosts?",
        ] {
            assert!(!advice.contains(machine), "{machine}: {advice}");
        }
    }

    fn site(environment: &[(&str, &str)]) -> Site {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Site::of(&Sources::new(None, environment.collect()))
    }

    #[test]
    fn a_pod_is_known_by_its_environment() {
        assert_eq!(site(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]), Site::Pod);
        assert_eq!(site(&[("KUBERNETES_SERVICE_HOST", "")]), Site::Machine);
        assert_eq!(site(&[("NODE_NAME", "node-1")]), Site::Machine);
    }

    #[test]
    fn every_value_is_for_a_setting() {
        for (key, _) in VALUES {
            assert!(SETTINGS.iter().any(|setting| setting.key == *key), "{key}");
        }
        assert_eq!(value_of("MaxPeerCount"), "config.MaxPeerCount");
    }

    #[test]
    fn advice_in_a_pod_is_for_those_who_have_kubectl() {
        for advice in [
            Site::Pod.reload(),
            Site::Pod.to_see_holder(),
            Site::Pod.as_its_user(),
            Site::Pod.where_it_runs(),
            Site::Pod.no_relay().to_owned(),
        ] {
            assert!(advice.contains("kubectl "), "{advice}");
            is_for_a_pod(&advice);
        }
        assert!(Site::Pod.reload().contains("OnDelete"));
    }

    #[test]
    fn a_port_that_is_denied_is_changed_where_there_are_no_capabilities() {
        let error = BindError::denied(Kind::Metrics.purpose(), 443);
        let in_pod = Site::Pod.cannot_listen(&error);
        for part in ["on [::]:443", "ip_unprivileged_port_start", "Set MetricsListen"] {
            assert!(in_pod.contains(part), "{part}: {in_pod}");
        }
        is_for_a_pod(&in_pod);
        assert_eq!(Site::Machine.cannot_listen(&error), error.to_string());
        let has_capabilities = error.to_string().contains("CAP_NET_BIND_SERVICE");
        assert_eq!(has_capabilities, cfg!(unix), "{error}");
    }

    #[test]
    fn settings_that_a_remedy_names_are_values_in_a_pod() {
        let seen =
            "cannot listen; set AdminListen to a free port, or lower MaxPeerCount (PeerPorts)";
        let step = Step::failed(MEMORY, seen);
        let remedies = Site::Pod.remedies(&step).join("; ");
        for part in [
            "resources.limits.memory",
            "AdminListen is admin.port",
            "MaxPeerCount is config.MaxPeerCount",
        ] {
            assert!(remedies.contains(part), "{part}: {remedies}");
        }
        assert!(!remedies.contains("PeerPort"), "{remedies}");
        let collector = Site::Pod.remedies(&Step::failed(TRACE_COLLECTOR, "it cannot be reached"));
        assert!(collector.concat().contains("tracing.endpoint"), "{collector:?}");
        let off = Step::skipped(RUNNING_RELAY, "not known, since AdminListen is off");
        assert!(Site::Pod.remedies(&off).concat().contains("admin.port"));
        let missing = Step::failed(CONFIGURATION, "PeerAddress: cannot read /run/peer-address");
        assert!(Site::Pod.remedies(&missing).concat().contains("-c node-address"), "{missing}");
        assert!(remedies.contains("without the chart"), "{remedies}");
        let skipped = Step::skipped(MEMORY, "not tried: PeerAddress has no address");
        assert!(Site::Pod.remedies(&skipped).is_empty());
        assert!(Site::Machine.remedies(&step).is_empty());
        assert!(Site::Pod.remedies(&Step::ok(MEMORY, seen)).is_empty());
    }
}
