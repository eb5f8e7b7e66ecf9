//! The relay that runs here, as far as its admin interface tells: above all, whether its key pool is empty and why.

use std::net::SocketAddr;

use hyper::StatusCode;
use serde_json::Value;

use crate::admin::client;
use crate::config::report::Report as ConfigReport;
use crate::config::sources::Sources;
use crate::config::{Config, Startup};
use crate::listen::interfaces;
use crate::listen::port_holder::{self, Holder, Owner};

use super::holders;
use super::report::{Outcome, RUNNING_RELAY, Step};
use super::site::Site;

/// What answers on `AdminListen`.
pub(super) enum Running {
    /// There is nobody to ask: `AdminListen` is off.
    Off,
    /// No relay answers, for this reason.
    Silent(String),
    /// A relay.
    Relay(Box<Relay>),
}

/// A relay that answered.
pub(super) struct Relay {
    /// What `/readyz` misses.
    pub(super) missing: Vec<String>,
    /// What `/status` says, or why it does not.
    pub(super) status: Result<Value, String>,
    /// Keys and values of `/config`.
    pub(super) settings: Vec<(String, String)>,
    /// Where it listens for peers, as it has published.
    pub(super) listens_on: Option<SocketAddr>,
    /// The processes that hold the port of the admin listener, as far as they can be seen.
    pub(super) holders: Vec<Holder>,
}

/// The step where the configuration is wrong; `None` where no relay has published itself. A relay that runs has read an
/// earlier one.
pub(super) async fn without_configuration(sources: &Sources) -> Option<Step> {
    let Instance { peers, missing, .. } = Instance::find(sources, None).await?;
    let beginning = format!(
        "one listens on {peers}; it goes on with the configuration that it read before this one was wrong"
    );
    Some(match missing.as_slice() {
        [] => Step::hint(RUNNING_RELAY, format!("{beginning}, and is ready")),
        missing => Step::failed(
            RUNNING_RELAY,
            format!("{beginning}, and is not ready ({}); its log says why", missing.join(", ")),
        ),
    })
}

/// The step where a relay is expected to run, and none can be asked, since the configuration is wrong.
pub(super) fn unknown(site: Site) -> Step {
    let seen = format!(
        "one is expected here, and cannot be asked as long as the configuration is wrong. If none runs: {}",
        site.no_relay()
    );
    Step::failed(RUNNING_RELAY, seen)
}

/// What a relay has published.
struct Instance {
    /// Whose it is.
    owner: Owner,
    peers: SocketAddr,
    admin: Option<SocketAddr>,
    /// What `/readyz` misses.
    missing: Vec<String>,
}

impl Instance {
    async fn find(sources: &Sources, config: Option<&Config>) -> Option<Self> {
        let relay = client::Relay::find(sources, config).await?;
        let (_, body) = relay.ask("/instance").await.ok()?;
        let told: Value = serde_json::from_slice(&body).ok()?;
        let address = |key: &str| told[key].as_str().and_then(|address| address.parse().ok());
        let (_, ready) = relay.ask("/readyz").await.ok()?;
        let (peers, admin) = (address("peers")?, address("admin"));
        Some(Self { owner: relay.owner(), peers, admin, missing: missing(&ready)? })
    }

    fn without_admin_interface(&self) -> Running {
        let why = "AdminListen is off there: with it, the doctor can say whether the key pool is empty, and why";
        Running::Relay(Box::new(Relay {
            missing: self.missing.clone(),
            status: Err(why.to_owned()),
            settings: Vec::new(),
            listens_on: Some(self.peers),
            holders: port_holder::find(self.peers.port()),
        }))
    }
}

