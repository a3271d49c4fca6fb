//! Mounts, devices, hidden and read-only paths of a bundle: what `config.json` says, the container
//! sees.
//!
//! Each test but those under `ours` is proved on a peer runtime, as module `peer`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use bulkhead_tests::harness::bundle::{mount, push};
use bulkhead_tests::{Test, bundle_suite};
use nix::mount::{MntFlags, MsFlags, umount2};
use serde_json::{Value, json};

bundle_suite! {
    both:
        bind_mount_shares_both_ways,
        bind_mount_read_only_refuses_writes,
        tmpfs_mount_has_its_options,
        masked_paths_are_empty,
        read_only_paths_refuse_writes,
        default_devices_are_there;
    uml:
        bind_mount_of_a_file_shares_it,
        read_only_tmpfs_takes_what_is_mounted_below_it,
        bind_mount_without_options_shares_subdirectories,
        bind_mount_options_apply,
        bind_mount_noexec_refuses_programs,
        bind_leaves_the_sources_mounts_out,
        rbind_takes_the_sources_mounts_along,
        mount_destination_that_is_missing_is_made,
        mount_destination_through_a_link_stays_in_the_rootfs,
        mount_on_a_mount_is_seen,
        mounts_in_the_order_of_the_list,
        tmpfs_with_copy_up_keeps_the_files,
        propagation_private_is_the_default,
        root_that_is_read_only_refuses_writes,
        root_that_is_read_only_has_writable_mounts,
        proc_belongs_to_the_containers_namespace,
        sysfs_is_read_only,
        devpts_is_a_new_instance,
        shm_is_shared_memory,
        mqueue_is_mounted,
        device_of_the_list_is_made,
        device_without_a_rule_is_refused,
        device_with_a_rule_is_opened,
        files_of_rootfs_keep_owner_and_mode;
    ours:
        propagation_to_the_host_is_refused_by_name,
        cgroup_mount_is_version_two,
        cgroup_mount_shows_limits;
}

/// What the kernel says of the mount on a path: options, type and options of the file system.
const MOUNT_ON: &str = r#"mount_on() {
    awk -v path="$1" '$5 == path { line = $0 } END { print line }' /proc/self/mountinfo
}
"#;

/// The mount's own options among `line` of /proc/self/mountinfo.
fn options(line: &str) -> Vec<&str> {
    line.split(' ')
        .nth(5)
        .unwrap_or_default()
        .split(',')
        .collect()
}

#[track_caller]
fn assert_options(line: &str, wanted: &[&str]) {
    let found = options(line);
    for option in wanted {
        assert!(found.contains(option), "{option} is missing: {line}");
    }
}

/// A file system mounted on the host for the time of a test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path) -> Self {
        let flags = MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, None::<&str>).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// A bind mount of a host path.
fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    mount(destination, "bind", source.to_str().unwrap(), options)
}

