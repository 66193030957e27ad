//! A browser on the node, as somebody has it who forwards the admin port: headless Chromium.

use std::path::Path;
use std::time::Duration;

use crate::process::{Cmd, Place};
use crate::tools;
use crate::topology::Topology;

/// How long the page may go on by its own clock, which stands still while it waits for answers.
const PAGE_TIME_MS: u32 = 5000;
/// For the whole run: it starts slowly where others want the processors.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser; each look is a process of its own, with nothing remembered.
#[derive(Debug)]
pub struct Browser<'a> {
    topology: &'a Topology,
    place: Place,
}

impl<'a> Browser<'a> {
    /// On the world's node.
    pub fn on_node(topology: &'a Topology) -> Self {
        Self { topology, place: topology.node() }
    }

    /// What a page is made of once its scripts have run: the document as HTML.
    ///
    /// # Panics
    /// When Chromium is missing or fails.
    #[track_caller]
    pub fn document(&self, url: &str) -> String {
        self.command().args(["--dump-dom", url]).run().ok()
    }

    /// Takes a picture of a page (PNG).
    ///
    /// # Panics
    /// As [`Self::document`].
    #[track_caller]
    pub fn picture(&self, url: &str, to: &Path, width: u32, height: u32) {
        self.command()
            .arg(format!("--screenshot={}", to.display()))
            .arg(format!("--window-size={width},{height}"))
            .arg(url)
            .run()
            .ok();
        assert!(to.is_file(), "Chromium left no picture at {}", to.display());
    }

    fn command(&self) -> Cmd {
        self.place
            .command(tools::need("chromium-headless-shell"))
            .deadline(PATIENCE)
            .arg(format!("--user-data-dir={}", self.topology.path("browser").display()))
            .arg(format!("--virtual-time-budget={PAGE_TIME_MS}"))
            // Root's browser has no sandbox, and the network namespace no way out.
            .args(["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--no-first-run"])
    }
}
