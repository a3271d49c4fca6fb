//! The options of `podman run`.

use std::fs;
use std::path::PathBuf;

use bulkhead_tests::{Invocation, Podman};

use crate::podman_suite;

podman_suite! {
    both:
        volume_is_shared,
        block_device_is_read_and_written,
        memory_limit_holds,
        memory_exceeded_is_told_by_inspect;
    uml:
        environment_user_and_directory_are_set,
        hostname_and_hosts_are_set,
        dns_is_set,
        read_only_root_is_read_only,
        tmpfs_is_mounted,
        mount_takes_binds_and_tmpfs,
        read_only_volume_refuses_writing,
        volume_with_u_changes_its_owner,
        named_volume_outlives_the_container,
        shm_size_is_set,
        ulimit_is_set,
        sysctl_is_set,
        cpus_are_limited,
        pids_limit_holds,
        capabilities_are_dropped_and_added,
        privileged_has_all_capabilities,
        security_options_are_taken,
        seccomp_profile_of_a_file_applies,
        character_device_is_there,
        block_device_for_reading_is_not_written,
        block_device_is_read_as_slowly_as_asked_for,
        entrypoint_is_replaced,
        labels_and_annotations_are_taken;
    newer:
        hostname_and_hosts_are_set,
        dns_is_set,
        mount_takes_binds_and_tmpfs,
        memory_limit_holds,
        security_options_are_taken,
        privileged_has_all_capabilities;
}

fn volume_is_shared(podman: &Podman) {
    let dir = podman.test.new_dir();
    fs::write(dir.join("in"), "from the host").unwrap();
    let volume = format!("{}:/mnt:z", dir.display());

    let output = podman.ran(&["--volume", &volume], "cat /mnt/in; echo back >/mnt/out");

    assert_eq!(output.text(), "from the host");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "back\n");
}

