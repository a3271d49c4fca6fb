//! A command that runs: its streams, its signals, its end.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::invocation::Output;
use super::wait;

/// A command that runs. It is killed when dropped before its end.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    read: Vec<u8>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    limit: Duration,
    ended: bool,
}

impl Running {
    /// Starts a command. With `bytes` its input is those, otherwise the test's to write.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(
        mut command: Command,
        what: String,
        bytes: Option<Vec<u8>>,
        limit: Duration,
    ) -> Self {
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `{what}`: {error}"));
        let mut stdin = child.stdin.take();
        if let Some(bytes) = bytes
            && let Some(mut pipe) = stdin.take()
        {
            // A thread: the command may not read before somebody reads its output.
            thread::spawn(move || {
                // A command that has read enough closes its end.
                let _ = pipe.write_all(&bytes);
            });
        }
        let stderr = child.stderr.take().map(|mut pipe| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                bytes
            })
        });
        Self {
            what,
            stdin,
            stdout: child.stdout.take(),
            child,
            read: Vec::new(),
            stderr,
            limit,
            ended: false,
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When there is no such process any more.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap_or_else(|error| panic!("kill `{}`: {error}", self.what));
    }

    /// Its input.
    ///
    /// # Panics
    /// Unless it was started with a pipe that is still open.
    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.stdin.as_mut().expect("an open pipe as input")
    }

    /// Writes a line to its input.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn write_line(&mut self, line: &str) {
        let stdin = self.stdin();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\n").unwrap();
    }

    /// Ends its input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Closes the read end of its output, as `| head` does.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Takes the pipe its input goes to.
    ///
    /// # Panics
    /// Unless it was started with a pipe that is still open.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("an open pipe as input")
    }

    /// Takes the pipe its output comes from; what lines were read ahead is lost.
    ///
    /// # Panics
    /// When it is closed already.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("an open pipe as output")
    }

    /// Reads the next line of its output, without its end.
    ///
    /// # Panics
    /// When the output ends before, or nothing comes.
    pub fn line(&mut self) -> String {
        let until = Instant::now() + self.limit;
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=at).collect();
                line.pop();
                return String::from_utf8_lossy(&line).into_owned();
            }
            assert!(self.read_some(until), "{}", self.last_words("no more line"));
        }
    }

    /// Reads lines until one that is `wanted`.
    ///
    /// # Panics
    /// When the output ends before, or nothing comes.
    pub fn line_is(&mut self, wanted: &str) {
        while self.line() != wanted {}
    }

    fn read_some(&mut self, until: Instant) -> bool {
        let Some(stdout) = &mut self.stdout else {
            return false;
        };
        assert!(
            wait::readable(stdout.as_fd(), until),
            "no output within {:?}: `{}`",
            self.limit,
            self.what
        );
        let mut chunk = vec![0; 64 * 1024];
        let count = stdout.read(&mut chunk).unwrap();
        self.read.extend_from_slice(&chunk[..count]);
        count > 0
    }

    /// What it said, for a panic message; ends it.
    fn last_words(&mut self, problem: &str) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.ended = true;
        let stderr = self.stderr.take().map(JoinHandle::join);
        let stderr = stderr.and_then(Result::ok).unwrap_or_default();
        format!(
            "{problem}: `{}`\n--- unread stdout\n{}\n--- stderr\n{}\n---",
            self.what,
            String::from_utf8_lossy(&self.read),
            String::from_utf8_lossy(&stderr)
        )
    }

    /// Whether it runs.
    ///
    /// # Panics
    /// Never for a child of ours.
    pub fn is_running(&mut self) -> bool {
        !self.ended && self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end of its process and leaves its streams, which others may hold.
    ///
    /// # Panics
    /// When it does not end.
    pub fn exited(&mut self) -> ExitStatus {
        if let Some(status) = self.child.try_wait().unwrap() {
            return status;
        }
        let until = Instant::now() + self.limit;
        if let Some(fd) = wait::pidfd(self.pid())
            && !wait::readable(fd.as_fd(), until)
        {
            let words = self.last_words("it did not end");
            panic!("{words}");
        }
        self.child.wait().unwrap()
    }

    /// Waits for its end; input that is still open is closed first.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(mut self) -> Output {
        self.end()
    }

    /// Waits for its end and leaves what is left of it to the caller.
    ///
    /// # Panics
    /// When it does not end, or was waited for before.
    pub fn end(&mut self) -> Output {
        assert!(!self.ended, "waited for twice: `{}`", self.what);
        self.stdin = None;
        let until = Instant::now() + self.limit;
        while self.read_some(until) {}
        let status = self.exited();
        self.ended = true;
        let stderr = self.stderr.take().map(JoinHandle::join);
        Output {
            what: self.what.clone(),
            status,
            stdout: std::mem::take(&mut self.read),
            stderr: stderr.and_then(Result::ok).unwrap_or_default(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
