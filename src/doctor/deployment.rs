//! How the relay is deployed, so that the advice of the doctor can be followed: on a machine people edit files and send
//! signals; in a Kubernetes pod there is no shell, and settings are values of the chart.

use crate::config::settings::{SETTINGS, SettingKey};
use crate::config::sources::Sources;
use crate::listen::bind::BindError;
use crate::open_files;

use super::report::{
    CONFIGURATION, DoctorStep, MEMORY, RUNNING_RELAY, StepOutcome, TRACE_COLLECTOR,
};

/// Where the doctor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deployment {
    /// A machine, or a container that was started by hand.
    Machine,
    /// A Kubernetes pod.
    Pod,
}

/// Settings whose values in the chart have other names.
const CHART_VALUES: &[(SettingKey, &str)] = &[
    (SettingKey::RouterAddress, "router.address"),
    (SettingKey::RouterPort, "router.port"),
    (SettingKey::RouterPublicKey, "router.publicKey"),
    (SettingKey::PeerAddress, "peerAddress"),
    (SettingKey::PeerPort, "peer.port"),
    (SettingKey::ListenPort, "peer.listenPort"),
    (SettingKey::DrainTimeout, "drainTimeoutSeconds"),
    (SettingKey::FdStore, "fdStore.enabled"),
    (SettingKey::FdStoreTimeout, "fdStore.timeout"),
    (SettingKey::AdminListen, "admin.port"),
    (SettingKey::AdminToken, "adminToken"),
    (SettingKey::MetricsListen, "metrics.enabled and metrics.port"),
    (SettingKey::MetricsToken, "metricsToken"),
    (SettingKey::MetricsTlsCertificate, "metrics.tls.existingSecret"),
    (SettingKey::MetricsTlsPrivateKey, "metrics.tls.existingSecret"),
    (SettingKey::MetricsTlsClientCa, "metrics.tls.clientCa"),
    (SettingKey::WatchConfig, "watchConfig"),
];

/// The command that starts the doctor in the pod of a running relay.
const IN_POD: &str = "kubectl exec POD -- /usr/local/bin/aspia_relay --doctor";

/// Where settings are in manifests that are not rendered from the chart, for example those of `deploy/kubernetes`.
const WITHOUT_CHART: &str =
    "without the chart, settings are in relay.json and in env of the container";

/// The chart value of a setting.
pub fn find_chart_value(setting: SettingKey) -> String {
    let found = CHART_VALUES.iter().find(|(key, _)| *key == setting);
    found.map_or_else(|| format!("config.{setting}"), |(_, value)| (*value).to_owned())
}

impl Deployment {
    /// Detects where this process runs from its environment.
    pub fn of(sources: &Sources) -> Self {
        let is_set = |(name, value): &(String, String)| {
            name == "KUBERNETES_SERVICE_HOST" && !value.is_empty()
        };
        if sources.environment.iter().any(is_set) { Self::Pod } else { Self::Machine }
    }

    /// How the relay picks up a changed configuration.
    pub(super) fn reload_advice(self) -> String {
        match self {
            Self::Machine => {
                let signal =
                    if cfg!(windows) { "sc control aspia-relay paramchange" } else { "SIGHUP" };
                format!(
                    "a reload ({signal}) makes it read the settings again, a restart also those that a reload cannot \
                     change. Or the doctor was not started with the environment of the relay"
                )
            }
            Self::Pod => "once the kubelet has put a changed file into the pod (within about two minutes), \
                 `kubectl exec POD -- /usr/local/bin/aspia_relay --reload` makes the relay read it. What a reload cannot \
                 change, and what env of the container sets, needs a new pod: `kubectl rollout restart` (if updateStrategy \
                 is OnDelete, that replaces nothing: `kubectl delete pod POD`, one after the other). Do not do that while \
                 the Router is unreachable"
                .to_owned(),
        }
    }

    /// How a relay that watches its files picks up a changed configuration.
    pub(super) fn watch_advice(self) -> String {
        match self {
            Self::Machine => "it watches its files (WatchConfig) and applies a change within seconds; what its environment \
                 sets needs a restart. Or the doctor was not started with the environment of the relay"
                .to_owned(),
            Self::Pod => "it watches its files (WatchConfig), which the kubelet updates within about two minutes; \
                 what env of the container sets needs a new pod: `kubectl rollout restart`"
                .to_owned(),
        }
    }

