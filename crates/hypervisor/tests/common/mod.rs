//! Booting a guest of one tiny program (`guest/init.c`) under a driver, in its jail.
//!
//! Runs as root. The kernels are those of the build tree, or of `BULKHEAD_LIB`.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "test code")]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_hypervisor::{Driver, Isolation, Kind, LaunchIo, Machine, Vm, Wanted};
use bulkhead_kernels::{Kernel, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

pub fn driver(wanted: Wanted) -> Box<dyn Driver> {
    bulkhead_hypervisor::choose(wanted)
        .expect("hypervisor")
        .driver
}

/// The installed kernel of the driver's flavour.
pub fn kernel(driver: &dyn Driver) -> Kernel {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build");
    let emulated = driver.kind() == Kind::Kvm && driver.isolation() == Isolation::EmulatedVm;
    let lib = if emulated {
        build.join("lib-emulated")
    } else {
        std::env::var_os("BULKHEAD_LIB").map_or(build.join("lib/bulkhead"), PathBuf::from)
    };
    Store::open(&lib)
        .find(driver.flavour(), None)
        .expect("a kernel; build the guest first, or set BULKHEAD_LIB")
}

/// The example that stands in for `bulkhead`; cargo builds it beside the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    test.ancestors()
        .nth(2)
        .expect("target directory")
        .join("examples")
        .join(name)
}

/// An initial file system with the test guest as `/init`, made once.
pub fn initramfs() -> &'static Path {
    static PATH: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let made = PATH.get_or_init(|| {
        let dir = tempfile::tempdir().expect("directory");
        let (init, archive) = (dir.path().join("init"), dir.path().join("initramfs"));
        let built = Command::new("cc")
            .args([
                "-Os",
                "-static",
                "-nostdlib",
                "-ffreestanding",
                "-fno-stack-protector",
                "-o",
            ])
            .arg(&init)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.c"))
            .status()
            .expect("cc");
        assert!(built.success());
        std::fs::write(&archive, newc(&std::fs::read(&init).expect("init"))).expect("archive");
        // Readable in the jail, whoever that runs as.
        (dir, archive)
    });
    &made.1
}

/// A cpio archive (newc) with one executable, `/init`.
fn newc(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [("init", 0o100_755, init), ("TRAILER!!!", 0, &[][..])] {
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// A machine without devices whose guest does `action`.
pub fn machine(driver: &dyn Driver, action: &str) -> Machine {
    static NEXT: AtomicU32 = AtomicU32::new(0x7100_0000);
    let uid = NEXT.fetch_add(1, Ordering::Relaxed);
    Machine {
        id: "test".into(),
        memory_bytes: 96 << 20,
        huge_pages: false,
        vcpus: 1,
        kernel: kernel(driver),
        initramfs: initramfs().to_owned(),
        cmdline: ["--", action].map(str::to_owned).to_vec(),
        fs_socket: None,
        fs_tag: "bulkhead".into(),
        vsock_socket: None,
        guest_cid: 3,
        entropy_socket: None,
        balloon_socket: None,
        nets: Vec::new(),
        disks: Vec::new(),
        uid,
        gid: uid,
        cpu: None,
    }
}

/// A guest that is killed and reaped when dropped.
pub struct Guest {
    pub vm: Vm,
    pub console: BufReader<File>,
    reaped: bool,
}

impl Guest {
    pub fn boot(driver: &dyn Driver, machine: &Machine) -> Self {
        let (read, console) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let io = LaunchIo {
            console,
            bulkhead: example("jailed_hat"),
        };
        let vm = driver.launch(machine, io).expect("launch");
        Self {
            vm,
            console: BufReader::new(File::from(read)),
            reaped: false,
        }
    }

    /// Boots a guest that does `action`.
    pub fn that(wanted: Wanted, action: &str) -> Self {
        let driver = driver(wanted);
        Self::boot(&*driver, &machine(&*driver, action))
    }

    /// Reads the console up to a line that contains `text`; fails with all lines if none does.
    pub fn wait_for(&mut self, text: &str) {
        let mut seen = String::new();
        while self.console.read_line(&mut seen).expect("console") > 0 {
            if seen.lines().last().is_some_and(|line| line.contains(text)) {
                return;
            }
        }
        panic!("no {text:?} on the console:\n{seen}");
    }

    /// The rest of the console, to its end.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        while self.console.read_line(&mut rest).expect("console") > 0 {}
        rest
    }

    pub fn wait(&mut self) -> WaitIdStatus {
        self.reaped = true;
        rustix::process::waitid(WaitId::PidFd(self.vm.pidfd.as_fd()), WaitIdOptions::EXITED)
            .expect("waitid")
            .expect("a status")
    }

    pub fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.vm.pid)).expect("proc file")
    }

    pub fn status(&self, field: &str) -> String {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.expect("field of status").trim().to_owned()
    }

    /// All paths in the process's root, by what the host sees.
    pub fn files(&self) -> Vec<String> {
        let root = PathBuf::from(format!("/proc/{}/root", self.vm.pid));
        let mut files = Vec::new();
        let mut left = vec![root.clone()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(&dir).expect("directory") {
                let entry = entry.expect("entry");
                if entry.file_type().expect("type").is_dir() {
                    left.push(entry.path());
                }
                let path = entry.path();
                let path = path.strip_prefix(&root).expect("below the root");
                files.push(format!("/{}", path.to_str().expect("UTF-8")));
            }
        }
        files.sort();
        files
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = rustix::process::pidfd_send_signal(&self.vm.pidfd, Signal::KILL);
            self.wait();
        }
    }
}

