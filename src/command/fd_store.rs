//! `--fd-store`: runs the descriptor store; `--healthcheck --fd-store`: asks it whether it works.

#[cfg(target_os = "linux")]
pub(super) use linux::{check, run};
#[cfg(not(target_os = "linux"))]
pub(super) use other::{check, run};

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use parking_lot::Mutex;
    use sd_notify::NotifyState;
    use tracing::{info, warn};

    use crate::bootstrap;
    use crate::config::report::ConfigReport;
    use crate::config::sources::Sources;
    use crate::config::{self, StoreConfig};
    use crate::exit::{self, ExitError, ExitResult};
    use crate::fd_store::client::{StoreClient, StoreStatus};
    use crate::fd_store::server::DescriptorStore;
    use crate::fd_store::settings::{AbandonmentHandler, StoreSettings, TokenSource};
    use crate::handover::abandoned;
    use crate::log::{self, LogSettings};
    use crate::secret::Secret;
    use crate::signals;

    /// The age of settings that are read again before they are used.
    const MAX_AGE: Duration = Duration::from_secs(1);
    /// How long the store may take to answer a health check.
    const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

    pub(in crate::command) fn run(sources: &Sources) -> ExitResult {
        // First of all: process 1 of a container would ignore SIGTERM until then.
        let stop = signals::stop_descriptor().map_err(|error| {
            ExitError::failure(format_args!("cannot listen for signals: {error}"))
        })?;
        let log_settings = LogSettings::from_environment(&sources.environment);
        let guard = log_settings.start(None).map_err(ExitError::failure)?;
        bootstrap::finish_log(serve(sources, stop.as_fd()), &log_settings, guard)
    }

    fn serve(sources: &Sources, stop: std::os::fd::BorrowedFd<'_>) -> ExitResult {
        let config = load(sources, None)?;
        let StoreConfig { address, timeout, .. } = config.clone();
        let shown = address.to_string();
        let has_token = config.token.is_some();
        let current = Arc::new(Mutex::new(CurrentSettings::new(sources.clone(), config)));
        let of_token = current.clone();
        let token: TokenSource = Box::new(move || of_token.lock().token());
        let on_abandonment: AbandonmentHandler =
            Box::new(move |entry| abandoned::log(entry, current.lock().is_identity_logged()));
        let store =
            DescriptorStore::bind(StoreSettings { address, token, timeout, on_abandonment });
        let store = store.map_err(ExitError::failure)?;
        info!(
            target: log::START,
            "descriptor store {} listens at {shown}: it keeps up to {} descriptors, for {} without a relay; AdminToken is {}",
            env!("CARGO_PKG_VERSION"),
            store.status().max_descriptors,
            humantime::format_duration(timeout),
            if has_token { "set" } else { "not set" },
        );
        let mut manager = ServiceManager { is_lost: std::env::var_os("NOTIFY_SOCKET").is_none() };
        let mut report = |status: &StoreStatus| {
            let line = describe(status);
            manager.notify(&[NotifyState::Ready, NotifyState::Status(&line)]);
        };
        let result = store.run(stop, &mut report);
        manager.notify(&[NotifyState::Stopping]);
        info!("the descriptor store has stopped");
        result.map_err(|error| ExitError::failure(format_args!("the store failed: {error}")))
    }

    /// What a relay applies without a restart, and so the store, too. Settings that cannot be used change nothing, which is
    /// logged once for each reason: any process of this user can cause it.
    struct CurrentSettings {
        sources: Sources,
        config: StoreConfig,
        read: Instant,
        logged: Option<String>,
    }

    impl CurrentSettings {
        fn new(sources: Sources, config: StoreConfig) -> Self {
            Self { sources, config, read: Instant::now(), logged: None }
        }

        /// `AdminToken`, read again each time.
        fn token(&mut self) -> Option<Arc<Secret<String>>> {
            self.read_again();
            self.config.token.as_ref().map(|token| Arc::new(Secret::new(token.expose().to_owned())))
        }

        /// `LogPeerIdentity`, read again once for the many sessions that a store gives up at the same time.
        fn is_identity_logged(&mut self) -> bool {
            if self.read.elapsed() > MAX_AGE {
                self.read_again();
            }
            self.config.log_peer_identity
        }

        fn read_again(&mut self) {
            self.read = Instant::now();
            match load(&self.sources, Some(&self.config.report)) {
                Ok(StoreConfig { token, log_peer_identity, .. }) => {
                    (self.config.token, self.config.log_peer_identity) = (token, log_peer_identity);
                    self.logged = None;
                }
                Err(error) if self.logged.as_ref() != Some(&error.message) => {
                    warn!("AdminToken and LogPeerIdentity stay as they were: {}", error.message);
                    self.logged = Some(error.message);
                }
                Err(_) => {}
            }
        }
    }

    fn load(sources: &Sources, in_force: Option<&ConfigReport>) -> Result<StoreConfig, ExitError> {
        config::load_store_config(sources, in_force)
            .map_err(|invalid| ExitError::configuration(invalid.describe()))
    }

    pub(in crate::command) fn check(sources: &Sources) -> ExitResult {
        let address = load(sources, None)?.address;
        let status = StoreClient::query_status(&address, HEALTH_TIMEOUT);
        status.map(drop).map_err(ExitError::failure)
    }

    /// The status line.
    fn describe(status: &StoreStatus) -> String {
        let StoreStatus { entries, descriptors, owner, .. } = status;
        let owner = match owner {
            Some(owner) if owner.is_connected => "a relay is connected",
            Some(_) => "the relay has lost its connection",
            None if *entries > 0 => "waiting for the next relay",
            None => "no relay is connected",
        };
        format!("{entries} entries with {descriptors} descriptors; {owner}")
    }

    /// The service manager, unless it has stopped reading: then notifying it would only hold up the store.
    struct ServiceManager {
        is_lost: bool,
    }

    impl ServiceManager {
        fn notify(&mut self, states: &[NotifyState<'_>]) {
            if self.is_lost {
                return;
            }
            let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            let send = move || sd_notify::notify(&[NotifyState::Custom(&message)]);
            match exit::run_with_timeout(send) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
                }
                None => {
                    warn!("the service manager does not read notifications; it gets no more");
                    self.is_lost = true;
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use crate::config::sources::Sources;
    use crate::exit::{ExitError, ExitResult};

    pub(in crate::command) fn run(_sources: &Sources) -> ExitResult {
        Err(ExitError::usage("the descriptor store (--fd-store) exists only on Linux"))
    }

    pub(in crate::command) fn check(sources: &Sources) -> ExitResult {
        run(sources)
    }
}
