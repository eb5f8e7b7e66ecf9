//! Reloads: over HTTP, and by the watch on the files that settings come from.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aspia_relay::config::sources::Sources;
use relay_lab::http::{Answer, get, request};
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::router::{LabRouter, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than it takes until a changed file is read.
const LONG: Duration = Duration::from_secs(60);
const METRIC: &str = "aspia_relay_config_last_reload_successful";

/// A Router and a relay that reads its settings from files.
struct FileLab {
    directory: TempDir,
    lab: Lab,
    /// The settings that the relay cannot do without.
    required: Value,
}

/// The members of one JSON object and of another, which wins.
fn merged(object: &Value, more: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

impl FileLab {
    /// Starts them with these settings, and variables that name files in the directory.
    async fn start(settings: &Value, variables: &[(&str, &str)]) -> Self {
        Self::start_prepared(settings, variables, |directory, content| {
            std::fs::write(directory.join("relay.json"), content).unwrap();
        })
        .await
    }

    /// The same with files that `prepare` makes from the content of `relay.json`.
    async fn start_prepared(
        settings: &Value,
        variables: &[(&str, &str)],
        prepare: impl FnOnce(&Path, &str),
    ) -> Self {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let required = json!({
            "RouterAddress": "127.0.0.1",
            "RouterPort": router.address().port(),
            "RouterPublicKey": router.public_key().to_string(),
            "PeerAddress": "127.0.0.1",
            "OfferByLoad": "false",
            "PeerPort": listener.local_addr().unwrap().port(),
            "ListenInterface": "127.0.0.1",
            "AdminListen": "off",
            "MaxPeerCount": 5,
        });
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path(), &merged(&required, settings).to_string());
        let path = |name: &str| directory.path().join(name);
        let environment = variables
            .iter()
            .map(|(name, file)| ((*name).to_owned(), path(file).display().to_string()));
        let sources = Sources {
            path: path("relay.json"),
            is_path_explicit: true,
            environment: environment.collect(),
        };
        let relay = Relay::start_from(&sources, listener).unwrap();
        let lab = Lab { router, relay };
        lab.router.wait_for(|view| !view.pool.is_empty()).await;
        Self { directory, lab, required }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn content(&self, settings: &Value) -> String {
        merged(&self.required, settings).to_string()
    }

    /// Replaces `relay.json` as editors and tools do: by renaming another file.
    fn replace(&self, content: impl AsRef<[u8]>) {
        std::fs::write(self.path("new"), content).unwrap();
        std::fs::rename(self.path("new"), self.path("relay.json")).unwrap();
    }

    fn set(&self, settings: &Value) {
        self.replace(self.content(settings));
    }

    async fn reload(&self) -> Answer {
        request(self.lab.relay.admin(), "POST /reload", &[], "").await.unwrap()
    }

    async fn status(&self) -> Value {
        get(self.lab.relay.admin(), "/status").await.unwrap().json()
    }

    /// Whether the metric says that the configuration that was read last was accepted; `/status` must agree.
    async fn is_accepted(&self) -> bool {
        let metrics = get(self.lab.relay.metrics(), "/metrics").await.unwrap().body;
        let line = metrics.lines().find(|line| line.starts_with(METRIC)).unwrap().to_owned();
        let accepted = line.ends_with(" 1");
        let status = self.status().await["config"].clone();
        assert_eq!(status["last_reload_successful"], accepted, "{status}");
        assert_eq!(status["last_error"].is_null(), accepted, "{status}");
        accepted
    }

    async fn until_accepted(&self, accepted: bool) {
        for _ in 0..120 {
            if self.status().await["config"]["last_reload_successful"] == accepted {
                assert_eq!(self.is_accepted().await, accepted);
                return;
            }
            sleep(SECOND).await;
        }
        panic!("{}", self.status().await);
    }

    /// Waits until the relay offers this many keys, which it does if `MaxPeerCount` says so.
    async fn until_keys(&self, count: usize) {
        self.lab.router.wait_for(|view| view.pool.len() == count).await;
    }
}

#[tokio::test(start_paused = true)]
async fn reload_over_http_says_what_changed_and_what_waits() {
    let lab = FileLab::start(&json!({}), &[]).await;
    let same = lab.reload().await;
    assert_eq!(same.status, 200);
    let answer = same.json();
    for empty in ["changed", "with_new_link", "waiting_for_restart"] {
        assert_eq!(answer[empty], json!([]), "{answer}");
    }
    let warnings = answer["warnings"].as_array().unwrap();
    assert!(warnings[0].as_str().unwrap().contains("loopback"), "{answer}");
    lab.set(&json!({
        "MaxPeerCount": 7, "DisplayName": "new", "WorkerThreads": 3, "StatisticsInterval": 61,
    }));
    let answer = lab.reload().await.json();
    let changed = json!(["MaxPeerCount", "StatisticsInterval", "DisplayName"]);
    assert_eq!(answer["changed"], changed);
    assert_eq!(answer["with_new_link"], json!(["DisplayName"]));
    assert_eq!(answer["waiting_for_restart"], json!(["WorkerThreads"]));
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("StatisticsInterval"), "{warnings}");
    lab.until_keys(7).await;
    // What waits is still named when nothing has changed since.
    let again = lab.reload().await.json();
    assert_eq!(again["changed"], json!([]));
    assert_eq!(again["waiting_for_restart"], json!(["WorkerThreads"]));
}

#[tokio::test(start_paused = true)]
async fn reload_over_http_lists_all_problems_and_shows_no_secret() {
    let lab = FileLab::start(&json!({}), &[]).await;
    assert!(lab.is_accepted().await);
    lab.set(&json!({ "MaxPeerCount": "many", "PeerIdleTimeout": 0, "AdminToken": "hush hush" }));
    let answer = lab.reload().await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(!answer.body.contains("hush"), "{}", answer.body);
    let details = answer.json();
    assert_eq!((&details["status"], &details["type"]), (&json!(422), &json!("about:blank")));
    let problems = details["problems"].as_array().unwrap();
    let keys: Vec<_> = problems.iter().map(|problem| problem["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["PeerIdleTimeout", "MaxPeerCount", "AdminToken"]);
    assert_eq!(problems[1]["value"], "many");
    for part in ["source", "expected", "message"] {
        assert!(!problems[1][part].as_str().unwrap().is_empty(), "{details}");
    }
    assert!(details["detail"].as_str().unwrap().contains("nothing is changed"), "{details}");
    // Nothing has changed, and everybody can see why.
    assert!(!lab.is_accepted().await);
    let status = lab.status().await;
    assert_eq!(status["sessions"]["limit"], 5);
    let message = status["config"]["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("MaxPeerCount = \"many\""), "{message}");
    lab.set(&json!({}));
    assert_eq!(lab.reload().await.status, 200);
    assert!(lab.is_accepted().await);
}

#[tokio::test(start_paused = true)]
async fn reload_over_http_needs_the_token_and_comes_from_no_other_site() {
    let lab = FileLab::start(&json!({ "AdminToken": "s3cret" }), &[]).await;
    lab.set(&json!({ "AdminToken": "s3cret", "MaxPeerCount": 7 }));
    let admin = lab.lab.relay.admin();
    let authorized = "Authorization: Bearer s3cret";
    for (what, lines, status) in [
        ("POST /reload", &[][..], 401),
        ("POST /reload", &["Authorization: Bearer s3cre"], 401),
        ("POST /reload", &[authorized, "Origin: https://evil.example"], 403),
        ("POST /reload", &[authorized, "Sec-Fetch-Site: cross-site"], 403),
        ("POST /reload", &[authorized, "Host: evil.example"], 403),
        ("GET /reload", &[authorized], 405),
    ] {
        let answer = request(admin, what, lines, "").await.unwrap();
        assert_eq!(answer.status, status, "{what} {lines:?}");
        assert_eq!(lab.lab.relay.handle().config().max_sessions, 5, "{what} {lines:?}");
    }
    // The metrics listener has no such path.
    let metrics = lab.lab.relay.metrics();
    assert_eq!(request(metrics, "POST /reload", &[authorized], "").await.unwrap().status, 404);
    assert_eq!(request(admin, "POST /reload", &[authorized], "").await.unwrap().status, 200);
    lab.until_keys(7).await;
}

#[tokio::test(start_paused = true)]
async fn simultaneous_reloads_are_all_answered() {
    let lab = FileLab::start(&json!({}), &[]).await;
    lab.set(&json!({ "MaxPeerCount": 7 }));
    let handle = lab.lab.relay.handle();
    for _ in 0..100 {
        handle.request_reload("SIGHUP");
    }
    let waiting = (0..40).map(|_| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.request_reload_and_wait("POST /reload").await })
    });
    for answer in waiting.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap().unwrap().unwrap().waiting, [""; 0]);
    }
    assert_eq!(handle.config().max_sessions, 7);
}

