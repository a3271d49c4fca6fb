//! Mounts and their options.

use std::fs;

use bulkhead_tests::harness::bundle::{mount, push};

use crate::requirement::Exception::{Crun, Runc, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const MOUNTS: &[Requirement] = requirements! {
    "Configuration: Mounts";
    mounts_are_made_in_the_listed_order = "Mounts are made in the listed order";
    destination_that_is_missing_is_made = "A destination that does not exist is made";
    relative_destination_is_below_the_root = "A relative destination is relative to `/`";
    relative_source_is_in_the_bundle = "A relative source of a bind mount is relative to the bundle";
    file_is_bound_on_a_file = "A file is bound onto a file";
    missing_source_is_an_error = "A source that does not exist is an error";
    unknown_file_system_is_an_error = "A file system the kernel does not have is an error";
    bind_leaves_mounts_below_out = "`bind` leaves out what is mounted below the source";
    rbind_takes_mounts_below = "`rbind` takes what is mounted below the source along";
    ro_of_a_bind_refuses_writing = "`ro` of a bind mount";
    rw_of_a_bind_writes_through = "`rw` of a bind mount: what is written is in the source";
    ro_of_a_tmpfs_refuses_writing = "`ro` of a tmpfs";
    nosuid_nodev_noexec_are_set = "`nosuid`, `nodev`, `noexec`";
    noexec_of_a_bind_refuses_programs = "`noexec` of a bind mount refuses programs";
    suid_dev_exec_undo_earlier_ones = "`suid`, `dev`, `exec`, `rw` undo earlier options" [
        Crun("1.8 adds them up"),
    ];
    noatime_and_nodiratime_are_set = "`noatime`, `nodiratime`";
    relatime_is_set = "`relatime`";
    strictatime_leaves_relatime_out = "`strictatime`";
    sync_and_dirsync_are_set = "`sync`, `dirsync`";
    async_and_access_times_are_accepted = "`async`, `atime`, `diratime`, `norelatime`";
    defaults_is_accepted = "`defaults`" [
        Runc("1.1 passes it to the file system"),
    ];
    lazytime_and_nostrictatime_are_accepted = "`lazytime`, `nolazytime`, `nostrictatime`";
    loud_and_silent_are_accepted = "`loud`, `silent`" [
        Crun("1.8 passes them to the file system"),
    ];
    iversion_is_accepted = "`iversion`, `noiversion`" [
        Crun("1.8 passes them to the file system"),
    ];
    size_and_mode_are_the_file_systems = "Other options go to the file system: `size=`, `mode=`";
    unknown_option_is_an_error_of_the_file_system = "An option that the file system refuses is an error";
    private_and_rprivate_are_set = "`private`, `rprivate`";
    unbindable_is_set = "`unbindable`, `runbindable`" [
        Crun("1.8 leaves the mount private"),
    ];
    slave_hears_of_mounts_of_the_host = "`rslave`: what is mounted on the host below the source appears in the container" [
        Vm("mounts made on the host after the start do not pass through the shared file system"),
    ];
    tmpcopyup_has_the_files_below = "`tmpcopyup`: a tmpfs has the files it covers";
    proc_is_mounted = "Type `proc`";
    sysfs_is_mounted = "Type `sysfs`";
    devpts_is_mounted = "Type `devpts`";
    mqueue_is_mounted = "Type `mqueue`";
    cgroup_is_mounted = "Type `cgroup`";
    destination_through_a_link_stays_inside = "A destination that is a link out of the container stays inside";
};

fn mounts_are_made_in_the_listed_order(subject: &Subject) {
    let output = subject.ran("ls /mnt /mnt/inner | tr '\\n' ' '", |config| {
        push(config, "/mounts", mount("/mnt", "tmpfs", "tmpfs", &[]));
        push(
            config,
            "/mounts",
            mount("/mnt/inner", "tmpfs", "tmpfs", &[]),
        );
    });

    assert_eq!(output.text(), "/mnt: inner  /mnt/inner:");
}

fn destination_that_is_missing_is_made(subject: &Subject) {
    let output = subject.ran("touch /a/b/c/file && ls /a/b/c", |config| {
        push(config, "/mounts", mount("/a/b/c", "tmpfs", "tmpfs", &[]));
    });

    assert_eq!(output.text(), "file");
}

fn relative_destination_is_below_the_root(subject: &Subject) {
    let output = subject.ran("grep -c ' /mnt tmpfs ' /proc/mounts", |config| {
        push(config, "/mounts", mount("mnt", "tmpfs", "tmpfs", &[]));
    });

    assert_eq!(output.text(), "1");
}

fn relative_source_is_in_the_bundle(subject: &Subject) {
    let bundle = subject.bundle_sh("cat /mnt/file", |config| {
        push(config, "/mounts", mount("/mnt", "bind", "data", &["rbind"]));
    });
    fs::create_dir(bundle.dir.join("data")).unwrap();
    fs::write(bundle.dir.join("data/file"), "text").unwrap();

    // From elsewhere: the bundle counts, not the working directory.
    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir).dir("/");
    let output = run.arg(&bundle.id).output();

    assert_eq!(output.text(), "text");
}

