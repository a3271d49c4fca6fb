//! The containers of one machine: usually one, several where an engine makes a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::SandboxError;
use crate::sandbox::Sandbox;
use crate::state::Status;

/// Who lives in the machine, and whether the sandbox process is still needed.
#[derive(Debug, Default)]
pub struct Pod {
    /// Told when nothing is left to do for this process.
    pub done: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    containers: BTreeMap<String, Arc<Sandbox>>,
    // Those that keep the machine up.
    residents: BTreeSet<String>,
    // Nobody moves in any more: the machine is ending.
    closed: bool,
}

impl Pod {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a container in.
    ///
    /// # Errors
    /// When the machine is about to end, or a container of that name is there.
    pub fn admit(&self, container: &Arc<Sandbox>) -> Result<(), SandboxError> {
        let id = container.request.id.to_string();
        let mut inner = self.lock();
        if inner.closed || inner.containers.contains_key(&id) {
            return Err(SandboxError::NoRoom(id));
        }
        inner.residents.insert(id.clone());
        inner.containers.insert(id, container.clone());
        Ok(())
    }

    /// A container by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn container(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        let inner = self.lock();
        inner.containers.get(id).cloned().ok_or_else(|| {
            // Its own was the last, and this process is about to end.
            if inner.containers.is_empty() {
                return SandboxError::WrongState {
                    verb: "reach",
                    id: id.to_owned(),
                    state: Status::Stopped.as_str(),
                };
            }
            let names: Vec<&str> = inner.containers.keys().map(String::as_str).collect();
            SandboxError::WrongId {
                holds: names.join(", "),
                asked: id.to_owned(),
            }
        })
    }

    /// All containers, by name.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Sandbox>> {
        self.lock().containers.values().cloned().collect()
    }

    /// The container does not need the machine any more. True if nobody does: the machine is then the
    /// caller's to end.
    #[must_use]
    pub fn move_out(&self, id: &str) -> bool {
        let mut inner = self.lock();
        inner.residents.remove(id);
        inner.closed |= inner.residents.is_empty();
        inner.closed
    }

    /// The other containers that live in the machine, by name.
    #[must_use]
    pub fn others(&self, id: &str) -> Vec<Arc<Sandbox>> {
        let inner = self.lock();
        let others = inner.residents.iter().filter(|other| *other != id);
        others
            .filter_map(|other| inner.containers.get(other).cloned())
            .collect()
    }

    /// Whether others live in the machine besides this container.
    #[must_use]
    pub fn has_others(&self, id: &str) -> bool {
        self.lock().residents.iter().any(|other| other != id)
    }

    /// Nothing is left to do for the container. With the last one this process ends.
    pub fn forget(&self, id: &str) {
        let mut inner = self.lock();
        inner.residents.remove(id);
        inner.containers.remove(id);
        if inner.containers.is_empty() {
            inner.closed = true;
            self.done.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_asked_for_after_the_last_has_ended_is_told_as_stopped() {
        let error = Pod::default().container("mine").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("container mine: it is stopped"), "{text}");
    }
}
