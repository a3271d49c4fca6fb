//! Linux: default files, devices, kernel parameters, hidden and read-only paths.

use serde_json::json;

use crate::requirement::Exception::{Crun, Runc, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const FILES: &[Requirement] = requirements! {
    "Linux: files and devices";
    default_devices_are_there = "null, zero, full, random, urandom, tty and ptmx are in `/dev`";
    default_devices_work_for_users = "They can be used by users that are not root";
    links_to_descriptors_are_there = "`/dev/fd`, `/dev/stdin`, `/dev/stdout`, `/dev/stderr` are links into `/proc/self`";
    ptmx_is_of_the_own_devpts = "`/dev/ptmx` is that of the container's devpts";
    console_without_terminal_is_no_terminal = "Without a terminal there is no `/dev/console`";
    device_has_mode_and_owner = "`devices`: made with mode and owner";
    device_outside_of_dev_is_made = "`devices`: made outside of `/dev`, too";
    fifo_is_made = "`devices`: type `p`";
    block_device_is_made = "`devices`: a block device of the host" [
        Vm("it is there and works, as a disk of the guest, whose number is another one"),
    ];
};

pub const KERNEL: &[Requirement] = requirements! {
    "Linux: kernel parameters, hidden paths, personality";
    sysctl_is_set = "`sysctl` is set";
    unknown_sysctl_is_an_error = "A `sysctl` that does not exist is an error";
    masked_file_is_empty = "`maskedPaths`: a file cannot be read";
    masked_directory_is_empty = "`maskedPaths`: a directory cannot be read";
    masked_path_that_is_missing_is_ignored = "`maskedPaths`: one that does not exist is no error";
    readonly_path_refuses_writing = "`readonlyPaths`: cannot be written, all the rest can";
    root_is_private = "`rootfsPropagation` private";
    unknown_propagation_is_an_error = "An unknown `rootfsPropagation` is an error" [
        Crun("1.8 ignores it"),
    ];
    personality_is_set = "`personality` LINUX32: the machine is i686" [
        Runc("1.1 ignores it"),
        Vm("refused by User-Mode Linux, which has no 32-bit mode; the kernel for QEMU has"),
    ];
};

fn default_devices_are_there(subject: &Subject) {
    let script = "for name in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$name; done";

    let output = subject.ran(script, |_| {});

    let device =
        |name: &str, number: &str| format!("/dev/{name} character special file {number} 666");
    let wanted = [
        device("null", "1:3"),
        device("zero", "1:5"),
        device("full", "1:7"),
        device("random", "1:8"),
        device("urandom", "1:9"),
        device("tty", "5:0"),
    ];
    assert_eq!(output.text().lines().collect::<Vec<_>>(), wanted);
}

fn default_devices_work_for_users(subject: &Subject) {
    let script = "head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; \
                  echo x >/dev/null && echo null; echo x 2>/dev/null >/dev/full || echo full";

    let output = subject.ran(script, |config| {
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });

    assert_eq!(output.text(), "3\n5\nnull\nfull");
}

fn links_to_descriptors_are_there(subject: &Subject) {
    let script = "for name in fd stdin stdout stderr; do readlink /dev/$name; done";

    let output = subject.ran(script, |_| {});

    let links = [
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
    ];
    assert_eq!(output.text().lines().collect::<Vec<_>>(), links);
}

fn ptmx_is_of_the_own_devpts(subject: &Subject) {
    let output = subject.ran(
        "[ /dev/ptmx -ef /dev/pts/ptmx ] && stat -Lc %t:%T /dev/ptmx",
        |_| {},
    );

    assert_eq!(output.text(), "5:2");
}

fn console_without_terminal_is_no_terminal(subject: &Subject) {
    let output = subject.ran("[ ! -c /dev/console ] && echo none", |_| {});

    assert_eq!(output.text(), "none");
}

fn device_has_mode_and_owner(subject: &Subject) {
    let output = subject.ran("stat -c '%F %t:%T %a %u:%g' /dev/second", |config| {
        let device = json!({
            "path": "/dev/second", "type": "c", "major": 1, "minor": 5,
            "fileMode": 0o640, "uid": 1000, "gid": 44,
        });
        config["linux"]["devices"] = json!([device]);
    });

    assert_eq!(output.text(), "character special file 1:5 640 1000:44");
}

fn device_outside_of_dev_is_made(subject: &Subject) {
    let output = subject.ran("stat -c '%F %t:%T' /opt/a/null", |config| {
        let device = json!({ "path": "/opt/a/null", "type": "c", "major": 1, "minor": 3 });
        config["linux"]["devices"] = json!([device]);
    });

    assert_eq!(output.text(), "character special file 1:3");
}

fn fifo_is_made(subject: &Subject) {
    let output = subject.ran("stat -c '%F %a' /dev/queue", |config| {
        let device = json!({ "path": "/dev/queue", "type": "p", "fileMode": 0o622 });
        config["linux"]["devices"] = json!([device]);
    });

    assert_eq!(output.text(), "fifo 622");
}

fn block_device_is_made(subject: &Subject) {
    let output = subject.ran("stat -c '%F %t:%T' /dev/disk", |config| {
        let device = json!({ "path": "/dev/disk", "type": "b", "major": 7, "minor": 0 });
        config["linux"]["devices"] = json!([device]);
    });

    assert_eq!(output.text(), "block special file 7:0");
}

fn sysctl_is_set(subject: &Subject) {
    let output = subject.ran(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced",
        |config| {
            config["linux"]["sysctl"] =
                json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" });
        },
    );

    assert_eq!(output.text(), "1\n1");
}

fn unknown_sysctl_is_an_error(subject: &Subject) {
    subject.refused(|config| {
        config["linux"]["sysctl"] = json!({ "net.ipv4.no_such_parameter": "1" });
    });
}

fn masked_file_is_empty(subject: &Subject) {
    let output = subject.ran("cat /proc/version /etc/passwd | wc -c", |config| {
        config["linux"]["maskedPaths"] = json!(["/proc/version", "/etc/passwd"]);
    });

    assert_eq!(output.text(), "0");
}

fn masked_directory_is_empty(subject: &Subject) {
    let output = subject.ran(
        "ls /proc/irq /home | grep -v : | wc -w; touch /home/x || echo refused",
        |config| {
            config["linux"]["maskedPaths"] = json!(["/proc/irq", "/home"]);
        },
    );

    assert_eq!(output.text(), "0\nrefused");
}

fn masked_path_that_is_missing_is_ignored(subject: &Subject) {
    let output = subject.ran("echo hello", |config| {
        config["linux"]["maskedPaths"] = json!(["/proc/no_such_file"]);
    });

    assert_eq!(output.text(), "hello");
}

fn readonly_path_refuses_writing(subject: &Subject) {
    let script = "touch /home/x || echo refused; echo 1 >/proc/sys/net/ipv4/ip_forward || echo refused; touch /x";

    let output = subject.ran(script, |config| {
        config["linux"]["readonlyPaths"] = json!(["/home", "/proc/sys", "/proc/no_such_file"]);
    });

    assert_eq!(output.text(), "refused\nrefused");
}

fn root_is_private(subject: &Subject) {
    let output = subject.ran("cat /proc/self/mountinfo", |config| {
        config["linux"]["rootfsPropagation"] = json!("private");
    });

    let root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let line = output.text().lines().find(root).expect("a root");
    assert!(
        !line.contains("shared:") && !line.contains("master:"),
        "{line}"
    );
}

fn unknown_propagation_is_an_error(subject: &Subject) {
    subject.refused(|config| config["linux"]["rootfsPropagation"] = json!("sideways"));
}

fn personality_is_set(subject: &Subject) {
    let output = subject.ran("uname -m", |config| {
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    });

    assert_eq!(output.text(), "i686");
}