#[tokio::test(start_paused = true)]
async fn changed_file_takes_effect_and_sessions_continue() {
    let log = CapturedLog::start();
    let watched = json!({ "WatchConfig": true });
    let lab = FileLab::start(&watched, &[]).await;
    assert_eq!(lab.status().await["config"]["watched"], true);
    let introduction = lab.lab.router.introduce().await.unwrap();
    let (mut client, mut host) = introduction.session().await.unwrap();
    // One place is taken by the session.
    lab.set(&merged(&watched, &json!({ "MaxPeerCount": 9 })));
    lab.until_keys(8).await;
    let line = log.line("changed: [MaxPeerCount]").await;
    assert!(line.contains("WatchConfig: the configuration was read"), "{line}");
    // In place, as an editor that does not rename.
    let content = lab.content(&merged(&watched, &json!({ "MaxPeerCount": 11 })));
    std::fs::write(lab.path("relay.json"), content).unwrap();
    lab.until_keys(10).await;
    assert_eq!(lab.lab.router.view().links, 1);
    host.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    // Unchanged files are not read again and again.
    let reloads = log.text().matches("the configuration was read").count();
    assert_eq!(reloads, 2, "{}", log.text());
    sleep(LONG).await;
    assert_eq!(log.text().matches("the configuration was read").count(), reloads);
}