impl Running {
    /// Asks the relay that `sources` are of; where it has not published itself, the one that `config` leads to.
    pub(super) async fn ask(sources: &Sources, config: &Config, site: Site) -> Self {
        let instance = Instance::find(sources, Some(config)).await;
        let address = match &instance {
            Some(Instance { admin: Some(admin), .. }) => *admin,
            Some(instance) => return instance.without_admin_interface(),
            None => match config.startup.admin_listen {
                Some(listen) => listen.local(),
                None => return Self::Off,
            },
        };
        if instance.is_some() && !interfaces::is_local(address.ip()) {
            // No relay publishes that: nobody elsewhere is asked on its word.
            return Self::Silent(format!(
                "the one that runs says that its AdminListen is {address}, which is no address of this machine"
            ));
        }
        let missing = match client::ask(address, "/readyz", None).await {
            Ok((status, body)) => match missing(&body) {
                Some(missing) => missing,
                None => {
                    return Self::Silent(format!(
                        "{address} answers {status} to /readyz, and not as an aspia_relay does"
                    ));
                }
            },
            Err(why) => return Self::Silent(why),
        };
        let token = config.admin_token.as_ref();
        let get = async |path| {
            if token.is_some() {
                // As late as possible, since the port may change hands.
                let holder = port_holder::owner(address);
                let publisher = instance.as_ref().map(|instance| instance.owner);
                // Nor is one who is trusted shown it because somebody else says so.
                let owner = publisher.filter(|owner| *owner != Owner::Trusted).unwrap_or(holder);
                may_know_token(address, owner, site)?;
            }
            match client::ask(address, path, token).await? {
                (StatusCode::OK, body) => serde_json::from_slice::<Value>(&body)
                    .map_err(|error| format!("{path}: {error}")),
                (StatusCode::UNAUTHORIZED, _) => {
                    let set = if token.is_some() { "is another one" } else { "is not set" };
                    Err(format!("{path} needs the AdminToken of that relay, which {set} here"))
                }
                (status, _) => Err(format!("it answers {status} to {path}")),
            }
        };
        let settings = get("/config").await.map(|config| settings(&config)).unwrap_or_default();
        Self::Relay(Box::new(Relay {
            missing,
            status: get("/status").await,
            settings,
            listens_on: instance.map(|instance| instance.peers),
            holders: port_holder::find(address.port()),
        }))
    }

    /// The relay, where one answered.
    pub(super) fn relay(&self) -> Option<&Relay> {
        match self {
            Self::Relay(relay) => Some(relay),
            Self::Off | Self::Silent(_) => None,
        }
    }

    /// Its process, where that can be seen: not one that only hands on what it answers.
    pub(super) fn pid(&self) -> Option<i32> {
        let mut holders = self.relay()?.holders.iter();
        holders.find(|holder| holders::is_named_as_relay(holder)).map(|holder| holder.pid)
    }

    /// Why the admin interface does not tell who holds the port of peers.
    pub(super) fn why_unknown(&self) -> String {
        match self {
            Self::Off => "AdminListen is off, so it cannot be asked".to_owned(),
            Self::Silent(why) => format!("its admin interface does not answer: {why}"),
            Self::Relay(relay) => match (&relay.status, relay.listens_on()) {
                (_, Some(listen)) => {
                    format!("the relay that answers on AdminListen listens on {listen}")
                }
                (Err(why), None) => {
                    format!(
                        "the relay that answers on AdminListen does not say where it listens: {why}"
                    )
                }
                (Ok(_), None) => {
                    "the relay that answers on AdminListen does not say where it listens".to_owned()
                }
            },
        }
    }

    /// The step where a relay is expected to run, if none is known to.
    pub(super) fn absence(&self, site: Site) -> Option<Step> {
        let seen = match self {
            Self::Relay(_) => return None,
            Self::Off => {
                "one is expected here, but cannot be asked, since AdminListen is off".to_owned()
            }
            Self::Silent(why) => {
                format!("one is expected here, but none answers: {why}; {}", site.no_relay())
            }
        };
        Some(Step::failed(RUNNING_RELAY, seen))
    }

