//! Figures, not judgements: `cargo test -p bulkhead-devices --test measure -- --ignored --nocapture`.
//!
//! `BULKHEAD_TEST_DEVICE` names another build of the device process than the tests' own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use common::{Hypervisor, Machine};

const MIB: usize = 1 << 20;

fn per_second(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / MIB as f64
}

fn measure(hypervisor: &Hypervisor) {
    let start = Instant::now();
    let mut machine = Machine::start(hypervisor);
    println!("start of device process and guest: {:?}", start.elapsed());
    println!("device to Ready: {:?}", machine.ready_after);
    println!(
        "device idle: Pss {} KiB, Rss {} KiB, private {} KiB",
        machine.device_memory("Pss"),
        machine.device_memory("Rss"),
        machine.device_memory("Anonymous"),
    );

    let bytes = 512 * MIB;
    let mut socket = machine.expect(2000);
    let start = Instant::now();
    machine.order(&format!("source 2000 {bytes}"));
    let mut buffer = vec![0; MIB];
    let mut got = 0;
    while got < bytes {
        got += socket.read(&mut buffer).unwrap();
    }
    machine.answer();
    println!("vsock guest to host: {:.0} MiB/s", per_second(bytes, start));

    let mut socket = machine.expect(2001);
    let start = Instant::now();
    machine.order("sink 2001");
    for _ in 0..bytes / MIB {
        socket.write_all(&buffer).unwrap();
    }
    socket.shutdown(Shutdown::Write).unwrap();
    machine.answer();
    println!("vsock host to guest: {:.0} MiB/s", per_second(bytes, start));

    let mut socket = machine.expect(2002);
    machine.order("pings 2002 5000");
    let mut byte = [0];
    while socket.read(&mut byte).unwrap() == 1 {
        if socket.write_all(&byte).is_err() {
            break;
        }
    }
    println!(
        "vsock round trip of a byte from the guest: {}",
        machine.answer()
    );

    let sockets: Vec<_> = (0..200).map(|i| machine.expect(3000 + i)).collect();
    println!(
        "vsock connect and close: {}",
        machine.tell("connects 3000 200")
    );
    drop(sockets);

    for i in 0..1000 {
        std::fs::write(machine.share().join(format!("f{i}")), [1; 4096]).unwrap();
    }
    println!(
        "fs open, read 4 KiB, close: {}",
        machine.tell("opens /share/f0 2000")
    );
    println!(
        "fs the same, files never seen: {}",
        machine.tell("walk /share/f 1000")
    );
    println!(
        "fs stat of a name that is not there: {}",
        machine.tell("stats /share/none 2000")
    );
    println!(
        "fs stat of a name that is there: {}",
        machine.tell("stats /share/f0 2000")
    );
    println!(
        "fs write 256 MiB: {}",
        machine.tell("write /share/big 268435456")
    );
    println!("fs read 256 MiB: {}", machine.tell("read /share/big"));
    println!(
        "device after all: Pss {} KiB, Rss {} KiB, private {} KiB",
        machine.device_memory("Pss"),
        machine.device_memory("Rss"),
        machine.device_memory("Anonymous"),
    );
}

#[test]
#[ignore = "figures, not judgements"]
fn uml() {
    if let Some(hypervisor) = Hypervisor::uml() {
        measure(&hypervisor);
    }
}

#[test]
#[ignore = "figures, not judgements"]
fn qemu() {
    if let Some(hypervisor) = Hypervisor::qemu() {
        measure(&hypervisor);
    }
}