/// Unix only: on Windows, only administrators can create symbolic links.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn turned_link_of_a_config_map_is_noticed() {
    use std::os::unix::fs::symlink;

    // Kubernetes mounts `relay.json -> ..data/relay.json` and `..data -> ..TIME`, and replaces the link `..data` by renaming
    // another one.
    let turn = |directory: &Path, to: &str| {
        symlink(to, directory.join("..data_tmp")).unwrap();
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    let publish = |directory: &Path, version: &str, relay_json: &str, token: &str| {
        std::fs::create_dir(directory.join(version)).unwrap();
        std::fs::write(directory.join(version).join("relay.json"), relay_json).unwrap();
        std::fs::write(directory.join(version).join("token"), token).unwrap();
        turn(directory, version);
    };
    let watched = json!({ "WatchConfig": true });
    let variables = [("ASPIA_RELAY_ADMIN_TOKEN_FILE", "token")];
    let lab = FileLab::start_prepared(&watched, &variables, |directory, content| {
        publish(directory, "..1", content, "first");
        for name in ["relay.json", "token"] {
            symlink(format!("..data/{name}"), directory.join(name)).unwrap();
        }
    })
    .await;
    let directory = lab.directory.path();
    let more = lab.content(&merged(&watched, &json!({ "MaxPeerCount": 8 })));
    publish(directory, "..2", &more, "first");
    std::fs::remove_dir_all(directory.join("..1")).unwrap();
    lab.until_keys(8).await;
    // A secret alone.
    let admits = async |token: &str| {
        let line = format!("Authorization: Bearer {token}");
        let answer = request(lab.lab.relay.admin(), "GET /status", &[&line], "").await.unwrap();
        answer.status == 200
    };
    assert!(admits("first").await && !admits("second").await);
    publish(directory, "..3", &more, "second");
    for _ in 0..60 {
        sleep(SECOND).await;
        if admits("second").await {
            break;
        }
    }
    assert!(admits("second").await && !admits("first").await);
}

/// Unix only: a pipe of Windows is not a file in a directory.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn other_files_are_watched_and_reloaded_if_one_source_is_a_pipe() {
    let watched = json!({ "WatchConfig": true });
    let variables = [("ASPIA_RELAY_DISPLAY_NAME_FILE", "name")];
    let (has_started, started) = std::sync::mpsc::channel();
    let lab = FileLab::start_prepared(&watched, &variables, |directory, content| {
        std::fs::write(directory.join("relay.json"), content).unwrap();
        let pipe = directory.join("name");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Whoever reads the pipe a second time reads something else. The thread ends with the process.
        std::thread::spawn(move || {
            std::fs::write(&pipe, "first").unwrap();
            started.recv().unwrap();
            while std::fs::write(&pipe, "second").is_ok() {}
        });
    })
    .await;
    has_started.send(()).unwrap();
    assert_eq!(lab.status().await["config"]["watched"], true);
    lab.set(&merged(&watched, &json!({ "MaxPeerCount": 8 })));
    lab.until_keys(8).await;
    sleep(LONG).await;
    lab.set(&merged(&watched, &json!({ "MaxPeerCount": 9, "WatchConfig": false })));
    let answer = lab.reload().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    lab.until_keys(9).await;
    assert_eq!(lab.status().await["display_name"], "first");
    assert!(lab.is_accepted().await);
}

