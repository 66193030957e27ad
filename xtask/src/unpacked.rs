//! Programs that this machine may lack, as Debian ships them: unpacked below the target directory and not installed, so no
//! service starts, and nothing of the system changes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::apt::{Apt, Debian};
use crate::shell::step;
use crate::toolchain::Workspace;

/// Where packages are taken from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sources {
    /// The release's own suite.
    Release,
    /// And its security updates.
    WithSecurity,
}

/// Brings all packages of `wanted`, each with the file that is wanted of it, if any is missing; returns the folder of that name that
/// they were unpacked into. What is not there is in the system.
///
/// # Errors
/// When this is no Debian, or its archive does not have them.
pub(crate) fn ensure(
    workspace: &Workspace,
    name: &str,
    wanted: &[(&'static str, &str)],
    sources: Sources,
) -> Result<PathBuf> {
    let home = workspace.tools().join(name);
    let root = home.join("root");
    let lacking = missing(&root, wanted);
    if lacking.is_empty() {
        return Ok(root);
    }
    let mut packages: Vec<_> = wanted.iter().map(|(package, _)| *package).collect();
    packages.dedup();
    let by_hand = format!("or type: apt-get install --no-install-recommends {}", packages.join(" "));
    let debian = Debian::of_this_machine().with_context(|| by_hand.clone())?;
    step(&format!("fetching {} (unpacked below target/ and not installed)", lacking.join(", ")));
    let (suite, security) = ([&*debian.codename], format!("{}-security", debian.codename));
    let updates = [&*security];
    let mut places = vec![(&debian.releases, &suite[..])];
    if sources == Sources::WithSecurity {
        places.push((&debian.security, &updates));
    }
    let apt = Apt::new(&home, &places)?;
    apt.update().with_context(|| by_hand.clone())?;
    apt.fetch_with_dependencies(&packages, &debian.codename, &root).with_context(|| by_hand.clone())?;
    let still = missing(&root, wanted);
    ensure!(
        still.is_empty(),
        "{} of {} have not what is looked for; {by_hand}",
        still.join(", "),
        debian.codename
    );
    Ok(root)
}

fn missing(root: &Path, wanted: &[(&'static str, &str)]) -> Vec<&'static str> {
    let lacks = |file: &str| ![root, Path::new("/")].iter().any(|place| place.join(file).is_file());
    let mut missing: Vec<_> =
        wanted.iter().filter(|(_, file)| lacks(file)).map(|(package, _)| *package).collect();
    missing.dedup();
    missing
}
