//! The container runtime, over its CRI socket: the only one on the node who knows a pod's namespace, name and labels from its first
//! instruction on.
//!
//! Told to the directory are a list of all sandboxes, at the beginning and every few seconds, and the answers to what is asked about
//! single pods ([`super::Lookups`]). A runtime that is slow or gone costs names, never a connection: nothing on the data path waits for it,
//! and what it has said stays known.

mod cri;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use super::lookups::Question;
use super::pod::{Facts, Teller};
use super::pods::PodLogs;
use crate::backoff;
use crate::config::plan::{CaptureMode, Plan, RuntimeSocket};
use crate::finding::{Finding, State};
use crate::grpc::{self, Call, Calls, Failure};
use crate::telemetry::metrics::{Exposition, Labels};
use crate::telemetry::names;

/// Where runtimes have their sockets: containerd, CRI-O, k3s' containerd, cri-dockerd.
const USUAL: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// How often all sandboxes are listed: pods that have gone are noticed, and those that were asked for in vain.
const LIST_AGAIN: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long one pod is asked for, over as many connections as that takes. A restart of containerd takes two seconds.
const ASK_FOR: Duration = Duration::from_secs(5);
/// How many questions may be under way.
const AT_A_TIME: usize = 64;
/// The pause after a failure: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Before a question is tried again whose connection broke.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The longest answer that is read: as the kubelet has it.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// How asking the runtime goes.
#[derive(Debug, Default)]
pub struct RuntimeStatus {
    connected: AtomicBool,
    questions: AtomicU64,
    failures: [AtomicU64; CAUSES.len()],
}

/// Labels of `hnp_runtime_failures`.
const CAUSES: [&str; 5] = ["unreachable", "silent", "broken", "refused", "unreadable"];

impl RuntimeStatus {
    /// Writes `hnp_runtime_connected`, `hnp_runtime_questions` and `hnp_runtime_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::RUNTIME_CONNECTED, u64::from(self.connected.load(Relaxed)));
        out.single(&names::RUNTIME_QUESTIONS, self.questions.load(Relaxed));
        let counted: Vec<_> = CAUSES
            .iter()
            .zip(&self.failures)
            .map(|(cause, count)| ([("cause", *cause)], count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let samples = counted.iter().map(|(labels, count)| (&labels[..] as Labels<'_>, *count));
        out.family(&names::RUNTIME_FAILURES, samples);
    }

    fn failed(&self, failure: &Failure) {
        let cause = match failure {
            Failure::Unreachable(_) => 0,
            Failure::Silent(_) => 1,
            Failure::Broken(_) => 2,
            Failure::Status { .. } => 3,
            Failure::Unreadable(_) => 4,
        };
        self.failures[cause].fetch_add(1, Relaxed);
    }
}

/// Where the runtime answers, if anywhere; else why not.
fn socket(wanted: &RuntimeSocket) -> Result<PathBuf, String> {
    match wanted {
        RuntimeSocket::Off => Err("off".into()),
        RuntimeSocket::Path(path) => Ok(path.clone()),
        RuntimeSocket::Auto => USUAL.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
            format!(
                "there is none of {}; set workloads.runtime, and mount it into this pod",
                USUAL.join(", ")
            )
        }),
    }
}

/// What a runtime calls itself and how many pods it knows.
fn look(socket: &Path, deadline: Duration) -> Result<(String, usize), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Broken(error.to_string()))?;
    runtime.block_on(async {
        let asked = async {
            let (calls, connection) = grpc::open(socket).await?;
            let asked = async {
                let version = Call { method: cri::VERSION, header: None, message: &[], longest: MAX_ANSWER };
                let version = calls.ask(&version).await?;
                let name = cri::runtime(&version).map_err(|error| Failure::Unreadable(error.to_string()))?;
                Ok((name, list(&calls, None).await?.len()))
            };
            until_answered(asked, connection).await
        };
        timeout(deadline, asked).await.unwrap_or(Err(Failure::Silent(deadline)))
    })
}

/// How long `doctor` waits for an answer.
const LOOK: Duration = Duration::from_secs(5);

