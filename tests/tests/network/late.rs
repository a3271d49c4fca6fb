//! Networks that are made or changed between `create` and `start`, as some engines do.

use std::fs;
use std::path::PathBuf;

use bulkhead_tests::{Bundle, Output, Test, tests_on, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::join;
use crate::wire::{AROUND, Wire};

// Where cards come to a running machine there is one for each.
tests_on!(
    qemu,
    run_beside,
    [interfaces_that_come_too_many_are_refused_by_name]
);

/// A container that was created and not started; it is deleted when dropped.
struct Created<'t> {
    test: &'t Test,
    bundle: Bundle<'t>,
    pid: u32,
    output: PathBuf,
}

impl<'t> Created<'t> {
    /// Creates a container whose process runs `script`; its network namespace is that of `wire`, or
    /// one of its own.
    fn new(test: &'t Test, wire: Option<&Wire>, script: &str) -> Self {
        let bundle = test.bundle_sh(script, |config| {
            let path = wire.map(Wire::path);
            join(config, path.as_deref());
            if !test.driver.is_peer() {
                config["annotations"]["io.bulkhead.hypervisor"] = test.driver.hypervisor().into();
            }
        });
        let pid_file = bundle.dir.join("pid");
        let output = bundle.dir.join("output");
        let file = fs::File::create(&output).unwrap();
        let create = test.verb(["create", "--bundle"]).arg(&bundle.dir);
        let create = create.arg("--pid-file").arg(&pid_file).arg(&bundle.id);
        // The container keeps both streams.
        let create = create.stdout_file(file).in_shell("exec \"$@\" 2>&1");
        create.output().expect_code(0);
        let pid = fs::read_to_string(pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        Self {
            test,
            bundle,
            pid,
            output,
        }
    }

    fn start(&self) -> Output {
        self.test.verb(["start", &self.bundle.id]).output()
    }

    /// Waits for the end of its process and returns what it wrote.
    fn finish(&self) -> String {
        wait::gone(self.pid);
        fs::read_to_string(&self.output).unwrap()
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "--force", &self.bundle.id];
        // A start that failed may have removed it.
        let _ = self.test.verb(delete).output();
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // The stand-in of a container that is gone is gone, too; this is for tests that fail.
            if std::thread::panicking() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

pub fn interface_that_comes_before_start_is_there(test: &Test) {
    let script =
        format!("ls /sys/class/net; cat /sys/class/net/net0/mtu; ping -c 1 -W 20 {AROUND}");
    let created = Created::new(test, None, &script);
    let wire = Wire::empty();
    // As an engine does that looks for the namespace behind the container's PID.
    wire.around("link add to-net0 type veth peer name net0");
    wire.around("link set to-net0 master br0 up");
    wire.around(&format!("link set net0 netns {}", created.pid));
    let inside = |words: &str| {
        let words = format!("--net=/proc/{}/ns/net ip {words}", created.pid);
        let nsenter = bulkhead_tests::Invocation::new("/usr/bin/nsenter");
        nsenter.args(words.split(' ')).output().expect_code(0);
    };
    inside("link set net0 mtu 1350 up");
    inside("addr add 10.77.0.2/24 dev net0");

    created.start().expect_code(0);

    let text = created.finish();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["lo", "net0", "1350"], "{text}");
    assert!(text.contains("1 packets received"), "{text}");
}

pub fn addresses_that_come_before_start_are_there(test: &Test) {
    let wire = Wire::new();
    let script = format!("ip -o -4 addr show dev eth0; ip route; ping -c 1 -W 20 {AROUND}");
    let created = Created::new(test, Some(&wire), &script);
    wire.inside("addr del 10.77.0.2/24 dev eth0");
    wire.inside("addr add 10.77.0.7/24 dev eth0");
    wire.inside("route add 10.55.0.0/16 via 10.77.0.1");

    created.start().expect_code(0);

    let text = created.finish();
    assert!(
        text.contains("10.77.0.7/24") && !text.contains("10.77.0.2/24"),
        "{text}"
    );
    assert!(text.contains("10.55.0.0/16 via 10.77.0.1"), "{text}");
    assert!(text.contains("1 packets received"), "{text}");
}

pub fn interfaces_that_come_before_start_are_all_there(test: &Test) {
    let wire = Wire::new();
    let script = format!("ls /sys/class/net; ping -c 1 -W 20 {AROUND}");
    let created = Created::new(test, Some(&wire), &script);
    wire.add_veth("late0", "");
    wire.add_veth("late1", "");
    // One that was there at `create` is not any more.
    wire.inside("link set eth0 down");
    wire.inside("link set eth0 name early0");
    wire.inside("link set early0 up");
    wire.inside(&format!("route replace default via {AROUND}"));

    created.start().expect_code(0);

    let text = created.finish();
    let names: Vec<&str> = text.lines().take(4).collect();
    assert_eq!(names, ["early0", "late0", "late1", "lo"], "{text}");
    assert!(text.contains("1 packets received"), "{text}");
}

fn interfaces_that_come_too_many_are_refused_by_name(test: &Test) {
    let wire = Wire::new();
    let created = Created::new(test, Some(&wire), "true");
    wire.add_veth("late0", "");

    let output = created.start();

    output.expect_error(&["late0", "after the container was created"]);
    wait::gone(created.pid);
    assert_eq!(wire.traces(), Vec::<String>::new());
}

pub fn no_interface_at_start_leaves_loopback_only(test: &Test) {
    let created = Created::new(test, None, "ls /sys/class/net");

    created.start().expect_code(0);

    assert_eq!(created.finish(), "lo\n");
}