fn file_is_bound_on_a_file(subject: &Subject) {
    let dir = subject.new_dir();
    fs::write(dir.join("file"), "text").unwrap();
    let source = dir.join("file").display().to_string();

    let output = subject.ran("cat /etc/made /etc/group", |config| {
        push(
            config,
            "/mounts",
            mount("/etc/made", "bind", &source, &["bind"]),
        );
        push(
            config,
            "/mounts",
            mount("/etc/group", "bind", &source, &["bind"]),
        );
    });

    assert_eq!(output.text(), "texttext");
}

fn missing_source_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        push(
            config,
            "/mounts",
            mount("/mnt", "bind", "/no/such/place", &["bind"]),
        );
    });
}

fn unknown_file_system_is_an_error(subject: &Subject) {
    subject.refused(|config| push(config, "/mounts", mount("/mnt", "nosuchfs", "none", &[])));
}

/// A directory with a file system mounted below it, unmounted when dropped.
struct Mounted {
    dir: std::path::PathBuf,
}

impl Mounted {
    fn new(subject: &Subject) -> Self {
        let dir = subject.new_dir();
        fs::create_dir(dir.join("below")).unwrap();
        nix_mount(&dir.join("below"));
        fs::write(dir.join("below/file"), "").unwrap();
        Self { dir }
    }

    fn source(&self) -> String {
        self.dir.display().to_string()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.dir.join("below"), rustix::mount::UnmountFlags::DETACH);
    }
}

fn nix_mount(place: &std::path::Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", place, "tmpfs", flags, None).unwrap();
}

fn bind_leaves_mounts_below_out(subject: &Subject) {
    let mounted = Mounted::new(subject);

    let output = subject.ran("ls -a /mnt/below | wc -l", |config| {
        let entry = mount("/mnt", "bind", &mounted.source(), &["bind"]);
        push(config, "/mounts", entry);
    });

    assert_eq!(output.text(), "2");
}

fn rbind_takes_mounts_below(subject: &Subject) {
    let mounted = Mounted::new(subject);

    let output = subject.ran("ls /mnt/below", |config| {
        let entry = mount("/mnt", "bind", &mounted.source(), &["rbind"]);
        push(config, "/mounts", entry);
    });

    assert_eq!(output.text(), "file");
}

fn ro_of_a_bind_refuses_writing(subject: &Subject) {
    let dir = subject.new_dir();

    let output = subject.ran("touch /mnt/file || echo refused", |config| {
        let source = dir.display().to_string();
        push(
            config,
            "/mounts",
            mount("/mnt", "bind", &source, &["bind", "ro"]),
        );
    });

    assert_eq!(output.text(), "refused");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

fn rw_of_a_bind_writes_through(subject: &Subject) {
    let dir = subject.new_dir();

    let output = subject.ran("echo text >/mnt/file", |config| {
        let source = dir.display().to_string();
        push(
            config,
            "/mounts",
            mount("/mnt", "bind", &source, &["bind", "rw"]),
        );
    });

    output.expect_code(0);
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "text\n");
}

fn ro_of_a_tmpfs_refuses_writing(subject: &Subject) {
    let output = subject.ran("touch /mnt/file || echo refused", |config| {
        push(config, "/mounts", mount("/mnt", "tmpfs", "tmpfs", &["ro"]));
    });

    assert_eq!(output.text(), "refused");
}

