//! Asks the descriptor store, and judges its answers.

use std::time::Duration;

use procfs::process::Process;

use crate::admin::status::FdStoreStatus;
use crate::config::Config;
use crate::doctor::report::{DoctorStep, FD_STORE};
use crate::doctor::running::RelayInspection;
use crate::fd_store::address::StoreAddress;
use crate::fd_store::client::{StoreClient, StoreStatus};
use crate::fd_store::error::{StoreError, StoreOwner};
use crate::open_files;

/// How long the store may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn check(
    address: &StoreAddress,
    config: &Config,
    relay_process: Option<i32>,
    running: &RelayInspection,
) -> Vec<DoctorStep> {
    let (there, token) = (address.clone(), config.admin_token.clone());
    // Every exchange with the store has a time limit of its own.
    let asked = tokio::task::spawn_blocking(move || {
        let token = token.as_ref().map(|token| token.secret());
        StoreAnswers::ask(&there, || StoreClient::connect(&there, token, TIMEOUT))
    });
    let answers = match asked.await {
        Ok(answers) => answers,
        Err(error) => return vec![DoctorStep::failed(FD_STORE, error.to_string())],
    };
    let relay = RelayFacts {
        process: relay_process,
        user: relay_process.and_then(user_of),
        store: running.relay().and_then(|relay| Some(relay.status.as_ref().ok()?.fd_store.clone())),
    };
    judge(address, config, &answers, &relay)
}

/// The user of a process, if it is visible.
fn user_of(process: i32) -> Option<u32> {
    Process::new(process).ok()?.uid().ok()
}

/// What the store answered.
struct StoreAnswers {
    /// Why this process could not use the store as a relay does.
    refusal: Option<StoreError>,
    /// What the store says about itself, if it says anything.
    status: Option<StoreStatus>,
}

impl StoreAnswers {
    /// Asks the store. Root, who may use only a store of root, may still ask another for its status.
    fn ask(
        address: &StoreAddress,
        connect: impl FnOnce() -> Result<StoreClient, StoreError>,
    ) -> Self {
        match connect().and_then(|mut client| client.status()) {
            Ok(status) => Self { refusal: None, status: Some(status) },
            Err(refusal @ (StoreError::Connect { .. } | StoreError::TimedOut(_))) => {
                Self { refusal: Some(refusal), status: None }
            }
            Err(refusal) => Self {
                refusal: Some(refusal),
                status: StoreClient::query_status(address, TIMEOUT).ok(),
            },
        }
    }
}

/// What is known about the relay that runs here.
#[derive(Default)]
struct RelayFacts {
    /// Its process.
    process: Option<i32>,
    /// The user of that process.
    user: Option<u32>,
    /// What it says about its store.
    store: Option<FdStoreStatus>,
}

/// Makes the steps from what is known.
fn judge(
    address: &StoreAddress,
    config: &Config,
    answers: &StoreAnswers,
    relay: &RelayFacts,
) -> Vec<DoctorStep> {
    let mut steps = Vec::new();
    let mut details = Vec::new();
    match (&answers.refusal, &answers.status) {
        (None, _) => {}
        // Only root gets an answer from a store of another user.
        (Some(StoreError::OtherUser { theirs, .. }), Some(_)) => {
            details.extend(judge_user(*theirs, relay, &mut steps));
        }
        (Some(refusal), _) => steps.push(DoctorStep::failed(FD_STORE, refusal.to_string())),
    }
    if let Some(status) = &answers.status {
        judge_status(status, config, &mut steps);
        steps.extend(judge_owner(status.owner.as_ref(), relay));
        let summary = DoctorStep::ok(FD_STORE, summarise(address, status));
        steps.insert(0, DoctorStep { details, ..summary });
    }
    steps
}

/// Judges whether the store of user `theirs`, whom only root sees, is that of the relay's user.
fn judge_user(theirs: u32, relay: &RelayFacts, steps: &mut Vec<DoctorStep>) -> Option<String> {
    match relay.user {
        Some(user) if user != theirs => {
            let seen = format!(
                "it belongs to the user with id {theirs}, but the relay runs as {user} and does not use it: run both \
                 as the same user"
            );
            steps.push(DoctorStep::failed(FD_STORE, seen));
            None
        }
        _ => Some(format!(
            "it belongs to the user with id {theirs}; only a doctor of that user can tell whether the AdminToken is right"
        )),
    }
}

