//! Namespaces.

use std::fs;

use bulkhead_tests::harness::bundle::push;
use bulkhead_tests::harness::invocation::Invocation;
use bulkhead_tests::harness::running::Running;
use serde_json::json;

use crate::requirement::Exception::{Crun, NotYet, Vm};
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::{Subject, namespace_path, without_namespace};

pub const NAMESPACES: &[Requirement] = requirements! {
    "Linux: namespaces";
    pid_namespace_is_new = "`pid`: the process is the first of its namespace and sees no others";
    network_namespace_is_new = "`network`: only `lo`";
    network_namespace_of_the_process_is_new = "`network`: the process named to the engine is in it";
    uts_namespace_is_new = "`uts`: a change of the host name stays inside";
    ipc_namespace_is_new = "`ipc`: System V objects of the host are not seen";
    mount_namespace_is_new = "`mount`: mounts of the container are not seen on the host";
    cgroup_namespace_is_new = "`cgroup`: the container's own cgroup is the root";
    network_namespace_with_path_is_joined = "`network` with a path: its interfaces are the container's";
    network_namespace_with_path_remains = "`network` with a path: it is as it was when the container is deleted";
    namespace_path_that_is_missing_is_an_error = "A path that does not exist is an error";
    namespace_of_another_type_is_an_error = "A path to a namespace of another type is an error";
    duplicate_namespace_is_an_error = "Two namespaces of one type are an error" [
        Crun("1.8 takes the last one"),
    ];
    unknown_namespace_is_an_error = "An unknown type is an error";
    user_namespace_maps_ids = "`user`: IDs are mapped" [
        NotYet("user namespaces inside the guest; root in the container is not root on the host"),
    ];
    pid_namespace_left_out_is_the_runtimes = "`pid` left out: the runtime's" [
        Vm("refused: the host's processes are in another kernel"),
    ];
    network_namespace_left_out_is_the_runtimes = "`network` left out: the runtime's" [
        Vm("refused: the host's interfaces belong to another kernel"),
    ];
    ipc_namespace_left_out_is_the_runtimes = "`ipc` left out: the runtime's" [
        Vm("refused: the host's objects are in another kernel"),
    ];
    uts_namespace_left_out_is_the_runtimes = "`uts` left out: the runtime's" [
        Vm("refused: the host's name is in another kernel"),
    ];
};

fn pid_namespace_is_new(subject: &Subject) {
    let output = subject.ran("echo $$; echo /proc/[0-9]*", |_| {});

    assert_eq!(output.text(), "1\n/proc/1");
}

fn network_namespace_is_new(subject: &Subject) {
    let output = subject.ran("ls /sys/class/net; cat /proc/net/dev | grep -c :", |_| {});

    assert_eq!(output.text(), "lo\n1");
}

fn network_namespace_of_the_process_is_new(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(of(&container.pid.to_string()), of("self"));
}

fn uts_namespace_is_new(subject: &Subject) {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();

    let output = subject.ran("hostname other && hostname", |config| {
        let set = json!(["CAP_SYS_ADMIN"]);
        config["process"]["capabilities"] =
            json!({ "bounding": set, "permitted": set, "effective": set });
    });

    assert_eq!(output.text(), "other");
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
        before
    );
}

fn ipc_namespace_is_new(subject: &Subject) {
    let queue = Queue::new();

    let output = subject.ran("tail -n +2 /proc/sysvipc/msg | wc -l", |_| {});

    assert_eq!(output.text(), "0");
    drop(queue);
}

/// A System V message queue of ours, removed when dropped.
struct Queue(i32);

