// The operator's page. It requests /status and /sessions every two seconds and changes only texts that differ, so that
// focus, selection and scroll position survive and many sessions cost little. If there are more sessions than the table
// holds, all are requested, and the table shows the first ones in its order that match its filter.

const PERIOD = 2000;
/** How often sessions are requested if there are more of them than rows. */
const LONG_PERIOD = 10000;
const TIMEOUT = 5000;
/** Longer than the relay waits for its files. */
const RELOAD_TIMEOUT = 25000;
const ROWS = 1000;
const LIMIT = 10000;
const DASH = "–";
/** The age of figures of the kernel after which they say nothing about now: the relay samples every 10 s. */
const SAMPLE = 12;
const MISSING = { "router-link": "no link to the Router", "peer-listener": "not listening for peers", draining: "draining" };
const REASONS = {
  timeout: "No complete first message within 10 s, or no partner within 30 s.",
  unknown_key: "Named a key that is not on offer: expired, used up, or never made by this relay.",
  bad_message: "The first message cannot be read or decrypted with its key: not a Client or Host of this system, damaged, or a replay.",
  bad_secret: "Its secret differs from that of the peer that waits with the same key.",
  proxy_header_missing: "The address is in ProxyProtocolFrom, and the connection did not begin with a PROXY header.",
  proxy_header_malformed: "Its PROXY header cannot be read.",
  proxy_header_oversized: "Its PROXY header is too long.",
  proxy_header_timeout: "Its PROXY header was not complete within 10 s.",
  user_limit: "Its user has as many sessions as MaxSessionsPerUser allows.",
  host_limit: "Its host has as many sessions as MaxSessionsPerHost allows.",
  rate_limited: "Too many connections from one address.",
  denied: "The address is not allowed here.",
  pending_limit: "Too many connections were waiting to be paired (MaxPendingPeers).",
  closed: "Disconnected before it was paired.",
  error: "The relay or its system failed; the log tells why.",
  draining: "Connected while the relay was draining.",
};

const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);

/** Writes only what differs. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function tone(element, name, text) {
  attribute(element, "data-tone", name);
  put(element, text);
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Announces a text to screen readers, once. It is removed later, so that nobody comes across stale news. */
function announce(text) {
  if ($("announce").lastChild?.textContent === text) return;
  const line = make("p", {}, text);
  $("announce").append(line);
  setTimeout(() => line.remove(), 10000);
}

let noticeTimer;
/** Shows the outcome of an action. A success disappears by itself; a failure stays. */
function notice(text, name = "plain") {
  clearTimeout(noticeTimer);
  put($("notice-text"), text);
  attribute($("notice"), "data-tone", name);
  $("notice").hidden = false;
  if (name !== "bad") noticeTimer = setTimeout(() => ($("notice").hidden = true), 10000);
  announce(text);
}

// Numbers and times

const count = (number) => number.toLocaleString("en");
const digits = (value) => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