fn bind_mount_shares_both_ways(test: &Test) {
    let shared = test.new_dir();
    fs::write(shared.join("in"), "from the host").unwrap();
    let bundle = test.bundle_sh("cat /mnt/in; echo from inside >/mnt/out", |config| {
        push(config, "/mounts", bind(&shared, "/mnt", &["bind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "from the host");
    assert_eq!(
        fs::read_to_string(shared.join("out")).unwrap(),
        "from inside\n"
    );
}

fn bind_mount_read_only_refuses_writes(test: &Test) {
    let shared = test.new_dir();
    fs::write(shared.join("in"), "safe").unwrap();
    let script = "cat /mnt/in; echo x >/mnt/in; echo x >/mnt/new; rm /mnt/in; chmod 777 /mnt; true";
    let bundle = test.bundle_sh(script, |config| {
        push(config, "/mounts", bind(&shared, "/mnt", &["bind", "ro"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "safe");
    assert_eq!(
        output.error().matches("Read-only file system").count(),
        4,
        "{output}"
    );
    assert_eq!(fs::read_to_string(shared.join("in")).unwrap(), "safe");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 1);
}

fn bind_mount_of_a_file_shares_it(test: &Test) {
    let file = test.new_dir().join("file");
    fs::write(&file, "before").unwrap();
    let bundle = test.bundle_sh("cat /etc/some.conf; echo after >/etc/some.conf", |config| {
        push(config, "/mounts", bind(&file, "/etc/some.conf", &["bind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "before");
    assert_eq!(fs::read_to_string(&file).unwrap(), "after\n");
}

fn bind_mount_without_options_shares_subdirectories(test: &Test) {
    let shared = test.new_dir();
    fs::create_dir_all(shared.join("a/b")).unwrap();
    let bundle = test.bundle_sh("echo deep >/mnt/a/b/c; mv /mnt/a/b/c /mnt/c", |config| {
        push(config, "/mounts", bind(&shared, "/mnt", &["rbind", "rw"]));
    });

    bundle.output().expect_code(0);

    assert_eq!(fs::read_to_string(shared.join("c")).unwrap(), "deep\n");
}

fn bind_mount_options_apply(test: &Test) {
    let script = format!("{MOUNT_ON} mount_on /mnt");
    let bundle = test.bundle_sh(&script, |config| {
        let options = ["bind", "nosuid", "nodev", "noexec", "ro", "noatime"];
        push(config, "/mounts", bind(&test.new_dir(), "/mnt", &options));
    });

    let output = bundle.output();

    assert_options(
        output.text(),
        &["nosuid", "nodev", "noexec", "ro", "noatime"],
    );
}

fn bind_mount_noexec_refuses_programs(test: &Test) {
    let shared = test.new_dir();
    fs::copy("/bin/busybox", shared.join("busybox")).unwrap();
    let bundle = test.bundle_sh("/mnt/busybox true; echo $?", |config| {
        push(
            config,
            "/mounts",
            bind(&shared, "/mnt", &["bind", "noexec"]),
        );
    });

    let output = bundle.output();

    assert_eq!(output.text(), "126");
}

/// A directory with a file of its own and a file system mounted in it.
fn directory_with_mount(test: &Test) -> (PathBuf, Mounted) {
    let dir = test.new_dir();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/below"), "").unwrap();
    let mounted = Mounted::tmpfs(&dir.join("sub"));
    fs::write(dir.join("sub/above"), "").unwrap();
    (dir, mounted)
}

fn bind_leaves_the_sources_mounts_out(test: &Test) {
    let (dir, _mounted) = directory_with_mount(test);
    let bundle = test.bundle_sh("ls /mnt/sub", |config| {
        push(config, "/mounts", bind(&dir, "/mnt", &["bind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "below");
}

fn rbind_takes_the_sources_mounts_along(test: &Test) {
    let (dir, _mounted) = directory_with_mount(test);
    let bundle = test.bundle_sh("ls /mnt/sub", |config| {
        push(config, "/mounts", bind(&dir, "/mnt", &["rbind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "above");
}

fn mount_destination_that_is_missing_is_made(test: &Test) {
    let shared = test.new_dir();
    fs::write(shared.join("file"), "file").unwrap();
    let bundle = test.bundle_sh("cat /new/dir/file /new/file", |config| {
        push(config, "/mounts", bind(&shared, "/new/dir", &["bind"]));
        push(
            config,
            "/mounts",
            bind(&shared.join("file"), "/new/file", &["bind"]),
        );
    });

    let output = bundle.output();

    assert_eq!(output.text(), "filefile");
}

fn mount_destination_through_a_link_stays_in_the_rootfs(test: &Test) {
    let shared = test.new_dir();
    let victim = test.new_dir();
    fs::write(shared.join("file"), "shared").unwrap();
    let bundle = test.bundle_sh(&format!("cat {}/sub/file", victim.display()), |config| {
        push(config, "/mounts", bind(&shared, "/link/sub", &["bind"]));
    });
    symlink(&victim, bundle.rootfs().join("link")).unwrap();

    let output = bundle.output();

    assert_eq!(output.text(), "shared");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

fn mount_on_a_mount_is_seen(test: &Test) {
    let (outer, inner) = (test.new_dir(), test.new_dir());
    fs::write(outer.join("outer"), "").unwrap();
    fs::create_dir(outer.join("sub")).unwrap();
    fs::write(inner.join("inner"), "").unwrap();
    let bundle = test.bundle_sh("ls /mnt /mnt/sub", |config| {
        push(config, "/mounts", bind(&outer, "/mnt", &["bind"]));
        push(config, "/mounts", bind(&inner, "/mnt/sub", &["bind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "/mnt:\nouter\nsub\n\n/mnt/sub:\ninner");
}

fn mounts_in_the_order_of_the_list(test: &Test) {
    let (first, second) = (test.new_dir(), test.new_dir());
    fs::write(first.join("first"), "").unwrap();
    fs::write(second.join("second"), "").unwrap();
    let bundle = test.bundle_sh("ls /mnt", |config| {
        push(config, "/mounts", bind(&first, "/mnt", &["bind"]));
        push(config, "/mounts", bind(&second, "/mnt", &["bind"]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "second");
}

/// As Podman 5 has it for the container that holds a pod.
fn read_only_tmpfs_takes_what_is_mounted_below_it(test: &Test) {
    let script = "touch /dev/x 2>/dev/null || echo refused; echo a >/dev/shm/y && cat /dev/shm/y; \
        [ -c /dev/null ] && [ -c /dev/pts/ptmx ] && echo there; \
        touch /mnt/x 2>/dev/null || echo refused";
    let bundle = test.bundle_sh(script, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        let options = ["nosuid", "strictatime", "mode=755", "size=65536k", "ro"];
        push(config, "/mounts", mount("/dev", "tmpfs", "tmpfs", &options));
        let options = [
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
        ];
        push(
            config,
            "/mounts",
            mount("/dev/pts", "devpts", "devpts", &options),
        );
        push(
            config,
            "/mounts",
            mount("/dev/shm", "tmpfs", "shm", &["nosuid"]),
        );
        push(config, "/mounts", mount("/mnt", "tmpfs", "tmpfs", &["ro"]));
    });

    assert_eq!(bundle.output().text(), "refused\na\nthere\nrefused");
}

fn tmpfs_mount_has_its_options(test: &Test) {
    let script = format!(
        "{MOUNT_ON} mount_on /new; stat -c '%a %u:%g' /new; cd /new; \
         dd if=/dev/zero of=x bs=1k count=2000 2>/dev/null || wc -c <x"
    );
    let bundle = test.bundle_sh(&script, |config| {
        let options = [
            "nosuid",
            "nodev",
            "noexec",
            "mode=1750",
            "size=1m",
            "uid=0",
            "gid=50",
        ];
        push(config, "/mounts", mount("/new", "tmpfs", "tmpfs", &options));
    });

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert_options(lines[0], &["nosuid", "nodev", "noexec", "rw"]);
    assert_eq!(lines[1..], ["1750 0:50", "1048576"]);
}

fn tmpfs_with_copy_up_keeps_the_files(test: &Test) {
    let bundle = test.bundle_sh("cat /etc/group | head -n 1; echo x >/etc/new", |config| {
        push(
            config,
            "/mounts",
            mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]),
        );
    });

    let output = bundle.output();

    assert_eq!(output.text(), "root:x:0:");
    assert!(!bundle.rootfs().join("etc/new").exists());
}

fn propagation_to_the_host_is_refused_by_name(test: &Test) {
    let bundle = test.bundle(|config| {
        push(
            config,
            "/mounts",
            bind(&test.new_dir(), "/mnt", &["bind", "rshared"]),
        );
    });

    let output = bundle.output();

    // No mount of a guest's kernel can appear on the host.
    output.expect_error(&["mounts[6].options[1]", "private"]);
}

fn propagation_private_is_the_default(test: &Test) {
    let script = format!("{MOUNT_ON} mount_on /mnt");
    let bundle = test.bundle_sh(&script, |config| {
        push(
            config,
            "/mounts",
            bind(&test.new_dir(), "/mnt", &["bind", "rprivate"]),
        );
    });

    let output = bundle.output();

    assert!(output.text().contains("/mnt"), "{output}");
    assert!(!output.text().contains(" shared:"), "{output}");
    assert!(!output.text().contains(" master:"), "{output}");
}

fn root_that_is_read_only_refuses_writes(test: &Test) {
    let bundle = test.bundle_sh(
        "echo x >/x; echo x >/etc/passwd; rm /bin/ls; true",
        |config| {
            config["root"]["readonly"] = json!(true);
        },
    );

    let output = bundle.output();

    assert_eq!(
        output.error().matches("Read-only file system").count(),
        3,
        "{output}"
    );
}

fn root_that_is_read_only_has_writable_mounts(test: &Test) {
    let shared = test.new_dir();
    let bundle = test.bundle_sh("echo x >/mnt/x && echo x >/tmp/x && echo done", |config| {
        config["root"]["readonly"] = json!(true);
        push(config, "/mounts", bind(&shared, "/mnt", &["bind"]));
        push(config, "/mounts", mount("/tmp", "tmpfs", "tmpfs", &[]));
    });

    let output = bundle.output();

    assert_eq!(output.text(), "done");
    assert!(shared.join("x").exists());
}

fn masked_paths_are_empty(test: &Test) {
    let script = "wc -c </etc/passwd; ls -A /home; echo x >/home/x; cat /proc/keys | wc -c; true";
    let bundle = test.bundle_sh(script, |config| {
        let paths = ["/etc/passwd", "/home", "/proc/keys", "/not/there"];
        config["linux"]["maskedPaths"] = json!(paths);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "0\n0");
    assert!(output.error().contains("Read-only file system"), "{output}");
}

fn read_only_paths_refuse_writes(test: &Test) {
    let script = "echo x >/etc/passwd; echo x >/home/x; echo x >/proc/sys/kernel/hostname; \
                  head -n 1 /etc/passwd; echo x >/tmp/x && echo written";
    let bundle = test.bundle_sh(script, |config| {
        let paths = ["/etc/passwd", "/home", "/proc/sys", "/not/there"];
        config["linux"]["readonlyPaths"] = json!(paths);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "root:x:0:0:root:/root:/bin/sh\nwritten");
    assert_eq!(
        output.error().matches("Read-only file system").count(),
        3,
        "{output}"
    );
}

fn proc_belongs_to_the_containers_namespace(test: &Test) {
    let bundle = test.bundle_sh(
        "set -- /proc/[0-9]*; echo $#; head -c 7 /proc/1/cmdline",
        |_| {},
    );

    let output = bundle.output();

    // The shell and nobody else.
    assert_eq!(output.text(), "1\n/bin/sh");
}

fn sysfs_is_read_only(test: &Test) {
    let script =
        format!("{MOUNT_ON} mount_on /sys; mkdir /sys/x; ls /sys/kernel >/dev/null && echo seen");
    let bundle = test.bundle_sh(&script, |_| {});

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert_options(lines[0], &["ro", "nosuid", "nodev", "noexec"]);
    assert!(lines[0].contains("- sysfs "), "{output}");
    assert_eq!(lines[1], "seen");
}

fn devpts_is_a_new_instance(test: &Test) {
    let script = format!(
        "{MOUNT_ON} mount_on /dev/pts; ls /dev/pts; readlink /dev/ptmx; stat -c %a /dev/pts/ptmx"
    );
    let bundle = test.bundle_sh(&script, |_| {});

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert!(lines[0].contains("- devpts "), "{output}");
    assert!(lines[0].contains("gid=5,mode=620,ptmxmode=666"), "{output}");
    assert_eq!(lines[1..], ["ptmx", "pts/ptmx", "666"]);
}

fn shm_is_shared_memory(test: &Test) {
    let script = format!("{MOUNT_ON} mount_on /dev/shm; stat -c %a /dev/shm; echo x >/dev/shm/x");
    let bundle = test.bundle_sh(&script, |_| {});

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert_options(lines[0], &["nosuid", "nodev", "noexec"]);
    assert!(lines[0].contains("- tmpfs "), "{output}");
    assert!(lines[0].contains("size=65536k"), "{output}");
    assert_eq!(lines[1], "1777");
}

fn mqueue_is_mounted(test: &Test) {
    let script = format!("{MOUNT_ON} mount_on /dev/mqueue; touch /dev/mqueue/q; ls /dev/mqueue");
    let bundle = test.bundle_sh(&script, |_| {});

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert!(lines[0].contains("- mqueue "), "{output}");
    assert_eq!(lines[1], "q");
}

fn cgroup_mount_is_version_two(test: &Test) {
    let script = format!(
        "{MOUNT_ON} mount_on /sys/fs/cgroup; cat /proc/self/cgroup; mkdir /sys/fs/cgroup/x"
    );
    let bundle = test.bundle_sh(&script, |config| {
        let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        push(
            config,
            "/mounts",
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &options),
        );
        push(config, "/linux/namespaces", json!({ "type": "cgroup" }));
    });

    let output = bundle.output();

    output.expect_code(1);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("- cgroup2 "), "{output}");
    assert_options(lines[0], &["ro", "nosuid", "nodev", "noexec"]);
    assert_eq!(lines[1], "0::/");
    assert!(output.error().contains("Read-only file system"), "{output}");
}

fn cgroup_mount_shows_limits(test: &Test) {
    let script =
        "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max pids.max cgroup.procs";
    let bundle = test.bundle_sh(script, |config| {
        push(
            config,
            "/mounts",
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]),
        );
        push(config, "/linux/namespaces", json!({ "type": "cgroup" }));
        config["linux"]["resources"]["memory"] =
            json!({ "limit": 67_108_864, "reservation": 33_554_432 });
        config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    });

    let output = bundle.output();

    let lines: Vec<&str> = output.text().lines().collect();
    assert_eq!(lines[..2], ["67108864", "33554432"]);
    assert_eq!(lines[3..5], ["77", "1"], "{output}");
}

fn default_devices_are_there(test: &Test) {
    let script = "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty; \
                  for l in fd stdin stdout stderr; do readlink $l; done; head -c 3 zero | wc -c; echo x >null; \
                  echo x >full || echo full; head -c 5 urandom | wc -c";
    let bundle = test.bundle_sh(script, |_| {});

    let output = bundle.output();

    let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\n\
                    tty 5:0 666\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n\
                    3\nfull\n5";
    assert_eq!(output.text(), expected, "{output}");
}

/// A device every kernel that can share files with us has: 10:229, /dev/fuse.
fn fuse(path: &str) -> Value {
    json!({ "path": path, "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 1000, "gid": 50 })
}

fn device_of_the_list_is_made(test: &Test) {
    let bundle = test.bundle_sh("stat -c '%F %t:%T %a %u:%g' /dev/own/fuse", |config| {
        config["linux"]["devices"] = json!([fuse("/dev/own/fuse")]);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "character special file a:e5 640 1000:50");
}

fn device_without_a_rule_is_refused(test: &Test) {
    let bundle = test.bundle_sh(": </dev/fuse", |config| {
        config["linux"]["devices"] = json!([fuse("/dev/fuse")]);
        // The base configuration drops what root needs to pass over owner and mode.
        config["process"]["user"] = json!({ "uid": 1000, "gid": 50 });
    });

    let output = bundle.output();

    assert!(
        output.error().contains("Operation not permitted"),
        "{output}"
    );
}

fn device_with_a_rule_is_opened(test: &Test) {
    let bundle = test.bundle_sh(": </dev/fuse && echo open", |config| {
        config["linux"]["devices"] = json!([fuse("/dev/fuse")]);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 50 });
        let rule = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" });
        push(config, "/linux/resources/devices", rule);
    });

    let output = bundle.output();

    assert_eq!(output.text(), "open");
}

fn files_of_rootfs_keep_owner_and_mode(test: &Test) {
    let bundle = test.bundle_sh(
        "stat -c '%u:%g %a' /home/alice /tmp; umask 0; cd /tmp; mkdir d; chmod 2751 d; ln -s d l; \
         mkfifo -m 604 p; echo x >f; chmod 4711 f; ln f g; stat -c '%n %F %a %h' d l p f",
        |_| {},
    );

    let output = bundle.output();

    let expected = "1000:1000 755\n0:0 1777\nd directory 2751 2\nl symbolic link 777 1\n\
                    p fifo 604 1\nf regular file 4711 2";
    assert_eq!(output.text(), expected);
    let made = fs::symlink_metadata(bundle.rootfs().join("tmp/f")).unwrap();
    assert_eq!(
        (made.mode() & 0o7777, made.nlink(), made.uid()),
        (0o4711, 2, 0)
    );
}
