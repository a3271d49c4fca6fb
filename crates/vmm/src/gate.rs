//! Where processors stand still while the machine is paused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest wait for processors that were told to stand still.
const PATIENCE: Duration = Duration::from_secs(2);

/// The gate all processors of a machine pass whenever they come out of the guest.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Copy of the state's flag, to be looked at without the lock.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Processors that stand at the gate.
    waiting: usize,
    /// What they left of themselves when they came to it.
    seen: BTreeMap<u8, String>,
}

impl Gate {
    /// Waits as long as the gate is closed. For the processor `number`, which before shows its registers, as
    /// only its own thread can read them.
    pub(crate) fn pass(&self, number: u8, registers: impl FnOnce() -> String) {
        if !self.closed.load(Ordering::Acquire) {
            return;
        }
        let registers = registers();
        let mut state = self.lock();
        state.seen.insert(number, registers);
        state.waiting = state.waiting.saturating_add(1);
        self.changed.notify_all();
        while state.closed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting = state.waiting.saturating_sub(1);
    }

    /// Closes the gate; the caller then has to get the processors out of the guest.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        // Those of processors that stand at a gate closed already are still true.
        if !state.closed {
            state.seen.clear();
        }
        state.closed = true;
        drop(state);
        self.closed.store(true, Ordering::Release);
    }

    /// Waits until `count` processors stand at the closed gate; whether they do.
    pub(crate) fn all_wait(&self, count: usize) -> bool {
        let state = self.lock();
        let result = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.waiting < count);
        let (state, _) = result.unwrap_or_else(PoisonError::into_inner);
        state.waiting >= count
    }

    /// The registers of the processors that came to the gate since it was last closed, by number.
    pub(crate) fn seen(&self) -> BTreeMap<u8, String> {
        self.lock().seen.clone()
    }

    /// Lets all go on.
    pub(crate) fn open(&self) {
        self.lock().closed = false;
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the gate is open.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn gate_closed_holds_and_opened_lets_pass() {
        let gate = Arc::new(Gate::default());
        gate.pass(0, || unreachable!("nobody asked"));
        gate.close();
        let other = Arc::clone(&gate);
        let processor = thread::spawn(move || other.pass(3, || "rip=0x1".to_owned()));
        assert!(gate.all_wait(1));
        assert!(!processor.is_finished());
        assert_eq!(gate.seen(), BTreeMap::from([(3, "rip=0x1".to_owned())]));
        gate.open();
        processor.join().unwrap();
        assert!(gate.is_open());
    }

    #[test]
    fn gate_nobody_comes_to_is_told_as_such() {
        let gate = Gate::default();
        gate.close();
        assert!(!gate.all_wait(1));
    }
}
