//! The relay that runs here, as far as it answers: above all, whether its key pool is empty, and why.

mod published;
mod relay;
mod verdict;

use std::net::SocketAddr;

use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::client;
use crate::config::Config;
use crate::config::report::ConfigReport;
use crate::config::sources::Sources;
use crate::listen::interfaces;
use crate::listen::port_holder::{self, SocketOwner};

use super::deployment::Deployment;
use super::holders;
use super::report::{DoctorStep, RUNNING_RELAY};

use published::PublishedRelay;

pub(super) use relay::InspectedRelay;

/// What answers on `AdminListen`.
pub(super) enum RelayInspection {
    /// Nothing can be asked: `AdminListen` is off.
    Off,
    /// No relay answers, for this reason.
    Silent(String),
    /// A relay.
    Relay(Box<InspectedRelay>),
}

/// Makes the step for an invalid configuration; `None` if no relay has published itself. A relay that runs has read an
/// earlier configuration.
pub(super) async fn step_without_configuration(sources: &Sources) -> Option<DoctorStep> {
    let PublishedRelay { peers, missing, .. } = PublishedRelay::find(sources, None).await?;
    let beginning = format!(
        "a relay listens on {peers}; it still runs with the configuration from before this one became invalid"
    );
    Some(match missing.as_slice() {
        [] => DoctorStep::hint(RUNNING_RELAY, format!("{beginning}, and is ready")),
        missing => DoctorStep::failed(
            RUNNING_RELAY,
            format!("{beginning}, and is not ready ({}); its log says why", missing.join(", ")),
        ),
    })
}

/// Makes the step for a relay that is expected to run, but cannot be asked because the configuration is invalid.
pub(super) fn unknown_step(deployment: Deployment) -> DoctorStep {
    let seen = format!(
        "a relay is expected here, but cannot be asked as long as the configuration is invalid. If none runs: {}",
        deployment.absent_relay_advice()
    );
    DoctorStep::failed(RUNNING_RELAY, seen)
}

impl RelayInspection {
    /// Asks the relay that `sources` describe; if none has published itself, the one at `AdminListen` of `config`.
    pub(super) async fn ask(sources: &Sources, config: &Config, deployment: Deployment) -> Self {
        let published = PublishedRelay::find(sources, Some(config)).await;
        let address = match &published {
            Some(PublishedRelay { admin: Some(admin), .. }) => *admin,
            Some(published) => return Self::Relay(Box::new(without_admin_listener(published))),
            None => match config.startup.admin_listen {
                Some(listen) => listen.local(),
                None => return Self::Off,
            },
        };
        if published.is_some() && !interfaces::is_local(address.ip()) {
            // No relay publishes such an address. Nothing elsewhere is asked because a local program names it.
            return Self::Silent(format!(
                "the running relay says that its AdminListen is {address}, which is not an address of this machine"
            ));
        }
        let missing = match client::ask(address, "/readyz", None).await {
            Ok((status, body)) => match published::parse_missing(&body) {
                Some(missing) => missing,
                None => {
                    return Self::Silent(format!(
                        "{address} answers {status} to /readyz, but not as an aspia_relay does"
                    ));
                }
            },
            Err(error) => return Self::Silent(error),
        };
        let admin = AdminClient { address, config, published: published.as_ref(), deployment };
        let settings = admin.get("/config").await.map(|config| parse_settings(&config));
        let status = admin.get("/status").await;
        Self::Relay(Box::new(InspectedRelay {
            missing,
            status,
            settings: settings.unwrap_or_default(),
            listens_on: published.map(|published| published.peers),
            holders: port_holder::find(address.port()),
        }))
    }

    /// The relay that answered.
    pub(super) fn relay(&self) -> Option<&InspectedRelay> {
        match self {
            Self::Relay(relay) => Some(relay),
            Self::Off | Self::Silent(_) => None,
        }
    }

    /// The process of the relay, if it is visible; never one that only forwards a port.
    pub(super) fn pid(&self) -> Option<i32> {
        let mut holders = self.relay()?.holders.iter();
        holders.find(|holder| holders::is_named_as_relay(holder)).map(|holder| holder.pid)
    }

