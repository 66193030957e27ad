//! A small name server whose records the test changes while it runs, and which can fail in the ways
//! that name servers do.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::topology::{DNS4, World};

/// What the server says about a name.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NotFound,
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

/// A name server on [`DNS4`], port 53, UDP. Names that were not set do not exist.
#[derive(Debug)]
pub struct Dns {
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Zone {
    answers: HashMap<String, Answer>,
    queries: HashMap<String, usize>,
}

impl Dns {
    /// Starts it in the world's manager namespace.
    ///
    /// # Panics
    /// When another one runs there.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        let socket = world.manager_netns().run(|| UdpSocket::bind(SocketAddr::new(DNS4.into(), 53)));
        let socket = socket.expect("one name server in a world");
        // So that the stop flag is looked at.
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a valid timeout");
        let (zone, stop) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    answer_one(&socket, &zone);
                }
            }
        });
        Self { zone, stop, thread: Some(thread) }
    }

    /// Says this about a name (without trailing dot) from now on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.zone().answers.insert(name.to_owned(), answer);
    }

    /// Has a name stand for addresses, for `ttl` seconds.
    pub fn set_addresses(&self, name: &str, addrs: &[IpAddr], ttl: u32) {
        self.set(name, Answer::Addresses(addrs.to_vec(), ttl));
    }

    /// How often a name was asked for (A and AAAA each count).
    pub fn queries(&self, name: &str) -> usize {
        self.zone().queries.get(name).copied().unwrap_or(0)
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().expect("no panic while held")
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_one(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buffer = [0; 4096];
    let Ok((length, client)) = socket.recv_from(&mut buffer) else { return };
    let Ok(query) = Message::from_vec(&buffer[..length]) else { return };
    let Some(question) = query.queries.first().cloned() else { return };
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let answer = {
        let mut zone = zone.lock().expect("no panic while held");
        *zone.queries.entry(name.clone()).or_default() += 1;
        zone.answers.get(&name).cloned().unwrap_or(Answer::NotFound)
    };

    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    match answer {
        Answer::Silence => return,
        Answer::NotFound => reply.metadata.response_code = ResponseCode::NXDomain,
        Answer::Failure => reply.metadata.response_code = ResponseCode::ServFail,
        Answer::Addresses(addrs, ttl) => {
            for addr in addrs {
                let data = match (addr, question.query_type()) {
                    (IpAddr::V4(addr), RecordType::A) => RData::A(addr.into()),
                    (IpAddr::V6(addr), RecordType::AAAA) => RData::AAAA(addr.into()),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
            }
        }
    }
    let bytes = reply.to_vec().expect("a reply that we made");
    // A client that gave up needs no answer.
    let _ = socket.send_to(&bytes, client);
}