/// Asserts that a tmpfs with options has these and has not those.
#[track_caller]
fn assert_options(subject: &Subject, options: &[&str], with: &[&str], without: &[&str]) {
    let found = subject.mount_options(mount("/mnt", "tmpfs", "tmpfs", options));

    let has = |option: &&&str| found.iter().any(|it| it == **option);
    let missing: Vec<_> = with.iter().filter(|option| !has(option)).collect();
    assert!(missing.is_empty(), "{missing:?} missing: {found:?}");
    let surplus: Vec<_> = without.iter().filter(has).collect();
    assert!(surplus.is_empty(), "{surplus:?} set: {found:?}");
}

fn nosuid_nodev_noexec_are_set(subject: &Subject) {
    let options = ["nosuid", "nodev", "noexec"];

    assert_options(subject, &options, &options, &[]);
}

fn noexec_of_a_bind_refuses_programs(subject: &Subject) {
    let dir = subject.new_dir();
    bulkhead_tests::harness::rootfs::add_script(&dir, "program", "echo ran");

    let output = subject.ran("/mnt/program || echo refused", |config| {
        let source = dir.display().to_string();
        push(
            config,
            "/mounts",
            mount("/mnt", "bind", &source, &["bind", "noexec"]),
        );
    });

    assert_eq!(output.text(), "refused");
}

fn suid_dev_exec_undo_earlier_ones(subject: &Subject) {
    let undone = ["nosuid", "nodev", "noexec", "ro"];
    let options = [
        "nosuid", "nodev", "noexec", "ro", "suid", "dev", "exec", "rw",
    ];

    assert_options(subject, &options, &["rw"], &undone);
}

fn noatime_and_nodiratime_are_set(subject: &Subject) {
    assert_options(subject, &["noatime"], &["noatime"], &["relatime"]);
    assert_options(subject, &["nodiratime"], &["nodiratime"], &[]);
}

fn relatime_is_set(subject: &Subject) {
    assert_options(subject, &["relatime"], &["relatime"], &["noatime"]);
}

fn strictatime_leaves_relatime_out(subject: &Subject) {
    assert_options(subject, &["strictatime"], &[], &["relatime", "noatime"]);
}

fn sync_and_dirsync_are_set(subject: &Subject) {
    assert_options(subject, &["sync", "dirsync"], &["sync", "dirsync"], &[]);
}

fn async_and_access_times_are_accepted(subject: &Subject) {
    let options = ["async", "atime", "diratime", "norelatime"];

    assert_options(
        subject,
        &options,
        &["rw"],
        &["noatime", "nodiratime", "sync"],
    );
}

fn defaults_is_accepted(subject: &Subject) {
    assert_options(subject, &["defaults"], &["rw"], &[]);
}

fn lazytime_and_nostrictatime_are_accepted(subject: &Subject) {
    assert_options(
        subject,
        &["lazytime", "nolazytime", "nostrictatime"],
        &["rw"],
        &[],
    );
}

fn loud_and_silent_are_accepted(subject: &Subject) {
    assert_options(subject, &["silent", "loud"], &["rw"], &[]);
}

fn iversion_is_accepted(subject: &Subject) {
    assert_options(subject, &["iversion", "noiversion"], &["rw"], &[]);
}

fn size_and_mode_are_the_file_systems(subject: &Subject) {
    let options = ["size=64k", "mode=0750"];

    assert_options(subject, &options, &["size=64k", "mode=750"], &[]);
}

fn unknown_option_is_an_error_of_the_file_system(subject: &Subject) {
    subject.refused(|config| {
        push(
            config,
            "/mounts",
            mount("/mnt", "tmpfs", "tmpfs", &["nosuchoption"]),
        );
    });
}

/// What `/proc/self/mountinfo` says of the propagation of a tmpfs with an option; nothing if private.
#[track_caller]
fn propagation(subject: &Subject, option: &str) -> String {
    let output = subject.ran("grep ' /mnt ' /proc/self/mountinfo", |config| {
        push(
            config,
            "/mounts",
            mount("/mnt", "tmpfs", "tmpfs", &[option]),
        );
    });
    let (left, _) = output.text().split_once(" - ").unwrap();
    left.split(' ').skip(6).collect::<Vec<_>>().join(" ")
}

