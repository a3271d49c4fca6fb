//! A container that runs.

use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};

use serde_json::Value;

use super::inventory;
use super::invocation::{Invocation, Output};
use super::running::Running;
use super::test::Test;
use super::wait;

/// A container whose `run` command is attached. It is removed when dropped, by force.
#[derive(Debug)]
pub struct Container<'t> {
    test: &'t Test,
    /// Its name.
    pub id: String,
    run: Option<Running>,
}

impl<'t> Container<'t> {
    /// The container `id` of an attached command.
    #[must_use]
    pub fn new(test: &'t Test, id: String, run: Running) -> Self {
        Self {
            test,
            id,
            run: Some(run),
        }
    }

    /// Waits until its process says `ready` in a line of its own.
    #[must_use]
    pub fn ready(mut self) -> Self {
        self.line_is("ready");
        self
    }

    /// `exec ID COMMAND…`.
    #[must_use]
    pub fn exec<A: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = A>) -> Invocation {
        self.exec_with(&[], command)
    }

    /// `exec OPTIONS… ID COMMAND…`.
    #[must_use]
    pub fn exec_with<A: AsRef<OsStr>>(
        &self,
        options: &[&str],
        command: impl IntoIterator<Item = A>,
    ) -> Invocation {
        let exec = self.test.verb(["exec"]).args(options);
        exec.arg(&self.id).args(command)
    }

    /// `exec ID sh -c SCRIPT`, run to its end.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        self.exec(["/bin/sh", "-c", script]).output()
    }

    /// `VERB ID ARGS…`.
    #[must_use]
    pub fn verb(&self, verb: &str, args: &[&str]) -> Invocation {
        self.test.verb([verb, &self.id]).args(args)
    }

    /// `kill ID SIGNAL`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        self.verb("kill", &[signal]).output().expect_code(0);
    }

    /// `state ID`.
    #[track_caller]
    #[must_use]
    pub fn state(&self) -> Value {
        self.verb("state", &[]).output().json()
    }

    /// Waits for the end of `run`.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(mut self) -> Output {
        self.end()
    }

    /// The processes of the machine: the sandbox process and its descendants, as they are now.
    ///
    /// # Panics
    /// When the container does not run.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let state = self.state();
        let sandbox = state["pid"].as_u64().filter(|pid| *pid > 0);
        let sandbox = sandbox.unwrap_or_else(|| panic!("it does not run: {state}"));
        inventory::tree(u32::try_from(sandbox).unwrap())
    }
}

impl Deref for Container<'_> {
    type Target = Running;

    fn deref(&self) -> &Running {
        self.run.as_ref().expect("held until dropped")
    }
}

impl DerefMut for Container<'_> {
    fn deref_mut(&mut self) -> &mut Running {
        self.run.as_mut().expect("held until dropped")
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // While there is something to be told.
            return self.test.tell();
        }
        let processes = self
            .run
            .as_mut()
            .and_then(|run| run.is_running().then(|| inventory::tree(run.pid())))
            .unwrap_or_default();
        // Kills the command if it still runs; what ours had started then ends by itself.
        self.run = None;
        let delete = ["delete", "--force", &self.id];
        if self.test.driver.is_peer() {
            let _ = self.test.verb(delete).output();
        }
        processes.into_iter().for_each(wait::gone);
        if !self.test.driver.is_peer() && self.test.root().join(&self.id).exists() {
            let _ = self.test.verb(delete).output();
        }
    }
}