/// What both drivers promise.
pub mod promises {
    use super::*;

    pub fn guest_that_powers_off_ends_the_process_with_success(wanted: Wanted) {
        let mut guest = Guest::that(wanted, "off");
        guest.wait_for("guest is up");
        assert_eq!(guest.wait().exit_status(), Some(0));
    }

    pub fn guest_that_panics_says_so_and_ends_the_process(wanted: Wanted) -> WaitIdStatus {
        let mut guest = Guest::that(wanted, "panic");
        guest.wait_for("guest is up");
        guest.wait_for("Kernel panic - not syncing: Attempted to kill init!");
        guest.rest();
        guest.wait()
    }

    pub fn guest_that_restarts_ends_the_process(wanted: Wanted) -> WaitIdStatus {
        let mut guest = Guest::that(wanted, "restart");
        guest.wait_for("guest is up");
        guest.rest();
        guest.wait()
    }

    pub fn hypervisor_process_stands_behind_all_walls(wanted: Wanted) {
        let driver = driver(wanted);
        let machine = machine(&*driver, "wait");
        let mut guest = Guest::boot(&*driver, &machine);
        guest.wait_for("guest is up");

        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(guest.status(set), "0000000000000000", "{set}");
        }
        assert_eq!(guest.status("NoNewPrivs"), "1");
        assert_eq!(guest.status("Seccomp"), "2");
        let uid = machine.uid;
        assert_eq!(guest.status("Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
        assert_eq!(guest.status("Groups"), "");
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let theirs = std::fs::read_link(format!("/proc/{}/ns/{kind}", guest.vm.pid));
            let ours = std::fs::read_link(format!("/proc/self/ns/{kind}"));
            assert_ne!(
                theirs.expect("namespace"),
                ours.expect("namespace"),
                "{kind}"
            );
        }
        let root = guest
            .proc("mountinfo")
            .lines()
            .next()
            .expect("root mount")
            .to_owned();
        assert!(root.contains(" / ro,"), "{root}");
        let environment = guest.proc("environ");
        assert!(!environment.contains("CARGO"), "{environment}");
        let interfaces = guest.proc("net/dev");
        assert_eq!(interfaces.lines().skip(2).count(), 1, "{interfaces}");
    }

    pub fn launcher_killed_takes_the_hypervisor_along(wanted: &str) {
        let driver = driver(wanted.parse().expect("hypervisor"));
        let mut launcher = Command::new(example("boot"))
            .arg(wanted)
            .arg(kernel(&*driver).image)
            .arg(initramfs())
            .args(["--", "wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("launcher");
        let mut output = BufReader::new(launcher.stdout.take().expect("piped"));
        let mut pid = String::new();
        output.read_line(&mut pid).expect("pid");
        let pid = Pid::from_raw(pid.trim().parse().expect("pid")).expect("pid");
        let hypervisor =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("hypervisor process");
        assert!(ended(&hypervisor, 0).is_empty());

        launcher.kill().expect("kill");
        launcher.wait().expect("wait");

        assert!(
            !ended(&hypervisor, 10).is_empty(),
            "it outlives its launcher"
        );
    }

    fn ended(pidfd: &std::os::fd::OwnedFd, seconds: i64) -> PollFlags {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            }),
        )
        .expect("poll");
        fds[0].revents()
    }

    pub fn kernel_image_missing_is_told_on_the_console(wanted: Wanted) {
        let driver = driver(wanted);
        let mut machine = machine(&*driver, "off");
        machine.kernel.image = "/does/not/exist".into();
        let mut guest = Guest::boot(&*driver, &machine);
        let text = guest.rest();
        assert!(
            text.contains("take from the host \"/does/not/exist\""),
            "{text}"
        );
        assert_eq!(guest.wait().exit_status(), Some(125));
    }
}
