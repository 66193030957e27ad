//! Who is connected now and what has ended lately: what `hnp-agent flows` shows.
//!
//! Each worker writes into tables of its own, behind a lock that nobody else holds but who looks, and he
//! copies only what he asked for. Nothing is formatted before somebody looks. All of it is bounded: live rows
//! by the connections and requests there may be, the recent ones by number and by what each may hold.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use serde_json::{Value, json};

use super::line;
use super::record::{AccessRecord, AskedRecord, Dialled, HttpRecord, HttpVersion};
use super::rfc3339;
use crate::workload::Workload;

/// How many records of what has ended an agent keeps, over all workers.
pub const RECENT: usize = 1024;
/// The longest text that a row keeps of what a client wrote; a thousand rows stay below a megabyte or so.
const TEXT_BYTES: usize = 512;
/// What an access line says at the end only.
const NOT_YET: [&str; 8] =
    ["ts", "kind", "reason", "bytes_up", "bytes_down", "duration_ms", "first_byte_ms", "status"];

/// Which flows are asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Those that are open.
    pub live: bool,
    /// Those that have ended.
    pub recent: bool,
    /// Of this pod: its UID, its container's id, its name or `NAMESPACE/NAME`, or how one of these begins.
    pub pod: Option<String>,
    /// Of this route.
    pub route: Option<String>,
    /// Of this client: its address, with or without the port.
    pub client: Option<String>,
    /// That ended for this reason; what is open has none yet.
    pub reason: Option<Reason>,
    /// So many of each kind, at most.
    pub limit: usize,
}

/// What was asked for, as JSON. Rows have the fields of access lines.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Open ones, the oldest first: requests under way, and connections between two.
    pub live: Vec<Value>,
    /// How many there are, shown or not.
    pub live_matching: usize,
    /// Ended ones, the latest first.
    pub recent: Vec<Value>,
    /// How many of those are kept, shown or not.
    pub recent_matching: usize,
}

/// A row's place, for whoever wrote it.
pub type Place = u32;

/// One worker's tables.
#[derive(Debug)]
pub(super) struct Seen(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    connections: Slots<Connection>,
    requests: Slots<AccessRecord>,
    recent: VecDeque<AccessRecord>,
    /// How many `recent` may hold.
    keep: usize,
    /// Texts of a request that has ended, for the next one: a quiet worker allocates nothing.
    spare: Option<HttpRecord>,
}

/// An open connection. Small, because most of them wait.
#[derive(Debug)]
struct Connection {
    started: SystemTime,
    flow_id: u64,
    client: SocketAddr,
    workload: Arc<Workload>,
    destination: Option<Dialled>,
    direct: bool,
}