/// Whether the runtime can be asked, for `doctor`. Nothing fails without it but names.
pub fn examine(plan: &Plan) -> Finding {
    let found = |state, detail: String| Finding::new("workloads", "container runtime", state, detail);
    if plan.capture.mode == CaptureMode::Off {
        return found(State::Skipped, "nobody is captured".into());
    }
    let without = "pods are named by kubelet's log directories (capture.pod_logs) and the API server alone";
    let path = match socket(&plan.workloads.runtime) {
        Ok(path) => path,
        Err(why) => {
            let state = match plan.workloads.runtime {
                RuntimeSocket::Off => State::Skipped,
                RuntimeSocket::Auto | RuntimeSocket::Path(_) => State::Degraded,
            };
            return found(state, format!("{why}: {without}"));
        }
    };
    match look(&path, LOOK) {
        Ok((name, pods)) => found(State::Good, format!("{name} at {} knows {pods} pods", path.display())),
        Err(failure) => {
            let what =
                format!("{}: the container runtime cannot be asked: {failure}; {without}", path.display());
            let next = "see that the socket is the runtime's (crictl -r unix://SOCKET version) and is mounted into this pod";
            Finding { next: Some(next.into()), ..found(State::Degraded, what) }
        }
    }
}

/// What asks the runtime.
pub struct Asking {
    /// Which socket.
    pub socket: RuntimeSocket,
    /// Where answers go.
    pub directory: Directory,
    /// What kubelet's log directories say is known before the runtime has answered.
    pub logs: PodLogs,
    /// How it goes.
    pub status: Arc<RuntimeStatus>,
}

/// What questions and lists have in common.
#[derive(Debug)]
struct Shared {
    directory: Directory,
    status: Arc<RuntimeStatus>,
    /// What was answered since the list was asked for that is under way: it may be older.
    fresh: Mutex<HashMap<Arc<str>, Facts>>,
}

