//! Mounts, devices, hidden paths, and attempts to lead them out of the container.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use serde_json::{Value, json};

use super::harness::{isolated, outside, rootfs, run, run_in, set_mode, shell, spec, with};

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// Runs `script` with one more mount; what is printed.
fn run_with(mount: Value, script: &str) -> super::harness::Outcome {
    run(with(shell(script), "/mounts/-", mount))
}

/// The options of the mount at `path`, as the container sees them.
fn options_of(path: &str) -> String {
    format!("grep ' {path} ' /proc/self/mountinfo")
}

#[test]
fn bound_directory_shows_its_files_and_takes_new_ones() {
    let (_keep, source) = outside();
    fs::write(source.join("in"), "from outside\n").unwrap();

    let outcome = run_with(
        bind(&source, "/data/deep", &["rbind"]),
        "cat /data/deep/in; echo new > /data/deep/out",
    );

    assert_eq!(outcome.output(), "from outside\n");
    assert_eq!(fs::read_to_string(source.join("out")).unwrap(), "new\n");
}

#[test]
fn bound_file_gets_a_file_to_be_bound_on() {
    let (_keep, source) = outside();
    fs::write(source.join("file"), "content\n").unwrap();

    let mount = bind(&source.join("file"), "/etc/some/file", &["bind", "ro"]);
    let outcome = run_with(
        mount,
        "cat /etc/some/file; echo x > /etc/some/file || echo refused",
    );

    assert_eq!(outcome.output(), "content\nrefused\n");
}

#[test]
fn read_only_bind_refuses_writing_and_keeps_its_other_options() {
    let (_keep, source) = outside();

    let mount = bind(
        &source,
        "/data",
        &["rbind", "ro", "nosuid", "nodev", "noexec", "noatime"],
    );
    let outcome = run_with(
        mount,
        &format!("touch /data/x 2>&1; {}", options_of("/data")),
    );

    let output = outcome.output();
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(
        output.contains(" ro,nosuid,nodev,noexec,noatime "),
        "{output}"
    );
}

#[test]
fn recursively_read_only_bind_covers_what_is_mounted_below() {
    let (_keep, source) = outside();
    fs::create_dir(source.join("below")).unwrap();
    let rootfs = rootfs();

    let (plain, recursive) = isolated(|| {
        let unshare = rustix::thread::UnshareFlags::NEWNS;
        // SAFETY: this forked process is single-threaded; only its mounts are unshared.
        unsafe { rustix::thread::unshare_unsafe(unshare) }.unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("t", source.join("below"), "tmpfs", flags, None).unwrap();
        let script = "touch /data/x 2>&1; touch /data/below/x 2>&1; true";
        let run = |options: &[&str]| {
            run_in(
                rootfs.path(),
                with(shell(script), "/mounts/-", bind(&source, "/data", options)),
            )
        };
        (run(&["rbind", "ro"]), run(&["rbind", "rro"]))
    });

    assert_eq!(plain.output().matches("Read-only").count(), 1, "{plain:?}");
    assert_eq!(
        recursive.output().matches("Read-only").count(),
        2,
        "{recursive:?}"
    );
}

#[test]
fn missing_source_is_an_error_naming_the_mount() {
    let outcome = run_with(
        bind(Path::new("/no/such/place"), "/data", &["bind"]),
        "true",
    );

    assert!(outcome.failure().contains("mounts[6]"), "{outcome:?}");
    assert!(outcome.failure().contains("/no/such/place"), "{outcome:?}");
}

#[test]
fn new_tmpfs_has_the_size_mode_and_flags_given() {
    let mount = json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs",
        "options": ["size=64k", "mode=1750", "uid=7", "noexec", "nosuid"]});

    let outcome = run_with(mount, &format!("stat -c '%a %u' /t; {}", options_of("/t")));

    let output = outcome.output();
    assert!(output.starts_with("1750 7\n"), "{output}");
    assert!(
        output.contains("nosuid,noexec") && output.contains("size=64k"),
        "{output}"
    );
}

