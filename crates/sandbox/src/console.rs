//! The guest's console: always drained, bounded in memory and on disk.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::unix::AsyncFd;

use crate::watched;

/// Bytes of the console's end that are kept in memory and survive in the file.
const KEPT: usize = 64 * 1024;

/// Size at which the file is cut back to its last [`KEPT`] bytes.
const FILE_LIMIT: usize = 1024 * 1024;

/// Collects what a guest writes to its console.
#[derive(Debug, Clone)]
pub struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
}

impl Console {
    /// Starts a task that reads `pipe` until its writers are gone and keeps the end of it in memory
    /// and in `file`.
    ///
    /// # Errors
    /// When the pipe cannot be made non-blocking or registered, or the file not be created.
    pub fn collect(pipe: OwnedFd, file: PathBuf) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let pipe = watched::watch(fs::File::from(pipe))?;
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let sink = Sink {
            out: fs::File::create(&file)?,
            path: file,
            written: 0,
        };
        let console = Self { kept };
        tokio::spawn(console.clone().run(pipe, sink));
        Ok(console)
    }

    async fn run(self, pipe: AsyncFd<fs::File>, mut sink: Sink) {
        let mut buffer = vec![0; 4096];
        while let Ok(mut ready) = pipe.readable().await {
            match ready.try_io(|pipe| pipe.get_ref().read(&mut buffer)) {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(count)) => {
                    let Some(bytes) = buffer.get(..count) else {
                        return;
                    };
                    let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend(bytes);
                    let excess = kept.len().saturating_sub(KEPT);
                    kept.drain(..excess);
                    sink.write(bytes, &kept);
                }
                Err(_would_block) => {}
            }
        }
    }

    /// The end of what the guest wrote, at most 64 KiB.
    #[must_use]
    pub fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = kept.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }
}

#[derive(Debug)]
struct Sink {
    out: fs::File,
    path: PathBuf,
    written: usize,
}

impl Sink {
    /// A console that cannot be written to disk (full, for example) is still in memory.
    fn write(&mut self, bytes: &[u8], kept: &VecDeque<u8>) {
        if self.written.saturating_add(bytes.len()) > FILE_LIMIT {
            let Ok(out) = fs::File::create(&self.path) else {
                return;
            };
            self.out = out;
            let (a, b) = kept.as_slices();
            let _ = self.out.write_all(a).and_then(|()| self.out.write_all(b));
            self.written = kept.len();
        } else {
            let _ = self.out.write_all(bytes);
            self.written = self.written.saturating_add(bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn collect_flood_keeps_only_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let console = Console::collect(read, dir.path().join("log")).unwrap();
        let writer = std::thread::spawn(move || {
            let mut out = fs::File::from(write);
            for n in 0..200_000 {
                writeln!(out, "line {n:06}").unwrap();
            }
        });
        // The collecting task ends when the writer is gone; it is the only other holder.
        while Arc::strong_count(&console.kept) > 1 {
            tokio::task::yield_now().await;
        }
        writer.join().unwrap();
        let text = console.text();
        assert!(text.ends_with("line 199999\n"));
        assert!(text.len() <= KEPT);
        let on_disk = fs::read(dir.path().join("log")).unwrap();
        assert!(on_disk.len() <= FILE_LIMIT && on_disk.ends_with(b"line 199999\n"));
    }
}