/// Unix only: a pipe of Windows is not a file in a directory.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn file_that_becomes_a_pipe_is_refused_and_not_waited_for() {
    let lab = FileLab::start(&json!({ "WatchConfig": true }), &[]).await;
    let (path, pipe) = (lab.path("relay.json"), lab.path("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::hard_link(&pipe, lab.path("new")).unwrap();
    std::fs::rename(lab.path("new"), &path).unwrap();
    // Whoever opens the pipe nevertheless reads nothing, and does not wait for ever.
    std::thread::spawn(move || while std::fs::write(&pipe, "").is_ok() {});
    lab.until_accepted(false).await;
    let answer = lab.reload().await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.contains("it is a pipe or a device"), "{}", answer.body);
    lab.set(&json!({ "WatchConfig": true, "MaxPeerCount": 6 }));
    lab.until_keys(6).await;
    assert!(lab.is_accepted().await);
}

#[tokio::test(start_paused = true)]
async fn wrong_file_changes_nothing_until_it_is_corrected() {
    let log = CapturedLog::start();
    let lab = FileLab::start(&json!({ "WatchConfig": true }), &[]).await;
    let failures = || log.text().matches("WatchConfig: nothing is changed").count();
    lab.set(&json!({ "WatchConfig": true, "MaxPeerCount": "many" }));
    lab.until_accepted(false).await;
    assert_eq!(lab.status().await["sessions"]["limit"], 5);
    let line = log.line("WatchConfig: nothing is changed").await;
    assert!(line.contains("MaxPeerCount = \"many\""), "{line}");
    // The log says it once, and the first failure keeps its time.
    let since = lab.status().await["config"]["last_error"]["at"].clone();
    sleep(LONG).await;
    assert_eq!(failures(), 1);
    assert_eq!(lab.status().await["config"]["last_error"]["at"], since);
    lab.set(&json!({ "WatchConfig": true, "MaxPeerCount": 6 }));
    lab.until_keys(6).await;
    assert!(lab.is_accepted().await);
    // A file that vanishes takes no setting away. When it comes back, all is well.
    let path = lab.path("relay.json");
    let content = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    lab.until_accepted(false).await;
    assert_eq!(lab.status().await["sessions"]["limit"], 6);
    assert_eq!(lab.status().await["config"]["watched"], true);
    lab.replace(content);
    lab.until_accepted(true).await;
    assert_eq!(failures(), 2);
}

#[tokio::test(start_paused = true)]
async fn half_written_file_is_not_read() {
    let log = CapturedLog::start();
    let watched = json!({ "WatchConfig": true });
    let lab = FileLab::start(&watched, &[]).await;
    let content = lab.content(&merged(&watched, &json!({ "MaxPeerCount": 9 })));
    // Written slowly, so that many reads find a part of it.
    for length in (0..content.len()).step_by(content.len() / 40) {
        std::fs::write(lab.path("relay.json"), &content[..length]).unwrap();
        sleep(Duration::from_millis(400)).await;
    }
    std::fs::write(lab.path("relay.json"), &content).unwrap();
    lab.until_keys(9).await;
    assert!(!log.text().contains("nothing is changed"), "{}", log.text());
}

/// The digest of the files does not change when something else that they depend on does.
#[tokio::test(start_paused = true)]
async fn failed_reload_is_tried_again() {
    let lab = FileLab::start(&json!({ "WatchConfig": true }), &[]).await;
    let (certificate, key) = (lab.path("relay.pem"), lab.path("relay.key"));
    lab.set(&json!({
        "WatchConfig": true,
        "MaxPeerCount": 6,
        "MetricsTlsCertificate": certificate.display().to_string(),
        "MetricsTlsPrivateKey": key.display().to_string(),
    }));
    lab.until_accepted(false).await;
    // Kubernetes brings Secrets and ConfigMaps at different times.
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(certificate, pair.cert.pem()).unwrap();
    std::fs::write(key, pair.signing_key.serialize_pem()).unwrap();
    lab.until_keys(6).await;
    assert_eq!(lab.status().await["config"]["last_reload_successful"], true);
}

#[tokio::test(start_paused = true)]
async fn files_are_watched_only_if_that_is_set() {
    let lab = FileLab::start(&json!({}), &[]).await;
    assert_eq!(lab.status().await["config"]["watched"], false);
    lab.set(&json!({ "MaxPeerCount": 6, "WatchConfig": true }));
    sleep(LONG).await;
    assert_eq!(lab.lab.relay.handle().config().max_sessions, 5);
    assert_eq!(lab.reload().await.json()["changed"], json!(["MaxPeerCount", "WatchConfig"]));
    // From now on they are, until a file says otherwise.
    lab.set(&json!({ "MaxPeerCount": 7, "WatchConfig": false }));
    lab.until_keys(7).await;
    lab.set(&json!({ "MaxPeerCount": 8, "WatchConfig": true }));
    sleep(LONG).await;
    assert_eq!(lab.lab.relay.handle().config().max_sessions, 7);
}
