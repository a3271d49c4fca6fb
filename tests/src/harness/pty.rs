//! A terminal of the test's own, with a command on it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::invocation::Invocation;
use super::wait;

/// A terminal with a command on it; the command is the leader of its session.
#[derive(Debug)]
pub struct Pty {
    master: OwnedFd,
    slave: OwnedFd,
    child: Child,
    what: String,
    seen: String,
}

impl Pty {
    /// Starts a command on a new terminal of a given size.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(invocation: Invocation, columns: u16, rows: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        set_size(&master, columns, rows);
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let what = invocation.to_string();
        let mut command = invocation.into_command();
        command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap());
        let lead = || {
            rustix::process::setsid()?;
            // SAFETY: standard input is the slave, which was just opened.
            let terminal = unsafe { BorrowedFd::borrow_raw(0) };
            Ok(rustix::process::ioctl_tiocsctty(terminal)?)
        };
        // SAFETY: only two system calls are made between fork and exec; nothing is allocated.
        unsafe { command.pre_exec(lead) };
        let child = command.spawn().unwrap();
        Self {
            master,
            slave,
            child,
            what,
            seen: String::new(),
        }
    }

    /// Its settings now.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    /// Changes its size; the foreground process hears of it.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.master, columns, rows);
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal does not take it.
    pub fn write(&self, text: &str) {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let count = rustix::io::write(&self.master, bytes).unwrap();
            bytes = &bytes[count..];
        }
    }

    /// Reads until the output contains `text`, and returns everything up to its end.
    ///
    /// # Panics
    /// When it does not come.
    pub fn read_until(&mut self, text: &str) -> String {
        let until = Instant::now() + wait::limit();
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let came = wait::readable(self.master.as_fd(), until);
            assert!(
                came,
                "{text:?} did not come from `{}`: {}",
                self.what, self.seen
            );
            let mut buffer = [0; 4096];
            let count = rustix::io::read(&self.master, &mut buffer).unwrap();
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    /// Sends the command a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the command's end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let fd = wait::pidfd(self.child.id()).expect("a child that was not waited for");
        let until = Instant::now() + wait::limit();
        let ended = wait::readable(fd.as_fd(), until);
        assert!(ended, "it did not end: `{}`: {}", self.what, self.seen);
        self.child.wait().unwrap()
    }

    /// What it wrote and nobody has read; for after its end.
    ///
    /// # Panics
    /// When the terminal cannot be read.
    #[must_use]
    pub fn rest(&mut self) -> String {
        let mut buffer = [0; 4096];
        while wait::readable(self.master.as_fd(), Instant::now()) {
            let count = rustix::io::read(&self.master, &mut buffer).unwrap();
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script that answers each line with it and the terminal's size, and ends with 5.
pub const TALKING: &str = "tty; while read line; do echo got $line at $(stty size).; done; exit 5";

/// Talks by an engine's client to such a script on a terminal of the container's.
///
/// # Panics
/// When it does not answer as it should.
pub fn talk(client: Invocation) {
    let mut terminal = Pty::start(client, 91, 37);
    terminal.read_until("/dev/");
    terminal.write("some text\n");
    terminal.read_until("got some text at");
    // A client sets the size after the start, too, and that may overtake a later one.
    let resized = (0..100).any(|_| {
        terminal.resize(92, 39);
        terminal.resize(92, 38);
        terminal.write("now\n");
        terminal.read_until("got now at");
        terminal.read_until(".").contains("38 92")
    });
    assert!(resized, "the size did not follow");
    terminal.write("\x04");
    assert_eq!(terminal.wait().code(), Some(5));
}

fn set_size(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}