fn read_only_volume_refuses_writing(podman: &Podman) {
    let dir = podman.test.new_dir();
    let volume = format!("{}:/mnt:ro", dir.display());

    let output = podman.ran(&["--volume", &volume], "touch /mnt/x || echo refused");

    assert_eq!(output.text(), "refused");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

fn volume_with_u_changes_its_owner(podman: &Podman) {
    let dir = podman.test.new_dir();
    let volume = format!("{}:/mnt:U", dir.display());

    let output = podman.ran(
        &["--user", "1000:50", "--volume", &volume],
        "stat -c %u:%g /mnt",
    );

    assert_eq!(output.text(), "1000:50");
}

fn named_volume_outlives_the_container(podman: &Podman) {
    podman
        .ran(&["--volume", "data:/mnt"], "echo kept >/mnt/file")
        .expect_code(0);

    let output = podman.ran(&["--volume", "data:/mnt"], "cat /mnt/file");

    assert_eq!(output.text(), "kept");
    podman.podman(&["volume", "rm", "data"]).expect_code(0);
}

fn memory_limit_holds(podman: &Podman) {
    let output = podman.ran(
        &["--memory", "64m", "--memory-swap", "64m"],
        "tail /dev/zero; echo $?",
    );

    assert_eq!(output.text(), "137");
}

fn environment_user_and_directory_are_set(podman: &Podman) {
    let options = ["--env", "A=b c", "--user", "alice", "--workdir", "/tmp"];

    let output = podman.ran(&options, "echo $A; id -u; id -G; pwd; echo $HOME");

    assert_eq!(output.text(), "b c\n1000\n1000 44 50\n/tmp\n/home/alice");
}

fn hostname_and_hosts_are_set(podman: &Podman) {
    let options = ["--hostname", "inside", "--add-host", "other:10.1.2.3"];

    let output = podman.ran(
        &options,
        "hostname; echo $(cat /etc/hostname); cat /etc/hosts",
    );

    let mut lines = output.text().lines();
    assert_eq!(lines.next(), Some("inside"));
    assert_eq!(lines.next(), Some("inside"));
    let hosts: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(hosts.contains(&vec!["10.1.2.3", "other"]), "{output}");
}

fn dns_is_set(podman: &Podman) {
    let options = ["--dns", "10.9.8.7", "--dns-search", "example.org"];
    let run = podman.command(["run", "--rm"]).args(options);

    let output = run
        .args(["localhost/box:v1", "cat", "/etc/resolv.conf"])
        .output();

    assert!(output.text().contains("nameserver 10.9.8.7"), "{output}");
    assert!(output.text().contains("search example.org"), "{output}");
}

fn read_only_root_is_read_only(podman: &Podman) {
    let output = podman.ran(
        &["--read-only"],
        "touch /x || echo refused; touch /tmp/x && echo tmp",
    );

    assert_eq!(output.text(), "refused\ntmp");
}

fn tmpfs_is_mounted(podman: &Podman) {
    let options = ["--tmpfs", "/mnt:size=1m,mode=0750"];

    let output = podman.ran(&options, "grep ' /mnt ' /proc/mounts");

    assert!(output.text().contains("size=1024k"), "{output}");
    assert!(output.text().contains("mode=750"), "{output}");
}

fn mount_takes_binds_and_tmpfs(podman: &Podman) {
    let dir = podman.test.new_dir();
    fs::write(dir.join("file"), "bound").unwrap();
    let bind = format!("type=bind,source={},target=/mnt/a,readonly", dir.display());
    let options = [
        "--mount",
        &bind,
        "--mount",
        "type=tmpfs,target=/mnt/b,tmpfs-mode=1700",
    ];

    let output = podman.ran(
        &options,
        "cat /mnt/a/file; touch /mnt/a/x || echo; stat -c %a /mnt/b",
    );

    assert_eq!(output.text(), "bound\n1700");
}

fn shm_size_is_set(podman: &Podman) {
    let output = podman.ran(&["--shm-size", "3m"], "df -k /dev/shm | tail -n 1");

    let size = output.text().split_whitespace().nth(1);
    assert_eq!(size, Some("3072"), "{output}");
}

fn ulimit_is_set(podman: &Podman) {
    // With one given, Podman leaves the configured ones out and asks for more processes than may be.
    let options = ["--ulimit", "nofile=123:456", "--ulimit", "nproc=1000:1000"];

    let output = podman.ran(&options, "ulimit -Sn; ulimit -Hn");

    assert_eq!(output.text(), "123\n456");
}

fn sysctl_is_set(podman: &Podman) {
    let options = [
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--sysctl",
        "kernel.msgmax=4096",
    ];

    let output = podman.ran(
        &options,
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    );

    assert_eq!(output.text(), "1\n4096");
}

fn cpus_are_limited(podman: &Podman) {
    // Hundredths of a second, of two by the clock.
    let script = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done; \
                  set -- $(sed 's/.*) //' /proc/1/stat); echo $((${12} + ${13} + ${14} + ${15}))";

    let output = podman.ran(&["--cpus", "0.2"], script);

    let ticks: u32 = output.text().parse().unwrap();
    assert!(ticks <= 80, "{ticks} hundredths of a second");
}

fn pids_limit_holds(podman: &Podman) {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo unreached";

    let output = podman.ran(&["--pids-limit", "8"], script);

    assert_ne!(output.code(), 0, "{output}");
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("unreached"),
        "{output}"
    );
}

fn capabilities_are_dropped_and_added(podman: &Podman) {
    let options = [
        "--cap-drop",
        "all",
        "--cap-add",
        "chown",
        "--cap-add",
        "net_admin",
    ];

    let output = podman.ran(&options, "grep CapEff /proc/self/status");

    // Numbers 0 and 12.
    assert_eq!(output.text(), "CapEff:\t0000000000001001");
}

fn privileged_has_all_capabilities(podman: &Podman) {
    let script =
        "grep CapEff /proc/self/status; mount -t tmpfs none /mnt && echo mounted; ls /dev/null";

    let output = podman.ran(&["--privileged"], script);

    let text = output.text();
    let (effective, _) = text.split_once('\n').unwrap();
    let bits = u64::from_str_radix(effective.rsplit('\t').next().unwrap(), 16).unwrap();
    // CAP_SYS_ADMIN and CAP_NET_ADMIN among them; what the host's root lacks, runc cannot give.
    assert_eq!(bits & (1 << 21 | 1 << 12), 1 << 21 | 1 << 12, "{output}");
    assert!(text.contains("mounted"), "{output}");
}

fn security_options_are_taken(podman: &Podman) {
    let options = [
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "label=disable",
        "--security-opt",
        "unmask=/proc/acpi",
    ];

    let output = podman.ran(&options, "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status");

    assert_eq!(output.text(), "NoNewPrivs:\t1\nSeccomp:\t0");
}

