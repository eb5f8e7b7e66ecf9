//! Serves the requests of signals and service managers to stop and to reload, and reports to the service manager.

use tokio::sync::mpsc::Receiver;
use tracing::info;

use crate::handle::{Handle, StopStep};
#[cfg(windows)]
use crate::service::control as service_manager;
use crate::signals::ControlRequest;
#[cfg(unix)]
use crate::systemd as service_manager;

/// Serves requests and reports to the service manager until the future is dropped.
pub(super) async fn serve(handle: Handle, mut requests: Receiver<ControlRequest>) {
    let receiving = async {
        while let Some(request) = requests.recv().await {
            match request {
                ControlRequest::Stop(origin) => stop(&handle, origin),
                ControlRequest::Reload(origin) => handle.request_reload(origin),
            }
        }
    };
    tokio::join!(receiving, service_manager::report(handle.clone()));
}

fn stop(handle: &Handle, origin: &str) {
    match handle.stop_by_signal() {
        StopStep::HandOver => info!("{origin}: handing over to the descriptor store"),
        StopStep::Drain => info!("{origin}: stopping"),
        StopStep::ContinueDrain => {
            info!("{origin}: the stop that an administrator asked for continues");
        }
        StopStep::AtOnce => info!("{origin}: stopping at once"),
    }
}
