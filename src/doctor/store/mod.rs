//! The descriptor store: whether it can be reached and used, and whether it fits the settings. Asking it for its status
//! needs no lease, so a running relay is not disturbed.

#[cfg(target_os = "linux")]
mod linux;

use crate::config::Config;
use crate::doctor::deployment::Deployment;
use crate::doctor::report::{DoctorStep, FD_STORE};
use crate::doctor::running::RelayInspection;
use crate::fd_store::address::StoreAddress;

/// Makes the steps about the descriptor store.
pub(super) async fn check(
    config: &Config,
    relay_process: Option<i32>,
    running: &RelayInspection,
    deployment: Deployment,
) -> Vec<DoctorStep> {
    let address = config.startup.fd_store.clone().or_else(|| address_of(running));
    match &address {
        None => vec![DoctorStep::skipped(FD_STORE, describe_off(config, deployment))],
        #[cfg(target_os = "linux")]
        Some(address) => linux::check(address, config, relay_process, running).await,
        // A configuration that names a store is invalid there.
        #[cfg(not(target_os = "linux"))]
        Some(address) => {
            let _ = (relay_process, running);
            vec![DoctorStep::failed(FD_STORE, format!("{address} exists only on Linux"))]
        }
    }
}

/// Returns the address of the store that the running relay uses. Its unit may set `FdStore`, which the doctor does not read.
fn address_of(running: &RelayInspection) -> Option<StoreAddress> {
    let status = running.relay()?.status.as_ref().ok()?;
    status.fd_store.address.as_ref()?.parse().ok()
}

/// Says what no store means, and how to get one.
fn describe_off(config: &Config, deployment: Deployment) -> String {
    let off = "off: sessions end when the relay stops";
    match deployment {
        _ if !cfg!(target_os = "linux") => {
            format!("{off} (the descriptor store exists only on Linux)")
        }
        Deployment::Machine => format!(
            "{off}, unless its unit sets FdStore, which is not read here (systemctl show --property Environment aspia-relay). \
             To keep them, run aspia_relay --fd-store beside the relay, with FdStore set to {} for both",
            StoreAddress::of_relay(config.startup.listen_port)
        ),
        Deployment::Pod => format!("{off} (FdStore is not set)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::Status;
    use crate::config::testing::config;
    use crate::doctor::running::InspectedRelay;
    use crate::doctor::testing::status;

    #[test]
    fn store_that_only_the_relay_knows_is_found() {
        let found = |status: Result<Status, String>| {
            let relay = InspectedRelay {
                missing: Vec::new(),
                status,
                settings: Vec::new(),
                listens_on: None,
                holders: Vec::new(),
            };
            address_of(&RelayInspection::Relay(Box::new(relay))).map(|it| it.to_string())
        };
        let mut uses_a_store = status();
        uses_a_store.fd_store.address = Some("@store".to_owned());
        assert_eq!(found(Ok(uses_a_store)), Some("@store".to_owned()));
        assert_eq!(found(Ok(status())), None);
        assert_eq!(found(Err("a token".to_owned())), None);
    }

    #[test]
    fn a_store_that_is_off_is_explained() {
        let config = config(&[("LISTEN_PORT", "9070")]);
        let here = describe_off(&config, Deployment::Machine);
        assert!(here.starts_with("off: sessions end"), "{here}");
        assert_eq!(here.contains("@aspia-relay-9070"), cfg!(target_os = "linux"), "{here}");
        // A unit may set it for the relay alone.
        assert_eq!(here.contains("systemctl show"), cfg!(target_os = "linux"), "{here}");
        let in_pod = describe_off(&config, Deployment::Pod);
        crate::doctor::deployment::tests::assert_fits_pod(&in_pod);
    }
}