    /// The step; `port_is_free` where nobody has the port of peers.
    pub(super) fn step(
        &self,
        config: &Config,
        report: &ConfigReport,
        port_is_free: bool,
        site: Site,
    ) -> Step {
        match self {
            Self::Relay(relay) => relay.judge(config, report, site),
            Self::Off | Self::Silent(_) if port_is_free => {
                Step::skipped(RUNNING_RELAY, "none runs here")
            }
            Self::Off => Step::skipped(
                RUNNING_RELAY,
                "not known, since AdminListen is off: with it, the doctor can say whether the key pool is empty, and why",
            ),
            Self::Silent(why) => Step::skipped(RUNNING_RELAY, format!("not known: {why}")),
        }
    }
}

/// Whether the one who listens at `address` may be shown the token. While the relay does not run, any user of this
/// machine can listen there and answer as a relay does; its name proves nothing either.
fn may_know_token(address: SocketAddr, owner: Owner, site: Site) -> Result<(), String> {
    match owner {
        Owner::Trusted => Ok(()),
        Owner::Other(user) => Err(format!(
            "another user, {user}, holds {address} or names it, and is not shown the AdminToken; {}",
            site.as_its_user()
        )),
        Owner::Unseen => Err(format!(
            "whose {address} is cannot be seen, so nobody there is shown the AdminToken; {}",
            site.where_it_runs()
        )),
    }
}

/// What `/readyz` misses; `None` where that is not the answer of a relay.
fn missing(body: &[u8]) -> Option<Vec<String>> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    answer["ready"].as_bool()?;
    let missing = answer["missing"].as_array()?;
    Some(missing.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect())
}

/// Keys and values of `/config`.
fn settings(config: &Value) -> Vec<(String, String)> {
    let lines = config["settings"].as_array().into_iter().flatten();
    lines
        .filter_map(|line| Some((line["key"].as_str()?.into(), line["value"].as_str()?.into())))
        .collect()
}

impl Relay {
    /// Where it says that it listens for peers.
    pub(super) fn listens_on(&self) -> Option<SocketAddr> {
        let status = self.status.as_ref().ok();
        let told = status.and_then(|status| status["peers"]["listen"].as_str()?.parse().ok());
        told.or(self.listens_on)
    }

    fn judge(&self, config: &Config, report: &ConfigReport, site: Site) -> Step {
        let (outcome, mut seen) = self.keys();
        let mut step = Step::new(RUNNING_RELAY, outcome, "");
        if let Some(last) = self.status.as_ref().ok().map(|status| &status["router"]["last_error"])
            && outcome == Outcome::Ok
            && let Some(message) = last["message"].as_str()
        {
            step.details.push(format!(
                "its last trouble with the Router, at {}: {message}",
                last["at"].as_str().unwrap_or("a time that it does not say")
            ));
        }
        let for_restart = self.waiting_for_restart();
        if !for_restart.is_empty() {
            let restart = site.restart();
            seen += &format!(". Settings that it has read wait for {restart}: ");
            seen += &for_restart.join(", ");
        }
        let differs = self.differences(config, report);
        if !differs.is_empty() {
            seen += ". It does not run with this configuration: ";
            seen += &site.reload();
        }
        if step.outcome == Outcome::Ok && !(for_restart.is_empty() && differs.is_empty()) {
            step.outcome = Outcome::Hint;
        }
        step.details.extend(differs);
        step.seen = seen;
        step
    }

