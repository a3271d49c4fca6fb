//! A command to be run, and what came of it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::running::Running;
use super::wait;

/// What the command reads.
#[derive(Debug)]
enum Input {
    /// At its end from the start.
    Empty,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// A pipe the test writes to.
    Pipe,
    /// A file.
    File(File),
}

/// A command to be run.
#[derive(Debug)]
pub struct Invocation {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    input: Input,
    output: Option<File>,
    limit: Duration,
}

impl Invocation {
    /// A program without arguments and with empty input.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            input: Input::Empty,
            output: None,
            limit: wait::limit(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// Sets a variable of the command's own environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.push(pair);
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Gives it these bytes to read, then the end.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives it a pipe to read that the test writes: see [`Running::stdin`].
    #[must_use]
    pub fn stdin_pipe(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// Gives it a file to read.
    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.input = Input::File(file);
        self
    }

    /// Sends its standard output to a file instead of to the test.
    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Self {
        self.output = Some(file);
        self
    }

    /// Has a shell run it, as `"$@"` of a script; for redirections.
    #[must_use]
    pub fn in_shell(mut self, script: &str) -> Self {
        let program = std::mem::replace(&mut self.program, "/bin/sh".into());
        let shell = ["-c", script, "sh"].map(OsString::from);
        self.args
            .splice(0..0, shell.into_iter().chain([program.into()]));
        self
    }

    /// Lets it take longer than anything should.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[must_use]
    pub fn output(self) -> Output {
        self.spawn().finish()
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(self) -> Running {
        let what = self.to_string();
        let (stdin, bytes, keep) = match self.input {
            Input::Empty => (Stdio::null(), Vec::new(), false),
            Input::Bytes(bytes) => (Stdio::piped(), bytes, false),
            Input::Pipe => (Stdio::piped(), Vec::new(), true),
            Input::File(file) => (file.into(), Vec::new(), false),
        };
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env)
            .stdin(stdin)
            .stdout(self.output.map_or_else(Stdio::piped, Stdio::from))
            .stderr(Stdio::piped());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        Running::start(command, what, (!keep).then_some(bytes), self.limit)
    }

    /// As a command of the standard library, for other streams than pipes.
    #[must_use]
    pub fn into_command(self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
            if !arg.is_empty() && arg.chars().all(plain) {
                write!(f, " {arg}")?;
            } else {
                write!(f, " {arg:?}")?;
            }
        }
        Ok(())
    }
}

/// What came of a command.
#[derive(Debug)]
pub struct Output {
    /// The command, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote and nobody had read.
    pub stdout: Vec<u8>,
    /// What it wrote.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Its exit code; minus the number of the signal that ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = || self.status.signal().map(|number| -number);
        self.status.code().or_else(signal).unwrap_or(i32::MIN)
    }

    /// Asserts its exit code.
    ///
    /// # Panics
    /// When it is another one; the message has both streams.
    #[track_caller]
    #[must_use = "use expect_code for the assertion alone"]
    pub fn expect(self, code: i32) -> Self {
        self.expect_code(code);
        self
    }

    /// Asserts its exit code.
    ///
    /// # Panics
    /// When it is another one; the message has both streams.
    #[track_caller]
    pub fn expect_code(&self, code: i32) {
        assert_eq!(self.code(), code, "exit code of {self}");
    }

    /// Standard output as text without the last line's end. Asserts exit code 0.
    ///
    /// # Panics
    /// On another exit code, and on bytes that are no text.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> &str {
        self.expect_code(0);
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output parsed. Asserts exit code 0.
    ///
    /// # Panics
    /// On another exit code, and when it is no JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(self.text()) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}) from {self}"),
        }
    }

    /// Asserts a failure told in one line that contains each of `parts`, and returns it.
    ///
    /// # Panics
    /// When it succeeded, wrote something to standard output, or told something else.
    #[track_caller]
    pub fn expect_error(&self, parts: &[&str]) -> String {
        assert_ne!(self.code(), 0, "no failure: {self}");
        let error = self.error();
        assert_eq!(error.lines().count(), 1, "not one line: {self}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing: {self}");
        }
        error
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |bytes: &[u8]| {
            let shown = bytes.get(..bytes.len().min(4000)).unwrap_or_default();
            String::from_utf8_lossy(shown).into_owned()
        };
        write!(
            f,
            "`{}`: {}\n--- stdout ({} bytes)\n{}\n--- stderr ({} bytes)\n{}\n---",
            self.what,
            self.status,
            self.stdout.len(),
            cut(&self.stdout),
            self.stderr.len(),
            cut(&self.stderr)
        )
    }
}