fn private_and_rprivate_are_set(subject: &Subject) {
    assert_eq!(propagation(subject, "private"), "");
    assert_eq!(propagation(subject, "rprivate"), "");
}

fn unbindable_is_set(subject: &Subject) {
    assert_eq!(propagation(subject, "unbindable"), "unbindable");
    assert_eq!(propagation(subject, "runbindable"), "unbindable");
}

fn slave_hears_of_mounts_of_the_host(subject: &Subject) {
    let dir = subject.new_dir();
    let place = dir.display().to_string();
    fs::create_dir(dir.join("below")).unwrap();
    let flags = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_bind(&dir, &dir).unwrap();
    rustix::mount::mount_change(&dir, flags).unwrap();
    let unmount = Unmount(dir.clone());
    let mut container =
        subject.running_script("echo ready; read line; ls /mnt/below; echo end", |config| {
            push(
                config,
                "/mounts",
                mount("/mnt", "bind", &place, &["rbind", "rslave"]),
            );
            config["linux"]["rootfsPropagation"] = serde_json::json!("rslave");
        });

    nix_mount(&dir.join("below"));
    fs::write(dir.join("below/file"), "").unwrap();
    container.write_line("go");

    let line = container.line();
    let _ = rustix::mount::unmount(dir.join("below"), rustix::mount::UnmountFlags::DETACH);
    drop(unmount);
    assert_eq!(line, "file");
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn tmpcopyup_has_the_files_below(subject: &Subject) {
    let script = "ls /etc | tr '\\n' ' '; grep -c ' /etc tmpfs ' /proc/mounts";

    let output = subject.ran(script, |config| {
        push(
            config,
            "/mounts",
            mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]),
        );
    });

    assert!(output.text().contains("passwd"), "{output}");
    assert!(output.text().ends_with('1'), "{output}");
}

/// Asserts that the type of file system at a place is this one.
#[track_caller]
fn assert_type(subject: &Subject, place: &str, kind: &str) {
    let output = subject.ran("cat /proc/self/mountinfo", |_| {});

    let line = output
        .text()
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(place));
    let line = line.unwrap_or_else(|| panic!("{place}: {output}"));
    assert!(line.contains(&format!(" - {kind} ")), "{line}");
}

fn proc_is_mounted(subject: &Subject) {
    assert_type(subject, "/proc", "proc");
}

fn sysfs_is_mounted(subject: &Subject) {
    assert_type(subject, "/sys", "sysfs");
}

fn devpts_is_mounted(subject: &Subject) {
    assert_type(subject, "/dev/pts", "devpts");
}

fn mqueue_is_mounted(subject: &Subject) {
    assert_type(subject, "/dev/mqueue", "mqueue");
}

fn cgroup_is_mounted(subject: &Subject) {
    let output = subject.ran(
        "find /sys/fs/cgroup -name cgroup.procs | head -n 1",
        |config| {
            let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
            push(
                config,
                "/mounts",
                mount("/sys/fs/cgroup", "cgroup", "cgroup", &options),
            );
        },
    );

    assert!(output.text().ends_with("cgroup.procs"), "{output}");
}

fn destination_through_a_link_stays_inside(subject: &Subject) {
    let outside = subject.new_dir();
    let bundle = subject.bundle_sh("grep -c ' tmpfs ' /proc/mounts", |config| {
        push(config, "/mounts", mount("/link", "tmpfs", "tmpfs", &[]));
    });
    std::os::unix::fs::symlink(&outside, bundle.rootfs().join("link")).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();

    let run = subject.verb(["run", "--bundle"]).arg(&bundle.dir);
    let output = run.arg(&bundle.id).output();

    // Refused, or made at the same place inside; but never outside.
    let inside = outside.strip_prefix("/").unwrap();
    assert!(
        output.code() != 0 || bundle.rootfs().join(inside).exists(),
        "{output}"
    );
    let here = outside.display().to_string();
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(before.matches(&here).count(), after.matches(&here).count());
}
