//! The thread that attaches the guard to a new pod's veth at once, and looks at all of them now and then.
//!
//! Between a veth's birth and the kernel's word of it to this thread there is a moment without a guard;
//! the interface is not up yet then, as CNI plugins make it.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::constants::NETLINK_ROUTE;

use super::failed;
use super::netlink::{self, Veth};
use super::posts::Posts;
use crate::capture::error::CaptureError;
use crate::capture::sys;

/// How often all interfaces are looked at: routes change, and with them who is an uplink.
const RESCAN: Duration = Duration::from_secs(30);
/// How soon after news: a new interface may get its routes in the next moment.
const RESCAN_AFTER_NEWS: Duration = Duration::from_secs(1);
/// Room for the news of some thousand interfaces that come up at a time.
const NEWS_BYTES: usize = 4 << 20;

/// Ends the thread when dropped.
pub(super) struct Watch {
    _end: PipeWriter,
}

impl Watch {
    pub(super) fn start(posts: Arc<Mutex<Posts>>) -> Result<Self, CaptureError> {
        let start = || -> io::Result<Self> {
            const RTNLGRP_LINK: u32 = 1;
            let mut news = Socket::new(NETLINK_ROUTE)?;
            news.bind_auto()?;
            news.add_membership(RTNLGRP_LINK)?;
            news.set_non_blocking(true)?;
            // As much of it as the system lets us have.
            let _ = news.set_rx_buf_sz(NEWS_BYTES as libc::c_int);
            let (end, ends_when_closed) = io::pipe().map(|(reader, writer)| (writer, reader))?;
            thread::Builder::new().name("guard".into()).spawn(move || {
                let _ = &ends_when_closed;
                watch(&news, ends_when_closed.as_fd(), &posts);
            })?;
            Ok(Self { _end: end })
        };
        start().map_err(failed("watch", "the node's interfaces"))
    }
}

fn watch(news: &Socket, end: BorrowedFd<'_>, posts: &Mutex<Posts>) {
    let posts = || posts.lock().unwrap_or_else(PoisonError::into_inner);
    let mut next = Instant::now() + RESCAN;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        // SAFETY: the socket is open for as long as it is borrowed here.
        let socket = unsafe { BorrowedFd::borrow_raw(news.as_raw_fd()) };
        match sys::wait_readable_any([socket, end], left) {
            Ok([_, true]) => return,
            Ok([true, false]) => match read_news(news, &posts) {
                Ok(false) => {}
                Ok(true) => next = next.min(Instant::now() + RESCAN_AFTER_NEWS),
                Err(error) => {
                    tracing::debug!(%error, "news of interfaces were lost; looking at all");
                    next = Instant::now();
                }
            },
            Ok([false, false]) => {}
            Err(error) => tracing::warn!(%error, "cannot wait for news of interfaces"),
        }
        if Instant::now() >= next {
            if let Err(error) = posts().rescan() {
                tracing::warn!(error = &error as &dyn std::error::Error, "trying again");
            }
            next = Instant::now() + RESCAN;
        }
    }
}

/// Attaches to what is new; whether there was such a thing.
fn read_news<'a>(news: &Socket, posts: &impl Fn() -> std::sync::MutexGuard<'a, Posts>) -> io::Result<bool> {
    let mut is_new = false;
    loop {
        let bytes = match news.recv_from_full() {
            Ok((bytes, _)) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(is_new),
            Err(error) => return Err(error),
        };
        for message in netlink::messages(&bytes) {
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    if let Some(veth) = Veth::of(&link) {
                        is_new |= posts().appeared(&veth);
                    }
                }
                // A port that leaves its bridge is reported as deleted, too, under the bridge's family.
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                    if link.header.interface_family == AddressFamily::Unspec =>
                {
                    posts().vanished(link.header.index);
                }
                _ => {}
            }
        }
    }
}
