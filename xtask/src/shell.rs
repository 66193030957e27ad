//! Runs other programs, and says what to paste when one of them fails.
//!
//! Every external command of xtask goes through here, so progress and errors look alike everywhere.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// One line of progress: what is being done now.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// One line of detail below a [`step`].
pub(crate) fn note(what: &str) {
    eprintln!("    {what}");
}

/// Runs `command` with this terminal's output.
///
/// # Errors
/// When it cannot be started or fails; the message holds the line to paste.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| start_failed(command))?;
    succeed(command, status)
}

/// Runs `command` with this terminal's output, and returns what it wrote to stdout as well, and how it ended.
///
/// # Errors
/// When it cannot be started, or its output cannot be passed on.
pub(crate) fn run_and_keep(command: &mut Command) -> Result<(String, ExitStatus)> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| start_failed(command))?;
    let mut stdout = child.stdout.take().context("stdout was piped")?;
    let (mut kept, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = stdout.read(&mut piece).context("reading what it prints")?;
        if length == 0 {
            break;
        }
        let mut terminal = std::io::stdout().lock();
        terminal.write_all(&piece[..length]).and_then(|()| terminal.flush()).context("printing")?;
        kept.extend_from_slice(&piece[..length]);
    }
    let status = child.wait()?;
    Ok((String::from_utf8_lossy(&kept).into_owned(), status))
}

/// Whether it ended well; else the line to paste.
///
/// # Errors
/// When it did not.
pub(crate) fn succeed(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { bail!("{}", failed(command, status)) }
}

/// Runs `command` and returns what it printed.
///
/// # Errors
/// As for [`run`]; what it wrote to stderr is part of the message.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| start_failed(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}\n{}", failed(command, output.status), stderr.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("not UTF-8: {}", paste(command)))
}

/// Runs `command` quietly, and kills it when it is not done by `limit`.
///
/// For steps that have another way behind them: a download that hangs must not hold up the rest.
///
/// # Errors
/// As for [`output`], and when the time is up.
pub(crate) fn quietly_within(command: &mut Command, limit: Duration) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| start_failed(command))?;
    let mut stderr = child.stderr.take().context("stderr was piped")?;
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        // A torn pipe only shortens the message.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("not done after {} s: {}", limit.as_secs(), paste(command));
        }
        thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(());
    }
    let stderr = reader.join().unwrap_or_default();
    bail!("{}\n{}", failed(command, status), stderr.trim_end())
}

/// Whether `program` is on the PATH.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The command as it would be typed in a shell, with the environment and the directory it changes.
pub(crate) fn paste(command: &Command) -> String {
    let mut line = String::new();
    if let Some(dir) = command.get_current_dir() {
        let _ = write!(line, "cd {} && ", quote(&dir.to_string_lossy()));
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => {
                let _ = write!(line, "{}={} ", key.to_string_lossy(), quote(&value.to_string_lossy()));
            }
            None => {
                let _ = write!(line, "env -u {} ", key.to_string_lossy());
            }
        }
    }
    line.push_str(&quote(&command.get_program().to_string_lossy()));
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&quote(&arg.to_string_lossy()));
    }
    line
}

fn failed(command: &Command, status: ExitStatus) -> String {
    format!("this failed ({status}); to try it by hand:\n  {}", paste(command))
}

fn start_failed(command: &Command) -> String {
    format!(
        "cannot start {}; is it installed?\n  {}",
        command.get_program().to_string_lossy(),
        paste(command)
    )
}

/// A word as a shell reads it.
pub(crate) fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,+@%^".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else if word.contains('\x1f') {
        // Cargo's separator in CARGO_ENCODED_RUSTFLAGS has no printable form.
        format!("$'{}'", word.replace('\\', "\\\\").replace('\'', "\\'").replace('\x1f', "\\x1f"))
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paste_can_be_pasted() {
        let mut command = Command::new("printf");
        command.env("X", "it's $HOME").args(["%s|%s", "a b", "c'd"]);
        let shown = paste(&command);
        let pasted = Command::new("sh").args(["-c", &shown]).output().expect("sh is there");
        assert_eq!(String::from_utf8_lossy(&pasted.stdout), "a b|c'd", "{shown}");
        assert!(shown.starts_with("X='it'\\''s $HOME' "), "{shown}");
    }

    #[test]
    fn a_failure_shows_the_command_and_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo lost >&2; exit 3"])).expect_err("exits 3");
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("lost") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_step_that_hangs_is_cut() {
        let started = Instant::now();
        let error = quietly_within(Command::new("sleep").arg("60"), Duration::from_millis(100));
        assert!(error.expect_err("cut").to_string().contains("sleep 60"));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
