//! What a machine has cost the host, where its hypervisor counts it.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_devices::tally::Work;
use bulkhead_hypervisor::{MachineStatistics, Vm};
use serde::Serialize;
use tokio::sync::watch;

use crate::channel::{Channel, PortState};
use crate::timeline::printable;

/// What a machine as a whole uses. What nobody counts, or does not tell, is left out. All of it comes
/// from processes that read what the guest writes: good for telling a person, not for deciding.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MachineUse {
    /// What each device has done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Work>,
    /// Memory the machine has at this moment: what it was started with less what its balloon holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What it has cost the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<MachineStatistics>,
}

/// Asks a machine for its counts.
#[derive(Clone, Debug)]
pub struct Meter {
    machine: Arc<Vm>,
    at_home: Arc<Mutex<Option<MachineStatistics>>>,
}

/// Most lines of registers shown, and the length of each, characters.
const LINES: usize = 16;
const LINE: usize = 1024;

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

    /// What the machine, whose devices are behind `channel`, uses now.
    pub async fn machine_use(&self, channel: &Channel) -> MachineUse {
        let machine = self.machine.clone();
        let memory = move || machine.as_resizable()?.memory().ok();
        let memory_bytes = tokio::task::spawn_blocking(memory).await.ok().flatten();
        let devices = channel.work().await.unwrap_or_else(|error| {
            tracing::warn!("The devices do not tell what they have done: {error}");
            Vec::new()
        });
        MachineUse {
            devices,
            memory_bytes,
            cost: self.now().await,
        }
    }

    /// The registers of the guest's processors, a line each; empty if nobody can tell, or the hypervisor
    /// does not answer.
    pub async fn registers(&self) -> Vec<String> {
        let machine = self.machine.clone();
        let ask = move || machine.as_measurable()?.registers().ok();
        let answer = tokio::task::spawn_blocking(ask).await;
        // It comes from a process that reads guest bytes.
        let lines = answer.ok().flatten().unwrap_or_default().into_iter();
        let shown = lines.take(LINES).map(|line| printable(&line));
        shown
            .map(|line| line.chars().take(LINE).collect())
            .collect()
    }
}