    /// The keys that it offers; where there are none, why.
    fn keys(&self) -> (Outcome, String) {
        let misses = |name: &str| self.missing.iter().any(|missing| missing == name);
        let status = self.status.as_ref();
        let number = |table: &str, name: &str| status.ok().and_then(|s| s[table][name].as_u64());
        let text = |name: &str| status.ok().and_then(|status| status["router"][name].as_str());
        let router = text("address").unwrap_or("its Router");
        let active = number("sessions", "active");
        // The Router has forgotten the keys of a link that is no longer there.
        if misses("draining") {
            let left =
                active.map_or(String::new(), |active| format!("; {active} sessions are left"));
            let seen = format!("its key pool is empty, since it is stopping (draining){left}");
            return (Outcome::Hint, seen);
        }
        let is_authenticated = status.is_ok_and(|status| status["router"]["connected"] == true);
        if misses("router-link") && is_authenticated {
            let seen = format!(
                "it has just authenticated to {router} and waits 5 s for whether the link is kept: look again. Until then \
                 it is not ready"
            );
            return (Outcome::Hint, seen);
        }
        if misses("router-link") {
            let since = text("since").map_or(String::new(), |since| format!(" since {since}"));
            let failures = number("router", "failures").unwrap_or(0);
            let error = match status {
                Ok(status) => status["router"]["last_error"]["message"].as_str().map_or_else(
                    || "there is no error yet".to_owned(),
                    |message| format!("{failures} tries failed, the last one: {message}"),
                ),
                Err(why) => format!("its log says why ({why})"),
            };
            let seen = format!(
                "its key pool is empty, since it has no link to {router}{since}: {error}. Peers get no relay until that \
                 is mended"
            );
            return (Outcome::Failed, seen);
        }
        if misses("peer-listener") {
            let seen =
                "it cannot accept peers at the moment: its log says why (too many open files?)";
            return (Outcome::Failed, seen.to_owned());
        }
        let (Some(offered), Some(handed_out), Some(active), Some(limit)) = (
            number("keys", "offered"),
            number("keys", "handed_out"),
            active,
            number("sessions", "limit"),
        ) else {
            let why = status.err().map_or("/status lacks the numbers", |why| why);
            let seen = format!(
                "it is connected to its Router and accepts peers; its key pool and sessions are not known ({why})"
            );
            return (Outcome::Hint, seen);
        };
        let places =
            format!("{active} sessions and {handed_out} keys handed out of {limit} places");
        if offered > 0 {
            let since = text("since").unwrap_or("a time that it does not say");
            let seen = format!(
                "connected to {router} since {since}; {offered} keys are on offer ({places})"
            );
            return (Outcome::Ok, seen);
        }
        let seen = if active + handed_out >= limit {
            format!(
                "its key pool is empty, since all places are in use ({places}): the Router sends nobody else. If that \
                 is so often, raise MaxPeerCount or add a relay"
            )
        } else {
            format!(
                "its key pool is empty, although places are free ({places}): it makes keys at this moment, or has only \
                 just connected to {router}. Look again"
            )
        };
        (Outcome::Hint, seen)
    }