impl Seen {
    /// Empty, of one of so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let keep = RECENT.div_ceil(workers);
        Self(Mutex::new(Tables {
            connections: Slots::default(),
            requests: Slots::default(),
            recent: VecDeque::new(),
            keep,
            spare: None,
        }))
    }

    /// A connection of which it is known who makes it.
    pub(super) fn connected(&self, base: &AccessRecord) -> Place {
        let connection = Connection {
            started: crate::clock::now(),
            flow_id: base.flow_id,
            client: base.client,
            workload: Arc::clone(&base.workload),
            destination: base.destination.clone(),
            direct: base.direct,
        };
        self.lock().connections.insert(connection)
    }

    /// It has ended.
    pub(super) fn disconnected(&self, place: Place) {
        self.lock().connections.remove(place);
    }

    /// What is known of a request, or of a connection that is none of HTTP, while it runs.
    pub(super) fn shown(&self, place: Option<Place>, record: &AccessRecord) -> Place {
        let mut tables = self.lock();
        let Tables { requests, spare, .. } = &mut *tables;
        if let Some(place) = place
            && let Some(row) = requests.get_mut(place)
        {
            // All that is learnt after it was first shown.
            row.upstream.clone_from(&record.upstream);
            return place;
        }
        let http = record.http.as_ref().map(|http| {
            let mut texts = spare.take().unwrap_or_default();
            copy(&mut texts.method, &http.method);
            copy(&mut texts.path, &http.path);
            texts
        });
        requests.insert(AccessRecord {
            started: record.started,
            duration: Duration::ZERO,
            flow_id: record.flow_id,
            route: record.route.clone(),
            mode: record.mode,
            workload: Arc::clone(&record.workload),
            client: record.client,
            destination: record.destination.clone(),
            direct: record.direct,
            handshake_wait_ms: record.handshake_wait_ms,
            client_tls: record.client_tls.clone(),
            upstream: record.upstream.clone(),
            client_protocol: record.client_protocol,
            http,
            bytes_up: 0,
            bytes_down: 0,
            reason: Reason::Internal,
            detail: None,
        })
    }

    /// It runs no more; the record, where there is one, is kept for a while.
    pub(super) fn ended(&self, place: Option<Place>, record: Option<AccessRecord>) {
        let mut tables = self.lock();
        let row = place.and_then(|place| tables.requests.remove(place));
        if let Some(texts) = row.and_then(|row| row.http) {
            tables.spare = Some(texts);
        }
        let Some(mut record) = record else { return };
        trim(&mut record);
        let over = if tables.recent.len() >= tables.keep { tables.recent.pop_front() } else { None };
        tables.recent.push_back(record);
        drop(tables);
        // What it held is given back without the lock.
        drop(over);
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the tables of all workers, one after the other.
pub(super) fn find<'a>(workers: impl Iterator<Item = &'a Seen>, wanted: &Wanted) -> Found {
    let (mut live, mut recent, mut found) = (Vec::new(), Vec::new(), Found::default());
    for worker in workers {
        let tables = worker.lock();
        if wanted.live && wanted.reason.is_none() {
            found.live_matching += tables.live(wanted, &mut live);
        }
        if wanted.recent {
            let all = tables.recent.iter().rev();
            let matching =
                all.filter(|record| wanted.is(&record.workload, record.client, record.route.as_deref()));
            let of_reason = |record: &&AccessRecord| wanted.reason.is_none_or(|one| record.reason == one);
            for (number, record) in matching.filter(of_reason).enumerate() {
                found.recent_matching += 1;
                // The latest of each worker are enough for the latest of all.
                if number < wanted.limit {
                    recent.push(record.clone());
                }
            }
        }
    }
    live.sort_by_key(|(_, record)| record.started);
    live.truncate(wanted.limit);
    recent.sort_by_key(|record| std::cmp::Reverse(record.started + record.duration));
    recent.truncate(wanted.limit);
    let now = crate::clock::now();
    found.live = live.iter().map(|(state, record)| live_row(*state, record, now)).collect();
    found.recent = recent.iter().map(recent_row).collect();
    found
}

impl Wanted {
    fn is(&self, workload: &Workload, client: SocketAddr, route: Option<&str>) -> bool {
        let of_route = self.route.as_deref().is_none_or(|wanted| route == Some(wanted));
        let is_client = |wanted: &str| wanted == client.to_string() || wanted == client.ip().to_string();
        of_route
            && self.client.as_deref().is_none_or(is_client)
            && self.pod.as_deref().is_none_or(|pod| is_of(workload, pod))
    }
}

/// Whether a workload is the pod that somebody names: by UID, container or name, or by how one of these begins.
fn is_of(workload: &Workload, pod: &str) -> bool {
    let begins = |id: &Option<String>| id.as_deref().is_some_and(|id| id.starts_with(pod));
    let named = || {
        let known = workload.pod.known()?;
        let (namespace, name) = (&*known.namespace, &*known.name);
        Some(match pod.split_once('/') {
            Some((of, begin)) => of == namespace && name.starts_with(begin),
            None => name.starts_with(pod),
        })
    };
    begins(&workload.pod_uid) || begins(&workload.container_id) || named() == Some(true)
}

/// What is open may be one or the other.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Bytes are under way.
    Busy,
    /// Between two requests, or before the first.
    Waiting,
}

