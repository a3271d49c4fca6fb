//! Guests of a few instructions under the host's own KVM.
//!
//! They run in real mode, or poll, so they also run where KVM interprets instructions.

use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bulkhead_jail::Profile;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::layout::{MMIO, SERIAL_IRQ};
use crate::bus::Bus;
use crate::counts::{Exits, KvmCounters};
use crate::gate::Gate;
use crate::memory::Memory;
use crate::processor::{self, End, Processor, Running};
use crate::{VmmError, arch};

/// Longest any of these guests may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where the code lies; below it is room for a stack, at 0 the table of interrupts.
const CODE: u64 = 0x1000;

struct Tiny {
    vm: VmFd,
    memory: Arc<Memory>,
    gate: Arc<Gate>,
    exits: Arc<Exits>,
    counters: Arc<Option<KvmCounters>>,
    running: Running,
    ended: mpsc::Receiver<Result<End, VmmError>>,
}

/// What is put into a machine before its guest runs.
type SetUp<'a> = &'a dyn Fn(&VmFd, &Memory);

impl Tiny {
    /// Runs real-mode `code`; none where there is no KVM.
    fn run(code: &[u8], irqchip: bool, set_up: SetUp<'_>) -> Option<Self> {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIP: /dev/kvm cannot be opened");
            return None;
        };
        let vm = kvm.create_vm().unwrap();
        let memory = Arc::new(Memory::new(2 << 20).unwrap());
        memory.give_to(&vm).unwrap();
        if irqchip {
            arch::interrupts::make(&vm).unwrap();
        }
        memory.write(CODE, code).unwrap();
        set_up(&vm, &memory);
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut segments = vcpu.get_sregs().unwrap();
        (segments.cs.base, segments.cs.selector) = (0, 0);
        // Reaches the pages of devices from real mode.
        (segments.ds.base, segments.ds.limit) = (MMIO, 0xffff);
        vcpu.set_sregs(&segments).unwrap();
        let mut registers = vcpu.get_regs().unwrap();
        (registers.rip, registers.rsp, registers.rflags) = (CODE, CODE, 2);
        vcpu.set_regs(&registers).unwrap();

        processor::block_signal().unwrap();
        let (gate, exits) = (Arc::new(Gate::default()), Arc::new(Exits::default()));
        let counters = Arc::new(KvmCounters::of(&vcpu));
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let processor = Processor {
            number: 0,
            vcpu,
            bus: Arc::new(Bus::new(interrupt, Vec::new())),
            gate: gate.clone(),
            exits: exits.clone(),
            counters: counters.clone(),
        };
        let (sender, ended) = mpsc::channel();
        let tell = move |how| sender.send(how).unwrap();
        let running = processor.start(Profile::None, tell).unwrap();
        Some(Self {
            vm,
            memory,
            gate,
            exits,
            counters,
            running,
            ended,
        })
    }

    fn end(&self) -> Result<End, VmmError> {
        self.ended.recv_timeout(LIMIT).unwrap()
    }

    fn byte(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.memory.read(address, &mut byte).unwrap();
        byte[0]
    }
}

fn nothing(_: &VmFd, _: &Memory) {}

/// `mov al, 0xfe; out 0x64, al`: the reset line.
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];

#[test]
fn reset_line_ends_the_machine_in_order() {
    let Some(tiny) = Tiny::run(&RESET, false, &nothing) else {
        return;
    };
    assert_eq!(tiny.end().unwrap(), End::Reset);
    assert_eq!(tiny.exits.now().port, 1);
}

#[test]
fn panic_port_ends_the_machine_with_a_report() {
    // mov dx, 0x505; in al, dx; mov cx, 0x4321; out dx, al: what can be told is told.
    let code = [0xba, 0x05, 0x05, 0xec, 0xb9, 0x21, 0x43, 0xee];
    let Some(tiny) = Tiny::run(&code, false, &nothing) else {
        return;
    };
    let report = tiny.end().unwrap_err().to_string();
    assert!(report.contains("panicked on processor 0"), "{report}");
    assert!(report.contains("rcx=0x4321"), "{report}");
    assert!(report.contains("exits: 2 of ports"), "{report}");
}

#[test]
fn panic_port_written_without_a_panic_goes_on() {
    // mov dx, 0x505; mov al, 2; out dx, al; then the reset line.
    let code = [&[0xba, 0x05, 0x05, 0xb0, 0x02, 0xee][..], &RESET].concat();
    let Some(tiny) = Tiny::run(&code, false, &nothing) else {
        return;
    };
    assert_eq!(tiny.end().unwrap(), End::Reset);
}

#[test]
fn halt_without_interrupts_is_reported_with_registers_and_exits() {
    // mov cx, 0x1234; in al, 0x64; hlt
    let code = [0xb9, 0x34, 0x12, 0xe4, 0x64, 0xf4];
    let Some(tiny) = Tiny::run(&code, false, &nothing) else {
        return;
    };
    let report = tiny.end().unwrap_err().to_string();
    assert!(report.contains("halted"), "{report}");
    assert!(report.contains("rcx=0x1234"), "{report}");
    assert!(report.contains("exits: 1 of ports"), "{report}");
}

