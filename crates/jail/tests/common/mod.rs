//! Starting `examples/jail_subject.rs` and looking at it from outside.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::expect_used, reason = "test code")]
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use bulkhead_jail::exec::ExecConfig;
use bulkhead_jail::{Child, Command, Entry, Jail, Namespaces};
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

/// The example, which cargo builds beside the tests.
pub fn jailed() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    test.ancestors()
        .nth(2)
        .expect("target directory")
        .join("examples/jail_subject")
}

pub struct Running {
    pub child: Child,
    /// Closing it tells the process to end.
    pub input: Option<File>,
    pub output: BufReader<File>,
    pub errors: File,
}

impl Running {
    pub fn start(args: &[&str]) -> Self {
        let (their_input, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let (output, their_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let (errors, their_errors) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let child = bulkhead_jail::spawn(Command {
            program: jailed(),
            args: args
                .iter()
                .map(|arg| CString::new(*arg).expect("argument"))
                .collect(),
            fds: vec![(their_input, 0), (their_output, 1), (their_errors, 2)],
            namespaces: Namespaces::default(),
        })
        .expect("spawn");
        Self {
            child,
            input: Some(File::from(input)),
            output: BufReader::new(File::from(output)),
            errors: File::from(errors),
        }
    }

    /// Enters `jail` and does `action`.
    pub fn act(jail: &Jail, action: &str) -> Self {
        Self::start(&["act", &serde_json::to_string(jail).expect("json"), action])
    }

    /// Enters `jail` and executes a shell script in it with busybox.
    pub fn shell(jail: &Jail, script: &str) -> Self {
        let mut jail = jail.clone();
        jail.root.entries.push(bind("/bin/busybox", "/bin/busybox"));
        let config = ExecConfig {
            jail,
            program: "/bin/busybox".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["ONLY=this".into()],
            personality: 0,
            processes: Some(64),
        };
        Self::start(&["exec", &serde_json::to_string(&config).expect("json")])
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("standard output");
        line.trim_end().to_owned()
    }

    /// Waits for the end; standard output, standard error and status.
    pub fn finish(mut self) -> (String, String, WaitIdStatus) {
        drop(self.input.take());
        let (mut output, mut errors) = (String::new(), String::new());
        self.output
            .read_to_string(&mut output)
            .expect("standard output");
        self.errors
            .read_to_string(&mut errors)
            .expect("standard error");
        let status = wait(&self.child.pidfd);
        (output, errors, status)
    }

    pub fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.pid)).expect("proc file")
    }

    pub fn status(&self, field: &str) -> String {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.expect("field of status").trim().to_owned()
    }
}

pub fn wait(pidfd: &OwnedFd) -> WaitIdStatus {
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .expect("waitid")
        .expect("a status")
}

pub fn bind(source: &str, target: &str) -> Entry {
    Entry::Bind {
        source: source.into(),
        target: target.into(),
        read_only: true,
        nosuid: true,
        nodev: true,
        noexec: false,
        recursive: false,
    }
}
