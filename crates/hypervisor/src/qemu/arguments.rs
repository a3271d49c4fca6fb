//! QEMU's command line.

use super::{Accelerator, ENTROPY_FD, FS_FD, MONITOR_FD, VSOCK_FD, files, tsc};
use crate::{Machine, Net};

/// Tells the agent, as an environment variable, that this machine is ended by a reset.
const END: &str = "BULKHEAD_END=reset";

/// Bound of the translator's buffer. Its default takes a gigabyte of address space and, used to the
/// full by a long-lived guest, of memory.
const TRANSLATION_BUFFER_MIB: u32 = 64;

pub(super) fn list(
    machine: &Machine,
    memory_mib: u64,
    accelerator: Accelerator,
    rate: tsc::Measurement,
) -> Vec<String> {
    let mut list = Arguments(Vec::new());
    // Option ROMs would only print and wait: the firmware starts a PVH kernel by itself.
    let mut kind = "microvm,x-option-roms=off,memory-backend=memory,isa-serial=on".to_owned();
    if !files::has_acpi(machine) {
        // QEMU then adds to the command line where the devices are.
        kind.push_str(",acpi=off,auto-kernel-cmdline=on");
    }
    list.add("-machine", kind);
    match accelerator {
        Accelerator::Kvm => {
            list.add("-accel", "kvm");
            list.add("-cpu", "host");
        }
        Accelerator::Tcg => {
            list.add("-accel", format!("tcg,tb-size={TRANSLATION_BUFFER_MIB}"));
            list.add("-cpu", "max");
        }
    }
    list.add("-smp", machine.vcpus.to_string());
    list.add("-m", format!("{memory_mib}M"));
    // The device process maps the guest's memory, too.
    let huge = if machine.huge_pages {
        ",hugetlb=on,hugetlbsize=2M"
    } else {
        ""
    };
    list.add(
        "-object",
        format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on{huge}"),
    );
    list.flag("-nodefaults");
    list.flag("-no-user-config");
    list.add("-display", "none");
    // A guest that restarts, for instance after a panic, ends.
    list.flag("-no-reboot");
    list.add("-L", files::FIRMWARE);
    list.add("-kernel", files::KERNEL);
    list.add("-initrd", files::INITRAMFS);
    list.add(
        "-append",
        kernel_words(machine, accelerator, rate).join(" "),
    );
    // Standard output takes what the guest says, first by its serial port, and by a virtio console
    // from when it has one; standard input never says anything.
    list.add("-chardev", "stdio,id=console,mux=on,signal=off");
    list.add("-serial", "chardev:console");
    list.add("-device", "virtio-serial-device,max_ports=1");
    list.add("-device", "virtconsole,chardev=console");
    list.add("-chardev", format!("socket,id=monitor,fd={MONITOR_FD}"));
    list.add("-mon", "chardev=monitor,mode=control");
    list.add("-global", "virtio-mmio.force-legacy=false");
    if machine.fs_socket.is_some() {
        list.add("-chardev", format!("socket,id=fs,fd={FS_FD}"));
        let tag = machine.fs_tag.replace(',', ",,");
        list.add(
            "-device",
            format!("vhost-user-fs-device,chardev=fs,tag={tag},queue-size=1024"),
        );
    }
    if machine.vsock_socket.is_some() {
        list.add("-chardev", format!("socket,id=vsock,fd={VSOCK_FD}"));
        list.add("-device", "vhost-user-vsock-device,chardev=vsock");
    }
    if machine.entropy_socket.is_some() {
        list.add("-chardev", format!("socket,id=entropy,fd={ENTROPY_FD}"));
        list.add("-device", "vhost-user-rng,chardev=entropy");
    }
    // What the guest frees goes back to the host; and it takes back what it gave before it kills.
    // Huge pages stay: what was given back could be somebody else's when the guest wants it again.
    if !machine.huge_pages {
        list.add(
            "-device",
            "virtio-balloon-device,id=balloon,free-page-reporting=on,deflate-on-oom=on",
        );
    }
    for (number, net) in machine.nets.iter().enumerate() {
        add_card(&mut list, number, net);
    }
    for number in 0..machine.disks.len() {
        let socket = files::disk_socket(number);
        list.add("-chardev", format!("socket,id=disk{number},path={socket}"));
        list.add(
            "-device",
            format!("vhost-user-blk,chardev=disk{number},num-queues=1"),
        );
    }
    list.0
}

/// A network card. QEMU would handle its control queue itself, and so read what the guest writes
/// there; none of it is needed.
fn add_card(list: &mut Arguments, number: usize, net: &Net) {
    let socket = files::net_socket(number);
    list.add("-chardev", format!("socket,id=net{number},path={socket}"));
    list.add(
        "-netdev",
        format!("vhost-user,id=net{number},chardev=net{number}"),
    );
    let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut device = format!("virtio-net-device,netdev=net{number},mac={mac}");
    for feature in [
        "ctrl_vq",
        "ctrl_rx",
        "ctrl_vlan",
        "ctrl_rx_extra",
        "ctrl_mac_addr",
        "ctrl_guest_offloads",
        "guest_announce",
        "mq",
    ] {
        device.push_str(&format!(",{feature}=off"));
    }
    if let Some(mtu) = net.mtu {
        device.push_str(&format!(",host_mtu={mtu}"));
    }
    list.add("-device", device);
}

fn kernel_words(
    machine: &Machine,
    accelerator: Accelerator,
    rate: tsc::Measurement,
) -> Vec<String> {
    let mut words = vec![
        // Errors and panics are shown, the story of an ordinary boot is not: each line costs.
        "quiet".to_owned(),
        // A panic before there is a virtio console is told by the serial port.
        "earlycon=uart8250,io,0x3f8".to_owned(),
        "console=hvc0".to_owned(),
        // A panic restarts at once, which `-no-reboot` turns into the end.
        "panic=-1".to_owned(),
        "reboot=t".to_owned(),
        // There are no such devices; looking for them takes time.
        "i8042.noaux".to_owned(),
        "pci=off".to_owned(),
        "pty.legacy_count=0".to_owned(),
        "initcall_blacklist=raid6_select_algo".to_owned(),
        // Freed memory goes back to the host in blocks of 64 KiB. In whole huge pages it would do so only as
        // long as 64 MiB are free (32 blocks, `page_reporting_process_zone`), which a small guest seldom has.
        "page_reporting.page_reporting_order=4".to_owned(),
    ];
    if accelerator == Accelerator::Tcg {
        // The guest reads the host's time stamp counter and has nothing reliable to measure its
        // rate with: on a busy host it would wait for ever.
        if let Some(khz) = rate.khz() {
            words.push(format!("tsc_early_khz={khz}"));
        }
        words.push("tsc=reliable".to_owned());
        // With one processor the kernel would remove its lock prefixes, thousands of them, and each
        // makes QEMU translate anew: 0.1 s, for prefixes that cost nothing in a translation.
        words.push("noreplace-smp".to_owned());
    }
    if !files::has_acpi(machine) {
        // Without tables of its own the machine has no power switch.
        words.push(END.to_owned());
    }
    words.extend(machine.cmdline.iter().cloned());
    words
}

struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
}