fn seccomp_profile_of_a_file_applies(podman: &Podman) {
    let file = podman.test.new_dir().join("profile.json");
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
    });
    fs::write(&file, profile.to_string()).unwrap();
    let option = format!("seccomp={}", file.display());

    let output = podman.ran(&["--security-opt", &option], "mkdir /tmp/x || echo refused");

    assert_eq!(output.text(), "refused");
    assert!(output.error().contains("No space left"), "{output}");
}

fn character_device_is_there(podman: &Podman) {
    let options = ["--device", "/dev/kmsg:/dev/messages:w"];

    let output = podman.ran(
        &options,
        "stat -c '%F %t:%T' /dev/messages; echo x >/dev/messages && echo written",
    );

    assert_eq!(output.text(), "character special file 1:b\nwritten");
}

/// A block device of the host whose content is a file.
pub struct Loop {
    pub node: String,
    file: PathBuf,
}

impl Loop {
    pub fn new(podman: &Podman) -> Self {
        let file = podman.test.new_dir().join("disk");
        fs::write(&file, [b'.'; 1 << 20]).unwrap();
        let setup = Invocation::new("losetup").args(["--find", "--show"]);
        let output = setup.arg(&file).output();
        let node = output.text().to_owned();
        Self { node, file }
    }

    /// The first bytes of the file.
    pub fn begins_with(&self, text: &str) -> bool {
        fs::read(&self.file).unwrap().starts_with(text.as_bytes())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detach = Invocation::new("losetup").args(["--detach", &self.node]);
        detach.output().expect_code(0);
    }
}

fn block_device_is_read_and_written(podman: &Podman) {
    let disk = Loop::new(podman);
    let device = format!("{}:/dev/disk", disk.node);

    let script = "head -c 3 /dev/disk; \
                  printf written | dd of=/dev/disk conv=notrunc,fsync 2>/dev/null; \
                  head -c 9 /dev/disk; echo; wc -c </dev/disk; stat -c %F /dev/disk";
    let output = podman.ran(&["--device", &device], script);

    let expected = "...written..\n1048576\nblock special file";
    assert_eq!(output.text(), expected);
    assert!(disk.begins_with("written.."));
}

fn block_device_for_reading_is_not_written(podman: &Podman) {
    let disk = Loop::new(podman);
    let device = format!("{}:/dev/disk:r", disk.node);

    let script = "head -c 3 /dev/disk; echo x 2>/dev/null >/dev/disk || echo refused";
    let output = podman.ran(&["--device", &device], script);

    assert_eq!(output.text(), "...refused");
    assert!(disk.begins_with("..."));
}

fn block_device_is_read_as_slowly_as_asked_for(podman: &Podman) {
    let disk = Loop::new(podman);
    let device = format!("{}:/dev/disk", disk.node);
    let slowly = format!("{}:256kb", disk.node);

    // A mebibyte.
    let script = "start=$(date +%s); wc -c </dev/disk; echo $(($(date +%s) - start))";
    let output = podman.ran(&["--device", &device, "--device-read-bps", &slowly], script);

    let (length, seconds) = output.text().split_once('\n').unwrap();
    assert_eq!(length, "1048576");
    assert!(seconds.parse::<u32>().unwrap() >= 2, "{output}");
}

fn entrypoint_is_replaced(podman: &Podman) {
    let run = podman.command([
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "/bin/echo",
    ]);

    let output = run.args(["localhost/box:v1", "hello"]).output();

    assert_eq!(output.text(), "hello");
}

fn labels_and_annotations_are_taken(podman: &Podman) {
    let options = ["--label", "a=b", "--annotation", "org.example.c=d"];

    let name = podman.detached(&options, "sleep 1000");

    let container = podman.inspect(&name);
    assert_eq!(container["Config"]["Labels"]["a"], "b");
    assert_eq!(container["Config"]["Annotations"]["org.example.c"], "d");
}

fn memory_exceeded_is_told_by_inspect(podman: &Podman) {
    let limit = ["--memory", "64m", "--memory-swap", "64m"];
    let name = podman.detached(&limit, "exec tail /dev/zero");

    assert_eq!(podman.podman(&["wait", &name]).text(), "137");

    // With a peer it is conmon that has to notice, which on hosts with both versions of cgroups it does not.
    let told = podman.inspect(&name)["State"]["OOMKilled"] == true;
    assert!(told || podman.test.driver.is_peer());
    // What was found of one run does not stick to the next.
    let other = podman.detached(&limit, "exit 3");
    assert_eq!(podman.podman(&["wait", &other]).text(), "3");
    assert_eq!(podman.inspect(&other)["State"]["OOMKilled"], false);
}