impl Shared {
    fn fresh(&self) -> MutexGuard<'_, HashMap<Arc<str>, Facts>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers questions, and keeps the directory in step, until `cancel`.
pub async fn follow(asking: Asking, questions: mpsc::Receiver<Question>, cancel: CancellationToken) {
    let Asking { socket, directory, logs, status } = asking;
    let shared = Arc::new(Shared { directory, status, fresh: Mutex::default() });
    let (connected, connection) = watch::channel(None);
    let connecting = async {
        if socket == RuntimeSocket::Off {
            std::future::pending::<()>().await;
        }
        stay_connected(&socket, &shared, &connected).await;
    };
    let connection = (socket != RuntimeSocket::Off).then_some(connection);
    tokio::select! {
        () = cancel.cancelled() => {}
        () = connecting => {}
        () = answer(questions, &logs, connection, &shared) => {}
    }
}

/// Connects again whenever the connection ends.
async fn stay_connected(socket: &RuntimeSocket, shared: &Shared, connected: &watch::Sender<Option<Calls>>) {
    let mut failures = 0;
    loop {
        match self::socket(socket) {
            Ok(path) => {
                let failure = converse(&path, shared, connected, &mut failures).await;
                connected.send_replace(None);
                shared.status.connected.store(false, Relaxed);
                shared.status.failed(&failure);
                failures += 1;
                if failures == 1 {
                    tracing::warn!(
                        socket = %path.display(),
                        error = %failure,
                        "the container runtime does not answer: new pods go by their UIDs, and those that are known stay so; \
                         trying again"
                    );
                }
            }
            Err(why) => {
                if failures == 0 {
                    tracing::info!(
                        why,
                        "no container runtime is asked: pods go by kubelet's log directories"
                    );
                }
                failures += 1;
            }
        }
        sleep(backoff::pause(PAUSE.0, PAUSE.1, failures)).await;
    }
}

/// One connection, to its end.
async fn converse(
    socket: &Path,
    shared: &Shared,
    connected: &watch::Sender<Option<Calls>>,
    failures: &mut u32,
) -> Failure {
    let opened = timeout(ANSWER, grpc::open(socket)).await.unwrap_or(Err(Failure::Silent(ANSWER)));
    let (calls, connection) = match opened {
        Ok(opened) => opened,
        Err(failure) => return failure,
    };
    // What is asked now need not wait for the list.
    connected.send_replace(Some(calls.clone()));
    let listing = async {
        loop {
            shared.fresh().clear();
            let mut pods = match timeout(ANSWER, list(&calls, None)).await {
                Ok(Ok(pods)) => pods,
                Ok(Err(failure)) => return Err::<(), _>(failure),
                Err(_) => return Err(Failure::Silent(ANSWER)),
            };
            let listed = pods.len();
            // The last of several wins.
            pods.extend(shared.fresh().values().cloned());
            shared.directory.tell_all(Teller::Runtime, pods);
            if !shared.status.connected.swap(true, Relaxed) {
                tracing::info!(socket = %socket.display(), pods = listed, "the container runtime is asked about pods");
            }
            *failures = 0;
            sleep(LIST_AGAIN).await;
        }
    };
    let ended = until_answered(listing, connection).await;
    ended.err().unwrap_or_else(|| Failure::Broken("the connection ended".into()))
}

/// Polls a connection for as long as something is asked on it.
async fn until_answered<T>(
    asked: impl Future<Output = Result<T, Failure>>,
    connection: impl Future<Output = ()>,
) -> Result<T, Failure> {
    let (mut asked, connection) = (pin!(asked), pin!(connection));
    tokio::select! {
        answer = &mut asked => return answer,
        () = connection => {}
    }
    // What was read last may be the answer, or why there is none; where nothing is waited for, the end is noticed here.
    let ended = || Failure::Broken("the connection ended".into());
    timeout(TRY_AGAIN, asked).await.unwrap_or_else(|_| Err(ended()))
}

async fn list(calls: &Calls, uid: Option<&str>) -> Result<Vec<Facts>, Failure> {
    let call = Call { method: cri::LIST, header: None, message: &cri::list(uid), longest: MAX_ANSWER };
    let answer = calls.ask(&call).await?;
    cri::pods(&answer).map_err(|error| Failure::Unreadable(error.to_string()))
}

/// Takes the questions.
async fn answer(
    mut questions: mpsc::Receiver<Question>,
    logs: &PodLogs,
    connection: Option<watch::Receiver<Option<Calls>>>,
    shared: &Arc<Shared>,
) {
    let mut asking = JoinSet::new();
    let mut batch = Vec::new();
    while questions.recv_many(&mut batch, AT_A_TIME).await > 0 {
        // One look for all of them. Where there is nothing to be read, the runtime may know.
        drop(logs.read(&shared.directory));
        let Some(connection) = &connection else {
            batch.clear();
            continue;
        };
        for question in batch.drain(..) {
            while asking.len() >= AT_A_TIME {
                asking.join_next().await;
            }
            asking.spawn(ask(question, connection.clone(), Arc::clone(shared)));
        }
        while asking.try_join_next().is_some() {}
    }
    // Nobody is left who asks.
    std::future::pending().await
}

/// Asks about one pod. The question is over when this is.
async fn ask(question: Question, mut connection: watch::Receiver<Option<Calls>>, shared: Arc<Shared>) {
    let uid = &*question.uid;
    shared.status.questions.fetch_add(1, Relaxed);
    let answered = async {
        loop {
            let calls = match connection.wait_for(Option::is_some).await {
                Ok(calls) => calls.clone(),
                Err(_) => return Vec::new(),
            };
            let Some(calls) = calls else { continue };
            match of_pod(&calls, uid).await {
                Ok(pods) => return pods,
                // It will not say anything else the next time.
                Err(failure @ (Failure::Status { .. } | Failure::Unreadable(_))) => {
                    shared.status.failed(&failure);
                    return Vec::new();
                }
                // The connection's own end counts it.
                Err(_) => sleep(TRY_AGAIN).await,
            }
        }
    };
    match timeout(ASK_FOR, answered).await {
        Ok(pods) => {
            shared.fresh().extend(pods.iter().map(|pod| (Arc::clone(&pod.uid), pod.clone())));
            match pods.is_empty() {
                // Whatever it has said of this UID before was of another pod.
                true => shared.directory.withdraw(Teller::Runtime, &Facts::named(uid, "", "")),
                false => shared.directory.tell(Teller::Runtime, pods),
            }
        }
        Err(_) => shared.status.failed(&Failure::Silent(ASK_FOR)),
    }
}

/// What is known of a pod. Its sandbox has the label wherever a kubelet made it; whoever else makes sandboxes may have written its
/// UID into their metadata alone.
async fn of_pod(calls: &Calls, uid: &str) -> Result<Vec<Facts>, Failure> {
    let mut pods = list(calls, Some(uid)).await?;
    if pods.iter().all(|pod| &*pod.uid != uid) {
        pods = list(calls, None).await?;
    }
    pods.retain(|pod| &*pod.uid == uid);
    Ok(pods)
}