#[test]
fn tmpfs_without_a_mode_takes_that_of_the_directory_below() {
    let rootfs = rootfs();
    set_mode(&rootfs.path().join("tmp"), 0o1733);
    let mount = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});

    let spec = with(shell("stat -c %a /tmp"), "/mounts/-", mount);
    let outcome = isolated(|| run_in(rootfs.path(), spec));

    assert_eq!(outcome.output(), "1733\n");
}

#[test]
fn copied_up_tmpfs_begins_with_what_it_hides() {
    let rootfs = rootfs();
    let etc = rootfs.path().join("etc");
    fs::create_dir(etc.join("dir")).unwrap();
    fs::write(etc.join("dir/file"), "text\n").unwrap();
    fs::set_permissions(etc.join("dir/file"), fs::Permissions::from_mode(0o4710)).unwrap();
    std::os::unix::fs::chown(etc.join("dir"), Some(12), Some(34)).unwrap();
    symlink("dir/file", etc.join("link")).unwrap();
    let mount = json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup"]});
    let script = "cat /etc/link; stat -c '%a' /etc/dir/file; stat -c '%u %g' /etc/dir; \
        echo x > /etc/new; readlink /etc/link";

    let outcome = isolated(|| run_in(rootfs.path(), with(shell(script), "/mounts/-", mount)));

    assert_eq!(outcome.output(), "text\n4710\n12 34\ndir/file\n");
    assert!(!etc.join("new").exists(), "the image was written to");
}

#[test]
fn shared_mount_is_shared_and_others_are_not() {
    let (_keep, source) = outside();

    let outcome = run_with(
        bind(&source, "/data", &["rbind", "rshared"]),
        "cat /proc/self/mountinfo",
    );

    let shared: Vec<_> = outcome
        .output()
        .lines()
        .filter(|line| line.contains("shared:"))
        .collect();
    assert_eq!(shared.len(), 1, "{shared:?}");
    assert!(shared[0].contains(" /data "), "{shared:?}");
}

#[test]
fn shared_root_propagation_applies_to_the_root_alone() {
    let spec = with(
        shell("cat /proc/self/mountinfo"),
        "/linux/rootfsPropagation",
        json!("shared"),
    );

    let outcome = run(spec);

    let shared: Vec<_> = outcome
        .output()
        .lines()
        .filter(|line| line.contains("shared:"))
        .collect();
    assert_eq!(shared.len(), 1, "{shared:?}");
    assert_eq!(shared[0].split(' ').nth(4), Some("/"), "{shared:?}");
}

#[test]
fn destination_behind_a_link_that_leads_out_stays_inside() {
    let (_keep, target) = outside();
    let (_keep2, source) = outside();
    fs::write(source.join("mark"), "bound\n").unwrap();
    for link in [
        target.to_str().unwrap().to_owned(),
        format!("../../../../../..{}", target.display()),
    ] {
        let rootfs = rootfs();
        symlink(&link, rootfs.path().join("data")).unwrap();

        let spec = with(
            shell("cat /data/sub/mark"),
            "/mounts/-",
            bind(&source, "/data/sub", &["bind"]),
        );
        let outcome = isolated(|| run_in(rootfs.path(), spec));

        assert_eq!(outcome.output(), "bound\n");
        assert_eq!(
            fs::read_dir(&target).unwrap().count(),
            0,
            "something was made outside"
        );
        let inside = rootfs
            .path()
            .join(target.strip_prefix("/").unwrap())
            .join("sub");
        assert!(
            inside.is_dir(),
            "the mount point is not where the link leads inside"
        );
    }
}

#[test]
fn destination_behind_a_loop_of_links_is_an_error() {
    let rootfs = rootfs();
    symlink("b", rootfs.path().join("a")).unwrap();
    symlink("a", rootfs.path().join("b")).unwrap();
    let (_keep, source) = outside();

    let spec = with(
        spec(&["true"]),
        "/mounts/-",
        bind(&source, "/a/x", &["bind"]),
    );
    let outcome = isolated(|| run_in(rootfs.path(), spec));

    assert!(outcome.failure().contains("mounts[6]"), "{outcome:?}");
}

