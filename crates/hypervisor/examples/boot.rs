//! Boots a kernel in its jail and shows its console and the times: for experiments.
//!
//! `boot (kvm|uml|qemu) KERNEL INITRAMFS [WORD…]`, as root. The first line is the process id. Memory is 128 MiB unless `MIB` says else.

#![allow(clippy::expect_used, reason = "a tool for developers")]

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::time::Instant;

use bulkhead_hypervisor::{LaunchIo, Machine, Wanted};
use bulkhead_kernels::{Kernel, Manifest};
use rustix::process::{WaitId, WaitIdOptions};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hypervisor, kernel, initramfs, words @ ..] = args.as_slice() else {
        panic!("usage: boot (kvm|uml|qemu) KERNEL INITRAMFS [WORD…]");
    };
    let began = Instant::now();
    let wanted: Wanted = hypervisor.parse().expect("hypervisor");
    let choice = bulkhead_hypervisor::choose(wanted).expect("hypervisor");
    let manifest = Manifest {
        name: "experiment".into(),
        version: String::new(),
        flavour: choice.driver.flavour(),
        arch: "x86_64".into(),
        image: String::new(),
        sha256: String::new(),
        size: 0,
        features: BTreeSet::new(),
        source: String::new(),
        // Taken on trust: whoever experiments knows what the kernel bears.
        patches: vec!["emulated-kvm".into()],
        modules: false,
    };
    let mib = std::env::var("MIB").map_or(128, |mib| mib.parse().expect("MIB"));
    let uid = 0x7000_0000 + std::process::id();
    let machine = Machine {
        id: "experiment".into(),
        memory_bytes: mib << 20,
        huge_pages: false,
        vcpus: 1,
        kernel: Kernel {
            manifest,
            image: kernel.into(),
        },
        initramfs: initramfs.into(),
        cmdline: words.to_vec(),
        fs_socket: None,
        fs_tag: "none".into(),
        vsock_socket: None,
        guest_cid: 3,
        entropy_socket: None,
        balloon_socket: None,
        nets: Vec::new(),
        disks: Vec::new(),
        uid,
        gid: uid,
        cpu: None,
    };
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("console pipe");
    let bulkhead = std::env::current_exe()
        .expect("own path")
        .with_file_name("jailed_hat");
    let vm = choice.driver.launch(
        &machine,
        LaunchIo {
            console: write,
            bulkhead,
        },
    );
    let vm = vm.expect("launch");
    let launched = began.elapsed();
    println!("{}", vm.pid);
    let mut console = std::fs::File::from(read);
    let (mut text, mut up) = (Vec::new(), None);
    let mut buffer = [0; 4096];
    loop {
        let length = console.read(&mut buffer).expect("console");
        if length == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..length]);
        if up.is_none() && String::from_utf8_lossy(&text).contains("guest is up") {
            up = Some(began.elapsed());
        }
    }
    let status = rustix::process::waitid(WaitId::PidFd(vm.pidfd.as_fd()), WaitIdOptions::EXITED)
        .expect("wait");
    let ended = began.elapsed();
    if std::env::var_os("QUIET").is_none() {
        print!("{}", String::from_utf8_lossy(&text));
        println!("{}; {status:?}", choice.reason);
    }
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    println!(
        "launched {:.1} ms, up {:.1} ms, ended {:.1} ms",
        ms(launched),
        up.map_or(f64::NAN, ms),
        ms(ended)
    );
}
