//! What a program that is linked dynamically needs beside it in an image that begins from nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::read;
use super::tar::Tar;

/// Adds the loader and the libraries that a program names, where it looks for them; nothing for a static one.
///
/// # Errors
/// When this machine has no ldd, or a library is not there.
pub(super) fn add_libraries(layer: &mut Tar, program: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    // It fails for a static one, and says so on the other stream.
    let libraries = libraries(&String::from_utf8_lossy(&output.stdout));
    let mut folders = BTreeSet::new();
    for library in &libraries {
        folders.extend(library.ancestors().skip(1).filter_map(|folder| folder.strip_prefix("/").ok()));
    }
    // Sorted, so parents come first.
    for folder in folders.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
        layer.dir(folder.to_str().context("a library's path is UTF-8")?, 0o755)?;
    }
    for library in &libraries {
        let path = library.strip_prefix("/")?.to_str().context("a library's path is UTF-8")?;
        layer.file(path, 0o755, &read(library)?)?;
    }
    Ok(())
}

/// The paths in ldd's words: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)`, `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn libraries(said: &str) -> Vec<PathBuf> {
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_each_library_are_found_and_the_kernels_own_is_none() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(said), found.map(PathBuf::from));
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
