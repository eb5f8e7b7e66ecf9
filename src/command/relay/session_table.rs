//! `--sessions`: the sessions of the relay as a table.

use std::cmp::{Ordering, Reverse};
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::client::{AdminRequest, SESSIONS_PER_PAGE};
use crate::admin::sessions::SessionView;
use crate::cli::{OutputFormat, SessionColumn};
use crate::config::networks::Networks;
use crate::printable;

use super::client::RelayClient;
use super::columns::{self, Alignment};
use super::units::{format_bytes, format_seconds};

/// The widest text in a column that others have written, such as a user name.
const MAX_WIDTH: usize = 32;
/// The heads of the columns and their alignments.
const HEADS: [&str; 9] =
    ["ID", "DURATION", "IDLE", "BYTES", "USER", "CLIENT", "HOST", "HOST ADDRESS", "PEERS (RTT)"];
const ALIGNMENTS: [Alignment; 9] = {
    use Alignment::{Left, Right};
    [Right, Right, Right, Right, Left, Left, Right, Left, Left]
};

/// A page of the list, of which each session stays as it was sent: a later relay may say more.
#[derive(Deserialize)]
struct SessionPage {
    total: usize,
    next: Option<u64>,
    sessions: Vec<Value>,
}

/// A session of the list.
struct ListedSession {
    view: SessionView,
    sent: Value,
}

/// What a session must have to be listed.
enum SessionFilter {
    /// An address in these networks.
    Networks(Networks),
    /// This text in lower case, in one of its texts.
    Text(String),
}

/// Asks for the sessions, and returns what to print.
pub(super) async fn show(
    client: &RelayClient,
    sort: SessionColumn,
    filter: Option<&str>,
    format: OutputFormat,
) -> Result<String, String> {
    let (total, mut sessions) = list_all(client).await?;
    if let Some(filter) = filter.map(SessionFilter::parse) {
        sessions.retain(|session| filter.matches(&session.view));
    }
    sessions.sort_by(|a, b| compare(sort, &a.view, &b.view));
    Ok(match format {
        OutputFormat::Json => {
            let sessions: Vec<_> = sessions.into_iter().map(|session| session.sent).collect();
            let list = json!({ "total": total, "next": null, "sessions": sessions });
            printable::escape_json(&format!("{list:#}\n"))
        }
        OutputFormat::Text => render(total, &sessions, filter.is_some()),
    })
}

/// The number of all sessions, and the sessions, page by page: some may have ended meanwhile.
async fn list_all(client: &RelayClient) -> Result<(usize, Vec<ListedSession>), String> {
    let (mut after, mut listed) = (0, Vec::new());
    loop {
        let path = format!("/sessions?limit={SESSIONS_PER_PAGE}&after={after}");
        let body = client.send(&AdminRequest::get(&path)).await?;
        let page = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
        let SessionPage { total, next, sessions } = page;
        for sent in sessions {
            let view = SessionView::deserialize(&sent).map_err(|error| not_understood(&error))?;
            listed.push(ListedSession { view, sent });
        }
        match next {
            // It only ever grows, so that this ends.
            Some(next) if next > after => after = next,
            _ => return Ok((total.max(listed.len()), listed)),
        }
    }
}

fn not_understood(error: &serde_json::Error) -> String {
    format!("the sessions of the relay cannot be understood: {error}; is it an earlier version?")
}

impl SessionFilter {
    fn parse(text: &str) -> Self {
        match Networks::parse(text) {
            Ok(networks) => Self::Networks(networks),
            Err(_) => Self::Text(text.to_lowercase()),
        }
    }