impl Tables {
    /// Adds the oldest that match, and says how many do.
    fn live(&self, wanted: &Wanted, rows: &mut Vec<(State, AccessRecord)>) -> usize {
        let mut busy: Vec<&AccessRecord> = self.requests.iter().collect();
        let served: std::collections::HashSet<u64> = busy.iter().map(|record| record.flow_id).collect();
        busy.retain(|record| wanted.is(&record.workload, record.client, record.route.as_deref()));
        // A connection that waits belongs to no route yet.
        let waits =
            |one: &&Connection| !served.contains(&one.flow_id) && wanted.is(&one.workload, one.client, None);
        let mut waiting: Vec<&Connection> = self.connections.iter().filter(waits).collect();
        let matching = busy.len() + waiting.len();
        busy.sort_by_key(|record| record.started);
        waiting.sort_by_key(|one| one.started);
        rows.extend(busy.into_iter().take(wanted.limit).map(|record| (State::Busy, record.clone())));
        rows.extend(waiting.into_iter().take(wanted.limit).map(|one| (State::Waiting, one.record())));
        matching
    }
}

impl Connection {
    fn record(&self) -> AccessRecord {
        AccessRecord {
            started: self.started,
            duration: Duration::ZERO,
            flow_id: self.flow_id,
            route: None,
            mode: "",
            workload: Arc::clone(&self.workload),
            client: self.client,
            destination: self.destination.clone(),
            direct: self.direct,
            handshake_wait_ms: 0,
            client_tls: None,
            upstream: None,
            client_protocol: HttpVersion::Http1,
            http: None,
            bytes_up: 0,
            bytes_down: 0,
            reason: Reason::Internal,
            detail: None,
        }
    }
}

fn live_row(state: State, record: &AccessRecord, now: SystemTime) -> Value {
    let mut row = line::value(record);
    let state = match state {
        State::Busy => "busy",
        State::Waiting => "waiting",
    };
    if let Some(fields) = row.as_object_mut() {
        fields.retain(|key, value| !NOT_YET.contains(&key.as_str()) && *value != "");
        let age = now.duration_since(record.started).unwrap_or_default();
        fields.insert("state".into(), state.into());
        fields.insert("since".into(), rfc3339(record.started).into());
        fields.insert("age_ms".into(), json!(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    }
    row
}

fn recent_row(record: &AccessRecord) -> Value {
    let mut row = line::value(record);
    if let Some(fields) = row.as_object_mut() {
        fields.remove("kind");
    }
    row
}

fn copy(into: &mut String, text: &str) {
    into.clear();
    into.push_str(cut(text));
}

/// As much of a text as a row keeps.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES)]
}

/// Keeps no more of what a client wrote than a row may hold.
fn trim(record: &mut AccessRecord) {
    let short = |text: &mut String| {
        if text.len() > TEXT_BYTES {
            *text = format!("{}…", cut(text));
        }
    };
    record.detail.iter_mut().for_each(short);
    if let Some(http) = &mut record.http {
        short(&mut http.method);
        short(&mut http.path);
    }
    if let Some(Dialled::Asked(asked)) = &mut record.destination
        && asked.authority.as_ref().is_some_and(|authority| authority.len() > TEXT_BYTES)
    {
        let mut authority = asked.authority.clone();
        authority.iter_mut().for_each(short);
        *asked = Arc::new(AskedRecord { authority, ..AskedRecord::clone(asked) });
    }
}

/// Rows by their place. Places are used again, and what a wave took is given back.
#[derive(Debug)]
struct Slots<T> {
    rows: Vec<Option<T>>,
    free: Vec<Place>,
}

/// Rows of this many are not worth giving back.
const FEW: usize = 64;

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn insert(&mut self, row: T) -> Place {
        if let Some(place) = self.free.pop() {
            self.rows[place as usize] = Some(row);
            return place;
        }
        self.rows.push(Some(row));
        (self.rows.len() - 1) as Place
    }

    fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.rows.get_mut(place as usize)?.as_mut()
    }

    fn remove(&mut self, place: Place) -> Option<T> {
        let row = self.rows.get_mut(place as usize)?.take()?;
        self.free.push(place);
        if self.free.len() >= self.rows.len() && self.rows.len() > FEW {
            // The last of a wave. Where some stay for ever, the table stays as large as the wave.
            *self = Self::default();
        }
        Some(row)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().flatten()
    }
}

#[cfg(test)]
mod tests;
