//! The containers and processes of this guest, by the host's names for them.
//!
//! A name is taken from the moment its creation begins. Whoever asks for a process that is being
//! created waits until it is there or not, so that the host may send `CreateContainer`, `Start` and
//! `Wait` in one go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::container::Container;
use crate::process::Process;

/// A container's id and an exec id; the latter is empty for the container's init process.
pub type Name = (String, String);

/// Names the registry does not have, or has already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// No such container.
    #[error("There is no container {0:?} in this guest")]
    NoContainer(String),
    /// No such process.
    #[error("There is no process {1:?} in container {0:?}")]
    NoProcess(String, String),
    /// The name is taken.
    #[error("The container {0:?} exists already")]
    ContainerExists(String),
    /// The name is taken.
    #[error("The process {1:?} exists already in container {0:?}")]
    ProcessExists(String, String),
}

#[derive(Debug)]
enum Slot {
    /// The receiver ends when the creation does.
    Creating(watch::Receiver<()>),
    Created(Arc<Process>),
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<Name, Slot>,
    containers: BTreeMap<String, Container>,
}

/// Everything the host has created and not yet deleted.
#[derive(Debug, Default)]
pub struct Registry {
    state: Mutex<State>,
}

/// A name whose process is being created. Dropping it gives the name back.
#[derive(Debug)]
pub struct Reservation<'a> {
    registry: &'a Registry,
    name: Option<Name>,
    _creating: watch::Sender<()>,
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for a process that is about to be created.
    ///
    /// # Errors
    /// When it is taken.
    pub fn reserve(&self, container: &str, exec: &str) -> Result<Reservation<'_>, RegistryError> {
        let name = (container.to_owned(), exec.to_owned());
        let mut state = self.state();
        if state.processes.contains_key(&name) {
            return Err(match exec {
                "" => RegistryError::ContainerExists(name.0),
                _ => RegistryError::ProcessExists(name.0, name.1),
            });
        }
        let (creating, created) = watch::channel(());
        state
            .processes
            .insert(name.clone(), Slot::Creating(created));
        drop(state);
        Ok(Reservation {
            registry: self,
            name: Some(name),
            _creating: creating,
        })
    }

    /// The process of that name; waits while it is being created.
    ///
    /// # Errors
    /// When there is none, or its creation failed.
    pub async fn process(
        &self,
        container: &str,
        exec: &str,
    ) -> Result<Arc<Process>, RegistryError> {
        let name = (container.to_owned(), exec.to_owned());
        loop {
            let mut creating = match self.state().processes.get(&name) {
                Some(Slot::Created(process)) => return Ok(Arc::clone(process)),
                Some(Slot::Creating(creating)) => creating.clone(),
                None => {
                    return Err(match exec {
                        "" => RegistryError::NoContainer(name.0),
                        _ => RegistryError::NoProcess(name.0, name.1),
                    });
                }
            };
            // Nothing is ever sent: the reservation's end is the news.
            let _ = creating.changed().await;
        }
    }

    /// Does something with a container. Not to be used for anything that waits.
    ///
    /// # Errors
    /// When there is none of that name, or it is still being created.
    pub fn with_container<T>(
        &self,
        id: &str,
        work: impl FnOnce(&Container) -> T,
    ) -> Result<T, RegistryError> {
        match self.state().containers.get(id) {
            Some(container) => Ok(work(container)),
            None => Err(RegistryError::NoContainer(id.to_owned())),
        }
    }

    /// Takes a container out; its processes remain known.
    ///
    /// # Errors
    /// When there is none of that name, or it is still being created.
    pub fn take_container(&self, id: &str) -> Result<Container, RegistryError> {
        let container = self.state().containers.remove(id);
        container.ok_or_else(|| RegistryError::NoContainer(id.to_owned()))
    }

    /// The processes of a container that were created, with their exec ids.
    pub fn processes(&self, container: &str) -> Vec<(String, Arc<Process>)> {
        let state = self.state();
        let of_it = state
            .processes
            .iter()
            .filter(|((id, _), _)| id == container);
        of_it
            .filter_map(|((_, exec), slot)| match slot {
                Slot::Created(process) => Some((exec.clone(), Arc::clone(process))),
                Slot::Creating(_) => None,
            })
            .collect()
    }

    /// The names of the containers that were created.
    pub fn containers(&self) -> Vec<String> {
        self.state().containers.keys().cloned().collect()
    }

    /// Forgets one process.
    pub fn forget_process(&self, container: &str, exec: &str) {
        self.state()
            .processes
            .remove(&(container.to_owned(), exec.to_owned()));
    }

    /// Forgets every process of a container.
    pub fn forget_processes(&self, container: &str) {
        self.state().processes.retain(|(id, _), _| id != container);
    }
}

impl Reservation<'_> {
    /// Puts the process into its place, and with an init process its container.
    ///
    /// A container that was destroyed meanwhile does not come back: its process was killed, and
    /// the name is free.
    pub fn fill(mut self, process: Arc<Process>, container: Option<Container>) {
        let Some(name) = self.name.take() else { return };
        let mut state = self.registry.state();
        if let Some(container) = container {
            state.containers.insert(name.0.clone(), container);
        }
        if state.containers.contains_key(&name.0) {
            state.processes.insert(name, Slot::Created(process));
        } else {
            state.processes.remove(&name);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.registry.state().processes.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_taken_name_is_refused() {
        let registry = Registry::default();
        let _first = registry.reserve("a", "").unwrap();
        assert_eq!(
            registry.reserve("a", "").err(),
            Some(RegistryError::ContainerExists("a".to_owned()))
        );
        assert!(registry.reserve("a", "x").is_ok());
    }

    #[test]
    fn reserve_dropped_reservation_frees_the_name() {
        let registry = Registry::default();
        drop(registry.reserve("a", "").unwrap());
        assert!(registry.reserve("a", "").is_ok());
    }

    #[test]
    fn process_being_created_is_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let registry = Registry::default();
            let reservation = registry.reserve("a", "").unwrap();
            let asked = registry.process("a", "");
            tokio::pin!(asked);
            let early = std::future::poll_fn(|context| {
                std::task::Poll::Ready(asked.as_mut().poll(context).is_ready())
            });
            assert!(!early.await);
            drop(reservation);
            assert_eq!(
                asked.await.err(),
                Some(RegistryError::NoContainer("a".to_owned()))
            );
        });
    }
}
