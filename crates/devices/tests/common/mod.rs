#![allow(dead_code, reason = "each test program uses its part")]
//! A guest with both devices: the device process, a hypervisor, and a line-by-line conversation
//! with a small init program over vsock.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bulkhead_devices::vsock::control::{Event, HostChannel, Request, pair};
use bulkhead_devices::{DeviceConfig, FsConfig, VsockConfig};
use bulkhead_jail::{Capability, Entry, Jail, Namespaces, Profile, Root};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// What runs the guest, and with which kernel.
#[derive(Clone, Debug)]
pub enum Hypervisor {
    Uml(PathBuf),
    Qemu(PathBuf),
}

impl Hypervisor {
    /// User-Mode Linux, if there is a kernel for it.
    pub fn uml() -> Option<Self> {
        kernel("BULKHEAD_TEST_UML", "default-uml/linux").map(Self::Uml)
    }

    /// QEMU without hardware help, if there is a kernel for it.
    pub fn qemu() -> Option<Self> {
        kernel("BULKHEAD_TEST_VMLINUX", "default-vm/vmlinux").map(Self::Qemu)
    }
}

/// The kernel that `variable` names, or that of the build tree. Without either, and without the
/// privileges that the jail takes, the test is recorded as skipped.
fn kernel(variable: &str, built: &str) -> Option<PathBuf> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/lib/bulkhead/kernels");
    let path = std::env::var_os(variable).map_or(tree.join(built), PathBuf::from);
    if !path.is_file() {
        skip(&format!(
            "there is no guest kernel {}; set {variable}",
            path.display()
        ));
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        skip("the device process's jail needs root");
        return None;
    }
    Some(path)
}

/// Records that the running test cannot run here.
fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {name}: {reason}");
    if let Some(list) = std::env::var_os("BULKHEAD_SKIPS") {
        let mut list = File::options()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        writeln!(list, "{name}: {reason}").unwrap();
    }
}

pub struct Machine {
    pub control: HostChannel,
    /// Process id of the device process.
    pub device: u32,
    device_pidfd: OwnedFd,
    hypervisor: Child,
    answers: BufReader<UnixStream>,
    orders: UnixStream,
    pub dir: TempDir,
    /// From before the device process was started to its first event.
    pub ready_after: Duration,
}

impl Machine {
    /// Starts the device process in its jail and a guest, and waits until its init has mounted the
    /// share and connected.
    pub fn start(hypervisor: &Hypervisor) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let (control, device_end) = pair().unwrap();
        let (fs, vsock) = (dir.path().join("fs"), dir.path().join("vsock"));
        let sockets: [OwnedFd; 3] = [
            UnixListener::bind(&fs).unwrap().into(),
            UnixListener::bind(&vsock).unwrap().into(),
            device_end,
        ];
        let start = Instant::now();
        let (pid, pidfd) = start_device(&share, sockets);
        assert_eq!(next_event(&control), Event::Ready);
        let ready_after = start.elapsed();
        let (ours, theirs) = UnixStream::pair().unwrap();
        expect_socket(&control, 1024, theirs);
        let hypervisor = launch(hypervisor, dir.path(), &fs, &vsock);
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut machine = Self {
            control,
            device: pid,
            device_pidfd: pidfd,
            hypervisor,
            answers: BufReader::new(ours.try_clone().unwrap()),
            orders: ours,
            dir,
            ready_after,
        };
        assert!(matches!(
            machine.event(),
            Event::Connected { port: 1024, .. }
        ));
        assert_eq!(machine.answer(), "mounted 0");
        machine
    }

    /// Gives the guest a command and returns its answer.
    pub fn tell(&mut self, command: &str) -> String {
        self.order(command);
        self.answer()
    }

    /// Gives the guest a command and does not wait for the answer.
    pub fn order(&mut self, command: &str) {
        writeln!(self.orders, "{command}").unwrap();
    }

    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the guest is gone: {line:?}");
        line.trim_end().to_owned()
    }

    /// Waits for the next event of the vsock device.
    pub fn event(&self) -> Event {
        next_event(&self.control)
    }

    /// Has the device serve `port` with a socket, and returns its other end.
    pub fn expect(&self, port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        expect_socket(&self.control, port, theirs);
        ours
    }

    /// The device process's memory in KiB, by the name of its line in `smaps_rollup`.
    pub fn device_memory(&self, what: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.device)).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{what}:")))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// Waits until the device process has ended.
    pub fn wait_device(&self) {
        let timeout = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut ended = [PollFd::new(&self.device_pidfd, PollFlags::IN)];
        assert_ne!(
            poll(&mut ended, Some(&timeout)).unwrap(),
            0,
            "the device process lives on"
        );
    }

    pub fn wait_hypervisor(&mut self) {
        self.hypervisor.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest's console:");
            let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
            eprintln!("{}", String::from_utf8_lossy(&console));
        }
        let _ = self.hypervisor.kill();
        let _ = self.hypervisor.wait();
        let _ =
            rustix::process::pidfd_send_signal(&self.device_pidfd, rustix::process::Signal::KILL);
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.device_pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }
}

