//! `hnp-agent self-test-dial`: the other half of `doctor`'s redirect self-test, which is no command for people.
//!
//! It moves itself into a cgroup and connects, as a pod's process would; it sends nothing, and ends when its parent
//! closes its standard input.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Within a node; whatever takes longer has gone elsewhere.
const CONNECT: Duration = Duration::from_secs(3);

/// Arguments of `self-test-dial`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cgroup's directory.
    cgroup: PathBuf,
    /// A destination.
    addr: SocketAddr,
}

/// Connects, says from where, and waits to be told to end.
pub fn run(args: &Args) -> ExitCode {
    let done = || -> io::Result<()> {
        // 0 stands for whoever writes.
        fs::write(args.cgroup.join("cgroup.procs"), "0")
            .map_err(|error| io::Error::new(error.kind(), format!("cannot enter the cgroup: {error}")))?;
        let stream = TcpStream::connect_timeout(&args.addr, CONNECT)?;
        let mut out = io::stdout().lock();
        writeln!(out, "{}", stream.local_addr()?)?;
        out.flush()?;
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    };
    match done() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
