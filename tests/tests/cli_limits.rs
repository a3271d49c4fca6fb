//! `--memory`, `--cpus`, `--pids-limit`: limits that are set are enforced.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Driver, Test, suite};

suite! {
    both:
        memory_limit_exceeded_container_killed_and_told,
        pids_limit_bounds_a_fork_bomb,
        huge_pages_are_the_machines_memory_or_refused;
    uml:
        memory_limit_is_in_the_cgroup,
        memory_limit_leaves_room_for_what_it_allows,
        memory_units_are_powers_of_1024,
        memory_of_a_child_exceeded_leaves_the_rest_alive,
        cpus_are_in_the_cgroup,
        cpus_bound_what_a_container_takes,
        pids_limit_is_in_the_cgroup,
        no_limits_are_unlimited;
}

fn memory_limit_exceeded_container_killed_and_told(test: &Test) {
    // `tail` has to keep the last line, and this one does not end.
    let run = test
        .run(["tail", "/dev/zero"])
        .options(["--memory", "48m", "--json"]);

    let output = run.output();

    output.expect_code(137);
    let error = output.error();
    assert!(error.contains("--memory"), "{output}");
    let report: serde_json::Value = serde_json::from_str(error.lines().last().unwrap()).unwrap();
    assert_eq!(report["oomKilled"], true);
}

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn pool(file: &str) -> u64 {
    let text = fs::read_to_string(Path::new(POOL).join(file)).unwrap();
    text.trim().parse().unwrap()
}

/// So many more huge pages on this host, as long as it lives.
struct MorePages(u64);

impl MorePages {
    fn new(count: u64) -> Self {
        let before = pool("nr_hugepages");
        let more = Self(before);
        fs::write(
            Path::new(POOL).join("nr_hugepages"),
            (before + count).to_string(),
        )
        .unwrap();
        more
    }
}

impl Drop for MorePages {
    fn drop(&mut self) {
        fs::write(Path::new(POOL).join("nr_hugepages"), self.0.to_string()).unwrap();
    }
}

fn huge_pages_are_the_machines_memory_or_refused(test: &Test) {
    const MIB: u64 = 64;
    if !Path::new(POOL).is_dir() {
        return skip(&test.name, "this host has no huge pages of 2 MiB");
    }
    let config = format!("huge_pages = true\nmemory_mib = {MIB}\n");
    fs::write(test.config_dir().join("config.toml"), config).unwrap();

    if test.driver == Driver::Uml {
        let output = test.sh("true").output();
        output.expect_code(125);
        output.expect_error(&["uml cannot make memory of huge pages", "huge_pages"]);
        return;
    }
    if pool("free_hugepages") < MIB / 2 {
        let output = test.sh("true").output();
        output.expect_code(125);
        output.expect_error(&["needs 32 huge pages", "vm.nr_hugepages"]);
    }
    let _more = MorePages::new(MIB / 2);
    let free = || pool("free_hugepages") - pool("resv_hugepages");
    let before = free();
    let mut running = test
        .sh("echo ready; read x")
        .option("-i")
        .with(|c| c.stdin_pipe())
        .start()
        .ready();

    assert_eq!(before - free(), MIB / 2);

    running.write_line("");
    running.finish().expect_code(0);
}

fn memory_limit_is_in_the_cgroup(test: &Test) {
    let output = test
        .sh("cat /sys/fs/cgroup/memory.max")
        .options(["-m", "100m"])
        .output();

    assert_eq!(output.text(), "104857600");
}

fn memory_limit_leaves_room_for_what_it_allows(test: &Test) {
    // Within the limit by a little; the machine needs some more for itself.
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=400 2>/dev/null && echo kept";
    let run = test
        .sh(script)
        .options(["--memory", "448m", "--tmpfs", "/dev/shm:size=420m"]);

    let output = run.output();

    assert_eq!(output.text(), "kept");
}

fn memory_units_are_powers_of_1024(test: &Test) {
    for (size, bytes) in [
        ("67108864", "67108864"),
        ("65536k", "67108864"),
        ("0.125g", "134217728"),
    ] {
        let output = test
            .sh("cat /sys/fs/cgroup/memory.max")
            .options(["-m", size])
            .output();

        assert_eq!(output.text(), bytes, "{size}");
    }
}

fn memory_of_a_child_exceeded_leaves_the_rest_alive(test: &Test) {
    let run = test
        .sh("tail /dev/zero; echo $?; cat /etc/group | head -n 1")
        .options(["-m", "48m"]);

    let output = run.output();

    assert_eq!(output.text(), "137\nroot:x:0:");
}

fn cpus_are_in_the_cgroup(test: &Test) {
    for (cpus, quota) in [("0.5", "50000 100000"), ("1.25", "125000 100000")] {
        let output = test
            .sh("cat /sys/fs/cgroup/cpu.max")
            .options(["--cpus", cpus])
            .output();

        assert_eq!(output.text(), quota, "{cpus}");
    }
}

fn cpus_bound_what_a_container_takes(test: &Test) {
    // The kernel counts how often it held the container back; no clock of ours is involved.
    let script = "i=0; while test $i -lt 300000; do i=$((i+1)); done; cat /sys/fs/cgroup/cpu.stat";

    let output = test.sh(script).options(["--cpus", "0.1"]).output();

    let line = output
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("nr_throttled "));
    assert!(line.unwrap().parse::<u32>().unwrap() > 0, "{output}");
}

fn pids_limit_is_in_the_cgroup(test: &Test) {
    let output = test
        .sh("cat /sys/fs/cgroup/pids.max")
        .options(["--pids-limit", "33"])
        .output();

    assert_eq!(output.text(), "33");
}

fn pids_limit_bounds_a_fork_bomb(test: &Test) {
    // What a shell can do without a process of its own, which it would not get.
    let script = "bomb() { bomb | bomb & }
                  (bomb)
                  while read name value; do test $name = max && hits=$value; done </sys/fs/cgroup/pids.events
                  until test ${hits:-0} -gt 0; do
                      while read name value; do test $name = max && hits=$value; done </sys/fs/cgroup/pids.events
                  done
                  read peak </sys/fs/cgroup/pids.peak
                  echo $peak";

    let output = test.sh(script).options(["--pids-limit", "25"]).output();

    assert_eq!(output.text(), "25");
}

fn no_limits_are_unlimited(test: &Test) {
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max";

    let output = test.sh(script).output();

    assert_eq!(output.text(), "max\nmax 100000\nmax");
}
