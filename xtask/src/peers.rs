//! The proxies that hnp is compared with: HAProxy, nginx with its stream module, stunnel, as Debian ships them.
//!
//! What this machine lacks is unpacked below the target directory and not installed: no service starts, and
//! nothing of the system changes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::apt::{Apt, Debian};
use crate::shell::step;
use crate::toolchain::Workspace;

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
    let home = workspace.tools().join("peers");
    let root = home.join("root");
    if missing(&root).is_empty() {
        return Ok(root);
    }
    let by_hand =
        format!("or type: apt-get install --no-install-recommends {}", WANTED.map(|of| of.0).join(" "));
    let debian = Debian::of_this_machine().with_context(|| by_hand.clone())?;
    step(&format!("fetching {} (unpacked below target/ and not installed)", missing(&root).join(", ")));
    let apt = Apt::new(&home, &[(&debian.releases, &[&debian.codename])])?;
    apt.update().with_context(|| by_hand.clone())?;
    // All of them: a module fits the nginx of its own version only.
    let packages = WANTED.map(|(package, _)| package);
    apt.fetch_with_dependencies(&packages, &debian.codename, &root).with_context(|| by_hand.clone())?;
    let still = missing(&root);
    ensure!(
        still.is_empty(),
        "{} of {} have not what is looked for; {by_hand}",
        still.join(", "),
        debian.codename
    );
    Ok(root)
}

fn missing(root: &Path) -> Vec<&'static str> {
    let lacks = |file: &str| ![root, Path::new("/")].iter().any(|place| place.join(file).is_file());
    WANTED.iter().filter(|(_, file)| lacks(file)).map(|(package, _)| *package).collect()
}