#[test]
fn destination_behind_a_magic_link_is_an_error() {
    let rootfs = rootfs();
    symlink("/proc/self/root", rootfs.path().join("magic")).unwrap();
    let (_keep, source) = outside();

    let spec = with(
        spec(&["true"]),
        "/mounts/-",
        bind(&source, "/magic/tmp", &["bind"]),
    );
    let outcome = isolated(|| run_in(rootfs.path(), spec));

    assert!(outcome.failure().contains("mounts[6]"), "{outcome:?}");
}

#[test]
fn image_with_a_link_for_proc_is_refused() {
    let rootfs = rootfs();
    fs::remove_dir(rootfs.path().join("proc")).unwrap();
    symlink("tmp", rootfs.path().join("proc")).unwrap();

    let outcome = isolated(|| run_in(rootfs.path(), spec(&["true"])));

    assert!(
        outcome.failure().contains("not a link, at /proc"),
        "{outcome:?}"
    );
}

#[test]
fn former_root_is_gone_from_the_containers_mounts() {
    let outcome = run(spec(&["cat", "/proc/self/mountinfo"]));

    let mut places: Vec<_> = outcome
        .output()
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    places.retain(|place| !place.starts_with("/proc/") && !place.starts_with("/sys/"));
    assert_eq!(
        places,
        [
            "/",
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys"
        ]
    );
}

#[test]
fn hidden_paths_are_empty_and_read_only_ones_refuse_writing() {
    let rootfs = rootfs();
    for name in ["secret", "locked"] {
        fs::create_dir(rootfs.path().join(name)).unwrap();
        fs::write(rootfs.path().join(name).join("file"), "text\n").unwrap();
    }
    fs::write(rootfs.path().join("hidden"), "text\n").unwrap();
    let spec = shell(
        "ls /secret | grep -c .; cat /hidden; ls /sys/firmware | grep -c .; cat /locked/file; \
         touch /locked/x 2>&1; echo 1 2>&1 >/proc/sys/kernel/msgmax; touch /secret/x 2>&1; true",
    );
    let spec = with(
        spec,
        "/linux/maskedPaths",
        json!(["/secret", "/hidden", "/sys/firmware", "/none"]),
    );
    let spec = with(
        spec,
        "/linux/readonlyPaths",
        json!(["/locked", "/proc/sys", "/none/x"]),
    );

    let outcome = isolated(|| run_in(rootfs.path(), spec));

    let output = outcome.output();
    assert!(output.starts_with("0\n0\ntext\n"), "{output}");
    assert_eq!(
        output.matches("Read-only file system").count(),
        3,
        "{output}"
    );
}

#[test]
fn read_only_root_refuses_writing_and_mounts_below_do_not() {
    let spec = with(
        shell("touch /x 2>&1; touch /dev/shm/x && echo yes"),
        "/root/readonly",
        json!(true),
    );

    let outcome = run(spec);

    assert!(
        outcome.output().contains("Read-only file system"),
        "{outcome:?}"
    );
    assert!(outcome.output().ends_with("yes\n"), "{outcome:?}");
}

#[test]
fn default_devices_and_links_are_there() {
    let outcome = run(shell(
        "cd /dev; stat -c '%n %t:%T %a %F' null zero full random urandom tty; \
         for l in fd stdin stdout stderr ptmx; do readlink $l; done; head -c4 /dev/zero | wc -c",
    ));

    assert_eq!(
        outcome.output(),
        "null 1:3 666 character special file\nzero 1:5 666 character special file\n\
         full 1:7 666 character special file\nrandom 1:8 666 character special file\n\
         urandom 1:9 666 character special file\ntty 5:0 666 character special file\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n4\n"
    );
}

