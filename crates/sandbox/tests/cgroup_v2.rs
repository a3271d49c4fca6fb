//! Control groups of version 2, where they have their controllers: in a guest, whose first process is
//! this very executable. (A host may have version 1.)

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_sandbox::cgroup::limit::{self, Bounds};
use bulkhead_sandbox::cgroup::{CgroupError, Place, Record};
use rustix::fs::{FileType, Mode, mknodat};
use rustix::mount::{MountFlags, mount};
use serde_json::json;

const ROOT: &str = "/sys/fs/cgroup";
const BOUNDS: Bounds = Bounds {
    memory_bytes: 96 << 20,
};

/// Where the guest says that all is well.
const PASSED: &str = "control groups of version 2: passed";

#[test]
fn groups_of_version_2_work_in_a_guest() {
    let Some(kernel) = kernel() else { return };
    let work = tempfile::tempdir().unwrap();
    let initramfs = work.path().join("initramfs.cpio");
    pack(&work.path().join("root"), &initramfs);

    // A guest that hangs must not hang the tests.
    let output = Command::new("timeout")
        .args(["--signal=KILL", "120"])
        .arg(kernel)
        .args(["mem=256M", "con=null", "con0=null,fd:1", "quiet"])
        .args(["initcall_blacklist=raid6_select_algo", "pty.legacy_count=0"])
        .arg(format!("initrd={}", initramfs.display()))
        .arg(format!("uml_dir={}", work.path().display()))
        .args([
            "rdinit=/tests",
            "--",
            "--ignored",
            "--exact",
            "--nocapture",
            "as_first_process",
        ])
        .env("TMPDIR", work.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(PASSED), "{text}");
}

/// The kernel that `BULKHEAD_TEST_UML` names, or that of the build tree.
fn kernel() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../build/lib/bulkhead/kernels/default-uml/linux");
    let kernel = std::env::var_os("BULKHEAD_TEST_UML").map_or(built, PathBuf::from);
    if kernel.is_file() && rustix::process::geteuid().is_root() {
        return Some(kernel);
    }
    let line = "cgroup_v2: there is no guest kernel (BULKHEAD_TEST_UML), or we are not root\n";
    eprint!("skipped: {line}");
    if let Some(list) = std::env::var_os("BULKHEAD_SKIPS") {
        let list = fs::File::options().append(true).create(true).open(list);
        list.unwrap().write_all(line.as_bytes()).unwrap();
    }
    None
}

/// This executable with its libraries as an initramfs.
fn pack(root: &Path, to: &Path) {
    for name in ["proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let console = root.join("dev/console");
    let number = rustix::fs::makedev(5, 1);
    let mode = Mode::from_raw_mode(0o600);
    mknodat(
        rustix::fs::CWD,
        console,
        FileType::CharacterDevice,
        mode,
        number,
    )
    .unwrap();
    let tests = std::env::current_exe().unwrap();
    // Without its symbols it loads faster.
    let mut strip = Command::new("strip");
    let strip = strip.arg("-o").arg(root.join("tests")).arg(&tests);
    assert!(strip.status().unwrap().success());
    let libraries = Command::new("ldd").arg(&tests).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    for library in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(library, copy).unwrap();
    }
    let packed = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc > \"$1\"", "sh"])
        .arg(to)
        .current_dir(root)
        .status();
    assert!(packed.unwrap().success(), "cpio is installed");
}

#[test]
#[ignore = "runs in the guest of groups_of_version_2_work_in_a_guest"]
fn as_first_process() {
    for (source, target, kind) in [
        ("proc", "/proc", "proc"),
        ("sys", "/sys", "sysfs"),
        ("cgroup", ROOT, "cgroup2"),
    ] {
        mount(source, target, kind, MountFlags::empty(), None).unwrap();
    }
    group_has_its_limits_and_processes_and_is_gone_after_them();
    group_of_processes_that_are_ending_is_waited_for();
    group_made_by_a_killed_process_is_removed_by_its_record();
    limit_without_its_controller_is_refused_by_name();
    println!("{PASSED}");
    // The end of the first process is that of the machine.
    std::process::exit(0);
}

