//! The runtimes that are compared, and how each is driven.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bundle::Bundle;

/// A runtime with runc's command line.
#[derive(Debug)]
pub struct Runtime {
    /// Name in the tables.
    pub name: &'static str,
    program: PathBuf,
    /// Options before the verb.
    global: Vec<String>,
    /// Options of `run`.
    run: Vec<String>,
    driver: Option<&'static str>,
}

/// Gives this process mounts of its own and hides the v2 hierarchy of a hybrid layout: crun refuses
/// such a layout, and all runtimes shall see the same.
pub fn private_mounts() -> Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    use rustix::mount::{mount, mount_change, unmount};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only the mount namespace is unshared, before any thread is started.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("unshare mounts: run as root")?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("make mounts private")?;
    let unified = "/sys/fs/cgroup/unified";
    if Path::new(unified).exists() {
        // It may be hidden already.
        let _ = unmount(unified, UnmountFlags::DETACH);
        // crun and runsc write to the directory all the same, and leave it there.
        let options = c"mode=755";
        mount("hidden", unified, "tmpfs", MountFlags::empty(), options)
            .context("hide cgroup v2")?;
    }
    Ok(())
}

impl Runtime {
    /// Those that are installed and run the bundle; the first row is what ratios refer to.
    pub fn installed(bulkhead: &Path, dir: &Path, bundle: &Bundle) -> Vec<Self> {
        let peer = |name: &'static str, program: PathBuf, extra: &[&str]| {
            let root = dir.join(format!("root-{name}"));
            let mut global = vec!["--root".to_owned(), root.display().to_string()];
            global.extend(extra.iter().map(|text| (*text).to_owned()));
            Self {
                name,
                program,
                global,
                run: Vec::new(),
                driver: None,
            }
        };
        let ours = |name: &'static str, driver: &'static str| Self {
            run: vec!["--hypervisor".to_owned(), driver.to_owned()],
            driver: Some(driver),
            ..peer(name, bulkhead.to_owned(), &[])
        };
        let candidates = [
            ours("bulkhead uml", "uml"),
            ours("bulkhead qemu", "qemu"),
            peer("runc", "runc".into(), &[]),
            peer("crun", "crun".into(), &[]),
            peer(
                "runsc",
                "runsc".into(),
                &["--platform=ptrace", "--network=none"],
            ),
        ];
        let works = |runtime: &Self| match runtime.run(bundle, "probe") {
            Ok(_) => true,
            Err(error) => {
                println!("left out: {}: {error:#}", runtime.name);
                false
            }
        };
        candidates.into_iter().filter(works).collect()
    }

    /// Whether a start takes seconds.
    pub fn is_slow(&self) -> bool {
        self.driver == Some("qemu")
    }

    /// The driver, for a row of ours.
    pub fn driver(&self) -> Option<&'static str> {
        self.driver
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.global).arg(verb);
        command
    }

    fn run_command(&self, bundle: &Bundle, id: &str) -> Command {
        let mut command = self.command("run");
        command
            .args(&self.run)
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(id);
        command
    }

    /// Runs a bundle to its end; returns the time from start to exit.
    pub fn run(&self, bundle: &Bundle, id: &str) -> Result<Duration> {
        timed(self.run_command(bundle, id).stdin(Stdio::null()))
    }

    /// Runs a command in a running container; returns the time it took.
    pub fn exec(&self, id: &str, args: &[&str]) -> Result<Duration> {
        timed(self.command("exec").arg(id).args(args).stdin(Stdio::null()))
    }

    /// Reads all a container writes.
    pub fn stream_out(&self, bundle: &Bundle, id: &str, bytes: u64) -> Result<Duration> {
        let began = Instant::now();
        let mut child = self
            .run_command(bundle, id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut out = child.stdout.take().context("its output")?;
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let count = out.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            total += count as u64;
        }
        let status = child.wait()?;
        if !status.success() || total != bytes {
            bail!(
                "{} streamed {total} of {bytes} bytes and ended with {status}",
                self.name
            );
        }
        Ok(began.elapsed())
    }

    /// Writes to a container until it has read all.
    pub fn stream_in(&self, bundle: &Bundle, id: &str, bytes: u64) -> Result<Duration> {
        let began = Instant::now();
        let mut child = self
            .run_command(bundle, id)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut input = child.stdin.take().context("its input")?;
        let buffer = vec![0; 1 << 20];
        for _ in 0..bytes >> 20 {
            input.write_all(&buffer)?;
        }
        drop(input);
        let status = child.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(began.elapsed())
    }

    /// Starts a container and returns when its program runs.
    pub fn start_idle(&self, bundle: &Bundle, id: &str) -> Result<Child> {
        let child = self
            .run_command(bundle, id)
            .stdin(Stdio::null())
            // gVisor changes the owner of the files it is given.
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // An exec succeeds as soon as the container runs; how often it is asked does not matter,
        // nothing is being measured yet.
        let limit = Instant::now() + Duration::from_secs(30);
        while self.exec(id, &["/bin/true"]).is_err() {
            if Instant::now() > limit {
                bail!("{} did not start an idle container", self.name);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(child)
    }

    /// Ends an idle container and waits for everything of it.
    pub fn stop(&self, mut idle: Child, id: &str) -> Result<()> {
        let killed = self.command("kill").arg(id).arg("KILL").output()?;
        if !killed.status.success() {
            bail!(
                "{}: {}",
                self.name,
                String::from_utf8_lossy(&killed.stderr).trim()
            );
        }
        idle.wait()?;
        Ok(())
    }

    /// The steps of one start, as JSON of `run --json`, as a table.
    pub fn timeline(&self, bundle: &Bundle) -> Result<String> {
        let mut command = self.command("run");
        command.args(&self.run).arg("--json").arg("--bundle");
        let output = command.arg(&bundle.dir).arg("timeline").output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text
            .lines()
            .find(|line| line.starts_with('{'))
            .context("no timeline")?;
        let report: serde_json::Value = serde_json::from_str(line)?;
        let timeline = &report["timeline"];
        let origin = timeline["origin_ns"].as_u64().unwrap_or(0);
        let mut out = String::new();
        for span in timeline["spans"].as_array().into_iter().flatten() {
            let at = |key: &str| span[key].as_u64().unwrap_or(0).saturating_sub(origin) / 1000;
            let (start, end) = (at("start_ns"), at("end_ns"));
            out.push_str(&format!(
                "  {:>4}.{:03} ms  {:>4}.{:03} ms  {:<7} {}\n",
                start / 1000,
                start % 1000,
                end.saturating_sub(start) / 1000,
                end.saturating_sub(start) % 1000,
                span["actor"].as_str().unwrap_or(""),
                span["name"].as_str().unwrap_or(""),
            ));
        }
        Ok(out)
    }
}

/// Runs a command to its end; returns the time it took.
pub fn timed(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let took = began.elapsed();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: {}",
            output.status,
            text.lines().last().unwrap_or("no message")
        );
    }
    Ok(took)
}
