//! Asking a Workload API: one call of gRPC with an answer that never ends, over HTTP/2 on a UNIX socket.
//!
//! [`Subscription`] asks again whenever the stream ends, with pauses that grow while that fails; [`once`] takes one look.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::error::{SpiffeError, Trouble};
use crate::backoff;
pub use crate::grpc::Message;
use crate::grpc::{self, Call};

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while there is nobody to ask: it costs one connect(2), and an agent that comes back is found within it.
const LONGEST_ALONE: Duration = Duration::from_secs(1);
/// The longest pause while somebody answers with errors.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause after an answer that says that asking again is no use. Somebody may have put another server there.
const FINAL_PAUSE: Duration = Duration::from_secs(300);
/// How long the first message of a stream may take. The standard wants it at once; SPIRE asks the kubelet about its caller
/// before that, for half a minute where the pod is new.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// The longest message that is read: gRPC's own default.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How long `check` and `doctor` wait for an answer.
pub const LOOK: Duration = Duration::from_secs(5);
/// The same where others wait behind it, at the start and at a reload.
pub const BRIEF_LOOK: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// X.509-SVIDs with their keys.
    X509Svids,
    /// X.509 bundles.
    X509Bundles,
}

impl Method {
    /// The service has no package in the published definition.
    const fn path(self) -> &'static str {
        match self {
            Self::X509Svids => "http://localhost/SpiffeWorkloadAPI/FetchX509SVID",
            Self::X509Bundles => "http://localhost/SpiffeWorkloadAPI/FetchX509Bundles",
        }
    }
}

/// Where messages and failures go.
type Out = mpsc::Sender<Result<Message, SpiffeError>>;

/// Messages of one Workload API, for as long as this is polled.
pub struct Subscription {
    received: mpsc::Receiver<Result<Message, SpiffeError>>,
    sender: Option<Out>,
}

impl Subscription {
    /// None yet: [`Self::run`] asks.
    pub fn new() -> Self {
        // One at a time: a source that is busy has the next one wait in the socket.
        let (sender, received) = mpsc::channel(1);
        Self { received, sender: Some(sender) }
    }

    /// The half that asks; to be polled beside [`Self::next`], and dropped to end it.
    pub fn run(&mut self, socket: &Path, method: Method) -> impl Future<Output = ()> + Send + use<> {
        let (sender, socket) = (self.sender.take(), socket.to_owned());
        async move {
            let Some(sender) = sender else { return };
            let mut failures = 0;
            loop {
                let ended = stream(&socket, method, &sender).await;
                failures = if ended.gave { 1 } else { failures + 1 };
                let alone = matches!(ended.trouble, Some(Trouble::Unreachable(_)));
                let longest = if alone { LONGEST_ALONE } else { LONGEST_PAUSE };
                let mut pause = backoff::pause(FIRST_PAUSE, longest, failures);
                match ended.trouble {
                    None if sender.is_closed() => return,
                    None => {
                        tracing::debug!(socket = %socket.display(), "the Workload API's stream ended; asking again")
                    }
                    // Agents are restarted. What matters is whether it answers the next time.
                    Some(Trouble::Broken(why)) if ended.gave => {
                        tracing::debug!(socket = %socket.display(), why, "the Workload API's stream broke off; asking again");
                    }
                    Some(what) => {
                        let error = SpiffeError { socket: socket.clone(), what };
                        if error.is_final() {
                            pause = backoff::jittered(FINAL_PAUSE);
                        }
                        if sender.send(Err(error)).await.is_err() {
                            return;
                        }
                    }
                }
                sleep(pause).await;
            }
        }
    }

    /// The next message, or why none comes at the moment. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Message, SpiffeError>> {
        self.received.recv().await
    }
}

impl Default for Subscription {
    fn default() -> Self {
        Self::new()
    }
}

/// One look, on a thread of its own: wherever it is called, nobody has to wait for more than `deadline`.
///
/// # Errors
/// See [`SpiffeError`].
pub fn once(socket: &Path, method: Method, deadline: Duration) -> Result<Message, SpiffeError> {
    let failed = |what| SpiffeError { socket: socket.to_owned(), what };
    let look = || -> Result<Message, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Trouble::Broken(error.to_string()))?;
        runtime.block_on(async {
            let (sender, mut received) = mpsc::channel(1);
            let ended = timeout(deadline, async {
                tokio::select! {
                    // What came before the end counts.
                    biased;
                    Some(first) = received.recv() => first.map_err(|error| error.what),
                    ended = stream(socket, method, &sender) => match received.try_recv() {
                        Ok(first) => first.map_err(|error| error.what),
                        Err(_) => {
                            let nothing = || Trouble::Broken("it ended without an answer".into());
                            Err(ended.trouble.unwrap_or_else(nothing))
                        }
                    }
                }
            })
            .await;
            ended.unwrap_or(Err(Trouble::Silent(deadline)))
        })
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(look);
        looking.join().unwrap_or_else(|_| Err(Trouble::Broken("looking at it failed".into())))
    })
    .map_err(failed)
}

/// How a call ended.
struct Ended {
    /// Messages had come.
    gave: bool,
    /// `None`: the server ended the stream in order, or nobody wants more of it.
    trouble: Option<Trouble>,
}

/// One call: every message to `out`, for as long as somebody takes them there.
async fn stream(socket: &Path, method: Method, out: &Out) -> Ended {
    let mut gave = false;
    let trouble = connect_and_call(socket, method, out, &mut gave).await.err();
    Ended { gave, trouble }
}

async fn connect_and_call(socket: &Path, method: Method, out: &Out, gave: &mut bool) -> Result<(), Trouble> {
    let (calls, connection) = grpc::open(socket).await?;
    let mut call = pin!(call(calls, method, out, gave));
    let mut connection = pin!(connection);
    // What the connection has read last may be the reason why it ended.
    tokio::select! {
        ended = &mut call => return ended,
        () = &mut connection => {}
    }
    call.await
}

async fn call(calls: grpc::Calls, method: Method, out: &Out, gave: &mut bool) -> Result<(), Trouble> {
    let call = Call {
        method: method.path(),
        // Keeps whoever can have somebody else's HTTP client ask from asking here (SPIFFE Workload Endpoint section 3).
        header: Some(("workload.spiffe.io", "true")),
        // Nothing can be asked for in particular.
        message: &[],
        longest: MAX_MESSAGE,
    };
    let silent = |_| Trouble::Silent(FIRST_MESSAGE);
    let mut messages = timeout(FIRST_MESSAGE, calls.call(&call)).await.map_err(silent)??;
    let mut next = timeout(FIRST_MESSAGE, messages.next()).await.map_err(silent)??;
    while let Some(message) = next {
        *gave = true;
        if out.send(Ok(message)).await.is_err() {
            return Ok(());
        }
        next = messages.next().await?;
    }
    Ok(())
}