    fn matches(&self, session: &SessionView) -> bool {
        let told = [&session.client.address, &session.host.address];
        match self {
            Self::Networks(networks) => {
                let told = told.into_iter().filter_map(|address| parse_address(address));
                let seen = session.peers.iter().map(|peer| peer.address.ip());
                told.chain(seen).any(|address| networks.contains(address.to_canonical()))
            }
            Self::Text(text) => {
                let host = session.host.id.to_string();
                let peers = session.peers.iter().map(|peer| peer.address.to_string());
                let texts = [session.client.user_name.clone(), host, session.id.to_string()];
                let texts = texts.into_iter().chain(told.map(Clone::clone)).chain(peers);
                texts.into_iter().any(|value| value.to_lowercase().contains(text))
            }
        }
    }
}

/// The Router may add a port to an address.
fn parse_address(text: &str) -> Option<IpAddr> {
    let socket = || text.parse().ok().map(|socket: std::net::SocketAddr| socket.ip());
    text.parse().ok().or_else(socket)
}

/// Numbers begin with the largest, since those are looked for; texts are in alphabetical order.
fn compare(column: SessionColumn, a: &SessionView, b: &SessionView) -> Ordering {
    let by_column = match column {
        SessionColumn::Id => Ordering::Equal,
        SessionColumn::Duration => b.duration_seconds.total_cmp(&a.duration_seconds),
        SessionColumn::Idle => b.idle_seconds.total_cmp(&a.idle_seconds),
        SessionColumn::Bytes => Reverse(a.bytes).cmp(&Reverse(b.bytes)),
        SessionColumn::User => {
            let name = |session: &SessionView| session.client.user_name.to_lowercase();
            name(a).cmp(&name(b))
        }
        SessionColumn::Client => {
            let address = |session: &SessionView| {
                let address = &session.client.address;
                // Numbers in the order of their values, and before any other text.
                (parse_address(address).is_none(), parse_address(address), address.clone())
            };
            address(a).cmp(&address(b))
        }
        SessionColumn::Host => a.host.id.cmp(&b.host.id),
        SessionColumn::Rtt => slowest(b).total_cmp(&slowest(a)),
    };
    by_column.then(a.id.cmp(&b.id))
}

/// The longer round-trip time of the two connections, in seconds.
fn slowest(session: &SessionView) -> f64 {
    let times = session.peers.iter().filter_map(|peer| peer.tcp.as_ref());
    times.map(|tcp| tcp.rtt_seconds).fold(0.0, f64::max)
}

fn render(total: usize, sessions: &[ListedSession], is_filtered: bool) -> String {
    let count = match (is_filtered, total) {
        (true, total) => format!("{} of {total} sessions\n", sessions.len()),
        (false, 0) => "no sessions\n".to_owned(),
        (false, 1) => "1 session\n".to_owned(),
        (false, total) => format!("{total} sessions\n"),
    };
    if sessions.is_empty() {
        return count;
    }
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(sessions.iter().map(|session| cells(&session.view)));
    columns::lay_out(ALIGNMENTS, &rows) + &count
}

fn cells(session: &SessionView) -> [String; 9] {
    let peers = session.peers.iter().map(|peer| match &peer.tcp {
        Some(tcp) => format!("{} ({:.0} ms)", peer.address, tcp.rtt_seconds * 1000.0),
        None => peer.address.to_string(),
    });
    [
        session.id.to_string(),
        format_seconds(session.duration_seconds),
        format_seconds(session.idle_seconds),
        format_bytes(session.bytes),
        shown(&session.client.user_name),
        shown(&session.client.address),
        session.host.id.to_string(),
        shown(&session.host.address),
        peers.collect::<Vec<_>>().join(" "),
    ]
}

