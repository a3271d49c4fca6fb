//! A ring whose requests are done one after the other, each at once.

use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT};

use crate::session::{Memory, Vring};
use crate::tally::Tally;

/// What one request was: how many bytes were taken from the guest, and how many were written to its
/// memory.
pub(crate) type Moved = (usize, u32);

/// Does the requests of a ring until there are none, and counts them.
///
/// # Errors
/// When the guest has broken the ring: nothing in it can be trusted any more.
pub(crate) fn answer_all(
    vring: &Vring,
    memory: &Memory,
    tally: &Tally,
    mut answer: impl FnMut(DescriptorChain<&Memory>) -> Moved,
) -> Result<(), QueueError> {
    use vhost_user_backend::VringT as _;
    let mut state = vring.get_mut();
    if !state.is_enabled() || !state.get_queue().ready() {
        return Ok(());
    }
    loop {
        state.disable_notification()?;
        while let Some(chain) = state.get_queue_mut().iter(memory)?.next() {
            let head = chain.head_index();
            let (taken, len) = answer(chain);
            state.add_used(head, len)?;
            tally.done(taken, len);
            if state.needs_notification()? {
                // A full socket (User-Mode Linux) means that one is already waiting.
                let _ = state.signal_used_queue();
            }
        }
        if !state.enable_notification()? {
            return Ok(());
        }
    }
}
