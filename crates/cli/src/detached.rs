//! Processes that outlive the command that starts them: their stand-in on the host, their console,
//! their PID file.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_sandbox::client;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::standin::{Description, life_line};
use nix::sys::signal::SigSet;
use rustix::fs::{FileType, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::error::CommandError;

/// Options of every verb that leaves a process behind.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Unix socket that takes the master of the process's terminal.
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// File to write the PID of the process's stand-in on the host to.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Descriptors beyond the standard streams to pass on: only 0, they belong to the host's kernel.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    preserve_fds: u32,
}

impl Options {
    /// Refuses what does not go together.
    ///
    /// # Errors
    /// See the texts.
    pub fn check(&self, terminal: bool, detached: bool) -> Result<(), CommandError> {
        if self.preserve_fds > 0 {
            return Err(CommandError::Usage(
                "--preserve-fds: descriptors belong to the host's kernel and cannot be passed into \
                 a virtual machine: pass files with a mount, streams with standard input and output"
                    .into(),
            ));
        }
        match (&self.console_socket, terminal, detached) {
            (None, true, true) => Err(CommandError::Usage(
                "Cannot allocate a terminal for a detached process without --console-socket: give \
                 one, or set process.terminal to false"
                    .into(),
            )),
            (Some(_), false, _) => Err(CommandError::Usage(
                "--console-socket needs a process with a terminal: set process.terminal, or leave \
                 the option out"
                    .into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Where a stand-in lives.
#[derive(Debug)]
pub enum Network {
    /// In the caller's network namespace.
    Inherit,
    /// In a new one.
    New,
    /// In the one at this path.
    Join(PathBuf),
}

/// A stand-in whose sandbox does not know it yet. Dropping it ends it.
#[derive(Debug)]
pub struct StandIn {
    child: Child,
    life: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl StandIn {
    /// Starts a stand-in that holds our standard streams or, with a terminal, a new terminal whose
    /// master goes through `console`.
    ///
    /// # Errors
    /// The step that failed.
    pub fn spawn(
        console: Option<&Path>,
        size: Option<(u32, u32)>,
        network: &Network,
    ) -> Result<Self, CommandError> {
        let terminal = console
            .map(|socket| {
                let step = format!("set the terminal up for {}", socket.display());
                make_terminal(socket, size).map_err(CommandError::io(step))
            })
            .transpose()?;
        let (life, theirs) = life_line().map_err(CommandError::io("make a life line"))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("bulkhead")
            .arg("standin")
            .arg(theirs.as_raw_fd().to_string())
            .env_clear()
            .current_dir("/");
        if let Some(terminal) = &terminal {
            let copy = || terminal.try_clone().map(Stdio::from);
            let step = "share the terminal";
            command
                .stdin(copy().map_err(CommandError::io(step))?)
                .stdout(copy().map_err(CommandError::io(step))?)
                .stderr(copy().map_err(CommandError::io(step))?);
        }
        let namespace = match network {
            Network::Join(path) => Some(
                fs::File::open(path)
                    .map_err(CommandError::io(format!(
                        "open the network namespace {}",
                        path.display()
                    )))?
                    .into(),
            ),
            Network::New | Network::Inherit => None,
        };
        prepare(
            &mut command,
            theirs,
            matches!(network, Network::New),
            namespace,
            terminal.is_some(),
        );
        let step = match network {
            Network::Join(path) => {
                format!(
                    "start the stand-in in the network namespace {}",
                    path.display()
                )
            }
            Network::New | Network::Inherit => "start the stand-in".to_owned(),
        };
        let child = command.spawn().map_err(CommandError::io(step))?;
        Ok(Self {
            child,
            life: Some(life),
            terminal,
        })
    }

    /// On the host.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the sandbox the stand-in's life line and the process's streams.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn hand_over(&mut self, paths: &Paths, exec_id: &str) -> Result<(), CommandError> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams = [
            Some(stdin.as_fd()).filter(|fd| !is_null(*fd)),
            Some(stdout.as_fd()).filter(|fd| !is_null(*fd)),
            Some(stderr.as_fd()).filter(|fd| !is_null(*fd)),
        ];
        let description = Description {
            exec_id: exec_id.to_owned(),
            pid: self.pid(),
            terminal: self.terminal.is_some(),
            streams: streams.map(|stream| stream.is_some()),
        };
        let life = self.life.take();
        let mut fds: Vec<BorrowedFd<'_>> = life.iter().map(AsFd::as_fd).collect();
        match &self.terminal {
            Some(terminal) => fds.push(terminal.as_fd()),
            None => fds.extend(streams.into_iter().flatten()),
        }
        Ok(client::attach(paths, &description, &fds)?)
    }

    /// Waits for its end, which comes at once if the sandbox is gone or never had it; returns the exit
    /// code a shell would tell.
    pub fn wait(mut self) -> u8 {
        self.life = None;
        // It cannot fail for a child of ours that nobody else waits for.
        let Ok(status) = self.child.wait() else {
            return u8::MAX;
        };
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, signal) => signal.unwrap_or(0).saturating_add(128),
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

/// Writes a PID file, in one step.
///
/// # Errors
/// When it cannot be written.
pub fn write_pid(path: &Path, pid: u32) -> Result<(), CommandError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}"));
    let written = fs::write(&fresh, pid.to_string()).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        // The error that counts is the one being returned.
        let _ = fs::remove_file(&fresh);
        CommandError::io(format!("write the PID file {}", path.display()))(error)
    })
}

/// Everything between fork and exec: only system calls.
fn prepare(
    command: &mut Command,
    life: OwnedFd,
    new_network: bool,
    namespace: Option<OwnedFd>,
    terminal: bool,
) {
    let all = SigSet::all();
    let checked = |result: libc::c_int| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    let setup = move || {
        // Signals wait until the stand-in reads them.
        all.thread_block()?;
        rustix::process::setsid()?;
        if new_network {
            // SAFETY: this process has one thread; it loses sight of the host's network only.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        }
        if let Some(namespace) = &namespace {
            let fd = namespace.as_raw_fd();
            // SAFETY: as above; the descriptor is open, it is owned here.
            checked(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })?;
        }
        if terminal {
            // SAFETY: standard input is the terminal; the argument 0 takes it from nobody.
            checked(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        }
        // SAFETY: fcntl changes a flag of an open descriptor, which is owned here.
        checked(unsafe { libc::fcntl(life.as_raw_fd(), libc::F_SETFD, 0) })
    };
    // SAFETY: the closure only makes system calls and allocates nothing.
    unsafe { command.pre_exec(setup) };
}

/// A new terminal: its slave, in raw mode because the one in the guest does all the work, while its
/// master goes to whoever listens on `socket`.
fn make_terminal(socket: &Path, size: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let mut settings = tcgetattr(&slave)?;
    settings.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &settings)?;
    if let Some((columns, rows)) = size {
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_col: narrow(columns),
            ws_row: narrow(rows),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size)?;
    }
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let stream = UnixStream::connect(socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = [IoSlice::new(name.to_bytes())];
    sendmsg(&stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(slave)
}

/// Nobody reads or writes there: a stream of its own would only cost.
fn is_null(fd: BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return true;
    };
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let path_only = rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH));
    path_only
        || (FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == (1, 3))
}
