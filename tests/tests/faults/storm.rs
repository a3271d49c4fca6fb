//! Very many processes in one container, half of which cannot be executed: nothing of them stays, neither
//! on the host nor in the guest.

use std::fs;
use std::time::{Duration, Instant};

use bulkhead_tests::{Created, Invocation, Output, Test};

use crate::scene::{Cast, choose_hypervisor};

/// One after the other, and at once. `BULKHEAD_TEST_STORM=full` asks for what the project promises; the
/// default is for every day.
fn sizes() -> (usize, usize) {
    match std::env::var("BULKHEAD_TEST_STORM").as_deref() {
        Ok("full") => (500, 50),
        _ => (100, 20),
    }
}

/// What a container costs at one moment.
#[derive(Debug)]
struct Costs {
    /// Descriptors of sandbox, device process and hypervisor.
    descriptors: [usize; 3],
    /// Sockets, open files and tasks of the whole guest: the agent's are among them.
    guest: Vec<u64>,
    /// Memory that the sandbox and the device process have for themselves, KiB.
    host_kib: u64,
    /// Memory the guest has left, KiB.
    available_kib: u64,
}

/// Run as an exec itself, which costs the same each time. Sockets are counted when those of ended
/// processes are gone, which takes the kernel some seconds.
const IN_GUEST: &str = "used() { while read name word count; do test $name = sockets: && echo $count; \
    done </proc/net/sockstat; }; \
    until test $(used) -le ${1:-9999}; do sleep 1; done; used; \
    set -- $(cat /proc/sys/fs/file-nr); echo $1; \
    read a b c tasks rest </proc/loadavg; echo ${tasks#*/}; \
    while read name kib unit; do test $name = MemAvailable: && echo $kib; done </proc/meminfo; true";

impl Costs {
    fn now(container: &Created<'_>, cast: &Cast, sockets: Option<u64>) -> Self {
        let sockets = sockets.map(|count| count.to_string()).unwrap_or_default();
        let script = format!("set -- {sockets}; {IN_GUEST}");
        let output = container.exec(&[], &script).output();
        let numbers = output.text().lines().map(|line| line.parse().unwrap());
        let mut guest: Vec<u64> = numbers.collect();
        assert_eq!(guest.len(), 4, "{output}");
        let processes = [cast.sandbox, cast.device, cast.hypervisor];
        Self {
            available_kib: guest.pop().unwrap(),
            guest,
            descriptors: processes.map(descriptors),
            host_kib: private_kib(cast.sandbox) + private_kib(cast.device),
        }
    }

    fn sockets(&self) -> u64 {
        self.guest[0]
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn private_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

/// Of every four one is missing, one attached, one missing, one detached.
fn one(test: &Test, id: &str, number: usize) -> (Invocation, i32) {
    let exec = |options: &[&str], command: &str| {
        let exec = test.verb(["exec"]).args(options);
        exec.arg(id).arg(command)
    };
    match number % 4 {
        0 => (exec(&[], "/no/such/program"), 127),
        1 => (exec(&[], "/bin/true"), 0),
        2 => (exec(&["--detach"], "/no/such/program"), 127),
        _ => (exec(&["--detach"], "/bin/true"), 0),
    }
}

#[track_caller]
fn judge(output: &Output, code: i32) {
    output.expect_code(code);
    if code != 0 {
        output.expect_error(&["/no/such/program"]);
    }
}

pub fn storm_of_execs_leaves_memory_and_descriptors_where_they_were(test: &Test) {
    choose_hypervisor(test);
    let container = Created::new(test, test.bundle_sh("cat", |_| {}), Invocation::stdin_pipe);
    container.start();
    let cast = Cast::of_engine(test, container.id());
    let (in_turn, at_once) = sizes();
    let all_at_once = || {
        let running: Vec<_> = (0..at_once)
            .map(|number| {
                let (exec, code) = one(test, container.id(), number);
                (exec.spawn(), code)
            })
            .collect();
        for (running, code) in running {
            judge(&running.finish(), code);
        }
    };
    let fresh = Costs::now(&container, &cast, None);
    // What is kept for the next time belongs to the container.
    all_at_once();
    let before = Costs::now(&container, &cast, Some(fresh.sockets()));

    let mut missing = Vec::new();
    for number in 0..in_turn {
        let (exec, code) = one(test, container.id(), number);
        let since = Instant::now();
        judge(&exec.output(), code);
        if code != 0 {
            missing.push(since.elapsed());
        }
    }
    all_at_once();

    let after = Costs::now(&container, &cast, Some(before.sockets()));
    println!("{in_turn} in turn, {at_once} at once\nbefore {before:?}\nafter  {after:?}");
    // The last command's connection may still be open.
    let room = 2;
    for (after, before) in after.descriptors.iter().zip(&before.descriptors) {
        assert!(*after <= before + room, "{after:?} {before:?}");
    }
    // The kernel has threads that come and go.
    let room = 10;
    for (after, before) in after.guest.iter().zip(&before.guest) {
        assert!(*after <= before + room, "{after:?} {before:?}");
    }
    let room = 1024;
    assert!(
        after.host_kib < before.host_kib + room,
        "{before:?} {after:?}"
    );
    let room = 2048;
    assert!(
        after.available_kib + room > before.available_kib,
        "{before:?} {after:?}"
    );
    let io = test.root().join(container.id()).join("io");
    assert_eq!(fs::read_dir(io).map_or(0, Iterator::count), 0);
    // Others may be busy here: half of them have to be in time.
    missing.sort();
    let median = missing[missing.len() / 2];
    assert!(median < Duration::from_secs(1), "{median:?}");
}
