//! Standard output and error: pipe → host socket.

use rustix::io::ioctl_fionread;

use super::Debt;
use super::splice::{Moved, Room, forward, reader_gone};
use crate::watched::Watched;

/// Relays until every writer is gone or the host's reader is, then closes both.
pub async fn relay(pipe: Watched, socket: Watched, mut debt: Debt) {
    // What the process has left in the pipe when it ended.
    let mut owed: Option<u64> = None;
    let mut room = Room::default();
    let gone = reader_gone(&socket);
    tokio::pin!(gone);
    loop {
        if owed.is_none() && *debt.exited.borrow() {
            owed = Some(ioctl_fionread(pipe.get_ref()).unwrap_or(0));
        }
        if owed == Some(0) {
            debt.owing = None;
        }
        tokio::select! {
            biased;
            moved = forward(&pipe, &socket) => match moved {
                Moved::Bytes(count) => {
                    room.moved(&pipe, count);
                    let count = u64::try_from(count).unwrap_or(u64::MAX);
                    owed = owed.map(|owed| owed.saturating_sub(count));
                }
                Moved::End | Moved::Broken => return,
            },
            changed = debt.exited.changed(), if owed.is_none() && debt.owing.is_some() => {
                if changed.is_err() {
                    // Nobody waits for the process any more.
                    debt.owing = None;
                }
            },
            () = &mut gone => return,
        }
    }
}
