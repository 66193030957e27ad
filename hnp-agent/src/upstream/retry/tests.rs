//! Outages in virtual time: an upstream that is down until a moment, and those who want it.

use std::cell::RefCell;

use super::*;

const DEADLINE: Duration = Duration::from_secs(5);

/// What is dialled: refuses until it is up.
struct Upstream {
    outages: Outages,
    started: Instant,
    up_after: Duration,
    /// When each dial began.
    dials: RefCell<Vec<Duration>>,
}

impl Upstream {
    fn down_for(up_after: Duration) -> Self {
        Self { outages: Outages::default(), started: Instant::now(), up_after, dials: RefCell::default() }
    }

    fn patience<'a>(&'a self, deadline: Duration, has_left: HasLeft<'a>) -> Patience<'a> {
        let target = Target { route: "r".into(), host: Host::Name("m.test".into()), port: 443, proxy: None };
        let end = Instant::now() + deadline;
        Patience {
            outages: &self.outages,
            target,
            end,
            has_left,
            waited: false,
            on_wait: &|| (),
            attempts: 0,
            tried: None,
            failed: None,
        }
    }

    async fn dial(&self, takes: Duration, passes: bool) -> Result<(), DialError> {
        self.dials.borrow_mut().push(self.started.elapsed());
        let up = self.started.elapsed() >= self.up_after;
        sleep(takes).await;
        let refused = DialError::new(Reason::UpstreamRefused, "refused", None).may_pass(passes);
        up.then_some(()).ok_or(refused)
    }

    /// One that wants it: what came of it, and after how long.
    async fn wants(&self, deadline: Duration) -> (Result<(), Reason>, Duration) {
        let (began, mut patience) = (Instant::now(), self.patience(deadline, &|| false));
        let dial = async |_| self.dial(Duration::from_millis(1), true).await;
        let made = patience.make(deadline, || None, dial).await;
        (made.map(|((), _)| ()).map_err(|error| error.reason), began.elapsed())
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_deadline_is_waited_out() {
    for millis in [0, 40, 300, 2000, 3500] {
        let outage = Duration::from_millis(millis);
        let upstream = Upstream::down_for(outage);
        let (made, took) = upstream.wants(DEADLINE).await;
        assert_eq!(made, Ok(()), "{outage:?}");
        assert!(took < outage + LONGEST_PAUSE + AFTERWARDS, "{outage:?}: {took:?}");
        assert!(upstream.dials.borrow().len() <= 10, "{outage:?}: {:?}", upstream.dials);
    }
}

#[tokio::test(start_paused = true)]
async fn a_longer_one_ends_with_its_reason_and_in_time() {
    for deadline in [DEADLINE, Duration::from_secs(1), Duration::from_millis(100)] {
        let upstream = Upstream::down_for(Duration::from_secs(3600));
        let (made, took) = upstream.wants(deadline).await;
        assert_eq!(made, Err(Reason::UpstreamRefused));
        assert!(took <= deadline && took >= deadline / 3, "{deadline:?}: {took:?}");
        assert!(upstream.dials.borrow().len() >= 3, "{deadline:?}: {:?}", upstream.dials);
    }
}

#[tokio::test(start_paused = true)]
async fn many_that_wait_dial_as_often_as_one_and_all_are_served() {
    let upstream = Upstream::down_for(Duration::from_secs(3));
    let upstream = &upstream;
    let all = futures_util::future::join_all((0..1000_u64).map(|index| async move {
        // Over the first two seconds, as requests come.
        sleep(Duration::from_millis(index * 2)).await;
        upstream.wants(DEADLINE).await
    }));
    let ended = all.await;
    assert!(ended.iter().all(|(made, _)| made.is_ok()), "{ended:?}");
    let dials = upstream.dials.borrow();
    let during = dials.iter().filter(|at| **at < upstream.up_after).count();
    assert!(during <= 10, "{during} dials in the outage");
    let after: Vec<_> = dials.iter().filter(|at| **at >= upstream.up_after).collect();
    assert_eq!(after.len(), 1000);
    assert!(**after.last().unwrap() - **after.first().unwrap() >= AFTERWARDS / 2, "not all at once");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_not_repeated() {
    let upstream = Upstream::down_for(DEADLINE);
    let mut patience = upstream.patience(DEADLINE, &|| false);
    let dial = async |_| upstream.dial(Duration::ZERO, false).await;
    let made = patience.make(DEADLINE, || None, dial).await;
    assert_eq!(made.unwrap_err().reason, Reason::UpstreamRefused);
    assert!(upstream.dials.borrow().len() == 1 && !patience.waited);
    assert!(upstream.outages.known(&patience.target, Instant::now()).is_none(), "nor waited for by others");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_waited_for_no_longer() {
    let upstream = Upstream::down_for(Duration::from_secs(3600));
    let left = Cell::new(false);
    let has_left = || left.get();
    let mut patience = upstream.patience(Duration::from_secs(60), &has_left);
    let dial = async |_| upstream.dial(Duration::ZERO, true).await;
    let leaving = async {
        sleep(Duration::from_secs(5)).await;
        left.set(true);
    };
    let began = Instant::now();
    let (made, ()) = tokio::join!(patience.make(Duration::from_secs(60), || None, dial), leaving);
    assert_eq!(made.unwrap_err().reason, Reason::UpstreamRefused);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(5) && took <= Duration::from_secs(5) + LONGEST_PAUSE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_or_is_given_up_does_not_hold_up_the_others() {
    let upstream = Upstream::down_for(Duration::from_secs(1));
    let _ = upstream.wants(Duration::from_millis(100)).await;
    // It is this one's turn, and nothing answers it.
    let mut hangs = upstream.patience(DEADLINE, &|| false);
    let hung = hangs.make(
        DEADLINE,
        || None,
        async |_| {
            sleep(Duration::from_secs(3600)).await;
            Ok(())
        },
    );
    let other = async {
        sleep(Duration::from_millis(500)).await;
        upstream.wants(DEADLINE).await
    };
    let (hung, (made, took)) = tokio::join!(tokio::time::timeout(DEADLINE, hung), other);
    assert!(hung.is_err());
    assert_eq!(made, Ok(()));
    assert!(took <= OTHERS_ATTEMPT + AFTERWARDS + Duration::from_millis(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_after_a_wait_is_taken_and_nothing_dialled() {
    let upstream = Upstream::down_for(Duration::from_secs(1));
    let mut patience = upstream.patience(DEADLINE, &|| false);
    let warm = || (upstream.started.elapsed() >= upstream.up_after).then_some(());
    let dial = async |_| upstream.dial(Duration::ZERO, true).await;
    assert!(patience.make(DEADLINE, warm, dial).await.is_ok() && patience.waited);
    assert!(upstream.dials.borrow().iter().all(|at| *at < upstream.up_after), "{:?}", upstream.dials);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_nobody_has_met_for_a_while_is_forgotten() {
    let upstream = Upstream::down_for(Duration::from_millis(150));
    let _ = upstream.wants(Duration::from_millis(100)).await;
    let target = upstream.patience(DEADLINE, &|| false).target;
    assert!(upstream.outages.known(&target, Instant::now()).is_some());
    sleep(LONGEST_PAUSE * 3).await;
    assert!(upstream.outages.known(&target, Instant::now()).is_none());
    upstream.outages.sweep(Instant::now());
    assert!(upstream.outages.0.borrow().is_empty());
    let (made, took) = upstream.wants(DEADLINE).await;
    assert!(made.is_ok() && took < Duration::from_millis(10), "{took:?}");
}