    /// Why the admin listener does not tell who holds the peer port.
    pub(super) fn why_unknown(&self) -> String {
        match self {
            Self::Off => "AdminListen is off, so it cannot be asked".to_owned(),
            Self::Silent(why) => format!("its admin listener does not answer: {why}"),
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

    /// Makes the step for a relay that is expected to run, if none is known to run.
    pub(super) fn absence_step(&self, deployment: Deployment) -> Option<DoctorStep> {
        let seen = match self {
            Self::Relay(_) => return None,
            Self::Off => {
                "a relay is expected here, but cannot be asked, since AdminListen is off".to_owned()
            }
            Self::Silent(why) => format!(
                "a relay is expected here, but none answers: {why}; {}",
                deployment.absent_relay_advice()
            ),
        };
        Some(DoctorStep::failed(RUNNING_RELAY, seen))
    }

    /// Makes the step; `is_port_free` says that nobody holds the peer port.
    pub(super) fn step(
        &self,
        config: &Config,
        report: &ConfigReport,
        is_port_free: bool,
        deployment: Deployment,
    ) -> DoctorStep {
        match self {
            Self::Relay(relay) => verdict::step(relay, config, report, deployment),
            Self::Off | Self::Silent(_) if is_port_free => {
                DoctorStep::skipped(RUNNING_RELAY, "none runs here")
            }
            Self::Off => DoctorStep::skipped(
                RUNNING_RELAY,
                "not known, since AdminListen is off: with it, the doctor can say whether the key pool is empty, and why",
            ),
            Self::Silent(why) => DoctorStep::skipped(RUNNING_RELAY, format!("not known: {why}")),
        }
    }
}

/// Describes a relay that answers only on its command socket.
fn without_admin_listener(published: &PublishedRelay) -> InspectedRelay {
    let why = "AdminListen is off there: with it, the doctor can say whether the key pool is empty, and why";
    InspectedRelay {
        missing: published.missing.clone(),
        status: Err(why.to_owned()),
        settings: Vec::new(),
        listens_on: Some(published.peers),
        holders: port_holder::find(published.peers.port()),
    }
}

/// Sends requests that may need the token to the admin listener of a relay.
struct AdminClient<'a> {
    address: SocketAddr,
    config: &'a Config,
    published: Option<&'a PublishedRelay>,
    deployment: Deployment,
}

impl AdminClient<'_> {
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let token = self.config.admin_token.as_ref();
        if token.is_some() {
            let publisher = self.published.map(|published| published.owner);
            let owner = client::find_token_recipient(self.address, publisher);
            check_token_recipient(self.address, owner, self.deployment)?;
        }
        match client::ask(self.address, path, token).await? {
            (StatusCode::OK, body) => {
                serde_json::from_slice(&body).map_err(|error| format!("{path}: {error}"))
            }
            (StatusCode::UNAUTHORIZED, _) => {
                let here = if token.is_some() { "is different" } else { "is not set" };
                Err(format!("{path} needs the AdminToken of that relay, which {here} here"))
            }
            (status, _) => Err(format!("it answers {status} to {path}")),
        }
    }
}

/// Checks that the program that listens at `address` may see the token. While the relay is down, any user of this
/// machine can listen there and answer as a relay does; the name of a process proves nothing either.
fn check_token_recipient(
    address: SocketAddr,
    owner: SocketOwner,
    deployment: Deployment,
) -> Result<(), String> {
    match owner {
        SocketOwner::Trusted => Ok(()),
        SocketOwner::Other(user) => Err(format!(
            "another user, {user}, holds or has published {address}, and is not sent the AdminToken; {}",
            deployment.token_advice()
        )),
        SocketOwner::Unseen => Err(format!(
            "it is not visible who holds {address}, so the AdminToken is not sent there; {}",
            deployment.unseen_relay_advice()
        )),
    }
}

/// The keys and values of `/config`.
fn parse_settings(config: &Value) -> Vec<(String, String)> {
    let lines = config["settings"].as_array().into_iter().flatten();
    lines
        .filter_map(|line| Some((line["key"].as_str()?.into(), line["value"].as_str()?.into())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;
    use crate::doctor::report::StepOutcome;
    use crate::listen::port_holder::PortHolder;

    fn relay(holders: &[PortHolder]) -> RelayInspection {
        RelayInspection::Relay(Box::new(InspectedRelay {
            missing: Vec::new(),
            status: Err("a token".to_owned()),
            settings: Vec::new(),
            listens_on: None,
            holders: holders.to_vec(),
        }))
    }

    #[test]
    fn absence_of_an_expected_relay_is_a_failure() {
        let silent = RelayInspection::Silent("cannot connect to 127.0.0.1:8071".to_owned());
        for (running, parts) in [
            (&silent, &["none answers: cannot connect to 127.0.0.1:8071", "nodeSelector"][..]),
            (&RelayInspection::Off, &["AdminListen is off"]),
        ] {
            let step = running.absence_step(Deployment::Pod).unwrap();
            assert_eq!(step.outcome, StepOutcome::Failed);
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
            // Where none is expected, the step is skipped.
            let step = running.step(&config(&[]), &ConfigReport::default(), true, Deployment::Pod);
            assert_eq!(step.outcome, StepOutcome::Skipped, "{step}");
        }
        assert!(relay(&[]).absence_step(Deployment::Pod).is_none());
    }

    #[test]
    fn token_is_sent_only_to_root_and_this_user() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8071));
        assert_eq!(
            check_token_recipient(address, SocketOwner::Trusted, Deployment::Machine),
            Ok(())
        );
        let other = check_token_recipient(address, SocketOwner::Other(1001), Deployment::Machine)
            .unwrap_err();
        assert!(
            other.contains("another user, 1001, holds or has published 127.0.0.1:8071"),
            "{other}"
        );
        let unseen =
            check_token_recipient(address, SocketOwner::Unseen, Deployment::Machine).unwrap_err();
        assert!(unseen.contains("not visible"), "{unseen}");
    }

    #[test]
    fn forwarding_process_is_not_the_relay() {
        let holder = |pid, name: &str| PortHolder { pid, name: name.into(), arguments: Vec::new() };
        assert_eq!(relay(&[holder(9, "docker-proxy")]).pid(), None);
        assert_eq!(relay(&[holder(1, "systemd"), holder(7, "aspia_relay")]).pid(), Some(7));
    }
}
