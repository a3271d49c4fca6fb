//! The root of a jail as seen from inside, by a shell.

#![allow(clippy::expect_used, reason = "test code")]

mod common;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use bulkhead_jail::{Entry, Jail, Profile};
use common::Running;

fn jail(entries: Vec<Entry>) -> Jail {
    let mut jail = Jail::new("inner", 0x7000_0042, 0x7000_0042, Profile::None);
    jail.root.entries = entries;
    jail
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The script's standard output, with errors where it wrote them.
fn shell(jail: &Jail, script: &str) -> String {
    let (output, errors, _) = Running::shell(jail, &format!("exec 2>&1; {script}")).finish();
    assert_eq!(errors, "");
    output.trim_end().to_owned()
}

#[test]
fn shell_in_a_jail_sees_its_name_user_and_environment_only() {
    let seen = shell(
        &jail(vec![]),
        "busybox=/bin/busybox; $busybox hostname; $busybox id; $busybox env; echo $$",
    );

    let mut lines = seen.lines();
    assert_eq!(lines.next(), Some("inner"));
    assert_eq!(lines.next(), Some("uid=1879048258 gid=1879048258"));
    let environment: Vec<_> = lines.clone().filter(|line| line.contains('=')).collect();
    assert!(environment.contains(&"ONLY=this"), "{seen}");
    assert!(
        !environment.iter().any(|line| line.starts_with("CARGO")),
        "{seen}"
    );
    assert_eq!(lines.next_back(), Some("1"));
}

#[test]
fn host_files_from_inside_are_unreachable() {
    let seen = shell(
        &jail(vec![]),
        "/bin/busybox ls -A / /bin; /bin/busybox ls ../../../..; /bin/busybox ls /proc",
    );

    assert_eq!(
        seen,
        "/:\nbin\n\n/bin:\nbusybox\nbin\nls: /proc: No such file or directory"
    );
}

#[test]
fn read_only_bind_refuses_writes() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    let jail = jail(vec![common::bind(text(dir.path()), "/data")]);

    let seen = shell(&jail, "echo x > /data/file");

    assert!(seen.contains("Read-only file system"), "{seen}");
    assert!(!dir.path().join("file").exists());
}

#[test]
fn writable_bind_reaches_the_host() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    let entry = Entry::Bind {
        source: dir.path().into(),
        target: "/deep/down/data".into(),
        read_only: false,
        nosuid: true,
        nodev: true,
        noexec: true,
        recursive: true,
    };

    let seen = shell(&jail(vec![entry]), "echo x > /deep/down/data/file");

    assert_eq!(seen, "");
    assert_eq!(
        std::fs::read_to_string(dir.path().join("file")).expect("file"),
        "x\n"
    );
}

#[test]
fn symbolic_link_in_a_bind_is_not_followed() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    std::fs::write(dir.path().join("file"), "content").expect("file");
    symlink("file", dir.path().join("link")).expect("link");
    let jail = jail(vec![common::bind(text(dir.path()), "/data")]);

    let seen = shell(
        &jail,
        "/bin/busybox readlink /data/link; /bin/busybox cat /data/link",
    );

    assert_eq!(
        seen,
        "file\ncat: can't open '/data/link': Too many levels of symbolic links"
    );
}

#[test]
fn symbolic_link_planted_at_a_target_is_not_followed() {
    let dir = tempfile::tempdir().expect("directory");
    symlink("/", dir.path().join("out")).expect("link");
    let mut jail = jail(vec![common::bind(text(dir.path()), "/data")]);
    jail.root
        .entries
        .push(common::bind("/usr", "/data/out/usr"));

    let (_, errors, _) = Running::shell(&jail, "echo entered").finish();

    assert!(
        errors.contains("make the parent directories of \"/data/out/usr\""),
        "{errors}"
    );
}

#[test]
fn file_bind_gets_a_file_as_mount_point() {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), "content").expect("file");
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o444)).expect("mode");

    let seen = shell(
        &jail(vec![common::bind(text(file.path()), "/a/b")]),
        "/bin/busybox cat /a/b",
    );

    assert_eq!(seen, "content");
}

#[test]
fn tmpfs_belongs_to_the_user_and_is_bounded() {
    let entry = Entry::Tmpfs {
        target: "/scratch".into(),
        bytes: 1 << 20,
        mode: 0o700,
        exec: false,
    };

    let seen = shell(
        &jail(vec![entry]),
        "/bin/busybox stat -c '%u %a' /scratch; /bin/busybox cp /bin/busybox /scratch/x || echo full",
    );

    assert!(seen.starts_with("1879048258 700"), "{seen}");
    assert!(seen.ends_with("full"), "{seen}");
}

#[test]
fn root_itself_is_read_only() {
    let seen = shell(
        &jail(vec![Entry::Dir {
            path: "/open".into(),
            mode: 0o777,
        }]),
        "echo x > /open/file",
    );

    assert!(seen.contains("Read-only file system"), "{seen}");
}

#[test]
fn overlay_shows_layers_and_keeps_changes_above() {
    let dir = tempfile::tempdir().expect("directory");
    let at = |name: &str| dir.path().join(name);
    for name in ["top", "base", "upper", "work"] {
        std::fs::create_dir(at(name)).expect("directory");
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o777)).expect("mode");
    }
    std::fs::write(at("top/both"), "top").expect("file");
    std::fs::write(at("base/both"), "base").expect("file");
    std::fs::write(at("base/only"), "base").expect("file");
    let entry = Entry::Overlay {
        lower: vec![at("top"), at("base")],
        upper: at("upper"),
        work: at("work"),
        target: "/tree".into(),
    };

    let seen = shell(
        &jail(vec![entry]),
        "/bin/busybox cat /tree/both /tree/only; echo new > /tree/added",
    );

    assert_eq!(seen, "topbase");
    assert_eq!(
        std::fs::read_to_string(at("upper/added")).expect("file"),
        "new\n"
    );
    assert!(!at("top/added").exists());
}

#[test]
fn device_node_bound_works_and_others_do_not_exist() {
    let entry = Entry::Device {
        source: "/dev/zero".into(),
        target: "/dev/zero".into(),
    };

    let seen = shell(
        &jail(vec![entry]),
        "/bin/busybox head -c 3 /dev/zero | /bin/busybox wc -c; /bin/busybox ls /dev",
    );

    assert_eq!(seen, "3\nzero");
}

#[test]
fn symlink_entry_is_made() {
    let entry = Entry::Symlink {
        text: "bin/busybox".into(),
        path: "/sh".into(),
    };

    assert_eq!(shell(&jail(vec![entry]), "/sh -c 'echo linked'"), "linked");
}

#[test]
fn own_descriptors_show_what_is_open_and_lead_nowhere_else() {
    let jail = Jail::new("inner", 0, 0, Profile::Device);

    let (output, errors, _) = Running::act(&jail, "descriptors").finish();

    assert_eq!(errors, "");
    assert_eq!(output, "true false\n");
}

#[test]
fn program_with_capabilities_is_refused() {
    let mut jail = jail(vec![]);
    jail.capabilities = vec![bulkhead_jail::Capability::SysAdmin];

    let (_, errors, _) = Running::shell(&jail, "echo entered").finish();

    assert!(
        errors.starts_with("A program executed inside a jail gets no capabilities"),
        "{errors}"
    );
}
