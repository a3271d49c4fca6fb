//! Those of these tests that a host may not be able to run, in a guest, where cgroup v2 has its
//! controllers: this very executable in an initramfs, under a User-Mode Linux kernel.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Path of a User-Mode Linux kernel, instead of that of the build tree.
const KERNEL: &str = "BULKHEAD_TEST_UML";

/// As the agent does: first a root that can be pivoted away from, then the mounts.
const INIT: &str = "#!/bin/sh
busybox mount -o bind / /
exec busybox chroot /.. /bin/sh /steps
";

const STEPS: &str = "
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t cgroup2 cgroup /sys/fs/cgroup
busybox mount -t tmpfs -o size=200M tmp /tmp
for c in $(busybox cat /sys/fs/cgroup/cgroup.controllers); do
  echo +$c > /sys/fs/cgroup/cgroup.subtree_control
done
/tests container:: --ignored --test-threads 1
busybox poweroff -f
";

#[test]
fn tests_of_controllers_pass_in_a_guest() {
    let Some(kernel) = kernel() else { return };
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    make_root(&root);
    let initramfs = work.path().join("initramfs.cpio");
    archive(&root, &initramfs);

    // A guest that hangs must not hang the tests.
    let output = Command::new("timeout")
        .args(["--signal=KILL", "300"])
        .arg(kernel)
        .args([
            "mem=512M",
            "con=null",
            "con0=null,fd:1",
            "quiet",
            "init=/init",
        ])
        .args(["initcall_blacklist=raid6_select_algo", "pty.legacy_count=0"])
        .arg(format!("initrd={}", initramfs.display()))
        .arg(format!("uml_dir={}", work.path().display()))
        .env("TMPDIR", work.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = text.lines().find(|line| line.starts_with("test result: "));
    assert!(
        verdict.is_some_and(|line| line.starts_with("test result: ok. ")
            && !line.starts_with("test result: ok. 0 passed")),
        "{text}"
    );
}

fn kernel() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../build/lib/bulkhead/kernels/default-uml/linux");
    let kernel = std::env::var_os(KERNEL).map_or(built, PathBuf::from);
    if kernel.is_file() {
        return Some(kernel);
    }
    let line = format!("agent in a guest: there is no guest kernel ({KERNEL})\n");
    eprint!("skipped: {line}");
    if let Some(list) = std::env::var_os("BULKHEAD_SKIPS") {
        let list = fs::File::options().append(true).create(true).open(list);
        list.unwrap().write_all(line.as_bytes()).unwrap();
    }
    None
}

fn make_root(root: &Path) {
    for name in ["bin", "proc", "sys", "dev", "tmp", "lib64"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "cp"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("steps"), STEPS).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    super::harness::set_mode(&root.join("init"), 0o755);
    let tests = std::env::current_exe().unwrap();
    // Without its symbols it loads faster.
    let strip = Command::new("strip")
        .arg("-o")
        .arg(root.join("tests"))
        .arg(&tests)
        .status();
    assert!(strip.unwrap().success());
    for library in libraries(&tests) {
        let copy = root.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&library, copy).unwrap();
    }
}

/// The shared libraries and the loader of an executable.
fn libraries(executable: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(executable).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn archive(root: &Path, to: &Path) {
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc > \"$1\"", "sh"])
        .arg(to)
        .current_dir(root)
        .status();
    assert!(status.unwrap().success(), "cpio is installed");
}
