//! QEMU switches the rings of a network card on and off before it has said which features the
//! driver takes. By the protocol that request belongs to a feature, so the vhost crate takes it for
//! a breach; it is answered here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use vhost::vhost_user::VhostUserBackendReqHandlerMut;

use super::Device;
use super::handler::Handler;

/// Request, flags, size, each of four bytes; then the ring's index and what it is to be.
const HEADER: usize = 12;
const MESSAGE: usize = HEADER + 8;

const SET_VRING_ENABLE: u32 = 18;
/// Flags: version 1, an answer, a wish for one.
const VERSION: u32 = 0x1;
const ANSWER: u32 = 0x4;
const WANTS_ANSWER: u32 = 0x8;

/// If the next message of the front end switches a ring on or off and no features were agreed on yet,
/// takes it and answers it. Returns whether it did. A message that has not arrived as a whole is
/// left alone.
pub(super) fn take<D: Device>(
    front_end: &impl AsRawFd,
    handler: &mut Handler<D>,
) -> io::Result<bool> {
    if !D::EARLY_ENABLE || handler.has_features() {
        return Ok(false);
    }
    // SAFETY: the connection lives longer than this call.
    let socket = unsafe { BorrowedFd::borrow_raw(front_end.as_raw_fd()) };
    let mut bytes = [0; MESSAGE];
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    // What is wrong with the connection shows when the message is taken.
    if !matches!(recv(socket, &mut bytes, peek), Ok((MESSAGE.., _))) {
        return Ok(false);
    }
    let word = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let words = (word(0), word(4), word(8), word(12), word(16));
    let (Some(SET_VRING_ENABLE), Some(flags), Some(8), Some(index), Some(enable @ (0 | 1))) = words
    else {
        return Ok(false);
    };
    recv(socket, &mut bytes, RecvFlags::DONTWAIT)?;
    let failed = handler.set_vring_enable(index, enable == 1).is_err();
    if flags & WANTS_ANSWER != 0 {
        let mut answer = Vec::with_capacity(MESSAGE);
        for number in [SET_VRING_ENABLE, VERSION | ANSWER, 8] {
            answer.extend(number.to_ne_bytes());
        }
        answer.extend(u64::from(failed).to_ne_bytes());
        send(socket, &answer, SendFlags::NOSIGNAL)?;
    }
    Ok(true)
}
