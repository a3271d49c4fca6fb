//! The user's terminal: raw mode and its size.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode of standard input, undone when dropped.
#[derive(Debug)]
pub struct Raw {
    saved: Termios,
}

impl Raw {
    /// Switches standard input to raw mode; `None` when it is no terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

/// Columns and rows of the first of our standard streams that is a terminal.
pub fn size() -> Option<(u32, u32)> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let size = streams
        .into_iter()
        .find_map(|stream| tcgetwinsize(stream).ok())?;
    Some((u32::from(size.ws_col), u32::from(size.ws_row)))
}