    /// The keys of settings that it has read but does not run with. `/config` shows what was read.
    fn waiting_for_restart(&self) -> Vec<&str> {
        let keys =
            self.status.as_ref().ok().and_then(|status| status["waiting_for_restart"].as_array());
        keys.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// What differs between its configuration and this one.
    fn differences(&self, config: &Config, report: &ConfigReport) -> Vec<String> {
        let mut differs: Vec<_> = report
            .settings
            .iter()
            .filter_map(|here| {
                let (key, there) = self.settings.iter().find(|(key, _)| key == here.key)?;
                (*there != here.value).then(|| {
                    format!("{key} is {there:?} there and {:?} here ({})", here.value, here.source)
                })
            })
            .collect();
        let Startup { listen_interface, listen_port, .. } = config.startup;
        if let Some(there) = self.listens_on() {
            if there.port() != listen_port {
                let there = there.port();
                differs
                    .push(format!("it listens on port {there}, ListenPort is {listen_port} here"));
            }
            let there = there.ip();
            match listen_interface {
                Some(here) if here != there => {
                    differs.push(format!("it listens on {there}, ListenInterface is {here} here"));
                }
                None if !there.is_unspecified() => differs
                    .push(format!("it listens on {there}, ListenInterface is empty here (all)")),
                _ => {}
            }
        }
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::site::tests::is_for_a_pod;
    use crate::doctor::testing::config;
    use serde_json::json;

    fn relay(missing: &[&str], offered: u64, handed_out: u64, active: u64) -> Relay {
        Relay {
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
            status: Ok(json!({
                "router": {
                    "address": "r.example:8060",
                    "since": "2026-01-02T03:04:05Z",
                    "failures": 3,
                    "last_error": { "at": "2026-01-02T03:04:06Z", "message": "refused" },
                },
                "peers": { "listen": "[::]:8070" },
                "keys": { "offered": offered, "handed_out": handed_out },
                "sessions": { "active": active, "limit": 10 },
            })),
            settings: Vec::new(),
            listens_on: None,
            holders: Vec::new(),
        }
    }

    fn judged(relay: &Relay) -> Step {
        relay.judge(&config(&[]), &ConfigReport::default(), Site::Machine)
    }

    #[test]
    fn an_empty_key_pool_has_its_reason() {
        for (relay, outcome, parts) in [
            (
                relay(&[], 7, 1, 2),
                Outcome::Ok,
                &["7 keys are on offer", "2 sessions and 1 key"][..],
            ),
            (
                relay(&["router-link"], 0, 0, 2),
                Outcome::Failed,
                &["no link", "r.example", "refused"],
            ),
            (relay(&["draining", "router-link"], 0, 0, 2), Outcome::Hint, &["draining", "2 sess"]),
            (relay(&[], 0, 3, 7), Outcome::Hint, &["all places are in use", "MaxPeerCount"]),
            (relay(&[], 0, 0, 7), Outcome::Hint, &["places are free", "Look again"]),
            (relay(&["peer-listener"], 9, 0, 1), Outcome::Failed, &["cannot accept peers"]),
        ] {
            let step = judged(&relay);
            assert_eq!(step.outcome, outcome, "{step}");
            let empty = step.seen.contains("its key pool is empty");
            let offered = relay.status.unwrap()["keys"]["offered"].as_u64();
            assert_eq!(empty, offered == Some(0), "{step}");
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
        }
    }

    #[test]
    fn a_link_that_is_not_confirmed_yet_is_no_empty_key_pool() {
        let mut waiting = relay(&["router-link"], 10, 0, 0);
        waiting.status.as_mut().unwrap()["router"]["connected"] = true.into();
        let step = judged(&waiting);
        assert_eq!(step.outcome, Outcome::Hint, "{step}");
        assert!(step.seen.contains("waits 5 s") && !step.seen.contains("empty"), "{step}");
    }

    #[test]
    fn without_the_token_the_link_is_known_all_the_same() {
        let secret = |missing| Relay { status: Err("a token".into()), ..relay(missing, 1, 0, 0) };
        let down = judged(&secret(&["router-link"]));
        assert_eq!(down.outcome, Outcome::Failed);
        assert!(down.seen.contains("key pool is empty") && down.seen.contains("its log"), "{down}");
        let up = judged(&secret(&[]));
        assert_eq!(up.outcome, Outcome::Hint);
        assert!(up.seen.contains("not known (a token)"), "{up}");
    }

    #[test]
    fn a_configuration_that_waits_is_named() {
        let mut report = ConfigReport::default();
        let line = crate::config::report::Line {
            key: "MaxPeerCount",
            value: "50".to_owned(),
            source: "file x".to_owned(),
        };
        report.settings.push(line);
        let there = |value: &str| Relay {
            settings: vec![("MaxPeerCount".to_owned(), value.to_owned())],
            ..relay(&[], 7, 1, 2)
        };
        assert_eq!(there("50").judge(&config(&[]), &report, Site::Machine).outcome, Outcome::Ok);
        let moved = config(&[("LISTEN_PORT", "9070"), ("LISTEN_INTERFACE", "127.0.0.1")]);
        let waits = there("100").judge(&moved, &report, Site::Machine);
        assert_eq!(waits.outcome, Outcome::Hint);
        let text = waits.to_string();
        for part in [
            &*Site::Machine.reload(),
            "\"100\" there and \"50\" here (file x)",
            "listens on port 8070",
            "on ::, ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let in_pod = there("100").judge(&moved, &report, Site::Pod);
        assert!(in_pod.seen.contains("kubectl rollout restart"), "{in_pod}");
        is_for_a_pod(&in_pod.seen);
        let mut waits = there("50");
        waits.status.as_mut().unwrap()["waiting_for_restart"] = json!(["WorkerThreads"]);
        let in_pod = waits.judge(&config(&[]), &report, Site::Pod).seen;
        assert!(in_pod.contains("wait for a new pod: WorkerThreads"), "{in_pod}");
        is_for_a_pod(&in_pod);
    }

    #[test]
    fn a_relay_that_is_expected_and_absent_is_a_failure() {
        let silent = Running::Silent("cannot connect to 127.0.0.1:8071".to_owned());
        for (running, parts) in [
            (&silent, &["none answers: cannot connect to 127.0.0.1:8071", "nodeSelector"][..]),
            (&Running::Off, &["AdminListen is off"]),
        ] {
            let step = running.absence(Site::Pod).unwrap();
            assert_eq!(step.outcome, Outcome::Failed);
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
            // Where none is expected, it is none.
            let step = running.step(&config(&[]), &ConfigReport::default(), true, Site::Pod);
            assert_eq!(step.outcome, Outcome::Skipped, "{step}");
        }
        assert!(Running::Relay(Box::new(relay(&[], 7, 1, 2))).absence(Site::Pod).is_none());
    }

    #[test]
    fn an_interface_is_compared_both_ways() {
        let listening = |on: &str| {
            let mut relay = relay(&[], 7, 1, 2);
            relay.status.as_mut().unwrap()["peers"]["listen"] = on.into();
            judged(&relay)
        };
        for all in ["[::]:8070", "0.0.0.0:8070"] {
            assert_eq!(listening(all).outcome, Outcome::Ok, "{}", listening(all));
        }
        let one = listening("192.0.2.1:8070");
        assert_eq!(one.outcome, Outcome::Hint, "{one}");
        assert!(one.to_string().contains("on 192.0.2.1, ListenInterface is empty here"), "{one}");
    }

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let mut relay = relay(&[], 7, 1, 2);
        let status = relay.status.as_mut().unwrap();
        status["waiting_for_restart"] = json!([]);
        assert_eq!(judged(&relay).outcome, Outcome::Ok);
        let status = relay.status.as_mut().unwrap();
        status["waiting_for_restart"] = json!(["MetricsListen", "WorkerThreads"]);
        let step = judged(&relay);
        assert_eq!(step.outcome, Outcome::Hint, "{step}");
        assert!(step.seen.ends_with("a restart: MetricsListen, WorkerThreads"), "{step}");
    }

    #[test]
    fn the_token_is_shown_only_to_root_and_to_this_user() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8071));
        assert_eq!(may_know_token(address, Owner::Trusted, Site::Machine), Ok(()));
        let other = may_know_token(address, Owner::Other(1001), Site::Machine).unwrap_err();
        assert!(other.contains("another user, 1001, holds 127.0.0.1:8071 or names it"), "{other}");
        let unseen = may_know_token(address, Owner::Unseen, Site::Machine).unwrap_err();
        assert!(unseen.contains("cannot be seen"), "{unseen}");
    }

    #[test]
    fn a_process_that_only_hands_on_is_not_the_relay() {
        let holder = |pid, name: &str| Holder { pid, name: name.into(), arguments: Vec::new() };
        let pid = |holders: &[Holder]| {
            let relay = Relay { holders: holders.to_vec(), ..relay(&[], 7, 1, 2) };
            Running::Relay(Box::new(relay)).pid()
        };
        assert_eq!(pid(&[holder(9, "docker-proxy")]), None);
        assert_eq!(pid(&[holder(1, "systemd"), holder(7, "aspia_relay")]), Some(7));
    }

    #[test]
    fn only_a_relay_answers_so() {
        assert_eq!(missing(br#"{"ready":true,"missing":[]}"#), Some(Vec::new()));
        for other in [&b"OK"[..], b"{}", br#"{"ready":true}"#, br#"{"missing":[]}"#] {
            assert_eq!(missing(other), None);
        }
    }
}
