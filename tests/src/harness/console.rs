//! The socket of `--console-socket`, and the terminal a runtime sends through it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

use super::wait;

/// A listening socket for one terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens below a directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("console");
        let listener = UnixListener::bind(&path).unwrap();
        Self { listener, path }
    }

    /// The value of `--console-socket`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the terminal.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn terminal(&self) -> Console {
        let until = Instant::now() + wait::limit();
        assert!(
            wait::readable(self.listener.as_fd(), until),
            "nobody connected to the console socket"
        );
        let (stream, _) = self.listener.accept().unwrap();
        assert!(
            wait::readable(stream.as_fd(), until),
            "nothing came through the console socket"
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0_u8; 4096];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Console {
            master: master.expect("a terminal's descriptor in the message"),
            seen: String::new(),
        }
    }
}

/// The engine's side of a container's terminal.
#[derive(Debug)]
pub struct Console {
    master: OwnedFd,
    seen: String,
}

impl Console {
    /// Changes its size.
    ///
    /// # Panics
    /// When it is no terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
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
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(self.read_some(), "{text:?} did not come: {}", self.seen);
        }
    }

    /// Reads to the end, which comes when the last process has closed the terminal.
    #[must_use]
    pub fn read_to_end(mut self) -> String {
        while self.read_some() {}
        self.seen
    }

    fn read_some(&mut self) -> bool {
        let came = wait::readable(self.master.as_fd(), Instant::now() + wait::limit());
        assert!(came, "nothing more came, and no end: {}", self.seen);
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.master, &mut buffer) {
            // The end of a terminal is this error.
            Ok(0) | Err(rustix::io::Errno::IO) => false,
            Ok(count) => {
                let text = String::from_utf8_lossy(&buffer[..count]);
                self.seen.push_str(&text);
                true
            }
            Err(error) => panic!("the terminal cannot be read: {error}"),
        }
    }
}
