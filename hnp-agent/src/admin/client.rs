//! The other end: how commands ask the running agent, over its socket in the run directory, and where somebody says so
//! over its admin port.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::socket;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is asked.
#[derive(Clone, Debug)]
pub enum Agent {
    /// Whoever listens at this socket.
    Socket(PathBuf),
    /// Whoever listens on this port.
    Port(SocketAddr),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody there, or no permission.
    #[error("the agent does not answer at {agent}: {source}; {next}")]
    Unreachable {
        /// Who was asked.
        agent: Agent,
        /// The kernel's answer.
        source: io::Error,
        /// What to do.
        next: &'static str,
    },
    /// It answered something else.
    #[error("the agent at {agent} says: {answer}")]
    Refused {
        /// Who was asked.
        agent: Agent,
        /// Its words.
        answer: String,
    },
}

impl Agent {
    /// By its run directory.
    pub fn in_run_dir(run_dir: &Path) -> Self {
        Self::Socket(run_dir.join(socket::NAME))
    }

    /// Asks for a path and takes JSON for an answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, path: &str) -> Result<Value, AskError> {
        let answer = self.exchange(path).map_err(|source| AskError::Unreachable {
            agent: self.clone(),
            next: match source.kind() {
                io::ErrorKind::PermissionDenied => "only root and the agent's group may ask",
                _ => "is it running? `hnp-agent doctor` looks at the node",
            },
            source,
        })?;
        let refused =
            |answer: &str| AskError::Refused { agent: self.clone(), answer: answer.trim_end().to_owned() };
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| refused("nothing in HTTP"))?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(refused(body));
        }
        serde_json::from_str(body).map_err(|error| refused(&format!("no JSON: {error}")))
    }

    fn exchange(&self, path: &str) -> io::Result<String> {
        match self {
            Self::Socket(socket) => {
                let stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                talk(stream, path)
            }
            Self::Port(addr) => {
                let stream = TcpStream::connect_timeout(addr, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                talk(stream, path)
            }
        }
    }
}

fn talk(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: hnp-agent\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Port(addr) => addr.fmt(f),
        }
    }
}