fn next_event(control: &HostChannel) -> Event {
    loop {
        if let Some(event) = control.try_recv().unwrap() {
            return event;
        }
        let timeout = Timespec {
            tv_sec: 120,
            tv_nsec: 0,
        };
        let mut readable = [PollFd::new(control, PollFlags::IN)];
        assert_ne!(
            poll(&mut readable, Some(&timeout)).unwrap(),
            0,
            "no event came"
        );
    }
}

pub fn expect_socket(control: &HostChannel, port: u32, socket: UnixStream) {
    let request = Request::Expect {
        port,
        reader: true,
        writer: true,
    };
    let reader = socket.try_clone().unwrap();
    control
        .send(request, vec![reader.into(), socket.into()])
        .unwrap();
}

/// The program next to the tests that is the device process and nothing else.
fn device_program() -> PathBuf {
    if let Some(path) = std::env::var_os("BULKHEAD_TEST_DEVICE") {
        return path.into();
    }
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/device");
    assert!(
        program.exists(),
        "run `cargo build -p bulkhead-devices --examples` first"
    );
    program
}

fn start_device(share: &Path, sockets: [OwnedFd; 3]) -> (u32, OwnedFd) {
    use Capability::{Chown, DacOverride, Fowner, Fsetid, Mknod, Setfcap, Setgid, Setuid};
    let mut jail = Jail::new("devices", 0, 0, Profile::Device);
    jail.capabilities = vec![
        Chown,
        DacOverride,
        Fowner,
        Fsetid,
        Mknod,
        Setfcap,
        Setgid,
        Setuid,
    ];
    if std::env::var_os("BULKHEAD_TEST_ONE_CPU").is_some() {
        jail.cpus = vec![0];
    }
    jail.root = Root {
        tmpfs_bytes: 0,
        exec: false,
        entries: vec![Entry::Bind {
            source: share.to_owned(),
            target: "/share".into(),
            read_only: false,
            nosuid: false,
            nodev: true,
            noexec: false,
            recursive: true,
        }],
    };
    let config = DeviceConfig {
        jail,
        fs: FsConfig {
            listener_fd: 4,
            tag: "bulkhead".to_owned(),
            root: "/share".into(),
        },
        vsock: VsockConfig {
            listener_fd: 5,
            guest_cid: 3,
            control_fd: 6,
        },
        entropy_fd: None,
        balloon_fd: None,
        nets: Vec::new(),
        blocks: Vec::new(),
    };
    let config = CString::new(serde_json::to_string(&config).unwrap()).unwrap();
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    if std::env::var_os("BULKHEAD_TEST_BARE").is_some() {
        return start_bare_device(share, sockets);
    }
    let mut fds: Vec<(OwnedFd, i32)> = sockets.into_iter().zip(4..).collect();
    fds.push((stderr, 2));
    let child = bulkhead_jail::spawn(bulkhead_jail::Command {
        program: device_program(),
        args: vec![config],
        fds,
        namespaces: Namespaces::default(),
    })
    .unwrap();
    (child.pid, child.pidfd)
}

