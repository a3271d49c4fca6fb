//! Running other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A command that runs at the root of the tree, without the variables through
/// which the outer cargo would influence an inner one.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(crate::paths::root());
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_")
            || name_text.starts_with("CARGO_MANIFEST_")
            || matches!(
                &*name_text,
                "CARGO" | "CARGO_PRIMARY_PACKAGE" | "MAKEFLAGS" | "MFLAGS" | "MAKELEVEL"
            )
        {
            command.env_remove(&name);
        }
    }
    command
}

/// `cargo` of the toolchain that built this program.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with our own standard streams; fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("Cannot start {}", show(command)))?;
    require_success(command, status)
}

/// Runs a command and returns what it writes to stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("Cannot start {}", show(command)))?;
    require_success(command, output.status)?;
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote no UTF-8", show(command)))
}

/// Whether a command is there and succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command, hands each line of its stdout and stderr to `on_line`, and
/// calls `on_line(None)` at least once a `tick`.
pub fn lines(
    command: &mut Command,
    tick: Duration,
    mut on_line: impl FnMut(Option<&str>),
) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot start {}", show(command)))?;
    let (sender, receiver) = mpsc::channel::<String>();
    let mut readers = Vec::new();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        readers.push(std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        }));
    }
    drop(sender);
    let mut due = Instant::now() + tick;
    loop {
        match receiver.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(line) => on_line(Some(&line)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= due {
            on_line(None);
            due = Instant::now() + tick;
        }
    }
    for reader in readers {
        if reader.join().is_err() {
            bail!("A reader of {} panicked", show(command));
        }
    }
    child
        .wait()
        .with_context(|| format!("Cannot wait for {}", show(command)))
}

/// The same command with the arguments of a program before it that runs it.
pub fn under(runner: &str, options: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(runner);
    outer
        .args(options)
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// The same command, which leaves processors to others that want them.
pub fn polite(command: &Command) -> Command {
    under("nice", &["-n", "5"], command)
}

/// The command as one would type it, shortened.
pub fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut text = words.join(" ");
    if text.len() > 200 {
        let end = (0..=200)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(" …");
    }
    text
}

/// An error that names the command, unless it succeeded.
pub fn require_success(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed: {status}", show(command));
    }
    Ok(())
}

/// Reads a file; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}

/// A duration as `2m05s` or `7s`.
pub fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{:02}s", seconds % 60),
    }
}
