//! Several addresses of one name, tried so that a dead one costs a quarter of a second and not the
//! whole deadline: happy eyeballs (RFC 8305).
//!
//! Attempts begin 250 ms apart, or at once when the one before has failed; the families take turns;
//! the first connection wins and the others are dropped. Pure of sockets, so that time can be
//! virtual in tests. Where it differs from the RFC: the family that goes first is that of the
//! resolver's first address, because pods and agent should find the same one.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// RFC 8305 section 5: the recommended Connection Attempt Delay.
const STAGGER: Duration = Duration::from_millis(250);

/// What became of the attempts of which none won.
#[derive(Debug)]
pub(super) struct Lost<E> {
    /// Those that failed, in the order in which they did.
    pub(super) failed: Vec<(SocketAddr, E)>,
    /// Those that were under way, or never begun, when the time was over.
    pub(super) silent: Vec<SocketAddr>,
}

/// The first connection that `connect` makes to one of the addresses before `end`.
///
/// # Errors
/// When all attempts failed or the time is over.
pub(super) async fn race<T, E, F: Future<Output = Result<T, E>>>(
    addrs: &[SocketAddr],
    end: Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T), Lost<E>> {
    let mut waiting = interleaved(addrs).into_iter();
    let mut running: Vec<(SocketAddr, Pin<Box<F>>)> = Vec::new();
    let mut failed = Vec::new();
    let raced = timeout_at(end, async {
        loop {
            if let Some(addr) = waiting.next() {
                running.push((addr, Box::pin(connect(addr))));
            } else if running.is_empty() {
                return None;
            }
            let next = Instant::now() + STAGGER;
            let ended = tokio::select! {
                biased;
                ended = first_to_end(&mut running) => Some(ended),
                () = sleep_until(next), if waiting.len() > 0 => None,
            };
            match ended {
                Some((addr, Ok(won))) => return Some((addr, won)),
                Some((addr, Err(error))) => failed.push((addr, error)),
                None => {}
            }
        }
    })
    .await;
    match raced {
        Ok(Some(won)) => Ok(won),
        Ok(None) => Err(Lost { failed, silent: Vec::new() }),
        Err(_) => {
            let silent = running.iter().map(|(addr, _)| *addr).chain(waiting).collect();
            Err(Lost { failed, silent })
        }
    }
}

/// Waits for whichever attempt ends first, and takes it out.
async fn first_to_end<F: Future>(running: &mut Vec<(SocketAddr, Pin<Box<F>>)>) -> (SocketAddr, F::Output) {
    poll_fn(|cx| {
        for index in 0..running.len() {
            if let Poll::Ready(output) = running[index].1.as_mut().poll(cx) {
                return Poll::Ready((running.remove(index).0, output));
            }
        }
        Poll::Pending
    })
    .await
}

