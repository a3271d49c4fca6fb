//! The machine: everything made, wired, and running.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_jail::Profile;
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::VmmError;
use crate::arch::{boot, interrupts, layout, vcpu};
use crate::bus::Bus;
use crate::config::DeviceKind;
use crate::counts::{Exits, KvmCounters, Metrics};
use crate::gate::Gate;
use crate::memory::Memory;
use crate::processor::{self, End, Processor, Running};
use crate::transport::{Registers, VhostUser};

/// How many processors' registers fit in an answer.
const MOST_SHOWN: usize = 16;

/// What a balloon counts in, bytes.
const PAGE: u64 = 4096;

/// What a machine is made from, all of it open.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) kvm: Kvm,
    pub(crate) memory: Memory,
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    pub(crate) cmdline: Vec<String>,
    pub(crate) vcpus: u8,
    pub(crate) devices: Vec<(DeviceKind, UnixStream)>,
    /// The filter of the processors' threads.
    pub(crate) profile: Profile,
}

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    // Before the memory: a machine must not outlive what it runs in.
    vm: VmFd,
    memory: Arc<Memory>,
    bus: Arc<Bus>,
    processors: Vec<Running>,
    gate: Arc<Gate>,
    exits: Arc<Exits>,
    counters: Vec<Arc<Option<KvmCounters>>>,
    ended: Arc<Ended>,
}

/// How the machine ended, and an event that tells of it.
#[derive(Debug)]
struct Ended {
    how: Mutex<Option<Result<End, VmmError>>>,
    event: EventFd,
}

impl Machine {
    /// Makes the machine of `parts` and lets it run.
    ///
    /// # Errors
    /// Whatever the host refuses, or is wrong with the kernel or a device.
    pub(crate) fn start(mut parts: Parts) -> Result<Self, VmmError> {
        let vm = parts
            .kvm
            .create_vm()
            .map_err(VmmError::kvm("make a machine"))?;
        let memory = Arc::new(parts.memory);
        memory.give_to(&vm)?;
        interrupts::make(&vm)?;
        // What tells of the machine comes first: behind `--` the kernel takes nothing for itself.
        let mut words = Vec::new();
        let devices = wire(&vm, &memory, parts.devices, &mut words)?;
        words.extend(parts.cmdline);
        let bus = Arc::new(Bus::new(serial_interrupt(&vm)?, devices));
        let entry = boot::load(
            &memory,
            &mut parts.kernel,
            &mut parts.initramfs,
            &words.join(" "),
            parts.vcpus,
            &seed()?,
        )?;

        processor::block_signal()?;
        let features = vcpu::supported(&parts.kvm)?;
        let mut machine = Self {
            vm,
            memory,
            bus: Arc::clone(&bus),
            processors: Vec::new(),
            gate: Arc::new(Gate::default()),
            exits: Arc::new(Exits::default()),
            counters: Vec::new(),
            ended: Arc::new(Ended {
                how: Mutex::new(None),
                event: event()?,
            }),
        };
        let mut ready = Vec::new();
        for number in 0..parts.vcpus {
            let fd = machine
                .vm
                .create_vcpu(u64::from(number))
                .map_err(VmmError::kvm("make a processor"))?;
            fd.set_cpuid2(&vcpu::numbered(&features, number, parts.vcpus))
                .map_err(VmmError::kvm("tell a processor its features"))?;
            vcpu::prepare(&fd)?;
            if number == 0 {
                vcpu::enter_at(&fd, entry)?;
            }
            let counters = Arc::new(KvmCounters::of(&fd));
            machine.counters.push(Arc::clone(&counters));
            ready.push(Processor {
                number,
                vcpu: fd,
                bus: Arc::clone(&bus),
                gate: Arc::clone(&machine.gate),
                exits: Arc::clone(&machine.exits),
                counters,
            });
        }
        for processor in ready {
            let ended = Arc::clone(&machine.ended);
            let running = processor.start(parts.profile, move |how| ended.tell(how))?;
            machine.processors.push(running);
        }
        Ok(machine)
    }

    /// Becomes readable when the machine has ended.
    pub(crate) fn ended(&self) -> &EventFd {
        &self.ended.event
    }