function bytes(number) {
  if (number < 1024) return `${Math.round(number)} B`;
  let unit = -1;
  // Below 1024, so that nothing is rounded up to "1024 KiB".
  for (; number >= 1023.5 && unit < 4; unit++) number /= 1024;
  return `${digits(number)} ${["KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

const rate = (number) => `${bytes(number)}/s`;
const milliseconds = (seconds) => `${digits(seconds * 1000)} ms`;

function duration(seconds) {
  const s = Math.floor(seconds);
  const [m, h, d] = [Math.floor(s / 60), Math.floor(s / 3600), Math.floor(s / 86400)];
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

/** Formats a time in UTC, like the relay's logs; without the date if it is that of `now`, without the year if that is the same. */
function clock(time, now) {
  const [text, today] = [time, now].map((t) => new Date(t).toISOString());
  const from = text.slice(0, 10) === today.slice(0, 10) ? 11 : text.slice(0, 4) === today.slice(0, 4) ? 5 : 0;
  return text.slice(from, 19).replace("T", " ");
}

/** "09:40:01 UTC (3 min 2 s ago)"; without "ago" if the clocks disagree. */
function moment(time, now) {
  const ago = (now - Date.parse(time)) / 1000;
  return `${clock(time, now)} UTC${ago > -5 ? ` (${duration(Math.max(0, ago))} ago)` : ""}`;
}

// Talking to the relay

const TOKEN = "aspia_relay.token";
let locked = false;

class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Requests a path, and parses the response. Paths are relative: a proxy may serve the page below a prefix. */
async function api(path, method = "GET", limit = TIMEOUT) {
  const token = sessionStorage.getItem(TOKEN);
  let response, body;
  try {
    response = await fetch(path, {
      method,
      cache: "no-store",
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      signal: AbortSignal.timeout(limit),
    });
    body = await response.text();
  } catch {
    throw new Trouble("no answer");
  }
  let answer = null;
  try {
    answer = body && JSON.parse(body);
  } catch {
    if (response.ok) throw new Trouble("an answer that does not come from the relay (from a proxy in between?)", response.status);
  }
  if (response.status === 401) {
    // A response to the old token says nothing about the new one.
    if (token === sessionStorage.getItem(TOKEN)) lock(token !== null);
    throw new Trouble("the token is missing or wrong", 401);
  }
  if (!response.ok) throw new Trouble(answer?.detail || answer?.title || `status ${response.status}`, response.status);
  return answer;
}

/** All sessions, however many answers that takes. */
async function allSessions() {
  const answer = await api(`sessions?limit=${LIMIT}`);
  const { sessions } = answer;
  for (let next = answer.next; next !== null; ) {
    const more = await api(`sessions?limit=${LIMIT}&after=${next}`);
    sessions.push(...more.sessions);
    next = more.next;
  }
  return sessions;
}

/** Polls, one request at a time, while the page is visible. Returns a function that polls at once. */
function poll(ask, period, succeeded, failed) {
  let timer;
  let busy = false;
  let again = false;
  return async function run() {
    clearTimeout(timer);
    again = busy;
    if (busy || document.hidden || locked) return;
    busy = true;
    const began = performance.now();
    try {
      succeeded(await ask());
    } catch (error) {
      if (!(error instanceof Trouble)) console.error(error);
      if (error.status !== 401) failed(error.message);
    }
    busy = false;
    timer = setTimeout(run, again ? 0 : Math.max(0, period() - (performance.now() - began)));
  };
}

// The state of the whole page

let status = null;
let failure = null;
let lastAnswer = Date.now();

function showState() {
  const state = locked ? "locked" : failure ? "stale" : status ? "fresh" : "loading";
  attribute(document.body, "data-state", state);
  $("login").hidden = !locked;
  $("forget").hidden = !sessionStorage.getItem(TOKEN);
  $("unreachable").hidden = state !== "stale";
  $("draining").hidden = locked || !status?.draining;
  if (state === "fresh") {
    const waits = isUnconfirmed(status.router);
    const word = (name) => (name === "router-link" && waits ? "waiting to see whether the Router keeps the link" : MISSING[name] ?? name);
    // A relay that drains has closed its link on purpose.
    const missing = status.missing.filter((name) => !(status.draining && name === "router-link"));
    const words = missing.map(word).join(", ");
    if (status.ready) tone($("ready"), "ok", "Ready");
    else tone($("ready"), status.draining || waits ? "warn" : "bad", `Not ready: ${words}`);
  } else if (state !== "loading") {
    tone($("ready"), locked || status?.draining ? "warn" : "bad", locked ? "Token needed" : "No answer");
  }
  const name = (!locked && status?.display_name) || location.host;
  document.title = `${$("ready").textContent} – ${name} – aspia_relay`;
}

function statusFailed(message) {
  if (failure === null) announce("The relay does not answer.");
  failure = message;
  const now = Date.now();
  const since = `${clock(lastAnswer, now)} UTC (${duration((now - lastAnswer) / 1000)})`;
  const ended = status?.draining ? " The relay was draining: it has probably ended." : "";
  const what = message === "no answer" ? `No answer since ${since}` : `Only errors since ${since}: ${message}`;
  tone($("unreachable"), status?.draining ? "warn" : "bad", `${what}; retrying.${ended}`);
  showState();
}

/** A Router that does not want this relay hangs up within 5 s of authentication. */
const isUnconfirmed = (router) => router.connected && !router.confirmed;

/** Announces changes for the worse or the better, but nothing after the first response. */
function announceChanges(before, now) {
  if (failure !== null) announce("The relay answers again.");
  if (!before) return;
  if (before.router.confirmed !== now.router.confirmed)
    announce(now.router.confirmed ? "The link to the Router is back." : "The link to the Router is lost.");
  if (!before.draining && now.draining) announce("The relay is draining.");
}

/** "62 % (CPU)", and whether the keys on offer follow it. */
function describeHeadroom(headroom) {
  if (!headroom) return DASH;
  const { ratio, scarcest, offer_by_load } = headroom;
  const what = scarcest === "cpu" ? "CPU" : scarcest;
  return `${Math.round(ratio * 100)} %${what ? ` (${what})` : ""}${offer_by_load ? "" : ", not followed"}`;
}

function showStatus(next) {
  announceChanges(status, next);
  status = next;
  failure = null;
  lastAnswer = Date.now();
  const { router, peers, keys, sessions, recent } = status;
  // The relay's clock counts, since the browser's may be wrong.
  const now = Date.parse(status.started) + status.uptime_seconds * 1000;
  if (isUnconfirmed(router)) tone($("router-state"), "warn", "Authenticated, waiting");
  else if (router.connected) tone($("router-state"), "ok", "Connected");
  else if (status.draining) tone($("router-state"), "plain", "Closed, since the relay is draining");
  else tone($("router-state"), "bad", "Disconnected");
  for (const row of all(".up")) row.hidden = !router.connected;
  for (const row of all(".away")) row.hidden = router.connected;
  const error = router.last_error;
  // Red only as long as it lasts.
  const isOver = router.connected || status.draining;
  $("router-error-row").hidden = !error;
  attribute($("router-error-row"), "data-tone", isOver ? "plain" : "bad");
  put($("router-error-label"), isOver ? "Last error (resolved)" : "Last error");
  const texts = {
    name: status.display_name || "aspia_relay",
    version: status.version,
    revision: status.revision,
    uptime: duration(status.uptime_seconds),
    "router-since": moment(router.since, now),
    "router-address": router.address,
    "router-peer": router.peer_address ?? DASH,
    "router-version": router.version ? `${router.version} (dialect ${router.dialect})` : DASH,
    "router-cipher": router.cipher ?? DASH,
    "router-failures": count(router.failures),
    "router-error-at": error ? moment(error.at, now) : DASH,
    "router-error": error?.message ?? "",
    headroom: describeHeadroom(status.headroom),
    "keys-offered": count(keys.offered),
    "keys-out": count(keys.handed_out),
    "peers-dial": peers.dial,
    "peers-listen": peers.listen,
    "bytes-total": bytes(status.bytes_total),
  };
  for (const [id, text] of Object.entries(texts)) put($(id), text);

  const store = status.fd_store;
  tone($("fd-store"), ...describeStore(store));
  put($("fd-store-error"), store.connected ? "" : store.last_error?.message ?? "");
  const { config } = status;
  tone($("config"), ...describeConfig(config, status.waiting_for_restart, now));
  put($("config-error"), config?.last_reload_successful === false ? config.last_error?.message ?? "" : "");
  showMeter("sessions", sessions.active, sessions.limit, "active");
  showMeter("pending", peers.pending, peers.pending_limit, "");
  showChart(recent);
  showRefusals(recent, status.connections);

  const rest = sessions.active ? plural(sessions.active, "session") : "no session";
  const until = `Sessions that are left are ended ${span(status.drain_timeout_seconds)} after the drain began; the process then exits.`;
  put($("draining"), `Draining: no new peers, ${rest} left. ${until}`);
  attribute($("drain"), "aria-disabled", String(status.draining));
  put($("drain"), status.draining ? "Draining" : "Drain …");
  showState();
}

/** Whether sessions outlive the relay: a tone, and a text. */
function describeStore({ configured, address, connected, sessions_kept: kept }) {
  if (!configured) return ["plain", "Sessions end (FdStore is off)"];
  if (connected) return ["ok", `${plural(kept, "session")} kept by ${address}`];
  return ["bad", `Sessions end: ${address} does not keep them`];
}

/** Whether the configuration that was read last is in force: a tone, and a text. */
function describeConfig(config, waiting, now) {
  if (config?.last_reload_successful === false) return ["bad", "Not in force: the last one read is wrong"];
  if (waiting.length) return ["warn", `Wait for a restart: ${waiting.join(", ")}`];
  return ["plain", config?.loaded ? `Read ${moment(config.loaded, now)}` : DASH];
}

function showMeter(name, value, limit, word) {
  const text = `${count(value)} ${word} of ${count(limit)}`.replace("  ", " ");
  const part = limit ? Math.min(1, value / limit) : 0;
  const meter = $(`${name}-meter`);
  put($(`${name}-figure`), text);
  attribute(meter, "aria-valuemax", String(limit));
  attribute(meter, "aria-valuenow", String(Math.min(value, limit)));
  attribute(meter, "aria-valuetext", text);
  attribute(meter, "data-tone", part >= 0.9 ? "warn" : "plain");
  meter.firstElementChild.style.width = `${part * 100}%`;
}

/** "5 min" rather than "5 min 0 s". */
const span = (seconds) => duration(seconds).replace(" 0 s", "");

function showChart({ bytes: moved, interval_seconds: interval }) {
  const rates = moved.map((number) => number / interval);
  const peak = Math.max(0, ...rates);
  const current = rates.at(-1) ?? 0;
  // The time axis always spans what the relay can remember, even soon after its start.
  const slots = Math.max(60, rates.length);
  const x = (slot) => ((slots - rates.length + slot) * 600) / slots;
  const y = (value) => (99 - (peak ? value / peak : 0) * 97).toFixed(1);
  const points = rates.map((value, slot) => `L${x(slot + 1).toFixed(1)} ${y(value)}`).join("");
  const line = rates.length ? `M${x(0).toFixed(1)} ${y(rates[0])}${points}` : "";
  const chart = $("chart");
  attribute(chart.querySelector(".line"), "d", line);
  attribute(chart.querySelector(".area"), "d", line && `${line}V100H${x(0).toFixed(1)}Z`);
  put($("rate-now"), rate(current));
  put($("rate-peak"), rate(peak));
  put($("chart-begin"), `${span(slots * interval)} ago`);
  const mean = rates.reduce((sum, value) => sum + value, 0) / (rates.length || 1);
  attribute(chart, "aria-label", `Throughput of the last ${span(rates.length * interval)}: now ${rate(current)}, peak ${rate(peak)}, mean ${rate(mean)}`);
}

const refusalRows = new Map();

function showRefusals(recent, total) {
  // Reasons that this page does not know are shown by their label.
  const reasons = new Set([...Object.keys(REASONS), ...Object.keys(total), ...Object.keys(recent.refusals)]);
  reasons.delete("paired");
  let any = false;
  for (const reason of reasons) {
    if (!refusalRows.has(reason)) {
      const heading = make("th", { scope: "row", role: "rowheader" }, reason.replaceAll("_", " "));
      const cells = ["", "", REASONS[reason] ?? ""].map((text) => make("td", { role: "cell" }, text));
      const row = make("tr", { role: "row", "data-reason": reason }, heading, ...cells);
      $("refusals").querySelector("tbody").append(row);
      refusalRows.set(reason, row);
    }
    const row = refusalRows.get(reason);
    const [lately, ever] = [recent.refusals[reason] ?? 0, total[reason] ?? 0];
    put(row.cells[1], count(lately));
    put(row.cells[2], count(ever));
    row.hidden = lately + ever === 0;
    any ||= !row.hidden;
  }
  $("refusals").querySelector("table").hidden = !any;
  $("refusals-none").hidden = any;
  put($("refusals-window"), `Last ${span(recent.bytes.length * recent.interval_seconds)}`);
}

// The table of sessions

/** A very long name must not take half of the page; the dialog and the filter have all of it. */
const cut = (text) => (text.length > 64 ? `${Array.from(text).slice(0, 63).join("")}…` : text || DASH);
const known = (values) => values.filter((value) => value !== null);

/** A column with one line for each peer; sorted by the worse of the two. */
function peerColumn(key, name, field, show, help, worse = Math.max, applies = () => true) {
  const read = (session, row) =>
    session.peers.map((peer, number) => (applies(row, number) ? peer.tcp?.[field] ?? null : null));
  return {
    key, name, help, number: true, peers: true,
    lines: (session, row) => read(session, row).map((value) => (value === null ? DASH : show(value))),
    value: (session, row) => (known(read(session, row)).length ? worse(...known(read(session, row))) : null),
  };
}

/** Whether bytes have lately been sent to a peer. The kernel keeps the rate of the last ones for ever: a few bytes over a fast
    path would look like gigabytes a second long after they were sent. */
const isSentTo = (row, number) => row.session.duration_seconds - row.sent[number] < SAMPLE;

const columns = [
  { key: "id", name: "Session", help: "The relay's number for the session, also in its log.", lines: (s) => [String(s.id)], value: (s) => s.id },
  { key: "started", name: "Started", help: "When the two peers were paired (UTC), and how long ago.", number: true, value: (s) => Date.parse(s.started),
    lines: (s) => [clock(s.started, Date.parse(s.started) + s.duration_seconds * 1000).replace(/(-.*):..$/, "$1"), duration(s.duration_seconds)] },
  { key: "client", name: "Client", help: "The operator's user name and address, as the Router reports them.", words: true, lines: (s) => [cut(s.client.user_name), cut(s.client.address)],
    value: (s) => `${s.client.user_name} ${s.client.address}` },
  { key: "host", name: "Host", help: "The id and address of the remote computer, as the Router reports them.", words: true, lines: (s) => [String(s.host.id), cut(s.host.address)], value: (s) => s.host.id },
  { key: "bytes", name: "Bytes", help: "Delivered since the beginning, both directions together.", number: true, lines: (s) => [bytes(s.bytes)], value: (s) => s.bytes },
  { key: "rate", name: "Rate", help: "Bytes that are delivered now, both directions together.", number: true, lines: (s, row) => [row.rate === null ? DASH : rate(row.rate)], value: (s, row) => row.rate },
  { key: "idle", name: "Idle", help: "Time since bytes were last delivered. PeerIdleTimeout limits it.", number: true, lines: (s) => [duration(s.idle_seconds)], value: (s) => s.idle_seconds },
  { key: "address", name: "Address", help: "Where each peer connects from.", peers: true, lines: (s) => s.peers.map((peer) => peer.address), value: (s) => s.peers[0].address },
  peerColumn("rtt", "RTT", "rtt_seconds", milliseconds, "Round-trip time between the relay and the peer."),
  peerColumn("retransmits", "Resent", "retransmits", count, "TCP segments that had to be sent to the peer again: lost on the path."),
  peerColumn("unsent", "Unsent", "unsent_bytes", bytes, "Bytes that the relay holds because the peer or its path is slower than its partner."),
  peerColumn("delivery", "Delivery", "delivery_rate_bytes_per_second", rate,
    "How fast the path to the peer took the latest bytes, as the kernel measures it: the speed of the path, not of the session. A dash if nothing was sent to the peer lately.",
    Math.min, isSentTo),
];

const table = $("sessions").querySelector("table");
const body = table.tBodies[0];
const collator = new Intl.Collator("en", { numeric: true });
/** Every session by its number, with its row of the table where it has one. */
const rows = new Map();
const sorting = { column: columns[0], direction: 1 };
let listed = false;

const classes = (column) => (column.key === "address" ? "peers" : column.words ? "words" : column.number ? "number" : "");

function makeHead() {
  const heads = columns.map((column) => {
    const button = make("button", { type: "button", "data-sort": column.key, title: column.help }, column.name);
    button.addEventListener("click", () => sortBy(column));
    column.head = make("th", { scope: "col", role: "columnheader", class: classes(column) }, button);
    return column.head;
  });
  const own = columns.filter((column) => !column.peers).length;
  table.tHead.append(
    make("tr", { role: "row", class: "groups" },
      make("td", { colspan: own, role: "cell" }),
      make("th", { colspan: columns.length - own, scope: "colgroup", role: "columnheader", class: "group peers" }, "Peers (first to connect on top)"),
      make("td", { role: "cell" })),
    make("tr", { role: "row" }, ...heads, make("td", { class: "none", role: "cell" })));
  columns[0].head.setAttribute("aria-sort", "ascending");
  const meaning = ({ name, help }) => make("div", {}, make("dt", {}, name), make("dd", {}, help));
  $("legend").querySelector("dl").append(...columns.map(meaning));
}

function makeElement(row) {
  const { session } = row;
  const element = make("tr", { role: "row", "data-id": session.id });
  const texts = columns.map((column) => {
    const own = column.key === "id" ? ["th", { scope: "row", role: "rowheader" }] : ["td", { role: "cell" }];
    const cell = make(own[0], { ...own[1], class: classes(column), "data-key": column.key, "data-label": column.name });
    element.append(cell);
    return column.lines(session, row).map(() => {
      const text = document.createTextNode("");
      cell.append(make("span", {}, text));
      return text;
    });
  });
  const name = `End session ${session.id}`;
  // Seen on narrow pages only, where a row shows the rest of its cells on request.
  const more = { type: "button", class: "more", "aria-expanded": "false", "aria-label": `Details of session ${session.id}` };
  const end = { type: "button", "data-end": session.id, "aria-label": name };
  element.append(make("td", { role: "cell" }, make("button", more, "Details"), make("button", end, "End")));
  Object.assign(row, { element, texts });
  writeRow(row);
  return element;
}

/** The text of a session that the filter searches. */
function words({ id, client, host, peers }) {
  const all = [id, client.user_name, client.address, host.id, host.address, ...peers.map((peer) => peer.address)];
  return all.join("\n").toLowerCase();
}

/** Remembers when bytes were last sent to each peer, in seconds since the beginning of the session. */
function noteSent(row, session) {
  const before = row.session;
  const last = session.duration_seconds - session.idle_seconds;
  // Of what happened before this page was opened, only the latest bytes are known, not where they went.
  row.sent ??= [last, last];
  session.peers.forEach((_, number) => {
    const from = 1 - number;
    if (session.peers[from].bytes_sent > before.peers[from].bytes_sent) row.sent[number] = last;
  });
}

function updateRow(row, session) {
  const before = row.session;
  const passed = session.duration_seconds - before.duration_seconds;
  noteSent(row, session);
  // By the relay's clock, so that a slow response does not look like a slow session.
  if (passed > 0) row.rate = Math.max(0, session.bytes - before.bytes) / passed;
  row.session = session;
  if (row.element) writeRow(row);
}

function writeRow(row) {
  columns.forEach((column, i) => {
    column.lines(row.session, row).forEach((line, j) => {
      const text = row.texts[i][j];
      if (text.data !== line) text.data = line;
    });
  });
}

/** Takes a row out of the table. */
function removeElement(row) {
  if (row.element.contains(document.activeElement)) neighbour(row.element).focus();
  if (row.element.contains(opener)) opener = neighbour(row.element);
  row.element.remove();
  row.element = null;
}

/** Where the focus goes when the focused `row` is removed: to the button of the nearest visible row. */
function neighbour(row) {
  for (const way of ["nextElementSibling", "previousElementSibling"]) {
    let next = row[way];
    while (next?.hidden) next = next[way];
    if (next) return next.querySelector("button[data-end]");
  }
  return $("filter");
}

function showSessions(sessions) {
  listed = true;
  table.parentElement.classList.remove("stale");
  $("sessions-trouble").hidden = true;
  const there = new Set();
  for (const session of sessions) {
    there.add(session.id);
    let row = rows.get(session.id);
    // Numbers start again after a restart of the relay.
    if (!row || row.session.started !== session.started) {
      row = { element: row?.element ?? null, texts: row?.texts, session, rate: null, words: words(session) };
      rows.set(session.id, row);
    }
    updateRow(row, session);
  }
  for (const [id, row] of rows) {
    if (there.has(id)) continue;
    if (row.element) removeElement(row);
    rows.delete(id);
  }
  // Rows out of sight are left out of the layout, so that many cost little; not if there are few, because screen readers
  // would miss them.
  table.classList.toggle("many", rows.size > 200);
  arrange(false);
}

function sessionsFailed(message) {
  // If nothing answers at all, the banner at the top has said so already.
  if (failure !== null) return;
  table.parentElement.classList.add("stale");
  $("sessions-trouble").hidden = false;
  put($("sessions-trouble"), `The sessions cannot be read: ${message}; retrying.`);
}

function sortBy(column) {
  const same = sorting.column === column;
  // Numbers are sorted from the highest, which is usually looked for.
  sorting.direction = same ? -sorting.direction : column.number ? -1 : 1;
  sorting.column.head.removeAttribute("aria-sort");
  sorting.column = column;
  column.head.setAttribute("aria-sort", sorting.direction > 0 ? "ascending" : "descending");
  arrange(true);
}

function compare(a, b) {
  const { column, direction } = sorting;
  const [x, y] = [column.value(a.session, a), column.value(b.session, b)];
  let order = 0;
  // Unknown values come last in both directions.
  if (x === null || y === null) order = ((x === null) - (y === null)) * direction;
  else order = typeof x === "string" ? collator.compare(x, y) : x - y;
  return order * direction || a.session.id - b.session.id;
}

/** Orders and filters. Rows do not change places by themselves under the pointer or the focus, since a click would then
    end the wrong session. */
function arrange(asked) {
  const filter = $("filter").value.toLowerCase().split(/\s+/);
  const filtered = filter.some(Boolean);
  const matching = [...rows.values()].filter((row) => filter.every((word) => row.words.includes(word))).sort(compare);
  const hovered = matchMedia("(hover: hover)").matches && body.matches(":hover");
  if (asked || !(hovered || body.matches(":focus-within"))) {
    const chosen = new Set(matching.slice(0, ROWS));
    for (const row of rows.values())
      if (row.element && !chosen.has(row) && !row.element.contains(document.activeElement)) removeElement(row);
    let place = body.firstElementChild;
    for (const row of chosen) {
      const element = row.element ?? makeElement(row);
      // A row that moves down must not move all those below it, so it is skipped until its turn comes.
      if (element === place?.nextElementSibling) place = element;
      if (element === place) place = place.nextElementSibling;
      else body.insertBefore(element, place);
    }
  } else {
    for (const row of matching) if (!row.element && body.childElementCount < ROWS) body.append(makeElement(row));
  }
  const matches = new Set(matching);
  for (const row of rows.values()) {
    if (!row.element) continue;
    const hidden = !matches.has(row) && !row.element.contains(document.activeElement);
    if (row.element.hidden !== hidden) row.element.hidden = hidden;
  }
  put($("count"), filtered ? `${count(matches.size)} of ${count(rows.size)} match` : listed ? `${count(rows.size)} active` : "");
  $("more").hidden = matches.size <= ROWS;
  put($("more"), `The table shows the first ${count(ROWS)} of ${count(matches.size)} in its order; use the filter to find the others.`);
  const none = matches.size === 0 && listed;
  $("sessions-none").hidden = !none;
  if (none) put($("sessions-none"), filtered ? "No session matches the filter." : "No sessions at the moment.");
}

let filterTimer;
$("filter").addEventListener("input", () => {
  arrange(true);
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => announce($("count").textContent), 700);
});

// Actions

/** The element that had the focus when the dialog opened, or its neighbour if it has been removed. */
let opener = null;
/** Resolves the promise of the dialog that is open. */
let resolveDialog = null;

/** Asks for a confirmation; true when it is given. */
function confirmed(title, lines, yes) {
  put($("confirm-title"), title);
  $("confirm-text").replaceChildren(...lines.map((line) => make("p", {}, ...line)));
  put($("confirm-yes"), yes);
  opener = document.activeElement;
  $("confirm").showModal();
  return new Promise((resolve) => (resolveDialog = resolve));
}

/** Closes the dialog with an answer. The event "close" is too late for this: it comes a frame later, when the next dialog
    may be open, which must not get this answer. */
function answered(yes) {
  $("confirm").close();
  opener?.focus();
  resolveDialog?.(yes);
  opener = resolveDialog = null;
}

$("confirm-yes").addEventListener("click", () => answered(true));
$("confirm-no").addEventListener("click", () => answered(false));
$("confirm").addEventListener("cancel", () => answered(false));
// A browser may close it without asking if Escape is pressed twice.
$("confirm").addEventListener("close", () => $("confirm").open || answered(false));
$("notice-close").addEventListener("click", () => ($("notice").hidden = true));

/** Sends a request, and shows its outcome. */
async function act(path, method, good, bad, limit = TIMEOUT) {
  try {
    const answer = await api(path, method, limit);
    notice(typeof good === "function" ? good(answer) : good);
  } catch (error) {
    notice(`${bad}: ${error.message}.`.replace("..", "."), "bad");
  }
  look();
}

body.addEventListener("click", (event) => {
  const button = event.target.closest("button.more");
  if (!button) return;
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  button.closest("tr").toggleAttribute("data-open", open);
});

body.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-end]");
  if (!button) return;
  const id = button.dataset.end;
  const { client, host } = rows.get(Number(id)).session;
  // Each word is isolated, so that one written from right to left does not reverse its neighbours.
  const who = (...words) => {
    const own = words.filter(Boolean).flatMap((word) => [", ", make("bdi", {}, word)]);
    return own.length ? own.slice(1) : ["not known"];
  };
  const lines = [
    ["Client: ", ...who(client.user_name, client.address)],
    ["Host: ", ...who(String(host.id), host.address)],
    ["Both are disconnected at once."],
  ];
  if (await confirmed(`End session ${id}?`, lines, `End session ${id}`))
    await act(`sessions/${id}`, "DELETE", `Session ${id} was ended.`, `Session ${id} was not ended`);
});

/** What a reload has changed, in words. */
function describeReload({ changed, with_new_link: linked, waiting_for_restart: waiting, warnings }) {
  const parts = [changed.length ? `Changed: ${changed.join(", ")}.` : "Nothing has changed."];
  if (linked.length) parts.push("The relay connects to the Router anew; sessions continue.");
  if (waiting.length) parts.push(`Wait for a restart: ${waiting.join(", ")}.`);
  return [...parts, ...warnings.map((text) => `Warning: ${text}.`)].join(" ");
}

$("reload").addEventListener("click", () =>
  act("reload", "POST", describeReload, "The settings were not reloaded", RELOAD_TIMEOUT));

$("drain").addEventListener("click", async () => {
  if (!status || status.draining) return;
  const lines = [
    ["No new peers are accepted."],
    [`${plural(status.sessions.active, "active session")} get${status.sessions.active === 1 ? "s" : ""} ${span(status.drain_timeout_seconds)} to end; those that are left are ended then.`],
    ["The process then exits. Whether it starts again is up to its supervisor. This cannot be undone."],
  ];
  if (await confirmed("Drain this relay?", lines, "Drain")) await act("drain", "POST", "The drain has begun.", "The drain has not begun");
});

function lock(wrong) {
  locked = true;
  sessionStorage.removeItem(TOKEN);
  answered(false);
  attribute($("token"), "aria-invalid", String(wrong));
  if (wrong) askForToken("The relay does not accept this token.", "bad");
  else askForToken("This relay requires its AdminToken.", "plain");
}

function askForToken(why, name) {
  tone($("login-why"), name, why);
  announce(why);
  showState();
  $("token").focus();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  $("token").value = "";
  // A text that cannot be sent in a header is not a token of this relay.
  if (!/^[\x21-\x7e]+$/.test(token)) return lock(true);
  sessionStorage.setItem(TOKEN, token);
  try {
    const answer = await api("status");
    locked = false;
    showStatus(answer);
    look();
    $("filter").focus();
  } catch (error) {
    if (error.status !== 401) askForToken(`The token could not be tried: ${error.message}.`, "bad");
  }
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  // Removes everything that was shown with it.
  location.reload();
});

put($("host"), `aspia_relay at ${location.host}`);
makeHead();
const askStatus = poll(() => api("status"), () => PERIOD, showStatus, statusFailed);
const askSessions = poll(allSessions, () => (rows.size > ROWS ? LONG_PERIOD : PERIOD), showSessions, sessionsFailed);
function look() {
  askStatus();
  askSessions();
}
document.addEventListener("visibilitychange", look);
look();