fn judge_status(status: &StoreStatus, config: &Config, steps: &mut Vec<DoctorStep>) {
    let needed = open_files::needed_in_store(config);
    if status.max_descriptors < needed {
        let seen = format!(
            "it can keep {} descriptors, but MaxPeerCount {} and MaxPendingPeers {} need {needed}: the sessions beyond \
             that end with the relay. {} of the store",
            status.max_descriptors,
            config.max_sessions,
            config.max_pending_peers,
            open_files::REMEDY
        );
        steps.push(DoctorStep::failed(FD_STORE, seen));
    }
    let (there, here) = (status.timeout, config.startup.fd_store_timeout);
    if there != here {
        let seen = format!(
            "it keeps connections for {} without a relay, FdStoreTimeout is {} here: a restart of the store applies that",
            humantime::format_duration(there),
            humantime::format_duration(here)
        );
        steps.push(DoctorStep::hint(FD_STORE, seen));
    }
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let seen = format!(
            "it is version {}, this program is {own}: that works, since they understand each other; a restart of the \
             store updates it",
            status.version
        );
        steps.push(DoctorStep::hint(FD_STORE, seen));
    }
}

/// Judges whether the relay that runs here owns the store.
fn judge_owner(owner: Option<&StoreOwner>, relay: &RelayFacts) -> Option<DoctorStep> {
    match &relay.store {
        Some(store) if !store.configured => {
            let seen = "the relay that runs here does not use it, since it was started with FdStore off: its sessions \
                        end when it stops, and the next relay uses the store";
            return Some(DoctorStep::hint(FD_STORE, seen));
        }
        Some(store) if !store.connected => {
            let error = store.last_error.as_ref();
            let why = error.map_or("it says no reason", |error| &error.message);
            let seen = format!(
                "the relay that runs here does not use it, so its sessions end when it stops: {why}"
            );
            return Some(DoctorStep::failed(FD_STORE, seen));
        }
        _ => {}
    }
    // Process ids of another container mean nothing here.
    let (owner, process) = (owner?.process?, relay.process?);
    let is_same = u32::try_from(process).is_ok_and(|process| process == owner);
    (!is_same).then(|| {
        let seen = format!(
            "process {owner} owns it, not the relay that runs here (process {process}): each relay needs an FdStore of \
             its own"
        );
        DoctorStep::failed(FD_STORE, seen)
    })
}

