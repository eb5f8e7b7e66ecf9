//! The Windows service, from `--install` to `--remove`, with a session through it in between. The test changes the machine
//! that it runs on, so it runs only on request: `tests/windows/run service` does so under Wine, as an
//! administrator would on Windows.
#![cfg(windows)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aspia_relay::config::sources::DEFAULT_PATH;
use aspia_relay::service::{ACCOUNT, DISPLAY_NAME, NAME, log_directory};
use relay_lab::router::{LabRouter, Options};
use relay_lab::traffic;
use tokio::io::AsyncWriteExt;
use windows_service::service::{
    Service, ServiceAccess, ServiceActionType, ServiceExitCode, ServiceStartType, ServiceState,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the program with an argument and returns its exit status and output.
fn program(argument: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_aspia_relay")).arg(argument).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn open(access: ServiceAccess) -> Service {
    let manager =
        ServiceManager::local_computer(None::<&OsStr>, ServiceManagerAccess::CONNECT).unwrap();
    manager.open_service(NAME, access).unwrap()
}

/// Waits until the service is in this state.
fn wait_for(service: &Service, state: ServiceState) {
    let began = Instant::now();
    loop {
        let status = service.query_status().unwrap();
        if status.current_state == state {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The content of all log files of the service.
fn log() -> String {
    let files = std::fs::read_dir(log_directory()).unwrap();
    let text = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.unwrap().path()).unwrap()
    };
    files.map(text).collect()
}

/// Tells the service to read its configuration again, as `sc control aspia-relay paramchange` does.
fn paramchange(service: &Service) {
    use windows_sys::Win32::System::Services::{
        ControlService, SERVICE_CONTROL_PARAMCHANGE, SERVICE_STATUS,
    };

    let mut status = SERVICE_STATUS::default();
    // SAFETY: the handle is open as long as `service` is there; `status` can be written.
    #[expect(unsafe_code, reason = "`windows-service` cannot send it")]
    let sent = unsafe {
        ControlService(service.raw_handle(), SERVICE_CONTROL_PARAMCHANGE, &raw mut status)
    };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());
}

fn write_configuration(router: &LabRouter, port: u16, sessions: u16) {
    let settings = serde_json::json!({
        "RouterAddress": router.address().ip().to_string(),
        "RouterPort": router.address().port().to_string(),
        "RouterPublicKey": router.public_key().to_string(),
        "PeerAddress": "127.0.0.1",
        "PeerPort": port.to_string(),
        "ListenInterface": "127.0.0.1",
        "MaxPeerCount": sessions.to_string(),
        "AdminListen": "off",
        "DrainTimeout": "60s",
    });
    std::fs::write(DEFAULT_PATH, settings.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "installs the service on this machine"]
async fn service_can_be_installed_run_reloaded_stopped_and_removed() {
    assert!(!Path::new(DEFAULT_PATH).exists(), "{DEFAULT_PATH} exists already");

    // Nothing is installed yet.
    for argument in ["--remove", "--start", "--stop"] {
        let (status, said) = program(argument);
        assert_eq!(status, 1, "{said}");
        assert!(said.contains("not installed") && said.contains("--install"), "{argument}: {said}");
    }

    let (status, said) = program("--install");
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("--create-config") && said.contains(DEFAULT_PATH), "{said}");
    assert!(log_directory().is_dir());
    let (status, said) = program("--install");
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("already installed and runs") && said.contains("aspia_relay.exe"),
        "{said}"
    );

    let service = open(ServiceAccess::ALL_ACCESS);
    let config = service.query_config().unwrap();
    assert_eq!(config.display_name, DISPLAY_NAME);
    assert_eq!(config.start_type, ServiceStartType::AutoStart);
    assert_eq!(config.account_name.as_deref(), Some(OsStr::new(ACCOUNT)));
    if let Ok(failures) = service.get_failure_actions() {
        let actions = failures.actions.unwrap_or_default();
        // Wine keeps no failure actions.
        assert!(actions.iter().all(|action| action.action_type == ServiceActionType::Restart));
    }

    // Without a configuration, the service stops, and the program, the service manager and the log all say why.
    let (status, said) = program("--start");
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("78") && said.contains("--check-config"), "{said}");
    let ended = service.query_status().unwrap();
    assert_eq!(ended.current_state, ServiceState::Stopped);
    assert_eq!(ended.exit_code, ServiceExitCode::ServiceSpecific(78));
    assert!(log().contains("RouterPublicKey"), "{}", log());

    // With a configuration it runs.
    let router = LabRouter::start(Options::default()).await.unwrap();
    let port = relay_lab::port::free_port().unwrap();
    write_configuration(&router, port, 10);
    for _ in 0..2 {
        let (status, said) = program("--start");
        assert_eq!((status, said.contains("runs")), (0, true), "{said}");
    }
    router.keys(10).await;
    let (status, said) = program("--remove");
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("--stop"), "{said}");

    // Peers have a session through it.
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    let length = 8 * 1024 * 1024;
    let there = traffic::send(&mut client, 1, length);
    let (sent, received) = tokio::join!(there, traffic::receive(&mut host, Some(length)));
    sent.unwrap();
    assert_eq!(received.unwrap(), (length, traffic::hash(1, length)));

    // It reads its configuration again, and the session continues.
    write_configuration(&router, port, 20);
    paramchange(&service);
    router.keys(19).await;

    // It stops when the last session has ended, and until then keeps telling the service manager that a stop is pending.
    let stop = tokio::task::spawn_blocking(|| program("--stop"));
    tokio::task::block_in_place(|| wait_for(&service, ServiceState::StopPending));
    assert!(service.query_status().unwrap().wait_hint > Duration::from_secs(10));
    router.wait_for(|view| !view.linked).await;
    traffic::send(&mut host, 2, 1000).await.unwrap();
    let received = traffic::receive(&mut client, Some(1000)).await.unwrap();
    assert_eq!(received, (1000, traffic::hash(2, 1000)));
    assert_eq!(service.query_status().unwrap().current_state, ServiceState::StopPending);
    client.shutdown().await.unwrap();
    host.shutdown().await.unwrap();
    let (status, said) = stop.await.unwrap();
    assert_eq!((status, said.contains("is stopped")), (0, true), "{said}");
    let stopped = service.query_status().unwrap();
    assert_eq!(stopped.exit_code, ServiceExitCode::NO_ERROR);
    let (status, said) = program("--stop");
    assert_eq!((status, said.contains("is stopped")), (0, true), "{said}");

    // The configuration and the log files remain.
    drop(service);
    let (status, said) = program("--remove");
    assert_eq!(status, 0, "{said}");
    let (status, said) = program("--remove");
    assert_eq!((status, said.contains("not installed")), (1, true), "{said}");
    assert!(Path::new(DEFAULT_PATH).exists() && !log().is_empty());
    std::fs::remove_file(DEFAULT_PATH).unwrap();
}
