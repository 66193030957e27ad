//! Attaching by a filter, for kernels without tcx: priority and handle are ours, so that the filter is
//! recognised and replaced in place, and it persists by itself.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::netlink::Netlink;

/// The queueing discipline's place, and its two hooks.
const CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff3 };
const QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// First. Among filters of the same priority the newest is the first.
const PRIORITY: u32 = 1;
/// `hnp` in ASCII.
const HANDLE: TcHandle = TcHandle { major: 0x68, minor: 0x6e70 };
const NAME: &str = "hnp_guard";

/// Makes the queueing discipline; `false`: there is one, and somebody else made it.
pub(super) fn add_qdisc(netlink: &mut Netlink, interface: u32) -> io::Result<bool> {
    let mut message = message(interface, CLSACT, QDISC);
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match netlink.request(RouteNetlinkMessage::NewQueueDiscipline(message), flags) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the queueing discipline, unless somebody has put a filter there.
pub(super) fn remove_qdisc(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    for hook in [INGRESS, EGRESS] {
        let all = message(interface, hook, TcHandle::UNSPEC);
        if !netlink.dump(RouteNetlinkMessage::GetTrafficFilter(all))?.is_empty() {
            return Ok(());
        }
    }
    let message = message(interface, CLSACT, QDISC);
    gone(netlink.request(RouteNetlinkMessage::DelQueueDiscipline(message), 0))
}

/// Attaches the program, or puts it in the place of a former agent's.
pub(super) fn put_filter(netlink: &mut Netlink, interface: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = filter(interface);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.into())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    netlink.request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).map(|_| ())
}

/// Detaches the program.
pub(super) fn remove_filter(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    gone(netlink.request(RouteNetlinkMessage::DelTrafficFilter(filter(interface)), 0))
}

fn filter(interface: u32) -> TcMessage {
    const ETH_P_ALL: u16 = 3;
    let mut message = message(interface, INGRESS, HANDLE);
    message.header.info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    message.attributes.push(TcAttribute::Kind("bpf".into()));
    message
}

fn message(interface: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

/// What is not there, or on no interface any more, is as good as removed.
fn gone<T>(removed: io::Result<T>) -> io::Result<()> {
    match removed {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Ok(())
        }
        other => other.map(|_| ()),
    }
}