    /// What applies the settings that a reload cannot change.
    pub(super) fn restart_name(self) -> &'static str {
        match self {
            Self::Machine => "a restart",
            Self::Pod => "a new pod",
        }
    }

    /// Where name resolution is configured.
    pub(super) fn resolver_advice(self) -> &'static str {
        match self {
            Self::Machine => "nameserver, search and ndots in /etc/resolv.conf",
            Self::Pod => {
                "see dnsConfig of the pod, a value of the chart: an option ndots of 1, or a trailing dot in the Router's \
                 name, avoids the search; the DNS servers of the cluster are the kube-system pods with the label \
                 k8s-app=kube-dns"
            }
        }
    }

    /// The file with host names that are valid on this machine only.
    pub(super) fn hosts_file(self) -> &'static str {
        match self {
            Self::Machine if cfg!(windows) => r"C:\Windows\System32\drivers\etc\hosts",
            Self::Machine => "/etc/hosts",
            // On the host network, the kubelet copies this file into the pod.
            Self::Pod => "/etc/hosts of the node",
        }
    }

    /// What to do if the limit on open files is too low.
    pub(super) fn open_files_remedy(self) -> &'static str {
        match self {
            Self::Machine => open_files::REMEDY,
            Self::Pod => "Raise the limit, which the container runtime on the node sets",
        }
    }

    /// Why a port cannot be listened on, and what to do.
    pub(super) fn explain_bind_error(self, error: &BindError) -> String {
        if self == Self::Pod && error.is_denied() {
            return format!(
                "{}; ports below 1024 need the capability NET_BIND_SERVICE, which the chart adds to the container and the \
                 image to its program, or net.ipv4.ip_unprivileged_port_start on the node, and this pod has neither. \
                 Set {} to a port of 1024 or above",
                error.summary(),
                error.port_setting()
            );
        }
        error.to_string()
    }

    /// How to find out which program holds a port.
    pub(super) fn holder_advice(self) -> String {
        match self {
            Self::Machine if cfg!(windows) => {
                "An administrator can see which: netstat -abno".to_owned()
            }
            Self::Machine => {
                "Run the doctor as root or as the relay's user to see which".to_owned()
            }
            Self::Pod => format!("Run the doctor in the relay's pod to see which: {IN_POD}"),
        }
    }

    /// How to ask a relay that runs as another user for what needs the token.
    pub(super) fn token_advice(self) -> String {
        match self {
            Self::Machine => "if that is the relay's user, run the doctor as that user".to_owned(),
            Self::Pod => format!("if that is the relay, ask it in its pod: {IN_POD}"),
        }
    }

    /// How to ask a relay whose process is not visible.
    pub(super) fn unseen_relay_advice(self) -> String {
        match self {
            Self::Machine => {
                "run the doctor where the relay runs, in the same container".to_owned()
            }
            Self::Pod => format!("ask it in its pod: {IN_POD}"),
        }
    }

    /// Why no relay may run although one is expected.
    pub(super) fn absent_relay_advice(self) -> &'static str {
        match self {
            Self::Machine => "start it, or see in its log why it ended",
            Self::Pod => {
                "does any node have the labels of nodeSelector? `kubectl get daemonset,statefulset` shows how many relays \
                 there should be (DESIRED); `kubectl get pods` and `kubectl describe pod` show what prevents them"
            }
        }
    }

    /// Hints to add to a step that has not passed: where its settings are in this deployment.
    pub(super) fn remedies(self, step: &DoctorStep) -> Vec<String> {
        let is_good = match step.outcome {
            StepOutcome::Ok => true,
            // Other steps are skipped for a good reason; this step says how it could be taken.
            StepOutcome::Skipped => step.step != RUNNING_RELAY,
            StepOutcome::Failed | StepOutcome::Hint => false,
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
            // The init container should have written the address.
            CONFIGURATION if step.seen.contains("PeerAddress") => remedies.push(
                "if the address comes from the node (peerAddress.from), the container node-address waited for it, and \
                 its log says why there is none: kubectl logs POD -c node-address"
                    .to_owned(),
            ),
            _ => {}
        }
        let is_named = |key: &str| {
            let mut words = step.seen.split(|c: char| !c.is_ascii_alphanumeric());
            words.any(|word| word == key)
        };
        let named = SETTINGS.iter().map(|setting| setting.key).filter(|key| is_named(key.name()));
        let named: Vec<_> =
            named.map(|key| format!("{key} is {}", find_chart_value(key))).collect();
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
    use std::io;
    use std::net::Ipv6Addr;

    use crate::admin::listener::HttpListener;
    use crate::listen::bind;

    /// Asserts that nothing in this advice needs a shell on the machine.
    pub(in crate::doctor) fn assert_fits_pod(advice: &str) {
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

    fn deployment(environment: &[(&str, &str)]) -> Deployment {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Deployment::of(&Sources::new(None, environment.collect()))
    }

    #[test]
    fn pod_is_detected_by_its_environment() {
        assert_eq!(deployment(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]), Deployment::Pod);
        assert_eq!(deployment(&[("KUBERNETES_SERVICE_HOST", "")]), Deployment::Machine);
        assert_eq!(deployment(&[("NODE_NAME", "node-1")]), Deployment::Machine);
    }

    #[test]
    fn every_chart_value_belongs_to_a_setting() {
        for (key, _) in CHART_VALUES {
            assert!(SETTINGS.iter().any(|setting| setting.key == *key), "{key}");
        }
        assert_eq!(find_chart_value(SettingKey::MaxPeerCount), "config.MaxPeerCount");
    }

    #[test]
    fn advice_in_a_pod_uses_kubectl() {
        for advice in [
            Deployment::Pod.reload_advice(),
            Deployment::Pod.watch_advice(),
            Deployment::Pod.holder_advice(),
            Deployment::Pod.token_advice(),
            Deployment::Pod.unseen_relay_advice(),
            Deployment::Pod.absent_relay_advice().to_owned(),
        ] {
            assert!(advice.contains("kubectl "), "{advice}");
            assert_fits_pod(&advice);
        }
        let advice = Deployment::Pod.reload_advice();
        for part in ["aspia_relay --reload`", "kubectl rollout restart", "OnDelete"] {
            assert!(advice.contains(part), "{part}: {advice}");
        }
    }

    #[test]
    fn advice_for_a_denied_port_in_a_pod_is_another_port() {
        let (purpose, all) = (HttpListener::Metrics.purpose(), Ipv6Addr::UNSPECIFIED.into());
        let denied = |_| Err(io::ErrorKind::PermissionDenied.into());
        let error = bind::bind_with(purpose, Some(all), 443, denied).unwrap_err();
        let in_pod = Deployment::Pod.explain_bind_error(&error);
        for part in ["on [::]:443", "ip_unprivileged_port_start", "Set MetricsListen"] {
            assert!(in_pod.contains(part), "{part}: {in_pod}");
        }
        assert_fits_pod(&in_pod);
        assert_eq!(Deployment::Machine.explain_bind_error(&error), error.to_string());
        let has_capabilities = error.to_string().contains("CAP_NET_BIND_SERVICE");
        assert_eq!(has_capabilities, cfg!(unix), "{error}");
    }

    #[test]
    fn remedies_in_a_pod_name_chart_values() {
        let seen =
            "cannot listen; set AdminListen to a free port, or lower MaxPeerCount (PeerPorts)";
        let step = DoctorStep::failed(MEMORY, seen);
        let remedies = Deployment::Pod.remedies(&step).join("; ");
        for part in [
            "resources.limits.memory",
            "AdminListen is admin.port",
            "MaxPeerCount is config.MaxPeerCount",
        ] {
            assert!(remedies.contains(part), "{part}: {remedies}");
        }
        assert!(!remedies.contains("PeerPort"), "{remedies}");
        let collector =
            Deployment::Pod.remedies(&DoctorStep::failed(TRACE_COLLECTOR, "it cannot be reached"));
        assert!(collector.concat().contains("tracing.endpoint"), "{collector:?}");
        let off = DoctorStep::skipped(RUNNING_RELAY, "not known, since AdminListen is off");
        assert!(Deployment::Pod.remedies(&off).concat().contains("admin.port"));
        let missing =
            DoctorStep::failed(CONFIGURATION, "PeerAddress: cannot read /run/peer-address");
        assert!(
            Deployment::Pod.remedies(&missing).concat().contains("-c node-address"),
            "{missing}"
        );
        assert!(remedies.contains("without the chart"), "{remedies}");
        let skipped = DoctorStep::skipped(MEMORY, "not tried: PeerAddress has no address");
        assert!(Deployment::Pod.remedies(&skipped).is_empty());
        assert!(Deployment::Machine.remedies(&step).is_empty());
        assert!(Deployment::Pod.remedies(&DoctorStep::ok(MEMORY, seen)).is_empty());
    }
}
