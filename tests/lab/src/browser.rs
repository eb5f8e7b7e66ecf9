//! A headless browser, driven over the DevTools protocol: NUL-terminated JSON messages through two
//! pipes, without a port.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// Names of the program, in order of preference.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Longest wait for an answer or for a condition.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Interval at which conditions are checked.
const LOOK: Duration = Duration::from_millis(20);

/// The browser requests nothing but the page: no name resolves, and its own background requests are off. The sandbox
/// does not work for root and in many containers; the only page is ours.
const ARGUMENTS: [&str; 13] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
];

/// The browser's program, if there is one.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|program| program.is_file())
}

type Answers = HashMap<u64, oneshot::Sender<Result<Value, String>>>;

#[derive(Default)]
struct Heard {
    /// `None` once the browser has ended.
    answers: Mutex<Option<Answers>>,
    events: Mutex<Vec<Value>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// A browser with one page; ends when it is dropped.
pub struct Browser {
    _child: Child,
    commands: tokio::sync::Mutex<ChildStdin>,
    heard: Arc<Heard>,
    numbers: AtomicU64,
    page: String,
}

impl Browser {
    /// Starts `program` with an empty page of `width` x `height` CSS pixels. Its files, and its stderr, are in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(
        program: &Path,
        folder: &Path,
        (width, height): (u32, u32),
    ) -> io::Result<Self> {
        let said = folder.join("stderr.txt");
        let mut child = Command::new("sh")
            // The browser reads and writes on descriptors 3 and 4.
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>&2"#])
            .arg(program)
            .args(ARGUMENTS)
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&said)?)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(commands), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the browser has no pipes"));
        };
        let heard = Arc::new(Heard::default());
        *lock(&heard.answers) = Some(Answers::new());
        tokio::spawn(listen(output, heard.clone()));
        let commands = tokio::sync::Mutex::new(commands);
        let numbers = AtomicU64::new(1);
        let mut browser = Self { _child: child, commands, heard, numbers, page: String::new() };
        match browser.attach(width, height).await {
            Ok(()) => Ok(browser),
            Err(error) => {
                let said = std::fs::read_to_string(said).unwrap_or_default();
                Err(io::Error::other(format!("{error}; stderr of the browser:\n{said}")))
            }
        }
    }

    async fn attach(&mut self, width: u32, height: u32) -> io::Result<()> {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" })).await?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", attach).await?;
        self.page = attached["sessionId"].as_str().unwrap_or_default().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            self.call(&format!("{domain}.enable"), json!({})).await?;
        }
        self.resize(width, height).await
    }

    /// Calls a method of the protocol.
    ///
    /// # Errors
    /// The browser's error, or that it did not answer.
    pub async fn call(&self, method: &str, params: Value) -> io::Result<Value> {
        let gone = || io::Error::other(format!("the browser has ended ({method})"));
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({ "id": number, "method": method, "params": params });
        if !self.page.is_empty() {
            message["sessionId"] = self.page.as_str().into();
        }
        let (sender, answer) = oneshot::channel();
        lock(&self.heard.answers).as_mut().ok_or_else(gone)?.insert(number, sender);
        let asked = async {
            self.commands.lock().await.write_all(format!("{message}\0").as_bytes()).await?;
            answer
                .await
                .map_err(|_| gone())?
                .map_err(|error| io::Error::other(format!("{method}: {error}")))
        };
        timeout(PATIENCE, asked)
            .await
            .map_err(|_| io::Error::other(format!("{method}: no answer")))?
    }

    /// Navigates to an address.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn open(&self, address: &str) -> io::Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": address })).await?;
        match answer["errorText"].as_str() {
            Some(error) => Err(io::Error::other(format!("{address}: {error}"))),
            None => Ok(()),
        }
    }

    /// Resizes the page, in CSS pixels.
    ///
    /// # Errors
    /// The browser's error.
    pub async fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).await.map(drop)
    }

    /// Evaluates JavaScript in the page; waits for a promise.
    ///
    /// # Errors
    /// The exception that it throws.
    pub async fn evaluate(&self, expression: &str) -> io::Result<Value> {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params).await?;
        if !answer["exceptionDetails"].is_null() {
            return Err(io::Error::other(format!("{expression}: {}", answer["exceptionDetails"])));
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// The exception that it throws, or that it does not become true within [`PATIENCE`].
    pub async fn until(&self, expression: &str) -> io::Result<()> {
        let began = Instant::now();
        while self.evaluate(&format!("Boolean({expression})")).await? != true {
            if began.elapsed() > PATIENCE {
                let text = self.evaluate("document.body.innerText").await?;
                let text = text.as_str().unwrap_or_default();
                return Err(io::Error::other(format!(
                    "never true: {expression}; the page:\n{text}"
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Presses a key: `Tab`, `Shift+Tab`, `Enter`, `Escape`, `Space`.
    ///
    /// # Errors
    /// If it is another key; or the browser's error.
    pub async fn press(&self, name: &str) -> io::Result<()> {
        // Windows key codes, and the text that the keys type.
        let (key, number, text) = match name {
            "Tab" | "Shift+Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            "Escape" => ("Escape", 27, ""),
            "Space" => (" ", 32, " "),
            _ => return Err(io::Error::other(format!("{name} is not a known key"))),
        };
        let code = name.trim_start_matches("Shift+");
        let modifiers = if name.starts_with("Shift+") { 8 } else { 0 };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({
                "type": kind,
                "key": key,
                "code": code,
                "windowsVirtualKeyCode": number,
                "modifiers": modifiers,
            });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// Types a text into the focused element.
    ///
    /// # Errors
    /// The browser's error.
    pub async fn write(&self, text: &str) -> io::Result<()> {
        self.call("Input.insertText", json!({ "text": text })).await.map(drop)
    }

    /// Sets a media feature such as `prefers-color-scheme`.
    ///
    /// # Errors
    /// The browser's error.
    pub async fn media(&self, feature: &str, value: &str) -> io::Result<()> {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.call("Emulation.setEmulatedMedia", features).await.map(drop)
    }

    /// A screenshot of the whole page, as PNG in base64.
    ///
    /// # Errors
    /// The browser's error.
    pub async fn screenshot(&self) -> io::Result<String> {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let answer = self.call("Page.captureScreenshot", params).await?;
        Ok(answer["data"].as_str().unwrap_or_default().to_owned())
    }

    /// The parameters of all events of one kind so far.
    pub fn events(&self, method: &str) -> Vec<Value> {
        let events = lock(&self.heard.events);
        events
            .iter()
            .filter(|event| event["method"] == method)
            .map(|event| event["params"].clone())
            .collect()
    }

    /// All problems of the page so far, as text: errors and warnings of the console, exceptions,
    /// violations of its content security policy.
    pub fn complaints(&self) -> Vec<String> {
        let console = self
            .events("Runtime.consoleAPICalled")
            .into_iter()
            .filter(|call| ["error", "warning", "assert"].iter().any(|kind| call["type"] == *kind));
        let thrown = self.events("Runtime.exceptionThrown").into_iter();
        // These include failed requests.
        let logged = self.events("Log.entryAdded").into_iter().filter(|entry| {
            ["error", "warning"].iter().any(|level| entry["entry"]["level"] == *level)
        });
        // Other issues are hints.
        let issues = self.events("Audits.issueAdded").into_iter();
        let issues = issues.filter(|event| event["issue"]["code"] == "ContentSecurityPolicyIssue");
        console.chain(thrown).chain(logged).chain(issues).map(|event| event.to_string()).collect()
    }

    /// The addresses that the page has requested so far.
    pub fn requests(&self) -> Vec<String> {
        self.events("Network.requestWillBeSent")
            .iter()
            .filter_map(|event| event["request"]["url"].as_str().map(ToOwned::to_owned))
            .collect()
    }
}

/// Dispatches the browser's messages until its pipe closes.
async fn listen(output: ChildStdout, heard: Arc<Heard>) {
    let mut output = BufReader::new(output);
    let mut message = Vec::new();
    while output.read_until(0, &mut message).await.is_ok_and(|length| length > 0) {
        if message.last() == Some(&0) {
            message.pop();
        }
        let mut parsed: Value = serde_json::from_slice(&message).unwrap_or_default();
        message.clear();
        let Some(number) = parsed["id"].as_u64() else {
            lock(&heard.events).push(parsed);
            continue;
        };
        let asker = lock(&heard.answers).as_mut().and_then(|answers| answers.remove(&number));
        let answer = match parsed["error"].take() {
            Value::Null => Ok(parsed["result"].take()),
            error => Err(error.to_string()),
        };
        if let Some(asker) = asker {
            // The caller may have given up.
            let _ = asker.send(answer);
        }
    }
    // Waiting callers learn that the browser has ended.
    lock(&heard.answers).take();
}
