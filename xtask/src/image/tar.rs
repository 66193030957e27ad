//! Archives in the "ustar" form of POSIX.1-2001 pax(1): what OCI layers and OCI archives are.
//!
//! Every field that could differ from build to build (time, owner's name) is the same always, so that the same
//! content gives the same bytes, and with them the same digest.

use anyhow::{Context as _, Result, ensure};

const BLOCK: usize = 512;

/// An archive that grows.
#[derive(Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a directory that root owns. A path's parents are to come before it.
    ///
    /// # Errors
    /// When the path is too long for the form.
    pub(super) fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(&format!("{path}/"), mode, b'5', &[])
    }

    /// Adds a file that root owns.
    ///
    /// # Errors
    /// When the path or the content is too long for the form.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, mode, b'0', content)
    }

    /// The archive, ended by two empty blocks.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, kind: u8, content: &[u8]) -> Result<()> {
        ensure!(path.len() <= 100, "{path}: longer than a ustar archive takes");
        let size = u32::try_from(content.len()).with_context(|| format!("{path}: too large"))?;
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000"); // uid
        put(116, "0000000"); // gid
        put(124, &format!("{size:011o}"));
        put(136, "00000000000"); // time of change
        put(148, "        "); // the checksum is made with blanks in its place
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_itself_reads_what_was_written() {
        let mut archive = Tar::default();
        archive.dir("etc", 0o755).expect("short");
        archive.file("etc/passwd", 0o644, b"root:x:0:0::/:\n").expect("short");
        archive.file("agent", 0o755, &[7; 1000]).expect("short");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut tar = Command::new("tar")
            .args(["--utc", "-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is there");
        std::io::Write::write_all(&mut tar.stdin.take().expect("piped"), &bytes).expect("tar reads");
        let output = tar.wait_with_output().expect("tar ends");
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{list}");
        let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["drwxr-xr-x", "0/0", "0", "1970-01-01", "00:00", "etc/"]);
        assert_eq!(lines[2], ["-rwxr-xr-x", "0/0", "1000", "1970-01-01", "00:00", "agent"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Tar::default().file(&"x".repeat(101), 0o644, b"").is_err());
    }
}