/// Without a jail, so that `BULKHEAD_TEST_BARE="strace -f -o FILE"` can look at it.
fn start_bare_device(share: &Path, sockets: [OwnedFd; 3]) -> (u32, OwnedFd) {
    let config = DeviceConfig {
        jail: Jail::new("devices", 0, 0, Profile::None),
        fs: FsConfig {
            listener_fd: 113,
            tag: "bulkhead".to_owned(),
            root: share.to_owned(),
        },
        vsock: VsockConfig {
            listener_fd: 114,
            guest_cid: 3,
            control_fd: 115,
        },
        entropy_fd: None,
        balloon_fd: None,
        nets: Vec::new(),
        blocks: Vec::new(),
    };
    let wrapper = std::env::var("BULKHEAD_TEST_BARE").unwrap();
    let mut words: Vec<String> = wrapper.split_whitespace().map(str::to_owned).collect();
    words.push(device_program().to_str().unwrap().to_owned());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .arg("--bare")
        .arg(serde_json::to_string(&config).unwrap());
    let numbers: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (number, target) in numbers.iter().zip(113..) {
                if libc::dup2(*number, target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    #[allow(clippy::zombie_processes, reason = "waited for by its pidfd")]
    let child = command.spawn().unwrap();
    drop(sockets);
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    (child.id(), pidfd)
}

fn launch(hypervisor: &Hypervisor, dir: &Path, fs: &Path, vsock: &Path) -> Child {
    let console = File::create(dir.join("console")).unwrap();
    let mut command = match hypervisor {
        Hypervisor::Uml(kernel) => {
            let mut command = Command::new("taskset");
            // Two busy processors make every system call of the guest four times as dear.
            command
                .args(["-c", "0"])
                .arg(kernel)
                .env("TMPDIR", "/dev/shm")
                .arg(format!("initrd={}", initramfs().display()))
                .arg(format!("virtio_uml.device={}:26", fs.display()))
                .arg(format!("virtio_uml.device={}:19", vsock.display()))
                .arg(format!("uml_dir={}", dir.display()))
                .args([
                    "mem=128M",
                    "con=null",
                    "con0=fd:0,fd:1",
                    "rdinit=/init",
                    "panic=-1",
                ]);
            command
        }
        Hypervisor::Qemu(kernel) => {
            let mut command = Command::new("qemu-system-x86_64");
            let chardev = |id, path: &Path| format!("socket,id={id},path={}", path.display());
            command
                .args([
                    "-M",
                    "microvm,accel=tcg,memory-backend=mem",
                    "-m",
                    "128M",
                    "-smp",
                    "1",
                ])
                .args(["-object", "memory-backend-memfd,id=mem,size=128M,share=on"])
                .args([
                    "-global",
                    "virtio-mmio.force-legacy=false",
                    "-nodefaults",
                    "-no-user-config",
                ])
                .args(["-nographic", "-no-reboot", "-serial", "stdio", "-kernel"])
                .arg(kernel)
                .arg("-initrd")
                .arg(initramfs())
                .args([
                    "-append",
                    &format!("console=ttyS0 panic=-1 rdinit=/init {}", tsc()),
                ])
                .args([
                    "-chardev",
                    &chardev("fs", fs),
                    "-chardev",
                    &chardev("vsock", vsock),
                ])
                .args(["-device", "vhost-user-fs-device,chardev=fs,tag=bulkhead"])
                .args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
            command
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(console.try_clone().unwrap())
        .stderr(console)
        .process_group(0)
        .spawn()
        .unwrap()
}

/// Without it a guest on a busy host can hang while it measures its clock.
fn tsc() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = info
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz"))
        .unwrap_or(": 2000");
    let mhz: f64 = mhz
        .trim_start_matches([' ', '\t', ':'])
        .parse()
        .unwrap_or(2000.0);
    format!("tsc_early_khz={:.0} tsc=reliable", mhz * 1000.0)
}

/// An initramfs with the init program, made once.
fn initramfs() -> &'static Path {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let init = dir.path().join("init");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/init.c");
        let compiled = Command::new("gcc")
            .args(["-static", "-O2", "-o"])
            .arg(&init)
            .arg(source)
            .status();
        assert!(
            compiled.unwrap().success(),
            "the guest's init cannot be compiled"
        );
        let path = dir.path().join("initramfs.cpio");
        let mut archive = File::create(&path).unwrap();
        entry(&mut archive, "dev", 0o040_755, (0, 0), &[]);
        entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
        entry(
            &mut archive,
            "init",
            0o100_755,
            (0, 0),
            &std::fs::read(&init).unwrap(),
        );
        entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
        (dir, path)
    });
    path
}

/// One entry of a cpio archive in the `newc` format.
fn entry(archive: &mut File, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(data.len()).unwrap(),
        0,
        0,
        device.0,
        device.1,
        u32::try_from(name.len() + 1).unwrap(),
        0,
    ];
    let mut bytes = b"070701".to_vec();
    for field in fields {
        write!(bytes, "{field:08x}").unwrap();
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    archive.write_all(&bytes).unwrap();
}
