//! A container as an engine has it: `create`, `start`, and its process waited for.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use super::bundle::Bundle;
use super::invocation::{Invocation, Output};
use super::running::Running;
use super::test::Test;
use super::wait;

/// A container made by `create --bundle DIR --pid-file FILE ID`. The runtime's command has ended; the
/// container has its streams. The process the runtime names is our child, as it is conmon's and the
/// shim's: the test process inherits orphans.
#[derive(Debug)]
pub struct Created<'t> {
    test: &'t Test,
    /// The bundle it was made of.
    pub bundle: Bundle<'t>,
    /// The process named by `--pid-file`.
    pub pid: u32,
    run: Running,
    ended: Option<ExitStatus>,
}

impl<'t> Created<'t> {
    /// Creates a container of a bundle; `change` may add options and streams to the command.
    ///
    /// # Panics
    /// When `create` fails or writes no number to the file.
    #[must_use]
    pub fn new(
        test: &'t Test,
        bundle: Bundle<'t>,
        change: impl FnOnce(Invocation) -> Invocation,
    ) -> Self {
        let pid_file = bundle.dir.join("pid");
        let invocation = change(test.verb(["create"]))
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&bundle.id);
        let mut run = invocation.spawn();
        if !run.exited().success() {
            panic!("not created: {}", run.finish());
        }
        let text = fs::read_to_string(&pid_file).expect("create writes the file of --pid-file");
        let pid = text.trim().parse();
        let pid = pid.unwrap_or_else(|_| panic!("no number in the pid file: {text:?}"));
        Self {
            test,
            bundle,
            pid,
            run,
            ended: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.bundle.id
    }

    /// `VERB ID ARGS…`.
    #[must_use]
    pub fn verb(&self, verb: &str, args: &[&str]) -> Output {
        self.test.verb([verb, self.id()]).args(args).output()
    }

    /// `start ID`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn start(&self) {
        self.verb("start", &[]).expect_code(0);
    }

    /// `exec OPTIONS… ID sh -c SCRIPT`.
    #[must_use]
    pub fn exec(&self, options: &[&str], script: &str) -> Invocation {
        let exec = self.test.verb(["exec"]).args(options).arg(self.id());
        exec.args(["/bin/sh", "-c", script])
    }

    /// `state ID`.
    #[track_caller]
    #[must_use]
    pub fn state(&self) -> Value {
        self.verb("state", &[]).json()
    }

    /// The status in its state.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> String {
        let state = self.state();
        state["status"].as_str().expect("a status").to_owned()
    }

    /// Sends its process a signal, not by way of the runtime.
    ///
    /// # Panics
    /// When there is no such process any more.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a process of ours");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).expect("a process number")).expect("not zero")
    }

    /// Waits for the end of its process, as its parent.
    ///
    /// # Panics
    /// When it does not end, or is not our child.
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let fd = wait::pidfd(self.pid).expect("a child that was not waited for");
        let ended = wait::readable(fd.as_fd(), Instant::now() + wait::limit());
        assert!(ended, "the process of {} did not end", self.id());
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::empty())
            .expect("a child of ours")
            .expect("it has ended");
        let status = ExitStatus::from_raw(status.as_raw());
        self.ended = Some(status);
        status
    }

    /// Whether its process ends before this time has passed.
    ///
    /// # Panics
    /// When it cannot be waited for.
    #[must_use]
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let fd = wait::pidfd(self.pid);
        let ended = fd.is_none_or(|fd| wait::readable(fd.as_fd(), Instant::now() + time));
        if ended {
            self.wait();
        }
        ended
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let fd = wait::pidfd(self.pid);
        fd.is_some_and(|fd| !wait::readable(fd.as_fd(), Instant::now()))
    }

    /// Reads what it writes to the end, and waits for its process.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(mut self) -> Output {
        let output = self.run.end();
        Output {
            status: self.wait(),
            ..output
        }
    }

    /// Ends it by SIGKILL to its process.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Deref for Created<'_> {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.run
    }
}

impl DerefMut for Created<'_> {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.run
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.test.tell();
        }
        // What it could not do shows in the inventory at the test's end.
        let _ = self.test.verb(["delete", "--force", self.id()]).output();
        if self.ended.is_none() {
            let _ = waitpid(Some(self.pid()), WaitOptions::NOHANG);
        }
    }
}
