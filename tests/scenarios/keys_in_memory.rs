//! Keys stay in the agent's memory and leave it: no core is written of it, nobody else reads it, and a key that was
//! replaced is not there any more.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::Agent;
use hnp_tests::aloud;
use hnp_tests::client::{self, Job, Target};
use hnp_tests::pki::{Files, Leaf};
use hnp_tests::poll::eventually;
use hnp_tests::process::Finished;
use hnp_tests::scene::Scene;
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use nix::sys::signal::Signal;
use rustls_pki_types::PrivateKeyDer;

const SOON: Duration = Duration::from_secs(20);
const UNLIMITED: [&str; 2] = ["prlimit", "--core=unlimited"];

#[test]
fn a_crash_leaves_no_core() {
    tools::need("prlimit");
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("every kernel has it");
    if pattern.starts_with('|') {
        aloud::say(&format!("cores are piped to {}: judged by the wait status alone", pattern.trim()));
    }
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    // Not SIGSEGV: Rust's handler of stack overflows takes the first one that comes from elsewhere. Not SIGQUIT: whoever
    // was started in a shell's background ignores it.
    for signal in [Signal::SIGABRT, Signal::SIGSYS] {
        let agent = Agent::start_through(&scene, &scene.config().route(scene.route()), &UNLIMITED);
        agent.signal(signal);
        let ended = ended(agent);
        assert_eq!(ended.status.signal(), Some(signal as i32), "{ended}");
        assert!(!ended.status.core_dumped() && cores(scene.dir()).is_empty(), "{signal}: {ended}");
    }
    // The control: where the agent ran, whoever does not see to it leaves one.
    let (program, arguments) = UNLIMITED.split_first().expect("two words");
    let sleeper = scene.agent_place().command(program).args(arguments).args(["sleep", "60"]).spawn();
    eventually(SOON, "it sleeps", || comm(sleeper.pid()) == "sleep");
    sleeper.signal(Signal::SIGABRT);
    let ended = sleeper.wait(SOON);
    assert!(ended.status.core_dumped(), "no core of it either, so nothing is shown here: {ended}");
    assert!(pattern.trim() != "core" || !cores(scene.dir()).is_empty(), "{:?}", cores(scene.dir()));
}

#[test]
fn a_key_that_was_replaced_is_not_in_memory() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent = scene.agent();
    let pod = scene.pod();
    let ask = || {
        let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
        client::run(&pod, &Job::Short { targets: vec![target], total: 1, concurrency: 1 }).assert_all_ok(1);
        manager.last_request().expect("one came").client_serial().to_owned()
    };
    let first = Secret::of(&Leaf::of(&scene.client));
    assert_eq!(ask(), scene.client_serial);
    // As it is used it is there, and as it was read it is not.
    assert!(first.count_in_use(agent.pid()) > 0, "the key in use is found: the search works");
    eventually(SOON, "the file's bytes and the DER are gone", || first.count_as_read(agent.pid()) == 0);
    let next = scene.clients.client();
    replace(&scene.client, &next.write(scene.dir(), "staged"));
    eventually(SOON, "the next certificate is presented", || ask() == next.serial);
    eventually(SOON, "the key that was replaced is gone", || {
        first.count_in_use(agent.pid()) + first.count_as_read(agent.pid()) == 0
    });
    assert!(Secret::of(&next).count_in_use(agent.pid()) > 0, "the key in use is found: the search works");
}

/// A private key on P-256 in the forms it could be found in.
struct Secret {
    /// The number as AWS-LC computes with it.
    in_use: Vec<u8>,
    /// As DER and as PEM.
    as_read: [Vec<u8>; 2],
}

impl Secret {
    fn of(leaf: &Leaf) -> Self {
        let PrivateKeyDer::Pkcs8(der) = leaf.key() else { panic!("our own keys are PKCS#8") };
        // ECPrivateKey (RFC 5915): version 1, then the number as 32 bytes.
        let der = der.secret_pkcs8_der();
        let before = [2, 1, 1, 4, 32];
        let at = der.windows(5).position(|window| window == before).expect("a key on P-256") + 5;
        let number = der[at..at + 32].to_vec();
        // Machine words, the lowest first.
        let words = number
            .rchunks(8)
            .flat_map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")).to_ne_bytes());
        let in_use = words.collect();
        // The first line of the PEM holds the algorithm and the first bytes of the number.
        let text = leaf.key_pem.lines().nth(1).expect("base64").as_bytes().to_vec();
        Self { in_use, as_read: [number, text] }
    }

    fn count_in_use(&self, pid: i32) -> usize {
        count(pid, std::slice::from_ref(&self.in_use))
    }

    fn count_as_read(&self, pid: i32) -> usize {
        count(pid, &self.as_read)
    }
}

/// How often any of the forms is in what a process could write to.
fn count(pid: i32, forms: &[Vec<u8>]) -> usize {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may read it");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [range.0, range.1].map(|hex| u64::from_str_radix(hex, 16).expect("hexadecimal"));
        // In pieces that overlap by more than a form: a mapping that has gone meanwhile holds nothing.
        const PIECE: u64 = 1 << 20;
        for start in (from..to).step_by(PIECE as usize) {
            let length = (PIECE + 128).min(to - start);
            let mut bytes = vec![0; usize::try_from(length).expect("a piece")];
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                found += forms.iter().map(|form| occurrences(&bytes, form)).sum::<usize>();
            }
        }
    }
    found
}

fn occurrences(bytes: &[u8], form: &[u8]) -> usize {
    let mut rest = bytes;
    let mut found = 0;
    while let Some(at) = rest.iter().position(|byte| *byte == form[0]) {
        found += usize::from(rest[at..].starts_with(form));
        rest = &rest[at + 1..];
    }
    found
}

fn ended(mut agent: Agent) -> Finished {
    agent.wait(SOON)
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The cores in a directory.
fn cores(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("the world's directory is ours");
    let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("core")).collect()
}

fn replace(old: &Files, new: &Files) {
    fs::rename(&new.certificate, &old.certificate).expect("the world's directory is ours");
    fs::rename(&new.key, &old.key).expect("the world's directory is ours");
}
