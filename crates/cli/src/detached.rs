//! Processes that outlive the command that starts them: their stand-in on the host, their console,
//! their PID file.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bulkhead_jail::Namespaces;
use bulkhead_sandbox::client;
use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::standin::{Description, Message, READY, life_line};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::error::CommandError;
use crate::standin::{Config, View};

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

/// Which network a stand-in is in.
#[derive(Debug)]
pub enum Network {
    /// The caller's.
    Inherit,
    /// A new one.
    New,
    /// The one at this path.
    Join(PathBuf),
}

/// What a stand-in is to look like.
#[derive(Debug)]
pub struct Looks {
    /// Its network namespace.
    pub network: Network,
    /// Its files; it has its own process ids then, too.
    pub view: Option<View>,
    /// Its command line.
    pub title: Vec<String>,
}

/// A stand-in whose sandbox does not know it yet. Dropping it ends it.
#[derive(Debug)]
pub struct StandIn {
    child: bulkhead_jail::Child,
    life: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    // Open until the process has been asked for.
    handed_over: Option<OwnedFd>,
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
        looks: Looks,
    ) -> Result<Self, CommandError> {
        Self::start(console, size, looks, None)
    }

    /// [`Self::spawn`] for the first process of the container at `paths`. It holds the container's
    /// directory, and is found by that whatever becomes of the files: see [`bulkhead_sandbox::owner`].
    ///
    /// # Errors
    /// The step that failed.
    pub fn spawn_first(
        console: Option<&Path>,
        size: Option<(u32, u32)>,
        looks: Looks,
        paths: &Paths,
    ) -> Result<Self, CommandError> {
        let dir = paths.dir();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&dir, flags, Mode::empty());
        let step = format!("open {}", dir.display());
        let dir = opened.map_err(|error| CommandError::io(step)(error.into()))?;
        Self::start(console, size, looks, Some(dir))
    }

    fn start(
        console: Option<&Path>,
        size: Option<(u32, u32)>,
        looks: Looks,
        directory: Option<OwnedFd>,
    ) -> Result<Self, CommandError> {
        const LIFE_FD: RawFd = 4;
        const NETNS_FD: RawFd = 5;
        const DIRECTORY_FD: RawFd = 6;
        let terminal = console
            .map(|socket| {
                let step = format!("set the terminal up for {}", socket.display());
                make_terminal(socket, size).map_err(CommandError::io(step))
            })
            .transpose()?;
        let (life, theirs) = life_line().map_err(CommandError::io("make a life line"))?;
        let mut fds = vec![(theirs, LIFE_FD)];
        // It never looks at it.
        fds.extend(directory.map(|directory| (directory, DIRECTORY_FD)));
        let streams: [BorrowedFd<'_>; 3] = match &terminal {
            Some(terminal) => [terminal.as_fd(); 3],
            None => [
                // SAFETY: the standard streams are open from start to end: the runtime sees to it.
                unsafe { BorrowedFd::borrow_raw(0) },
                // SAFETY: as above.
                unsafe { BorrowedFd::borrow_raw(1) },
                // SAFETY: as above.
                unsafe { BorrowedFd::borrow_raw(2) },
            ],
        };
        for (number, stream) in (0..).zip(streams) {
            let copy = stream.try_clone_to_owned();
            fds.push((copy.map_err(CommandError::io("share a stream"))?, number));
        }
        let joined = matches!(looks.network, Network::Join(_));
        if let Network::Join(path) = &looks.network {
            let step = format!("open the network namespace {}", path.display());
            let namespace = fs::File::open(path).map_err(CommandError::io(step))?;
            fds.push((namespace.into(), NETNS_FD));
        }
        let namespaces = Namespaces {
            mount: looks.view.is_some(),
            pid: looks.view.is_some(),
            net: matches!(looks.network, Network::New),
            ipc: false,
            uts: false,
            cgroup: false,
        };
        let config = Config {
            life_fd: LIFE_FD,
            netns_fd: joined.then_some(NETNS_FD),
            terminal: terminal.is_some(),
            title: looks.title,
            view: looks.view,
        };
        let args = bulkhead_sandbox::spawn::arguments("standin", &config)
            .map_err(CommandError::io("describe the stand-in"))?;
        let child = bulkhead_jail::spawn(bulkhead_jail::Command {
            program: PathBuf::from("/proc/self/exe"),
            args,
            fds,
            namespaces,
        })
        .map_err(CommandError::StandIn)?;
        let standin = Self {
            child,
            life: Some(life),
            terminal,
            handed_over: None,
        };
        standin.await_ready()
    }

    fn await_ready(self) -> Result<Self, CommandError> {
        let mut bytes = [0; 4096];
        let life = self.life.iter();
        let received = life
            .map(|life| rustix::net::recv(life, &mut bytes, RecvFlags::empty()))
            .next();
        let count = match received {
            Some(Ok((count, _))) => count,
            Some(Err(_)) | None => 0,
        };
        let text = bytes.get(..count).unwrap_or_default();
        if text == READY {
            return Ok(self);
        }
        let reason = String::from_utf8_lossy(text).into_owned();
        self.wait();
        Err(CommandError::StandInSetup(if reason.is_empty() {
            "It ended at once: the host may be out of memory".to_owned()
        } else {
            reason
        }))
    }

    /// On the host.
    pub fn pid(&self) -> u32 {
        self.child.pid
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
            id: paths.id().to_string(),
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
        let message = Message::Attach(description);
        self.handed_over = Some(client::hand_over(paths, &message, &fds)?);
        Ok(())
    }

    /// Waits for its end, which comes at once if the sandbox is gone or never had it; returns the exit
    /// code a shell would tell.
    pub fn wait(mut self) -> u8 {
        self.life = None;
        let options = WaitIdOptions::EXITED;
        // It cannot fail for a child of ours that nobody else waits for.
        let Ok(Some(status)) = waitid(WaitId::PidFd(self.child.pidfd.as_fd()), options) else {
            return u8::MAX;
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
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