#[test]
fn listed_devices_have_their_number_mode_and_owner() {
    let devices = json!([
        {"path": "/dev/deep/er", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640,
         "uid": 3, "gid": 4},
        {"path": "/dev/pipe", "type": "p"},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        {"path": "/blk", "type": "b", "major": 7, "minor": 300},
    ]);
    let script = "stat -c '%t:%T %a %u:%g %F' /dev/deep/er /dev/pipe /dev/null /blk";

    let outcome = run(with(shell(script), "/linux/devices", devices));

    assert_eq!(
        outcome.output(),
        "a:e5 640 3:4 character special file\n0:0 666 0:0 fifo\n\
         1:3 600 0:0 character special file\n7:12c 666 0:0 block special file\n"
    );
}

#[test]
fn device_directory_bound_from_outside_is_left_as_it_is() {
    let (_keep, source) = outside();
    fs::write(source.join("own"), "").unwrap();
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        bind(&source, "/dev", &["rbind"]),
    ]);
    let spec = with(shell("ls /dev"), "/mounts", mounts);

    let outcome = run(with(spec, "/linux/maskedPaths", json!([])));

    assert_eq!(outcome.output(), "own\n");
}

#[test]
fn image_device_directory_gets_the_default_devices_even_through_links() {
    let rootfs = rootfs();
    let (_keep, target) = outside();
    fs::remove_dir(rootfs.path().join("dev")).unwrap();
    symlink(&target, rootfs.path().join("dev")).unwrap();
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);

    let spec = with(shell("ls /dev/null"), "/mounts", mounts);
    let outcome = isolated(|| run_in(rootfs.path(), spec));

    assert_eq!(outcome.output(), "/dev/null\n");
    assert_eq!(
        fs::read_dir(&target).unwrap().count(),
        0,
        "nodes were made outside"
    );
}

#[test]
fn masked_file_with_a_false_null_device_is_refused() {
    let rootfs = rootfs();
    fs::write(rootfs.path().join("dev/null"), "no device").unwrap();
    fs::write(rootfs.path().join("hidden"), "text\n").unwrap();
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let spec = with(spec(&["cat", "/hidden"]), "/mounts", mounts);

    let spec = with(spec, "/linux/maskedPaths", json!(["/hidden"]));
    let outcome = isolated(|| run_in(rootfs.path(), spec));

    assert!(outcome.failure().contains("null device"), "{outcome:?}");
}

#[test]
fn file_system_from_a_source_of_the_agents_is_made_before_the_root_changes() {
    let (_keep, lower) = outside();
    let (_keep2, upper) = outside();
    fs::write(lower.join("low"), "low\n").unwrap();
    fs::create_dir(upper.join("work")).unwrap();
    fs::create_dir(upper.join("up")).unwrap();
    let mount = json!({"destination": "/merged", "type": "overlay", "source": "overlay", "options": [
        format!("lowerdir={}", lower.display()), format!("upperdir={}/up", upper.display()),
        format!("workdir={}/work", upper.display()), "nosuid",
    ]});

    let outcome = run_with(mount, "cat /merged/low; echo new > /merged/new");

    assert_eq!(outcome.output(), "low\n");
    assert_eq!(fs::read_to_string(upper.join("up/new")).unwrap(), "new\n");
}

#[test]
fn unknown_file_system_is_an_error_naming_the_mount() {
    let mount = json!({"destination": "/x", "type": "nonesuchfs", "source": "none"});

    let outcome = run_with(mount, "true");

    assert!(outcome.failure().contains("nonesuchfs"), "{outcome:?}");
    assert!(outcome.failure().contains("mounts[6]"), "{outcome:?}");
}

#[test]
fn copied_up_tmpfs_below_another_mount_begins_with_what_it_hides() {
    let (_keep, source) = outside();
    fs::write(source.join("file"), "text\n").unwrap();
    let tmpfs = json!({"destination": "/dev/up", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup"]});
    let spec = with(
        shell("cat /dev/up/file"),
        "/mounts/-",
        bind(&source, "/dev/up", &["bind"]),
    );

    let outcome = run(with(spec, "/mounts/-", tmpfs));

    assert_eq!(outcome.output(), "text\n");
}
