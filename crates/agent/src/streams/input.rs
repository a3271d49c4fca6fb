//! Standard input: host socket → pipe.

use tokio::io::Interest;

use super::splice::{Moved, Room, forward};
use crate::watched::Watched;

/// Relays until the host sends no more or the process reads no more, then closes both.
pub async fn relay(socket: Watched, pipe: Watched) {
    let mut room = Room::default();
    loop {
        tokio::select! {
            biased;
            moved = forward(&socket, &pipe) => match moved {
                Moved::Bytes(count) => room.moved(&pipe, count),
                Moved::End | Moved::Broken => return,
            },
            // The last reader of the pipe is gone.
            _ = pipe.ready(Interest::ERROR) => return,
        }
    }
}