impl Queue {
    fn new() -> Self {
        // SAFETY: no pointers are passed.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
        assert!(id >= 0);
        Self(id)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the command takes no buffer.
        unsafe { libc::msgctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

fn mount_namespace_is_new(subject: &Subject) {
    let container = subject.created("true", |_| {});

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let rootfs = container.bundle.rootfs();
    assert!(!mounts.contains(rootfs.to_str().unwrap()), "{mounts}");
}

fn cgroup_namespace_is_new(subject: &Subject) {
    let output = subject.ran("cut -d : -f 3 /proc/self/cgroup | sort -u", |config| {
        push(config, "/linux/namespaces", json!({ "type": "cgroup" }));
    });

    assert_eq!(output.text(), "/");
}

/// A network namespace with an interface `given`, which lives as long as this.
struct Network(Running);

impl Network {
    fn new() -> Self {
        let script = "ip link set lo up; ip link add given type veth peer name other; \
                      ip address add 10.7.7.7/24 dev given; ip link set given up; ip link set other up; \
                      echo ready; read line";
        let unshare = Invocation::new("unshare").args(["--net", "sh", "-c", script]);
        let mut running = unshare
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin_pipe()
            .spawn();
        running.line_is("ready");
        Self(running)
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.pid())
    }
}

fn network_namespace_with_path_is_joined(subject: &Subject) {
    let network = Network::new();

    let output = subject.ran("ip -4 -o address show dev given", |config| {
        namespace_path(config, "network", &network.path("net"));
    });

    assert!(output.text().contains("10.7.7.7/24"), "{output}");
}

fn network_namespace_with_path_remains(subject: &Subject) {
    let network = Network::new();
    let mut container = subject.created("true", |config| {
        namespace_path(config, "network", &network.path("net"));
    });
    container.start();
    container.wait();

    container.verb("delete", &[]).expect_code(0);

    let path = network.path("net");
    let links = Invocation::new("nsenter").args([&format!("--net={path}"), "ip", "-o", "address"]);
    let output = links.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    assert!(output.text().contains("10.7.7.7/24"), "{output}");
    // lo with one address, and given with two.
    let links: Vec<&str> = output
        .text()
        .lines()
        .filter(|it| it.contains("inet "))
        .collect();
    assert_eq!(links.len(), 2, "{output}");
}

fn namespace_path_that_is_missing_is_an_error(subject: &Subject) {
    subject.refused(|config| namespace_path(config, "network", "/run/netns/no-such-namespace"));
}

fn namespace_of_another_type_is_an_error(subject: &Subject) {
    let network = Network::new();

    subject.refused(|config| namespace_path(config, "network", &network.path("uts")));
}

fn duplicate_namespace_is_an_error(subject: &Subject) {
    subject.refused(|config| push(config, "/linux/namespaces", json!({ "type": "pid" })));
}

fn unknown_namespace_is_an_error(subject: &Subject) {
    subject.refused(|config| push(config, "/linux/namespaces", json!({ "type": "nothing" })));
}

fn user_namespace_maps_ids(subject: &Subject) {
    let output = subject.ran("cat /proc/self/uid_map", |config| {
        push(config, "/linux/namespaces", json!({ "type": "user" }));
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
        without_mount(config, "/sys");
        without_mount(config, "/dev/mqueue");
    });

    let numbers: Vec<&str> = output.text().split_whitespace().collect();
    assert_eq!(numbers, ["0", "100000", "65536"]);
}

fn without_mount(config: &mut serde_json::Value, destination: &str) {
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != destination);
}

/// The container's link to its namespace, without an entry for it in the configuration.
#[track_caller]
fn link_without(subject: &Subject, entry: &str, link: &str) -> String {
    let output = subject.ran(&format!("readlink /proc/self/ns/{link}"), |config| {
        without_namespace(config, entry);
        // Belong to the namespaces in question.
        config.as_object_mut().unwrap().remove("hostname");
        without_mount(config, "/sys");
        without_mount(config, "/dev/mqueue");
    });
    output.text().to_owned()
}

fn ours(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    link.display().to_string()
}

fn pid_namespace_left_out_is_the_runtimes(subject: &Subject) {
    assert_eq!(link_without(subject, "pid", "pid"), ours("pid"));
}

fn network_namespace_left_out_is_the_runtimes(subject: &Subject) {
    assert_eq!(link_without(subject, "network", "net"), ours("net"));
}

fn ipc_namespace_left_out_is_the_runtimes(subject: &Subject) {
    assert_eq!(link_without(subject, "ipc", "ipc"), ours("ipc"));
}

fn uts_namespace_left_out_is_the_runtimes(subject: &Subject) {
    assert_eq!(link_without(subject, "uts", "uts"), ours("uts"));
}
