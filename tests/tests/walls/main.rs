//! The walls around the processes that read a guest's bytes, seen from outside through `/proc` while
//! a container runs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod host;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bulkhead_tests::{Container, Invocation, Test, suite, tests_on};
use host::{Machine, Role, namespace, tasks};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
const DEVICE_CAPABILITIES: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

/// First host user id of hypervisor processes; the sandbox's process id is added.
const UID_BASE: u32 = 0x7000_0000;

const KINDS: [&str; 5] = ["mnt", "pid", "net", "ipc", "uts"];

suite! {
    both:
        capabilities_of_jailed_processes_exactly_those_promised,
        jailed_threads_have_no_new_privileges_and_a_filter,
        namespaces_of_jailed_processes_differ_from_all_others,
        hypervisor_user_unprivileged_and_its_own,
        hypervisor_root_holds_only_what_it_runs,
        device_root_holds_only_what_is_shared,
        jailed_mounts_without_devices_and_privileges,
        descriptors_of_jailed_processes_only_those_needed,
        network_of_jailed_processes_loopback_only,
        guest_memory_not_mapped_by_the_sandbox,
        guest_memory_of_two_machines_apart,
        state_directory_closed_to_other_users;
    uml:
        environment_of_jailed_processes_without_the_callers,
        core_dumps_of_jailed_processes_forbidden;
}

// Where KVM interprets guest kernels each boot takes some ten seconds: what the driver could break.
tests_on!(
    kvm,
    run_beside,
    [
        jailed_threads_have_no_new_privileges_and_a_filter
        descriptors_of_jailed_processes_only_those_needed
        guest_memory_not_mapped_by_the_sandbox
    ]
);

/// A container with a volume and a read-only file that stays until it is dropped.
fn idle(test: &Test) -> Container<'_> {
    let volume = test.new_dir();
    fs::write(volume.join("file"), "shared").unwrap();
    let single = test.new_dir().join("single");
    fs::write(&single, "single").unwrap();
    let container = test
        .sh("cat /volume/file /single >/dev/null; echo ready; exec sleep 100000")
        .volume(&volume, "/volume")
        .volume(&single, "/single:ro")
        .start();
    container.ready()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn capabilities_of_jailed_processes_exactly_those_promised(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    for (role, pid) in machine.jailed() {
        let promised = match role {
            Role::Hypervisor => 0,
            Role::Device => DEVICE_CAPABILITIES,
        };
        for task in tasks(pid) {
            for (set, expected) in [
                ("CapEff", promised),
                ("CapPrm", promised),
                ("CapBnd", promised),
                ("CapInh", 0),
                ("CapAmb", 0),
            ] {
                let Some(found) = task.status(set) else {
                    continue;
                };
                let found = hex(&found);
                assert_eq!(found, expected, "{set} of {role:?} {task}: {found:#x}");
            }
        }
    }
}

fn jailed_threads_have_no_new_privileges_and_a_filter(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    let threads: Vec<_> = machine
        .jailed()
        .into_iter()
        .flat_map(|(_, pid)| tasks(pid))
        .collect();
    // The device process has two threads, a hypervisor at least one.
    assert!(threads.len() >= 3, "{}", threads.len());
    for task in threads {
        for (field, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            let found = task.status(field);
            assert!(
                found.as_deref().is_none_or(|found| found == expected),
                "{field} of {task}: {found:?}"
            );
        }
    }
}

fn namespaces_of_jailed_processes_differ_from_all_others(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    for kind in KINDS {
        let host = namespace(std::process::id(), kind);
        assert!(host.is_some(), "{kind}");
        assert_eq!(
            namespace(machine.sandbox, kind),
            host,
            "{kind} of the sandbox"
        );
        let device = namespace(machine.device, kind);
        let hypervisor = namespace(machine.hypervisor, kind);
        assert!(device.is_some() && hypervisor.is_some(), "{kind}");
        assert_ne!(device, host, "{kind} of the device process");
        assert_ne!(hypervisor, host, "{kind} of the hypervisor");
        assert_ne!(hypervisor, device, "{kind}");
        for pid in machine.hypervisor_tree() {
            let found = namespace(pid, kind);
            assert!(
                found.is_none() || found == hypervisor,
                "{kind} of {pid}: {found:?}"
            );
        }
    }
}

