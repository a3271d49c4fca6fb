//! The container's network after its machine was launched: what came before the start, and what comes and
//! goes while it runs.

use bulkhead_devices::vsock::control::{Plugged, Slot};
use bulkhead_network::{Update, Watch};

use super::*;
use crate::dns::Relay;
use crate::network;
use crate::watched;

impl Sandbox {
    /// Tells the guest what came to the container's network after it was created. Returns what is told of
    /// further changes; nothing for a container without interfaces of its own.
    pub(super) async fn complete_network(
        &self,
        vm: &Vm,
        plan: &Plan,
    ) -> Result<Option<Watch>, SandboxError> {
        plan.check_apart()?;
        if plan.netns.is_none() && self.pod.has_others(self.request.id.as_str()) {
            return Ok(None);
        }
        // Before the look, so that nothing is missed between the two.
        let changes = match plan.netns {
            Some(_) => vm.watch_network()?,
            None => None,
        };
        self.refresh_network(vm, plan).await?;
        Ok(changes)
    }

    /// Follows the network of a running container to its end: whatever is plugged into its namespace,
    /// changed there or removed is so in the guest.
    pub(super) fn follow_network(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        plan: &Arc<Plan>,
        process: &Arc<Process>,
        changes: Watch,
    ) {
        let changes = match watched::watch(changes) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!("Failed to watch the container's network: {error}");
                return;
            }
        };
        let (sandbox, vm, plan) = (self.clone(), vm.clone(), plan.clone());
        let mut exit = process.exit.subscribe();
        tokio::spawn(async move {
            let mut told = String::new();
            loop {
                let mut ready = tokio::select! {
                    biased;
                    _ = exit.wait_for(Option::is_some) => return,
                    _ = vm.failure() => return,
                    ready = changes.readable() => match ready {
                        Ok(ready) => ready,
                        Err(_) => return,
                    },
                };
                ready.clear_ready();
                match changes.get_ref().drain() {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => {
                        tracing::warn!("Failed to watch the container's network: {error}");
                        return;
                    }
                }
                let one_at_a_time = sandbox.verb.lock().await;
                let refreshed = sandbox.refresh_network(&vm, &plan).await;
                drop(one_at_a_time);
                // Each step of an engine's is a change; what keeps being wrong is told once.
                let error = match refreshed {
                    Ok(()) => String::new(),
                    Err(error) => crate::error::chain(&error),
                };
                if !error.is_empty() && error != told {
                    tracing::warn!("The guest's network is not what its namespace has: {error}");
                }
                told = error;
            }
        });
    }

    async fn refresh_network(&self, vm: &Vm, plan: &Plan) -> Result<(), SandboxError> {
        let update = vm.refresh_network()?;
        let resolvers = if vm.has_relay() {
            Vec::new()
        } else {
            relay_names(vm, plan)?
        };
        let mut update = update.unwrap_or_default();
        let mut request = messages::NetworkRequest {
            interfaces: update.changes.iter().map(network::message).collect(),
            resolvers,
            ..Default::default()
        };
        // What goes, goes first: what comes may have its name and hardware address.
        let mut slots = Vec::new();
        for mac in &update.unused {
            match vm.take_card(*mac) {
                Some(slot) => slots.push(slot),
                None => request.unused.push(mac.to_vec()),
            }
        }
        self.unplug(vm, slots).await;
        if !update.new.is_empty() {
            let unused = std::mem::take(&mut request.unused);
            let first = messages::NetworkRequest {
                unused,
                ..Default::default()
            };
            let freed = self.configure_network(vm, &first).await;
            if freed.is_err() {
                update.new.iter().for_each(|port| vm.forget_card(port.mac));
            }
            freed?;
            self.plug_cards(vm, &mut update).await?;
        }
        self.configure_network(vm, &request).await
    }

    async fn configure_network(
        &self,
        vm: &Vm,
        request: &messages::NetworkRequest,
    ) -> Result<(), SandboxError> {
        if *request == messages::NetworkRequest::default() {
            return Ok(());
        }
        let call = vm.agent.configure_network(Context::default(), request);
        self.ask(vm, "configure the network", call).await?;
        Ok(())
    }

    /// Gives the machine the cards it needs for what is new.
    async fn plug_cards(&self, vm: &Vm, update: &mut Update) -> Result<(), SandboxError> {
        let ports = std::mem::take(&mut update.new);
        let mut devices = Vec::with_capacity(ports.len());
        let mut cards = Vec::with_capacity(ports.len());
        for port in ports {
            let number = vm.next_device();
            let (mac, mtu) = (port.mac, port.mtu);
            devices.push((Plugged::Net { number, mac, mtu }, port.tap));
            cards.push((mac, Slot::Net(number)));
        }
        let plugged = self.plug(vm, devices).await;
        for (mac, slot) in cards {
            match plugged {
                Ok(()) => vm.keep_card(mac, slot),
                Err(_) => vm.forget_card(mac),
            }
        }
        plugged
    }
}

/// Lets the guest ask the name servers that only the container's namespace has. An engine may have
/// written their addresses after the container was created.
fn relay_names(vm: &Vm, plan: &Plan) -> Result<Vec<messages::Resolver>, SandboxError> {
    let Some(netns) = &plan.netns else {
        return Ok(Vec::new());
    };
    let servers = bulkhead_oci::loopback_name_servers(&plan.bundle, &plan.guest);
    let servers = servers.unwrap_or_else(|error| {
        tracing::warn!("Failed to read the container's resolv.conf: {error}");
        Vec::new()
    });
    if servers.is_empty() {
        return Ok(Vec::new());
    }
    let (relay, resolvers) = Relay::start(netns, &servers, &vm.channel)?;
    vm.keep_relay(relay);
    Ok(resolvers)
}
