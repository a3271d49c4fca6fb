//! What a machine has cost the host, where its hypervisor counts it.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_hypervisor::{MachineStatistics, Vm};
use tokio::sync::watch;

use crate::channel::PortState;

/// Asks a machine for its counts.
#[derive(Clone, Debug)]
pub struct Meter {
    machine: Arc<Vm>,
    at_home: Arc<Mutex<Option<MachineStatistics>>>,
}

impl Meter {
    /// A meter of `machine`, which takes the counts once when the agent's connection, `home`, is there.
    #[must_use]
    pub fn start(machine: Arc<Vm>, mut home: watch::Receiver<PortState>) -> Self {
        let meter = Self {
            machine,
            at_home: Arc::default(),
        };
        if meter.machine.as_measurable().is_some() {
            let meter = meter.clone();
            tokio::spawn(async move {
                let called = home.wait_for(|state| matches!(state, PortState::Connected(_)));
                if called.await.is_ok() {
                    let counts = meter.now().await;
                    *meter.at_home.lock().unwrap_or_else(PoisonError::into_inner) = counts;
                }
            });
        }
        meter
    }

    /// The counts from the machine's start to the agent's call home; none as long as it has not called,
    /// or if nobody counts.
    #[must_use]
    pub fn at_home(&self) -> Option<MachineStatistics> {
        self.at_home
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The counts until now; none if nobody counts, or the hypervisor does not answer.
    pub async fn now(&self) -> Option<MachineStatistics> {
        let machine = self.machine.clone();
        let ask = move || machine.as_measurable()?.statistics().ok();
        // A hypervisor that its guest has taken over may keep the question waiting.
        tokio::task::spawn_blocking(ask).await.ok()?
    }
}