fn hypervisor_user_unprivileged_and_its_own(test: &Test) {
    let (first, second) = (idle(test), idle(test));
    let machines = [Machine::of(&first), Machine::of(&second)];

    for machine in &machines {
        let uid = UID_BASE + machine.sandbox;
        let expected = format!("{uid}\t{uid}\t{uid}\t{uid}");
        for pid in machine.hypervisor_tree() {
            for task in tasks(pid) {
                for (field, expected) in [("Uid", &*expected), ("Gid", &*expected), ("Groups", "")]
                {
                    let found = task.status(field);
                    assert!(
                        found.as_deref().is_none_or(|found| found == expected),
                        "{field} of {task}: {found:?}"
                    );
                }
            }
        }
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let taken = format!(":{}:", UID_BASE + machines[0].sandbox);
    assert!(!passwd.contains(&taken), "a user of the host has this id");
}

/// Everything below the root of a process, to a depth of `depth`, with a `/` after directories.
fn tree(root: &Path, depth: usize) -> BTreeSet<String> {
    fn walk(root: &Path, at: &Path, depth: usize, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let is_dir = entry.file_type().unwrap().is_dir();
            found.insert(if is_dir {
                format!("/{name}/")
            } else {
                format!("/{name}")
            });
            if is_dir && depth > 0 {
                walk(root, &path, depth - 1, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(root, root, depth, &mut found);
    found
}

fn root_of(pid: u32) -> PathBuf {
    // The slash: the link itself would be resolved as the host's path it displays.
    PathBuf::from(format!("/proc/{pid}/root/"))
}

fn hypervisor_root_holds_only_what_it_runs(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    let found = tree(&root_of(machine.hypervisor), 16);
    let allowed = |path: &&String| match test.driver.hypervisor() {
        "uml" => {
            matches!(
                path.as_str(),
                "/linux" | "/initramfs" | "/dev/" | "/dev/null" | "/tmp/" | "/fs" | "/vsock"
            ) || path.starts_with("/tmp/")
        }
        _ => {
            matches!(
                path.as_str(),
                "/qemu"
                    | "/kernel"
                    | "/initramfs"
                    | "/firmware/"
                    | "/firmware/bios-microvm.bin"
                    | "/lib/"
                    | "/lib64/"
                    | "/modules/"
                    | "/dev/"
                    | "/dev/kvm"
            ) || is_library(path)
        }
    };
    let foreign: Vec<_> = found.iter().filter(|path| !allowed(path)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(found.len() >= 4, "{found:?}");
    // What it is given of the host it can only read.
    for path in found.iter().filter(|path| !path.ends_with('/')) {
        let path = root_of(machine.hypervisor).join(path.trim_start_matches('/'));
        let data = fs::symlink_metadata(&path).unwrap();
        let kind = data.file_type();
        let its_own = data.uid() == UID_BASE + machine.sandbox;
        assert!(
            kind.is_file()
                || kind.is_socket()
                || path.ends_with("dev/null")
                || path.ends_with("dev/kvm"),
            "{}",
            path.display()
        );
        let writable = its_own || kind.is_char_device();
        assert!(writable || data.mode() & 0o002 == 0, "{}", path.display());
    }
}

fn is_library(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let place = ["/lib/", "/lib64/", "/modules/"];
    place.iter().any(|dir| path.strip_prefix(dir) == Some(name)) && name.contains(".so")
}

fn device_root_holds_only_what_is_shared(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    let id = &container.id;
    let expected = BTreeSet::from([
        format!("/{id}/"),
        format!("/{id}/rootfs/"),
        format!("/{id}/m0/"),
        format!("/{id}/m1"),
    ]);
    assert_eq!(tree(&root_of(machine.device), 1), expected);
}

fn jailed_mounts_without_devices_and_privileges(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    for (role, pid) in machine.jailed() {
        let mounts = host::read(pid, "mountinfo");
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (place, options) = (fields[4], fields[5]);
            let has = |option| options.split(',').any(|found| found == option);
            assert!(has("nosuid"), "{role:?}: {line}");
            assert!(
                has("nodev") || place == "/dev" || place.starts_with("/dev/"),
                "{role:?}: {line}"
            );
            let kind = line.rsplit_once(" - ").unwrap().1;
            assert!(
                !kind.starts_with("proc ")
                    && !kind.starts_with("sysfs ")
                    && !kind.starts_with("cgroup"),
                "{role:?}: {line}"
            );
            let writable_place = match role {
                Role::Hypervisor => place == "/tmp",
                Role::Device => place.ends_with("/rootfs") || place.ends_with("/m0"),
            };
            assert!(
                has("ro") || writable_place || place.starts_with("/dev/"),
                "{role:?}: {line}"
            );
        }
        // Nothing propagates to or from the host.
        assert!(
            !mounts.contains("shared:") && !mounts.contains("master:"),
            "{mounts}"
        );
    }
}

fn descriptors_of_jailed_processes_only_those_needed(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    let memory = host::shared_mappings(machine.hypervisor, 32 << 20);
    for (role, pid) in machine.jailed() {
        for descriptor in host::descriptors(pid) {
            let shown = format!("{role:?} {pid}: {descriptor:?}");
            let harmless = descriptor.is_harmless(&container.id, &test.root());
            assert!(harmless || memory.contains(&descriptor.file), "{shown}");
        }
    }
}

fn network_of_jailed_processes_loopback_only(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    for (role, pid) in machine.jailed() {
        let table = host::read(pid, "net/dev");
        let interfaces: Vec<&str> = table
            .lines()
            .skip(2)
            .filter_map(|line| line.split(':').next())
            .map(str::trim)
            .collect();
        assert!(
            interfaces.is_empty() || interfaces == ["lo"],
            "{role:?}: {interfaces:?}"
        );
        // Down: without an address and without a route.
        for file in ["route", "if_inet6", "tcp", "udp"] {
            let text = host::read(pid, &format!("net/{file}"));
            let lines = text
                .lines()
                .filter(|line| !line.contains("address") && !line.contains("Iface"));
            assert_eq!(lines.count(), 0, "{role:?} {file}: {text}");
        }
    }
}

fn guest_memory_not_mapped_by_the_sandbox(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    let memory = host::shared_mappings(machine.hypervisor, 32 << 20);
    assert_eq!(
        memory.len(),
        1,
        "one file is the guest's memory: {memory:?}"
    );
    // Proof that the search finds it: the device process maps it, too.
    assert!(host::maps(machine.device).is_superset(&memory));
    for pid in [machine.sandbox, container.pid()] {
        assert!(
            host::maps(pid).is_disjoint(&memory),
            "{pid} maps the guest's memory"
        );
        let open = host::descriptors(pid);
        let holds = open
            .iter()
            .any(|descriptor| memory.contains(&descriptor.file));
        assert!(!holds, "{pid} has the guest's memory open: {open:?}");
    }
}

/// A program run as the user of a machine's hypervisor, with no more power than it has.
fn as_hypervisor_of(machine: &Machine, program: &[&str]) -> Invocation {
    let uid = (UID_BASE + machine.sandbox).to_string();
    Invocation::new("setpriv")
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .args(program)
}

fn guest_memory_of_two_machines_apart(test: &Test) {
    let (first, second) = (idle(test), idle(test));
    let (ours, theirs) = (Machine::of(&first), Machine::of(&second));
    let of = |machine: &Machine, file: &str| format!("/proc/{}/{file}", machine.hypervisor);

    assert!(
        host::maps(ours.hypervisor)
            .is_disjoint(&host::shared_mappings(theirs.hypervisor, 32 << 20))
    );
    for file in ["maps", "mem", "environ", "root/", "fd/", "auxv"] {
        let tried = as_hypervisor_of(&ours, &["cat", &of(&theirs, file)]).output();
        assert_ne!(tried.code(), 0, "{tried}");
        let tried = as_hypervisor_of(&ours, &["ls", &of(&theirs, file)]).output();
        let is_dir = file.ends_with('/');
        assert!(!is_dir || tried.code() != 0, "{tried}");
    }
    // The same user may be stopped by nothing but its filter: the check itself can see.
    let allowed = as_hypervisor_of(&ours, &["cat", "/proc/self/maps"]).output();
    allowed.expect_code(0);
}

fn state_directory_closed_to_other_users(test: &Test) {
    let (first, second) = (idle(test), idle(test));
    let intruder = Machine::of(&first);
    let dir = test.root().join(&second.id);

    let mut sockets = 0;
    for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = path.to_str().unwrap();
        if entry.file_type().unwrap().is_socket() {
            sockets += 1;
            let tried = as_hypervisor_of(&intruder, &["busybox", "nc", "local:", name]).output();
            assert_ne!(tried.code(), 0, "{tried}");
            let data = entry.metadata().unwrap();
            let owners = [0, UID_BASE + Machine::of(&second).sandbox];
            assert!(owners.contains(&data.uid()), "{name}: {}", data.uid());
            // To connect is to write.
            assert_eq!(data.mode() & 0o022, 0, "{name}: {:o}", data.mode());
        } else {
            let tried = as_hypervisor_of(&intruder, &["cat", name]).output();
            assert_ne!(tried.code(), 0, "{tried}");
        }
    }
    assert!(sockets >= 1);
    let tried = as_hypervisor_of(&intruder, &["ls", dir.to_str().unwrap()]).output();
    assert_ne!(tried.code(), 0, "{tried}");
    let planted = dir.join("planted");
    let tried = as_hypervisor_of(&intruder, &["touch", planted.to_str().unwrap()]).output();
    assert_ne!(tried.code(), 0, "{tried}");
}

fn environment_of_jailed_processes_without_the_callers(test: &Test) {
    let container = test
        .sh("echo ready; exec sleep 100000")
        .option("-e")
        .option("SECRET_OF_THE_CONTAINER=hidden-value")
        .with(|run| run.env("SECRET_OF_THE_CALLER", "hidden-value"))
        .start()
        .ready();
    let machine = Machine::of(&container);

    for pid in machine
        .hypervisor_tree()
        .into_iter()
        .chain([machine.device, machine.sandbox])
    {
        let arguments = host::read(pid, "cmdline");
        assert!(!arguments.contains("hidden-value"), "{pid}: {arguments}");
    }
    for (role, pid) in machine.jailed() {
        let environment = host::read(pid, "environ");
        assert!(
            !environment.contains("hidden-value"),
            "{role:?}: {environment}"
        );
        assert!(!environment.contains("HOME="), "{role:?}: {environment}");
    }
}

fn core_dumps_of_jailed_processes_forbidden(test: &Test) {
    let container = idle(test);
    let machine = Machine::of(&container);

    for (role, pid) in machine.jailed() {
        let limits = host::read(pid, "limits");
        for core in limits
            .lines()
            .filter(|line| line.starts_with("Max core file size"))
        {
            let values: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
            assert_eq!(values, ["0", "0"], "{role:?}: {core}");
        }
    }
}
