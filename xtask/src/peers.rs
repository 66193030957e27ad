//! The proxies that hnp is compared with: HAProxy, nginx with its stream module, stunnel, as Debian ships them.
//!
//! What this machine lacks is unpacked below the target directory and not installed: no service starts, and
//! nothing of the system changes.

use std::path::PathBuf;

use anyhow::Result;

use crate::toolchain::Workspace;
use crate::unpacked::{self, Sources};

/// Each package with the file that is wanted of it.
const WANTED: [(&str, &str); 4] = [
    ("haproxy", "usr/sbin/haproxy"),
    ("nginx", "usr/sbin/nginx"),
    ("libnginx-mod-stream", "usr/lib/nginx/modules/ngx_stream_module.so"),
    ("stunnel4", "usr/bin/stunnel4"),
];

/// Brings what is missing; returns the folder that packages were unpacked into. What is not there is in the
/// system.
///
/// # Errors
/// When this is no Debian, or its archive does not have them.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    // A module fits the nginx of its own version only, and so all come from one suite.
    unpacked::ensure(workspace, "peers", &WANTED, Sources::Release)
}