fn summarise(address: &StoreAddress, status: &StoreStatus) -> String {
    let owner = match (&status.owner, status.expires_in) {
        (Some(owner), _) => format!("owned by {owner}"),
        (None, Some(left)) if status.entries > 0 => {
            format!("waiting for a relay for another {} s", left.as_secs())
        }
        (None, _) => "no relay uses it".to_owned(),
    };
    let StoreStatus { entries, descriptors, max_descriptors, .. } = status;
    format!(
        "{address} answers; {owner}; it keeps {entries} entries with {descriptors} of at most {max_descriptors} \
         descriptors, without a relay for {}",
        humantime::format_duration(status.timeout)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::LastError;
    use crate::config::testing::config;
    use crate::doctor::report::StepOutcome;

    const RELAY: u32 = 41;

    fn status() -> StoreStatus {
        StoreStatus {
            entries: 9,
            descriptors: 14,
            max_descriptors: 100_000,
            owner: Some(StoreOwner {
                process: Some(RELAY),
                since: Duration::from_secs(7),
                is_connected: true,
            }),
            is_committed: false,
            timeout: Duration::from_secs(60),
            expires_in: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn using() -> RelayFacts {
        RelayFacts {
            process: Some(41),
            user: Some(998),
            store: Some(FdStoreStatus {
                configured: true,
                connected: true,
                sessions_kept: Some(7),
                ..FdStoreStatus::default()
            }),
        }
    }

    fn judged(
        refusal: Option<StoreError>,
        status: Option<StoreStatus>,
        relay: &RelayFacts,
    ) -> Vec<DoctorStep> {
        let config = config(&[("FD_STORE", "@store"), ("MAX_PEER_COUNT", "1000")]);
        judge(&"@store".parse().unwrap(), &config, &StoreAnswers { refusal, status }, relay)
    }

    /// The only step that is not good.
    fn finding(steps: &[DoctorStep], outcome: StepOutcome, part: &str) {
        let found: Vec<_> = steps.iter().filter(|step| step.outcome != StepOutcome::Ok).collect();
        assert_eq!(found.len(), 1, "{steps:#?}");
        assert_eq!(found[0].outcome, outcome, "{steps:#?}");
        assert!(found[0].seen.contains(part), "{part}: {steps:#?}");
    }

    #[test]
    fn a_store_in_use_is_described() {
        let steps = judged(None, Some(status()), &using());
        assert_eq!(steps.len(), 1, "{steps:#?}");
        assert_eq!(steps[0].outcome, StepOutcome::Ok);
        for part in ["@store answers", "process 41", "9 entries", "14 of at most 100000", "1m"] {
            assert!(steps[0].seen.contains(part), "{part}: {}", steps[0]);
        }
        let waiting = StoreStatus {
            owner: None,
            expires_in: Some(Duration::from_secs(42)),
            is_committed: true,
            ..status()
        };
        let steps = judged(None, Some(waiting), &RelayFacts::default());
        assert!(steps[0].seen.contains("waiting for a relay for another 42 s"), "{}", steps[0]);
    }

    #[test]
    fn a_store_that_cannot_be_used_is_a_failure() {
        let timed_out = || StoreError::TimedOut(Duration::from_secs(2));
        finding(&judged(Some(timed_out()), None, &using()), StepOutcome::Failed, "hangs");
        let steps = judged(Some(StoreError::TokenDiffers), Some(status()), &using());
        finding(&steps, StepOutcome::Failed, "another AdminToken");
        let refused = StoreError::UserRefused { store: 998 };
        finding(&judged(Some(refused), None, &using()), StepOutcome::Failed, "998");
    }

    #[test]
    fn root_sees_whether_the_store_belongs_to_the_user_of_the_relay() {
        let other =
            |theirs| StoreError::OtherUser { address: "@store".parse().unwrap(), theirs, ours: 0 };
        let steps = judged(Some(other(998)), Some(status()), &using());
        assert_eq!(steps.len(), 1, "{steps:#?}");
        assert!(steps[0].details[0].contains("AdminToken"), "{}", steps[0]);
        let steps = judged(Some(other(1001)), Some(status()), &using());
        finding(&steps, StepOutcome::Failed, "1001, but the relay runs as 998");
    }

    #[test]
    fn a_store_that_does_not_fit_the_settings_is_reported() {
        let small = StoreStatus { max_descriptors: 1024, ..status() };
        let steps = judged(None, Some(small), &using());
        finding(&steps, StepOutcome::Failed, "can keep 1024 descriptors, but MaxPeerCount 1000");
        let other = StoreStatus { timeout: Duration::from_secs(300), ..status() };
        let steps = judged(None, Some(other), &using());
        finding(&steps, StepOutcome::Hint, "5m without a relay, FdStoreTimeout is 1m");
        let old = StoreStatus { version: "0.0.1".to_owned(), ..status() };
        finding(&judged(None, Some(old), &using()), StepOutcome::Hint, "version 0.0.1");
    }

    #[test]
    fn a_relay_that_does_not_use_the_store_is_reported() {
        let mut relay = using();
        relay.process = Some(42);
        let steps = judged(None, Some(status()), &relay);
        finding(&steps, StepOutcome::Failed, "process 41 owns it");
        let free = StoreStatus { owner: None, ..status() };
        relay.store = Some(FdStoreStatus {
            configured: true,
            last_error: Some(LastError { at: None, message: "refused".to_owned() }),
            ..FdStoreStatus::default()
        });
        let steps = judged(None, Some(free.clone()), &relay);
        finding(&steps, StepOutcome::Failed, "end when it stops: refused");
        relay.store = Some(FdStoreStatus::default());
        finding(&judged(None, Some(free), &relay), StepOutcome::Hint, "started with FdStore off");
    }
}