/// Sits until it is killed.
#[test]
#[ignore = "a process of as_first_process"]
fn sleeper() {
    println!("up");
    loop {
        std::thread::park();
    }
}

fn start_sleeper() -> std::process::Child {
    let mut child = Command::new("/tests")
        .args(["--ignored", "--exact", "--nocapture", "sleeper"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = [0; 1];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut text)
        .unwrap();
    child
}

fn read(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn make(path: &str) -> (bulkhead_sandbox::cgroup::Group, Record) {
    let place = Place::find(Path::new(path)).unwrap();
    let record = place.record();
    (place.make(record.clone(), 0, &[]).unwrap(), record)
}

fn group_has_its_limits_and_processes_and_is_gone_after_them() {
    let resources = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20 },
        "cpu": { "shares": 1024, "quota": 50_000, "period": 200_000 },
        "pids": { "limit": 10 },
    });
    let resources = serde_json::from_value(resources).unwrap();
    let (group, _) = make("/parent/inner/one");

    group.set(&limit::of(&resources, BOUNDS)).unwrap();

    for (file, value) in [
        ("memory.max", "100663296"),
        ("memory.low", "33554432"),
        ("cpu.weight", "39"),
        ("cpu.max", "50000 200000"),
        ("pids.max", "266"),
    ] {
        assert_eq!(read(&format!("parent/inner/one/{file}")), value, "{file}");
    }
    let mut child = start_sleeper();
    group.add(child.id()).unwrap();
    group.enter().unwrap();
    for pid in [child.id(), std::process::id()] {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(own, "0::/parent/inner/one\n");
        assert!(group.has(pid));
    }
    // A process can be led out on its way into its program.
    let mut out = group.way_out().unwrap();
    out[0].write_all(b"0").unwrap();
    assert!(!group.has(std::process::id()));
    group.enter().unwrap();

    group.leave(&[child.id()]);
    assert_eq!(read("parent/inner/one/cgroup.procs"), "");
    group.remove();
    assert!(!Path::new(ROOT).join("parent").exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

fn group_of_processes_that_are_ending_is_waited_for() {
    for _ in 0..20 {
        let (group, _) = make("/parent/two");
        let mut children: Vec<_> = (0..3).map(|_| start_sleeper()).collect();
        for child in &children {
            group.add(child.id()).unwrap();
        }
        for child in &mut children {
            child.kill().unwrap();
        }

        group.remove();

        assert!(!Path::new(ROOT).join("parent").exists());
        for child in &mut children {
            child.wait().unwrap();
        }
    }
}

fn group_made_by_a_killed_process_is_removed_by_its_record() {
    let (first, _) = make("/shared/a");
    let (second, record) = make("/shared/b");
    // Somebody in the container's place made one in it.
    fs::create_dir(Path::new(ROOT).join("shared/b/below")).unwrap();
    drop(second);

    record.remove();
    assert!(!Path::new(ROOT).join("shared/b").exists());
    assert!(Path::new(ROOT).join("shared/a").exists());
    // The second found the parent there; its mark says that it may go.
    first.remove();
    assert!(!Path::new(ROOT).join("shared").exists());
    // As often as wanted.
    record.remove();
}

fn limit_without_its_controller_is_refused_by_name() {
    let (group, _) = make("/three");
    let resources = json!({ "pids": { "limit": 10 }, "cpu": { "cpus": "0" } });
    let resources = serde_json::from_value(resources).unwrap();

    let refused = group.set(&limit::of(&resources, BOUNDS)).unwrap_err();

    assert!(
        matches!(&refused, CgroupError::NoController { field, controller: "cpuset" }
            if *field == "linux.resources.cpu.cpus"),
        "{refused}"
    );
    // Nothing was set before.
    assert_eq!(read("three/pids.max"), "max");
    group.remove();
}