/// RFC 8305 section 4: one of the first family, one of the other, and so on; within a family as they
/// came.
fn interleaved(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v4 = addrs.first().is_some_and(SocketAddr::is_ipv4);
    let of = |first: bool| addrs.iter().filter(move |addr| (addr.is_ipv4() == first_is_v4) == first).copied();
    let (mut first, mut second) = (of(true), of(false));
    let mut all = Vec::with_capacity(addrs.len());
    while all.len() < addrs.len() {
        all.extend(first.next());
        all.extend(second.next());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use proptest::prelude::*;
    use tokio::time::sleep;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        format!("{text}:443").parse().unwrap()
    }

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().copied().map(addr).collect()
    }

    /// What an address does: after so many milliseconds it connects or refuses.
    type Peer = (&'static str, u64, bool);

    /// Races the peers for ten seconds; the outcome, when each attempt began, and how many were dropped.
    async fn run(peers: &[Peer]) -> (Result<SocketAddr, Lost<()>>, Vec<(SocketAddr, u64)>, usize, u64) {
        struct Guard(Rc<Cell<usize>>, bool);
        impl Guard {
            fn done(&mut self) {
                self.1 = true;
            }
        }
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.set(self.0.get() + usize::from(!self.1));
            }
        }
        let begun = RefCell::new(Vec::new());
        let dropped = Rc::new(Cell::new(0));
        let started = Instant::now();
        let since = || u64::try_from(started.elapsed().as_millis()).unwrap();
        let all: Vec<SocketAddr> = peers.iter().map(|(text, ..)| addr(text)).collect();
        let outcome = race(&all, started + Duration::from_secs(10), |at| {
            let (_, after, connects) = *peers.iter().find(|(text, ..)| addr(text) == at).unwrap();
            begun.borrow_mut().push((at, since()));
            let mut guard = Guard(dropped.clone(), false);
            async move {
                sleep(Duration::from_millis(after)).await;
                guard.done();
                connects.then_some(()).ok_or(())
            }
        })
        .await;
        let took = since();
        (outcome.map(|(at, ())| at), begun.into_inner(), dropped.get(), took)
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_first_address_is_the_only_one_tried() {
        let (won, begun, dropped, took) = run(&[("10.0.0.1", 20, true), ("[fd00::1]", 1, true)]).await;
        assert_eq!((won.unwrap(), begun.len(), dropped, took), (addr("10.0.0.1"), 1, 0, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_first_address_costs_a_quarter_of_a_second_and_is_dropped() {
        let (won, begun, dropped, took) = run(&[("10.0.0.1", 60_000, true), ("[fd00::1]", 30, true)]).await;
        assert_eq!((won.unwrap(), dropped, took), (addr("[fd00::1]"), 1, 280));
        assert_eq!(begun, [(addr("10.0.0.1"), 0), (addr("[fd00::1]"), 250)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_may_still_win() {
        let (won, begun, dropped, took) = run(&[("10.0.0.1", 400, true), ("10.0.0.2", 9_000, true)]).await;
        assert_eq!((won.unwrap(), begun.len(), dropped, took), (addr("10.0.0.1"), 2, 1, 400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_waited_out() {
        let (won, begun, _, took) = run(&[("10.0.0.1", 10, false), ("10.0.0.2", 10, true)]).await;
        assert_eq!((won.unwrap(), took), (addr("10.0.0.2"), 20));
        assert_eq!(begun[1].1, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_fail_and_all_that_are_silent_are_told_apart() {
        let (lost, _, _, took) = run(&[("10.0.0.1", 5, false), ("10.0.0.2", 5, false)]).await;
        let lost = lost.unwrap_err();
        assert_eq!((lost.failed.len(), lost.silent.len(), took), (2, 0, 10));
        let (lost, begun, dropped, took) = run(&[("10.0.0.1", 60_000, true), ("10.0.0.2", 5, false)]).await;
        let lost = lost.unwrap_err();
        assert_eq!((lost.failed, lost.silent), (vec![(addr("10.0.0.2"), ())], addrs(&["10.0.0.1"])));
        assert_eq!((begun.len(), dropped, took), (2, 1, 10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_to_try_is_lost_at_once() {
        let (lost, begun, _, took) = run(&[]).await;
        assert!(lost.unwrap_err().failed.is_empty() && begun.is_empty() && took == 0);
    }

    #[test]
    fn families_take_turns_and_keep_their_order() {
        for (given, tried) in [
            (&["10.0.0.1", "10.0.0.2", "[fd00::1]"][..], &["10.0.0.1", "[fd00::1]", "10.0.0.2"][..]),
            (&["[fd00::1]", "[fd00::2]", "10.0.0.1"], &["[fd00::1]", "10.0.0.1", "[fd00::2]"]),
            (&["10.0.0.1"], &["10.0.0.1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(&addrs(given)), addrs(tried));
        }
    }

    proptest! {
        #[test]
        fn none_is_lost_or_tried_twice(v4 in 0..6u8, v6 in 0..6u16, flip in any::<bool>()) {
            let mut all: Vec<SocketAddr> = (0..v4).map(|n| SocketAddr::from(([10, 0, 0, n], 1))).collect();
            all.extend((0..v6).map(|n| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, n], 1))));
            if flip {
                all.reverse();
            }
            let mut tried = interleaved(&all);
            tried.sort();
            all.sort();
            prop_assert_eq!(tried, all);
        }
    }
}