/// A text that a peer chose, harmless for a terminal.
fn shown(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    columns::truncate(&printable::escape_line(text), MAX_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u64, user: &str, client: &str, bytes: u64) -> ListedSession {
        let sent = json!({
            "id": id,
            "started": "2026-12-01T00:00:00Z",
            "duration_seconds": 100.0 - f64::from(u32::try_from(id).unwrap()),
            "idle_seconds": 1.0,
            "bytes": bytes,
            "client": { "user_name": user, "address": client },
            "host": { "id": 1000 - id, "address": "198.51.100.7" },
            "peers": [
                { "address": format!("203.0.113.{id}:4000"), "tcp": null },
                {
                    "address": "[2001:db8::1]:5000",
                    "tcp": {
                        "rtt_seconds": 0.02,
                        "retransmits": 0,
                        "delivery_rate_bytes_per_second": null,
                        "unsent_bytes": null,
                    },
                },
            ],
            "added_by_a_later_version": true,
        });
        ListedSession { view: SessionView::deserialize(&sent).unwrap(), sent }
    }

    fn three() -> Vec<ListedSession> {
        vec![
            session(1, "bob", "192.0.2.9", 5),
            session(2, "Alice", "192.0.2.10:77", 2048),
            session(3, "\u{1b}[2Jcarol", "host", 70),
        ]
    }

    fn sorted_by(column: SessionColumn) -> Vec<u64> {
        let mut sessions = three();
        sessions.sort_by(|a, b| compare(column, &a.view, &b.view));
        sessions.iter().map(|session| session.view.id).collect()
    }

    #[test]
    fn sessions_are_sorted_by_every_column() {
        for (column, order) in [
            (SessionColumn::Id, [1, 2, 3]),
            (SessionColumn::Duration, [1, 2, 3]),
            (SessionColumn::Idle, [1, 2, 3]),
            (SessionColumn::Bytes, [2, 3, 1]),
            (SessionColumn::User, [3, 2, 1]),
            (SessionColumn::Client, [1, 2, 3]),
            (SessionColumn::Host, [3, 2, 1]),
            (SessionColumn::Rtt, [1, 2, 3]),
        ] {
            assert_eq!(sorted_by(column), order, "{column:?}");
        }
    }

    #[test]
    fn filter_matches_texts_and_networks() {
        for (filter, expected) in [
            ("ALICE", &[2][..]),
            ("192.0.2.0/24", &[1, 2]),
            ("203.0.113.3", &[3]),
            ("2001:db8::/32", &[1, 2, 3]),
            // Not a network, since it is not whole.
            ("192.0.2.1", &[]),
            ("192.0.2.", &[1, 2]),
            ("999", &[1]),
            ("nobody", &[]),
        ] {
            let parsed = SessionFilter::parse(filter);
            let listed = three().into_iter().filter(|session| parsed.matches(&session.view));
            let found: Vec<_> = listed.map(|session| session.view.id).collect();
            assert_eq!(found, expected, "{filter}");
        }
    }

    #[test]
    fn table_is_aligned_and_harmless() {
        let table = render(3, &three(), false);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 5, "{table}");
        let place = lines[0].find("CLIENT").unwrap();
        for (line, client) in lines[1..4].iter().zip(["192.0.2.9", "192.0.2.10:77", "host"]) {
            assert!(line[place..].starts_with(client), "{table}");
        }
        assert!(lines[3].contains(r"\u{1b}[2Jcarol") && !table.contains('\u{1b}'), "{table}");
        assert_eq!(lines[4], "3 sessions");
        assert!(lines[1].ends_with("203.0.113.1:4000 [2001:db8::1]:5000 (20 ms)"), "{table}");
        assert_eq!(render(7, &[], true), "0 of 7 sessions\n");
        assert_eq!(render(0, &[], false), "no sessions\n");
    }

    #[test]
    fn ten_thousand_sessions_fit_into_a_table() {
        let sessions: Vec<_> =
            (0..10_000).map(|id| session(id % 90, "user", "192.0.2.1", id)).collect();
        let table = render(10_000, &sessions, false);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!((lines.len(), lines[10_001]), (10_002, "10000 sessions"));
        let place = lines[0].find("USER").unwrap();
        assert!(lines[1..=10_000].iter().all(|line| line[place..].starts_with("user ")));
    }
}
