//! The page of the admin interface in a real browser: what it shows and does, operated by keyboard alone, in the dark theme and
//! at the width of a phone.
//!
//! Every test leaves screenshots for people to look at: `target/tmp/page-….png`. The picture in the documents, `deploy/page.png`,
//! is a copy of `page-light.png`.

use std::path::Path;
use std::time::Duration;

use aspia_relay::app::Stopped;
use aspia_relay::wire::peer::PeerSecret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use relay_lab::browser::{self, Browser, PATIENCE};
use relay_lab::relay::Lab;
use relay_lab::router::{Behaviour, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::tests;

tests! {
    page_shows_and_controls_the_relay_by_keyboard,
    page_asks_for_the_token_and_keeps_it_in_its_tab,
    page_is_readable_in_both_themes_and_on_phones,
    hostile_peer_names_are_shown_as_text,
    sessions_beyond_the_row_limit_can_be_found,
}

/// The size of the page on a desktop.
const DESK: (u32, u32) = (1280, 900);
/// Widths of the narrowest phones in use, and of a page zoomed to 400 % on a desktop.
const PHONES: [u32; 2] = [360, 320];

/// A session as the table shows it: what the Router said about its peers, and how many bytes it moves at the beginning.
struct Sample {
    user: &'static str,
    client: &'static str,
    host_id: u64,
    bytes: usize,
}

/// Sorting by number, client, host and bytes gives four different orders.
const SAMPLES: [Sample; 3] = [
    Sample { user: "nora", client: "192.0.2.10", host_id: 2002, bytes: 20_000 },
    Sample {
        user: "ada",
        client: "2001:db8:1234:5678:9abc:def0:1234:5678",
        host_id: 1001,
        bytes: 3_000_000,
    },
    Sample {
        user: "a-user-name-as-long-as-nobody-would-choose-it-without-malice",
        client: "192.0.2.11",
        host_id: 3003,
        bytes: 10,
    },
];

/// Opens the sessions of [`SAMPLES`], whose numbers begin with 1.
async fn sessions(lab: &Lab) -> Vec<(TcpStream, TcpStream)> {
    let mut sessions = Vec::new();
    for sample in &SAMPLES {
        let mut introduction = lab.router.introduce().await.unwrap();
        let secret = PeerSecret {
            random_data: vec![7; 16],
            client_address: sample.client.into(),
            client_user_name: sample.user.into(),
            host_address: "198.51.100.7".into(),
            host_id: sample.host_id,
        };
        introduction.secret = secret.encode_to_vec();
        let (mut client, mut host) = introduction.session().await.unwrap();
        let (data, mut received) = (vec![1; sample.bytes], vec![0; sample.bytes]);
        let (sent, read) = tokio::join!(client.write_all(&data), host.read_exact(&mut received));
        sent.unwrap();
        read.unwrap();
        sessions.push((client, host));
    }
    sessions
}

/// Whether bytes still pass in both directions.
async fn passes((client, host): &mut (TcpStream, TcpStream)) -> bool {
    let passing = async {
        client.write_all(b"x").await?;
        host.read_exact(&mut [0]).await?;
        host.write_all(b"y").await?;
        client.read_exact(&mut [0]).await
    };
    timeout(PATIENCE, passing).await.unwrap().is_ok()
}

/// Whether the relay has closed a connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(timeout(PATIENCE, stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

/// A browser that shows the page of a relay, and the directory of its files.
struct Page {
    browser: Browser,
    address: String,
    _folder: TempDir,
}

impl Page {
    /// Opens the page of a relay.
    async fn open(lab: &Lab) -> Self {
        let Some(program) = browser::find() else {
            relay_lab::cannot_run("Chromium is missing; on Debian: apt install chromium");
        };
        let folder = tempfile::tempdir().unwrap();
        let browser = Browser::start(&program, folder.path(), DESK).await.unwrap();
        let address = format!("http://{}/", lab.relay.admin());
        browser.open(&address).await.unwrap();
        Self { browser, address, _folder: folder }
    }

    async fn get(&self, expression: &str) -> Value {
        self.browser.evaluate(expression).await.unwrap()
    }

    async fn until(&self, expression: &str) {
        self.browser.until(expression).await.unwrap();
    }

    async fn press(&self, key: &str) {
        self.browser.press(key).await.unwrap();
    }

    /// Waits until an element is visible and contains a text.
    async fn shows(&self, selector: &str, text: &str) {
        let [selector, text] = [json!(selector), json!(text)];
        self.until(&format!(
            "document.querySelector({selector})?.checkVisibility() \
             && document.querySelector({selector}).innerText.includes({text})"
        ))
        .await;
    }

    /// Presses `key` until an element that matches `selector` has the focus.
    async fn walk(&self, key: &str, selector: &str) {
        let mut passed = Vec::new();
        for _ in 0..100 {
            if self.get(&format!("document.activeElement.matches({})", json!(selector))).await
                == true
            {
                return;
            }
            self.press(key).await;
            passed.push(self.get("document.activeElement.outerHTML.slice(0, 60)").await);
        }
        panic!("{key} never reaches {selector}: {passed:?}");
    }

    /// Walks through all controls with Tab. Checks that they get the focus in document order, and that the focused one is
    /// visible and has a focus ring. Returns their number.
    async fn walk_through(&self) -> usize {
        let controls = r#"[...document.querySelectorAll('button, input, summary, [tabindex="0"]')]
            .filter((e) => e.checkVisibility() && !e.closest("dialog:not([open])"))"#;
        let all = self.get(&format!("window.controls = {controls}; controls.length")).await;
        let all = usize::try_from(all.as_u64().unwrap()).unwrap();
        // The focus may be anywhere; after the last control comes the first.
        for _ in 0..=2 * all {
            if self.get("document.activeElement === controls[0]").await == true {
                break;
            }
            self.press("Tab").await;
        }
        for expected in 0..all {
            if expected > 0 {
                self.press("Tab").await;
            }
            let focus = self
                .get(
                    r"(() => {
                        const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
                        const [x, y] = [box.left + box.width / 2, box.top + Math.min(box.height, innerHeight) / 2];
                        return {
                            place: controls.indexOf(e),
                            ring: e.matches(':focus-visible') && style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
                            seen: e.contains(document.elementFromPoint(x, y)),
                            what: e.outerHTML.slice(0, 80),
                        };
                    })()",
                )
                .await;
            let good = focus["place"] == expected && focus["ring"] == true && focus["seen"] == true;
            assert!(good, "control {expected} of {all}: {focus}");
        }
        all
    }

    /// Checks that nothing is wider than the page.
    async fn fits(&self, what: &str) {
        let [wide, room] = ["document.scrollingElement.scrollWidth", "innerWidth"];
        let (wide, room) = (self.get(wide).await, self.get(room).await);
        assert!(wide.as_u64() <= room.as_u64(), "{what}: {wide} of {room} px");
    }

    /// Checks that every visible text has the contrast to its background that WCAG 2 requires of small text (4.5 : 1).
    async fn is_readable(&self, what: &str) {
        let dim = self
            .get(
                r"(() => {
                    const numbers = (color) => color.match(/[\d.]+/g).map(Number);
                    const light = (color) => {
                        const [r, g, b] = numbers(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                    };
                    const ground = (e) => {
                        for (; e; e = e.parentElement) {
                            const color = getComputedStyle(e).backgroundColor;
                            if ((numbers(color)[3] ?? 1) > 0) return color;
                        }
                        return 'rgb(255, 255, 255)';
                    };
                    const found = [];
                    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                    while (texts.nextNode()) {
                        const e = texts.currentNode.parentElement;
                        if (!texts.currentNode.data.trim() || !e.checkVisibility()) continue;
                        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((a, b) => b - a);
                        const ratio = (a + 0.05) / (b + 0.05);
                        if (ratio < 4.5) found.push(`${texts.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
                    }
                    return found;
                })()",
            )
            .await;
        assert_eq!(dim, json!([]), "{what}");
    }

    async fn screenshot(&self, name: &str) {
        let picture = STANDARD.decode(self.browser.screenshot().await.unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"), "{name} is not a PNG");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
        std::fs::write(path, picture).unwrap();
    }

    /// The numbers of the visible sessions, from top to bottom.
    async fn rows(&self) -> Value {
        self.get(
            "[...document.querySelectorAll('#sessions tbody tr')].filter((row) => !row.hidden)
                .map((row) => Number(row.dataset.id))",
        )
        .await
    }

    /// Checks that the page had no problem except `expected`, and that it sent requests only to the relay.
    fn is_well(&self, expected: &str) {
        let mut complaints = self.browser.complaints();
        complaints.retain(|complaint| expected.is_empty() || !complaint.contains(expected));
        assert!(complaints.is_empty(), "{complaints:#?}");
        let requests = self.browser.requests();
        assert!(requests.iter().any(|url| url.ends_with("/status")), "{requests:?}");
        for url in requests {
            assert!(url.starts_with(&self.address) || url == "data:,", "asked for {url}");
        }
    }
}

async fn lab(settings: &[(&str, &str)]) -> Lab {
    let lab = Lab::start(Options::default(), settings).await.unwrap();
    lab.router.wait_for(|view| view.pool.len() > SAMPLES.len()).await;
    lab
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_and_controls_the_relay_by_keyboard() {
    let settings = [("MaxPeerCount", "20"), ("DrainTimeout", "300s"), ("DisplayName", "relay-7")];
    let lab = lab(&settings).await;
    let page = Page::open(&lab).await;
    let mut kept = sessions(&lab).await;

    // The page shows the state of the relay.
    page.shows("#ready", "Ready").await;
    page.shows("#name", "relay-7").await;
    page.until("document.title.includes('relay-7')").await;
    page.shows("#peers-dial", &lab.relay.address().to_string()).await;
    page.shows("#router-state", "Connected").await;
    page.shows("#router-peer", &lab.router.address().to_string()).await;
    page.shows("#router-version", "2.7.0").await;
    page.shows("#router-since", " UTC (").await;
    page.shows("#peers-listen", &lab.relay.address().to_string()).await;
    page.shows("#sessions-figure", "3 active of 20").await;
    // Three keys have become sessions, which use their capacity.
    page.shows("#keys-offered", "17").await;
    page.shows("#keys-out", "0").await;
    let introduction = lab.router.introduce().await.unwrap();
    page.shows("#keys-out", "1").await;
    drop(introduction.session().await.unwrap());
    page.shows("#keys-out", "0").await;
    page.shows("#count", "3 active").await;
    assert_eq!(page.rows().await, json!([1, 2, 3]));
    page.shows("[data-id='2'] [data-key=client]", "ada").await;
    page.shows("[data-id='2'] [data-key=host]", "1001").await;
    page.shows("[data-id='2'] [data-key=bytes]", "2.86 MiB").await;
    page.shows("[data-id='2'] [data-key=rate]", "/s").await;
    if cfg!(target_os = "linux") {
        page.shows("[data-id='2'] [data-key=rtt]", " ms").await;
        // Nothing is sent any more, whatever the kernel says about the bytes at the beginning.
        page.until(
            "document.querySelector(\"[data-id='2'] [data-key=delivery]\").textContent === '––'",
        )
        .await;
    }
    // Each column says what it means, for the pointer and for everybody.
    let explained = "[...document.querySelectorAll('[data-sort]')].every((head) => head.title
        && [...document.querySelectorAll('#legend dt')].some((term) => term.textContent === head.textContent))";
    assert_eq!(page.get(explained).await, true);
    // Only the page scrolls.
    let scrolling = "[...document.querySelectorAll('main *')].filter((e) =>
        ['auto', 'scroll'].includes(getComputedStyle(e).overflowY)).map((e) => e.outerHTML.slice(0, 60))";
    assert_eq!(page.get(scrolling).await, json!([]));
    page.fits("the table").await;
    // The throughput line, once the relay has taken a second sample.
    page.until("document.querySelector('#chart .line').getAttribute('d').includes('L')").await;
    page.shows("#bytes-total", "MiB").await;
    page.shows("#rate-peak", "/s").await;

    // A connection that is refused.
    page.shows("#refusals-none", "None").await;
    let mut stranger = TcpStream::connect(lab.relay.address()).await.unwrap();
    stranger.write_all(&[0xff; 8]).await.unwrap();
    assert!(is_closed(&mut stranger).await);
    page.shows("[data-reason=bad_message] td:nth-of-type(2)", "1").await;
    assert_eq!(page.get("document.querySelector('[data-reason=bad_secret]').hidden").await, true);

    // Every control can be reached.
    let controls = page.walk_through().await;
    assert_eq!(controls, ["drain", "reload", "filter", "legend"].len() + 12 + 3);

    // Sorting.
    page.walk("Shift+Tab", "[data-sort=bytes]").await;
    let sorted = "[...document.querySelectorAll('[aria-sort]')].map((e) => `${e.textContent} ${e.ariaSort}`)";
    assert_eq!(page.get(sorted).await, json!(["Session ascending"]));
    page.press("Enter").await;
    assert_eq!(page.get(sorted).await, json!(["Bytes descending"]));
    assert_eq!(page.rows().await, json!([2, 1, 3]));
    page.press("Space").await;
    assert_eq!(page.get(sorted).await, json!(["Bytes ascending"]));
    assert_eq!(page.rows().await, json!([3, 1, 2]));
    page.walk("Shift+Tab", "[data-sort=client]").await;
    page.press("Enter").await;
    assert_eq!(page.rows().await, json!([3, 2, 1]));
    page.walk("Tab", "[data-sort=host]").await;
    page.press("Enter").await;
    assert_eq!(page.get(sorted).await, json!(["Host ascending"]));
    assert_eq!(page.rows().await, json!([2, 1, 3]));
    page.press("Enter").await;
    assert_eq!(page.rows().await, json!([3, 1, 2]));

    // Filtering.
    page.walk("Shift+Tab", "#filter").await;
    page.browser.write("2001:DB8 ada").await.unwrap();
    assert_eq!(page.rows().await, json!([2]));
    page.shows("#count", "1 of 3 match").await;
    page.browser.write(" nobody").await.unwrap();
    assert_eq!(page.rows().await, json!([]));
    page.shows("#sessions-none", "No session matches").await;
    page.press("Escape").await;
    assert_eq!(page.rows().await, json!([3, 1, 2]));

    // Ending a session asks for confirmation, which can be cancelled in two ways.
    page.walk("Tab", "[data-end='2']").await;
    for way in ["Escape", "Enter"] {
        page.press("Enter").await;
        page.shows("#confirm h2", "End session 2?").await;
        page.shows("#confirm", "ada, 2001:db8:1234:5678:9abc:def0:1234:5678").await;
        // The focus is on the button that cancels.
        page.until("document.activeElement.id === 'confirm-no'").await;
        page.screenshot("confirm").await;
        page.press(way).await;
        page.until("!document.querySelector('#confirm').open").await;
        page.until("document.activeElement.dataset.end === '2'").await;
    }
    for session in &mut kept {
        assert!(passes(session).await);
    }
    // Confirmation ends the session.
    page.press("Enter").await;
    page.walk("Tab", "#confirm-yes").await;
    page.press("Enter").await;
    page.shows("#notice", "Session 2 was ended.").await;
    page.until("!document.querySelector(\"[data-id='2']\")").await;
    assert_eq!(page.rows().await, json!([3, 1]));
    page.shows("#sessions-figure", "2 active of 20").await;
    assert!(is_closed(&mut kept[1].0).await && is_closed(&mut kept[1].1).await);
    assert!(passes(&mut kept[0]).await && passes(&mut kept[2]).await);
    // The focus moves to the next session and is not lost.
    page.until("document.activeElement.dataset.end === '1'").await;

    // The link is lost and comes back.
    lab.router.set(|options| options.behaviour = Behaviour::CloseAtOnce);
    lab.router.drop_link().await;
    page.shows("#router-state", "Disconnected").await;
    page.shows("#ready", "no link to the Router").await;
    page.shows("#router-error", "is it an Aspia Router").await;
    page.shows("#router-error-row[data-tone=bad]", "Last error").await;
    page.is_readable("without a link").await;
    lab.router.set(|options| options.behaviour = Behaviour::Serve);
    page.shows("#router-state", "Connected").await;
    // An error that is over is shown, but not as a fault.
    page.shows("#router-error-row[data-tone=plain]", "Last error (resolved)").await;

    // The settings are read again.
    page.walk("Shift+Tab", "#reload").await;
    page.press("Enter").await;
    page.shows("#notice", "Nothing has changed.").await;

    // Draining.
    page.walk("Tab", "#drain").await;
    page.press("Enter").await;
    page.shows("#confirm", "2 active sessions get 5 min to end").await;
    page.press("Escape").await;
    page.until("document.activeElement.id === 'drain'").await;
    assert!(!lab.relay.handle().is_draining());
    page.press("Enter").await;
    page.walk("Tab", "#confirm-yes").await;
    page.press("Space").await;
    page.shows("#draining", "no new peers, 2 sessions left").await;
    page.shows("#ready", "draining").await;
    page.shows("#drain[aria-disabled=true]", "Draining").await;
    // It was wanted, and is no fault.
    page.shows("#ready[data-tone=warn]", "Not ready: draining").await;
    page.shows("#router-state[data-tone=plain]", "Closed, since the relay is draining").await;
    let faults = "[...document.querySelectorAll('[data-tone=bad]')].filter((e) => e.checkVisibility()).map((e) => e.id)";
    assert_eq!(page.get(faults).await, json!([]));
    page.is_readable("draining").await;
    page.screenshot("draining").await;
    // So far, the page had no problem.
    page.is_well("");
    drop(kept);
    drop(stranger);
    assert_eq!(timeout(PATIENCE, lab.relay.stopped()).await.unwrap().unwrap(), Stopped::Drained);
    page.shows("#unreachable[data-tone=warn]", "it has probably ended").await;
    page.is_readable("old").await;
    page.is_well("net::ERR_CONNECTION_REFUSED");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn page_asks_for_the_token_and_keeps_it_in_its_tab() {
    let lab = lab(&[("AdminToken", "administrat0r")]).await;
    let page = Page::open(&lab).await;
    let _kept = sessions(&lab).await;
    page.shows("#login", "Token needed").await;
    page.shows("#ready", "Token needed").await;
    // Nothing is shown, and nothing else can be reached.
    assert_eq!(page.get("document.querySelector('#sessions').checkVisibility()").await, false);
    assert_eq!(page.walk_through().await, 2);
    page.is_readable("the prompt").await;
    for width in PHONES {
        page.browser.resize(width, 740).await.unwrap();
        page.fits("the prompt").await;
    }
    page.screenshot("token").await;
    page.browser.resize(DESK.0, DESK.1).await.unwrap();
    for wrong in ["administrat0", "not for a header: \u{e9}"] {
        page.walk("Tab", "#token").await;
        page.browser.write(wrong).await.unwrap();
        page.press("Enter").await;
        page.shows("#login-why", "does not accept this token").await;
        page.until("document.activeElement.id === 'token'").await;
        assert_eq!(page.get("document.activeElement.ariaInvalid").await, "true");
        assert_eq!(page.get("document.querySelector('#token').value").await, "");
    }
    page.is_readable("the prompt after a wrong token").await;
    page.browser.write("administrat0r").await.unwrap();
    page.press("Enter").await;
    page.shows("#router-state", "Connected").await;
    page.shows("#count", "3 active").await;
    assert_eq!(page.get("document.querySelector('#login').checkVisibility()").await, false);
    // Requests that change something send the token, too.
    page.walk("Tab", "[data-end='1']").await;
    page.press("Enter").await;
    page.walk("Tab", "#confirm-yes").await;
    page.press("Enter").await;
    page.shows("#count", "2 active").await;
    // The token survives a reload of the page, and appears in no address.
    page.browser.call("Page.reload", json!({})).await.unwrap();
    page.shows("#count", "2 active").await;
    assert!(page.browser.requests().iter().all(|url| !url.contains("administrat0")));
    page.walk("Tab", "#forget").await;
    page.press("Enter").await;
    page.shows("#login", "Token needed").await;
    assert_eq!(page.get("sessionStorage.length + localStorage.length").await, 0);
    page.is_well("status of 401");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn page_is_readable_in_both_themes_and_on_phones() {
    let lab = lab(&[("DisplayName", "relay-1")]).await;
    let page = Page::open(&lab).await;
    let mut kept = sessions(&lab).await;
    for _ in 0..3 {
        let mut stranger = TcpStream::connect(lab.relay.address()).await.unwrap();
        stranger.write_all(&[0xff; 8]).await.unwrap();
        assert!(is_closed(&mut stranger).await);
    }
    // Some traffic, so that the chart has a line.
    let (mut client, mut host) = kept.remove(0);
    let moving = tokio::spawn(async move {
        let (data, mut received) = (vec![1; 300_000], vec![0; 300_000]);
        for round in 1.. {
            let amount = 1000 * (50 + 49 * (round % 6));
            let (sent, read) = tokio::join!(
                client.write_all(&data[..amount]),
                host.read_exact(&mut received[..amount])
            );
            if sent.is_err() || read.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    page.shows("#count", "3 active").await;
    page.shows("[data-reason=bad_message] td:nth-of-type(2)", "3").await;
    page.until(
        "document.querySelectorAll('#chart .line')[0].getAttribute('d').split('L').length > 3",
    )
    .await;
    let mut grounds = Vec::new();
    for theme in ["light", "dark"] {
        page.browser.media("prefers-color-scheme", theme).await.unwrap();
        grounds.push(page.get("getComputedStyle(document.body).backgroundColor").await);
        page.is_readable(theme).await;
        page.screenshot(theme).await;
        for width in PHONES {
            page.browser.resize(width, 740).await.unwrap();
            page.fits(theme).await;
            page.screenshot(&format!("{theme}-{width}")).await;
        }
        // On a phone, too, every control can be reached, and the dialog fits.
        assert_eq!(page.walk_through().await, 22);
        // A row shows the rest of its cells on request.
        page.walk("Shift+Tab", "[data-id='3'] .more").await;
        let rtt = "document.querySelector(\"[data-id='3'] [data-key=rtt]\").checkVisibility()";
        assert_eq!(page.get(rtt).await, false);
        page.press("Enter").await;
        page.until(rtt).await;
        page.fits("an open row").await;
        page.press("Enter").await;
        page.until(&format!("!{rtt}")).await;
        page.walk("Tab", "[data-end='3']").await;
        page.press("Enter").await;
        page.shows("#confirm", "a-user-name-as-long-as-").await;
        page.fits("the question").await;
        let inside =
            "(() => { const box = document.querySelector('#confirm').getBoundingClientRect();
            return box.left >= 0 && box.right <= innerWidth; })()";
        assert_eq!(page.get(inside).await, true);
        page.is_readable("the question").await;
        page.press("Escape").await;
        page.browser.resize(DESK.0, DESK.1).await.unwrap();
    }
    assert_ne!(grounds[0], grounds[1]);
    moving.abort();
    page.is_well("");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peer_names_are_shown_as_text() {
    let lab = lab(&[]).await;
    let page = Page::open(&lab).await;
    let name = "<img src=x onerror=document.title='taken'>\u{202e}moc.live\u{7}";
    let mut introduction = lab.router.introduce().await.unwrap();
    let secret = PeerSecret {
        random_data: vec![7; 16],
        client_address: "192.0.2.10".into(),
        client_user_name: name.into(),
        host_address: "\"><script>document.title='taken'</script>".into(),
        host_id: 1,
    };
    introduction.secret = secret.encode_to_vec();
    let _session = introduction.session().await.unwrap();
    page.shows("[data-id='1'] [data-key=client]", "<img src=x").await;
    page.shows("[data-id='1'] [data-key=host]", "<script>").await;
    page.walk("Tab", "[data-end='1']").await;
    page.press("Enter").await;
    page.shows("#confirm h2", "End session 1?").await;
    // Each text is in an element of its own, which isolates right-to-left text from the rest.
    let own = "[...document.querySelectorAll('#confirm bdi')].map((e) => e.textContent)";
    let own = page.get(own).await;
    assert_eq!((&own[0], &own[1]), (&json!(name), &json!("192.0.2.10")), "{own}");
    assert_eq!(page.get("document.querySelectorAll('main img, dialog img').length").await, 0);
    let title = page.get("document.title").await;
    assert!(!title.as_str().unwrap().contains("taken"), "{title}");
    page.is_well("");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_beyond_the_row_limit_can_be_found() {
    const COUNT: usize = 1010;
    // The peers and the relay have two sockets each per session, in this process.
    let needed = 4 * COUNT as u64 + 500;
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if hard.maximum.is_some_and(|maximum| maximum < needed) {
        relay_lab::cannot_run(format!("{needed} files may not be open (ulimit -Hn)"));
    }
    let raised = rustix::process::Rlimit { current: hard.maximum, maximum: hard.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let lab = lab(&[("MaxPeerCount", "1020"), ("MaxPendingPeers", "2000")]).await;
    let page = Page::open(&lab).await;
    lab.router.keys(1020).await;
    let mut kept = Vec::new();
    for _ in 0..COUNT {
        kept.push(lab.router.introduce().await.unwrap().session().await.unwrap());
    }
    page.shows("#count", "1,010 active").await;
    page.shows("#more", "1,000 of 1,010").await;
    assert_eq!(page.rows().await.as_array().unwrap().len(), 1000);
    assert_eq!(page.rows().await[0], 1);
    // Sorted with the newest first, the oldest have no row.
    page.walk("Tab", "[data-sort=id]").await;
    page.press("Enter").await;
    assert_eq!(page.rows().await[0], COUNT);
    assert_eq!(page.rows().await.as_array().unwrap().len(), 1000);
    assert_eq!(page.get("document.querySelector('[data-id=\"5\"]')").await, Value::Null);
    // A session without a row can be found by filtering, and ended.
    let address = json!(kept[4].0.local_addr().unwrap().to_string());
    page.get(&format!("filter.value = {address}, filter.dispatchEvent(new Event('input')), 0"))
        .await;
    page.shows("#count", "1 of 1,010 match").await;
    assert_eq!(page.rows().await, json!([5]));
    page.walk("Tab", "[data-end='5']").await;
    page.press("Enter").await;
    page.walk("Tab", "#confirm-yes").await;
    page.press("Enter").await;
    assert!(is_closed(&mut kept[4].0).await);
    page.is_well("");
}
