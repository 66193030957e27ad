//! One TLS handshake at a time on a worker, and whatever else is ready in between.
//!
//! A step of a handshake keeps its thread for the better part of a millisecond. A runtime asks the kernel what has come only
//! once it has run what it knows of, so hundreds of steps that become ready at once, which one workload alone can bring
//! about, would keep everybody's requests waiting for all of them. Here a step has the thread's turn, which ends after the
//! kernel was asked again; and workloads are given turns one after the other, so who has many handshakes under way delays a
//! neighbour's by one step each time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// Who has one thread's turn. Clones are the same.
#[derive(Clone, Default)]
pub struct Rota(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    taken: bool,
    /// Those of the workload that comes next are in front. None is empty.
    lines: VecDeque<Line>,
}

/// What one workload waits with.
struct Line {
    workload: Option<Box<str>>,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// The thread's turn. Dropping it gives it to who comes next.
struct Turn(Option<Rota>);

/// Tells whether a future that said it was not ready wants to be asked again: others wake its task too.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    listener: AtomicWaker,
}

impl Rota {
    /// Runs a future each of whose steps is long.
    ///
    /// `workload`: the UID of the pod for which it runs; those of whom none is known stand in one line.
    pub async fn run<F: Future>(&self, workload: Option<&str>, future: F) -> F::Output {
        let mut future = pin!(future);
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        loop {
            let turn = self.take(workload).await;
            let step = future.as_mut().poll(&mut Context::from_waker(&waker));
            // Comes back once the runtime has asked the kernel.
            yield_now().await;
            drop(turn);
            if let Poll::Ready(output) = step {
                return output;
            }
            poll_fn(|cx| bell.poll_rung(cx)).await;
        }
    }

    async fn take(&self, workload: Option<&str>) -> Turn {
        let Some(given) = self.line_up(workload) else { return Turn(Some(self.clone())) };
        // Who lines up is given a turn by whoever has it now.
        given.await.unwrap_or(Turn(None))
    }

    /// `None`: it is nobody's turn, and from now on that of who asks.
    fn line_up(&self, workload: Option<&str>) -> Option<oneshot::Receiver<Turn>> {
        let mut state = self.0.borrow_mut();
        if !state.taken {
            state.taken = true;
            return None;
        }
        let (give, given) = oneshot::channel();
        match state.lines.iter_mut().find(|line| line.workload.as_deref() == workload) {
            Some(line) => line.waiting.push_back(give),
            None => {
                let line = Line { workload: workload.map(Into::into), waiting: VecDeque::from([give]) };
                state.lines.push_back(line);
            }
        }
        Some(given)
    }

    /// Who comes next; it is nobody's turn where nobody waits.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.0.borrow_mut();
        let next = state.lines.pop_front().and_then(|mut line| {
            let next = line.waiting.pop_front();
            if !line.waiting.is_empty() {
                state.lines.push_back(line);
            }
            next
        });
        state.taken = next.is_some();
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(rota) = self.0.take() else { return };
        while let Some(next) = rota.next() {
            match next.send(Self(Some(rota.clone()))) {
                Ok(()) => return,
                // Waits no longer. Nor does this turn pass itself on: that would be one call within the other.
                Err(mut refused) => refused.0 = None,
            }
        }
    }
}

impl Bell {
    fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        self.listener.register(cx.waker());
        if self.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.listener.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::task::{JoinHandle, LocalSet, spawn_local};

    use super::*;

    fn on_a_worker<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    /// How many of many long steps, ready at once, stand between a request and its answer at the most.
    async fn steps_meanwhile(rota: Option<Rota>) -> usize {
        const STEPS: usize = 400;
        let done = Rc::new(Cell::new(0));
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let served = spawn_local(async move {
            let mut byte = [0];
            while server.read_exact(&mut byte).await.is_ok() {
                server.write_all(&byte).await.unwrap();
            }
        });
        for _ in 0..STEPS {
            let (rota, done) = (rota.clone(), done.clone());
            let step = async move { done.set(done.get() + 1) };
            spawn_local(async move {
                match rota {
                    Some(rota) => rota.run(Some("many"), step).await,
                    None => step.await,
                }
            });
        }
        let mut most = 0;
        while done.get() < STEPS {
            let before = done.get();
            client.write_all(b"?").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
            most = most.max(done.get() - before);
        }
        drop(client);
        served.await.unwrap();
        most
    }

    #[test]
    fn a_request_waits_for_a_step_and_not_for_all_that_are_ready() {
        let most = on_a_worker(async { steps_meanwhile(Some(Rota::default())).await });
        // Read, written, read again: the kernel is asked a few times for one request.
        assert!(most <= 8, "{most}");
        // The control.
        let without = on_a_worker(async { steps_meanwhile(None).await });
        assert!(without > 50, "{without}");
    }

    /// Runs one step for a workload and notes whose it was.
    fn note(rota: &Rota, order: &Rc<RefCell<Vec<&'static str>>>, workload: &'static str) -> JoinHandle<()> {
        let (rota, order) = (rota.clone(), order.clone());
        spawn_local(async move {
            rota.run(Some(workload), async { order.borrow_mut().push(workload) }).await;
        })
    }

    #[test]
    fn workloads_are_given_turns_one_after_the_other() {
        let order = on_a_worker(async {
            let (rota, order) = (Rota::default(), Rc::default());
            let all = ["many"; 50].into_iter().chain(["few", "few", "one"]);
            let all: Vec<_> = all.map(|workload| note(&rota, &order, workload)).collect();
            for one in all {
                one.await.unwrap();
            }
            order.take()
        });
        assert_eq!(order[..8], ["many", "many", "few", "one", "many", "few", "many", "many"]);
        assert_eq!(order.len(), 53);
    }

    #[test]
    fn who_waits_no_longer_is_passed_over_and_who_is_gone_keeps_no_turn() {
        let order = on_a_worker(async {
            let (rota, order) = (Rota::default(), Rc::default());
            let held = rota.take(None).await;
            let waiting: Vec<_> = ["a", "b", "c", "d"].map(|workload| note(&rota, &order, workload)).into();
            while rota.0.borrow().lines.len() < 4 {
                yield_now().await;
            }
            // One that waits, and one that was given the turn and has not run yet.
            waiting[1].abort();
            yield_now().await;
            drop(held);
            waiting[0].abort();
            for one in waiting {
                let _ = one.await;
            }
            assert!(!rota.0.borrow().taken);
            order.take()
        });
        assert_eq!(order, ["c", "d"]);
    }

    #[test]
    fn a_step_is_taken_when_it_was_woken_and_not_when_its_task_was() {
        on_a_worker(async {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let (rota, polls) = (Rota::default(), Cell::new(0));
            let mut read = Box::pin(there.read_u8());
            let step = poll_fn(|cx| {
                polls.set(polls.get() + 1);
                if polls.get() == 1 {
                    // In the middle of its step: this must not be lost.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                read.as_mut().poll(cx)
            });
            let said = async {
                // The task of both is woken again and again meanwhile.
                for _ in 0..20 {
                    yield_now().await;
                }
                here.write_all(b"x").await.unwrap();
            };
            let (byte, ()) = tokio::join!(rota.run(None, step), said);
            assert_eq!(byte.unwrap(), b'x');
            assert_eq!(polls.get(), 3);
        });
    }
}