#[test]
fn triple_fault_is_reported_as_such() {
    // lidt [cs:0x1010]; int 0x20: a table of interrupts without room for any.
    let code = [0x2e, 0x0f, 0x01, 0x1e, 0x10, 0x10, 0xcd, 0x20];
    let Some(tiny) = Tiny::run(&code, true, &nothing) else {
        return;
    };
    let report = tiny.end().unwrap_err().to_string();
    assert!(report.contains("Processor 0"), "{report}");
    assert!(
        report.contains("triple fault") || report.contains("cannot interpret"),
        "{report}"
    );
    assert!(report.contains("rip=0x"), "{report}");
}

#[test]
fn address_without_a_device_reads_as_ones_and_is_counted() {
    // mov al, [0x10]; mov [cs:0x2000], al; then the reset line.
    let mut code = vec![0xa0, 0x10, 0x00, 0x2e, 0xa2, 0x00, 0x20];
    code.extend(RESET);
    let Some(tiny) = Tiny::run(&code, false, &nothing) else {
        return;
    };
    assert_eq!(tiny.end().unwrap(), End::Reset);
    assert_eq!(tiny.byte(0x2000), 0xff);
    assert_eq!(tiny.exits.now().mmio_read, 1);
}

#[test]
fn kick_by_event_does_not_come_to_this_process() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let register = |vm: &VmFd, _: &Memory| {
        let address = IoEventAddress::Mmio(MMIO + 0x50);
        vm.register_ioevent(&event, &address, NoDatamatch).unwrap();
    };
    // mov [0x50], al twice; then the reset line.
    let mut code = vec![0xa2, 0x50, 0x00, 0xa2, 0x50, 0x00];
    code.extend(RESET);
    let Some(tiny) = Tiny::run(&code, false, &register) else {
        return;
    };
    assert_eq!(tiny.end().unwrap(), End::Reset);
    assert_eq!(event.read().unwrap(), 2);
    assert_eq!(tiny.exits.now().mmio_write, 0);
}

#[test]
fn interrupt_by_event_reaches_the_guest() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    // The interrupt's handler counts at 0x2000 and returns; the guest polls that and then resets.
    let handler = [0x2e, 0xfe, 0x06, 0x00, 0x20, 0xcf];
    let set_up = |vm: &VmFd, memory: &Memory| {
        vm.register_irqfd(&event, SERIAL_IRQ).unwrap();
        memory.write(0x1800, &handler).unwrap();
        // The old controller, once told so below, delivers line 4 as vector 0x24.
        memory.write(0x24 * 4, &[0x00, 0x18, 0x00, 0x00]).unwrap();
    };
    // Sets the old controller up (vectors from 0x20, all lines but 4 masked), allows interrupts, says
    // that it is there at 0x2001, waits for the count.
    let mut code = Vec::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xef),
    ] {
        code.extend([0xb0, value, 0xe6, port]);
    }
    code.extend([0xfb, 0x2e, 0xc6, 0x06, 0x01, 0x20, 0x01]);
    // cmp byte [cs:0x2000], 0; je there
    code.extend([0x2e, 0x80, 0x3e, 0x00, 0x20, 0x00, 0x74, 0xf8]);
    code.extend(RESET);
    let Some(tiny) = Tiny::run(&code, true, &set_up) else {
        return;
    };
    while tiny.byte(0x2001) == 0 {
        std::thread::yield_now();
    }

    event.write(1).unwrap();

    assert_eq!(tiny.end().unwrap(), End::Reset);
    assert_eq!(tiny.byte(0x2000), 1);
}

#[test]
fn processor_that_never_leaves_the_guest_is_stopped_and_goes_on() {
    // inc byte [cs:0x2000]; until [cs:0x2001] is set; then the reset line.
    let mut code = vec![0x2e, 0xfe, 0x06, 0x00, 0x20];
    code.extend([0x2e, 0x80, 0x3e, 0x01, 0x20, 0x00, 0x74, 0xf3]);
    code.extend(RESET);
    let Some(tiny) = Tiny::run(&code, false, &nothing) else {
        return;
    };

    tiny.gate.close();
    tiny.running.interrupt();
    assert!(tiny.gate.all_wait(1));
    let seen = tiny.gate.seen();
    assert!(seen[&0].contains("rip=0x100"), "{seen:?}");
    let before = tiny.byte(0x2000);
    tiny.memory.write(0x2001, &[1]).unwrap();
    assert_eq!(tiny.byte(0x2000), before);
    assert!(tiny.ended.try_recv().is_err());

    tiny.gate.open();
    assert_eq!(tiny.end().unwrap(), End::Reset);
    assert_eq!(tiny.exits.now().interrupted, 1);
}

#[test]
fn counters_of_the_host_grow_with_the_guest() {
    let Some(tiny) = Tiny::run(&RESET, false, &nothing) else {
        return;
    };
    tiny.end().unwrap();
    let Some(counters) = tiny.counters.as_ref() else {
        println!("SKIP: this KVM keeps no counters");
        return;
    };
    assert!(counters.get("exits").unwrap() > 0, "{:?}", counters.all());
    assert_eq!(counters.get("there is no such counter"), None);
    assert!(tiny.vm.as_raw_fd() > 0);
}