    /// How the machine ended; none while it runs.
    pub(crate) fn end(&self) -> Option<Result<End, VmmError>> {
        self.ended
            .how
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Stops the processors; whether they all stand still.
    pub(crate) fn pause(&self) -> bool {
        self.gate.close();
        for processor in &self.processors {
            processor.interrupt();
        }
        self.gate.all_wait(self.processors.len())
    }

    /// Lets the processors go on.
    pub(crate) fn resume(&self) {
        self.gate.open();
    }

    /// The registers of each processor, on a line each, of the first [`MOST_SHOWN`]; stops them for a moment
    /// unless they stand. A processor that does not come out of the guest in time is named as such.
    pub(crate) fn registers(&self) -> Vec<String> {
        let was_running = self.is_running();
        self.pause();
        let seen = self.gate.seen();
        if was_running {
            self.resume();
        }
        (0_u8..)
            .zip(self.processors.iter().take(MOST_SHOWN))
            .map(|(number, _)| match seen.get(&number) {
                Some(registers) => format!("processor {number}: {registers}"),
                None => format!("processor {number}: does not come out of the guest"),
            })
            .collect()
    }

    /// Whether the processors run.
    pub(crate) fn is_running(&self) -> bool {
        self.gate.is_open()
    }

    /// Asks the guest to make do with `bytes` of memory; whether it can be asked. It follows, or not, in
    /// its own time.
    pub(crate) fn resize(&self, bytes: u64) -> bool {
        let spare = self.memory.size().saturating_sub(bytes) / PAGE;
        let spare = u32::try_from(spare).unwrap_or(u32::MAX);
        let asked = self
            .bus
            .with_balloon(|balloon| balloon.reconfigure(|device| device.want(spare)));
        asked.is_some()
    }

    /// Connects one more device; returns its number. The guest is to be told of it by whoever orders this.
    ///
    /// # Errors
    /// When there is no place, or KVM or the back end refuses.
    pub(crate) fn plug(&self, kind: DeviceKind, socket: UnixStream) -> Result<u8, VmmError> {
        let number = self.bus.vacant().ok_or(VmmError::TooManyDevices {
            count: layout::MOST_DEVICES.saturating_add(1),
            most: layout::MOST_DEVICES,
        })?;
        let irq = layout::device_irq(number).ok_or(VmmError::TooManyDevices {
            count: number.saturating_add(1),
            most: layout::MOST_DEVICES,
        })?;
        let device = VhostUser::connect(kind, socket, Arc::clone(&self.memory))?;
        let address = layout::device_address(number);
        device.wire(&self.vm, address, irq).inspect_err(|_| {
            // What was not wired yet cannot be unwired, which is as it should be.
            let _ = device.unwire(&self.vm, address, irq);
        })?;
        self.bus.put(number, Registers::new(device));
        Ok(u8::try_from(number).unwrap_or(u8::MAX))
    }

    /// Disconnects a device, if there is one of that number.
    ///
    /// # Errors
    /// When KVM refuses; the device is gone all the same.
    pub(crate) fn unplug(&self, number: u8) -> Result<(), VmmError> {
        let number = usize::from(number);
        match (self.bus.take(number), layout::device_irq(number)) {
            (Some(device), Some(irq)) => {
                let address = layout::device_address(number);
                device.backend().unwire(&self.vm, address, irq)
            }
            _ => Ok(()),
        }
    }

    /// How much memory the guest has, bytes: without what it says it has given away.
    pub(crate) fn memory_size(&self) -> u64 {
        let given = self.bus.with_balloon(|balloon| balloon.backend().given());
        let given = u64::from(given.unwrap_or(0)).saturating_mul(PAGE);
        self.memory.size().saturating_sub(given)
    }

    /// What the machine has cost.
    pub(crate) fn metrics(&self) -> Metrics {
        let sum = |name: &str| {
            let each = self
                .counters
                .iter()
                .map(|one| one.as_ref().as_ref()?.get(name));
            each.sum::<Option<u64>>()
        };
        Metrics {
            exits: self.exits.now(),
            all_exits: sum("exits"),
            interpreted: sum("insn_emulation"),
            interrupts: sum("irq_injections"),
            touched_pages: self.memory.touched_pages(),
        }
    }
}

impl Ended {
    /// The first end counts: what follows may follow from it.
    fn tell(&self, how: Result<End, VmmError>) {
        let mut place = self.how.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(how);
        }
        drop(place);
        let _ = self.event.write(1);
    }
}

/// Connects the devices and adds to the command line where they are.
fn wire(
    vm: &VmFd,
    memory: &Arc<Memory>,
    devices: Vec<(DeviceKind, UnixStream)>,
    words: &mut Vec<String>,
) -> Result<Vec<Registers<VhostUser>>, VmmError> {
    let too_many = VmmError::TooManyDevices {
        count: devices.len(),
        most: layout::MOST_DEVICES,
    };
    if devices.len() > layout::MOST_DEVICES {
        return Err(too_many);
    }
    let mut wired = Vec::new();
    for (number, (kind, socket)) in devices.into_iter().enumerate() {
        let device = VhostUser::connect(kind, socket, Arc::clone(memory))?;
        let (Some(irq), Some(word)) = (layout::device_irq(number), boot::device_word(number))
        else {
            return Err(too_many);
        };
        device.wire(vm, layout::device_address(number), irq)?;
        words.push(word);
        wired.push(Registers::new(device));
    }
    Ok(wired)
}

fn serial_interrupt(vm: &VmFd) -> Result<EventFd, VmmError> {
    let interrupt = event()?;
    vm.register_irqfd(&interrupt, layout::SERIAL_IRQ)
        .map_err(VmmError::kvm("connect the interrupt of the serial port"))?;
    Ok(interrupt)
}

/// Random bytes for the guest's generator.
fn seed() -> Result<[u8; boot::SEED_SIZE], VmmError> {
    let mut seed = [0; boot::SEED_SIZE];
    let got = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    match got {
        // Requests of up to 256 bytes are never cut short.
        Ok(_) => Ok(seed),
        Err(errno) => Err(VmmError::Host {
            step: "draw a seed for the guest's random numbers",
            source: errno.into(),
        }),
    }
}

fn event() -> Result<EventFd, VmmError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| VmmError::Host {
        step: "make an event descriptor",
        source,
    })
}
