//! Signalling, freezing, watching and destroying containers.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;

use super::harness::{
    Sleeper, cgroup_root, create, isolated, parse, pipes, reap, rootfs, shell, sleeping, start,
    unique_id, wait_readable, wait_ready, with,
};
use crate::container::{Container, ContainerError};

#[test]
fn signal_to_all_reaches_every_process() {
    let rootfs = rootfs();
    // The shell is the first of its namespace and survives; it ends when all others have.
    let script = "sleep 1000 & sleep 1000 & sh -c 'echo up; sleep 1000; true' & wait; echo done";

    let text = isolated(|| {
        let (io, mut ends) = pipes();
        let (container, child) = create(shell(script), rootfs.path(), io).unwrap();
        let (pid, reports) = (child.pid, wait_ready(&child).unwrap());
        assert_eq!(start(child, reports), None);
        wait_readable(&ends.stdout);
        container.signal_all(Signal::SIGTERM).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut ends.stdout, &mut text).unwrap();
        reap(pid);
        container.destroy().unwrap();
        text
    });

    assert_eq!(text, "up\ndone\n");
}

#[test]
fn frozen_container_stands_still_until_it_is_thawed() {
    let rootfs = rootfs();

    let (frozen, thawed) = isolated(|| {
        let (io, mut ends) = pipes();
        let (container, child) =
            create(shell("while read l; do echo $l; done"), rootfs.path(), io).unwrap();
        let (pid, reports) = (child.pid, wait_ready(&child).unwrap());
        assert_eq!(start(child, reports), None);
        container.pause().unwrap();
        let state = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let group = state
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap()
            .to_owned();
        let events = cgroup_root().join(group).join("cgroup.events");
        let frozen = std::fs::read_to_string(&events).unwrap();
        std::io::Write::write_all(&mut ends.stdin, b"hello\n").unwrap();
        container.resume().unwrap();
        wait_readable(&ends.stdout);
        let thawed = std::fs::read_to_string(&events).unwrap();
        container.signal_all(Signal::SIGKILL).unwrap();
        reap(pid);
        container.destroy().unwrap();
        (frozen, thawed)
    });

    assert!(frozen.contains("frozen 1"), "{frozen}");
    assert!(thawed.contains("frozen 0"), "{thawed}");
}

#[test]
fn processes_are_listed_with_their_parents_and_users() {
    let rootfs = rootfs();
    let script = "sleep 1000 & echo; wait";
    let spec = with(
        shell(script),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    );

    let (init, processes) = isolated(|| {
        let (io, ends) = pipes();
        let (container, child) = create(spec, rootfs.path(), io).unwrap();
        let (pid, reports) = (child.pid, wait_ready(&child).unwrap());
        assert_eq!(start(child, reports), None);
        wait_readable(&ends.stdout);
        let processes: Vec<_> = container
            .processes()
            .unwrap()
            .into_iter()
            .map(|p| (p.pid, p.parent, p.uid, p.args.len()))
            .collect();
        container.signal_all(Signal::SIGKILL).unwrap();
        reap(pid);
        container.destroy().unwrap();
        (pid.as_raw().unsigned_abs(), processes)
    });

    assert_eq!(processes.len(), 2, "{processes:?}");
    assert_eq!(
        (processes[0].0, processes[0].2, processes[0].3),
        (init, 1000, 3)
    );
    assert_eq!((processes[1].1, processes[1].2), (init, 1000));
}

#[test]
fn destroying_kills_what_outlived_the_first_process() {
    let rootfs = rootfs();
    // Without a PID namespace nothing else would.
    let spec = with(
        shell("sleep 1000 & echo $!"),
        "/linux/namespaces",
        json!([{"type": "mount"}]),
    );
    let spec = with(spec, "/hostname", json!(""));

    let (alive, dead) = isolated(|| {
        let (io, mut ends) = pipes();
        let (container, child) = create(spec, rootfs.path(), io).unwrap();
        let (pid, reports) = (child.pid, wait_ready(&child).unwrap());
        assert_eq!(start(child, reports), None);
        reap(pid);
        let mut left = [0; 16];
        let len = std::io::Read::read(&mut ends.stdout, &mut left).unwrap();
        let left: i32 = std::str::from_utf8(&left[..len])
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let left = nix::unistd::Pid::from_raw(left);
        let alive = container.processes().unwrap().len();
        container.destroy().unwrap();
        // It was reparented away from this process, whoever reaps it.
        let state = std::fs::read_to_string(format!("/proc/{left}/stat")).unwrap_or_default();
        (
            alive,
            state.is_empty() || state.contains(") Z ") || state.contains(") X "),
        )
    });

    assert_eq!(alive, 1);
    assert!(dead);
}

#[test]
fn destroying_removes_groups_that_the_container_made() {
    let rootfs = rootfs();
    let id = unique_id();
    let group = cgroup_root().join(&id);

    isolated(|| {
        let (io, _ends) = pipes();
        let (container, child) = Container::create_below(
            cgroup_root(),
            &id,
            &parse(sleeping()),
            rootfs.path(),
            Path::new("/b"),
            &io,
        )
        .unwrap();
        std::fs::create_dir_all(group.join("a/b")).unwrap();
        wait_ready(&child).unwrap();
        let pid = child.pid;
        drop(child);
        reap(pid);
        container.destroy().unwrap();
    });

    assert!(!group.exists());
}

#[test]
fn container_that_fails_to_be_created_leaves_no_group() {
    let rootfs = rootfs();
    let id = unique_id();
    let spec = with(sleeping(), "/process/terminal", json!(true));
    let spec = with(spec, "/mounts", json!([]));

    let error = isolated(|| {
        let io = crate::container::Io::Terminal {
            columns: 1,
            rows: 1,
        };
        let spec = parse(spec);
        Container::create_below(
            cgroup_root(),
            &id,
            &spec,
            rootfs.path(),
            Path::new("/b"),
            &io,
        )
        .unwrap_err()
        .to_string()
    });

    assert!(error.contains("process.terminal"), "{error}");
    assert!(!cgroup_root().join(&id).exists());
}

#[test]
fn name_that_is_in_use_or_no_name_is_refused() {
    let rootfs = rootfs();
    let taken = unique_id();
    std::fs::create_dir(cgroup_root().join(&taken)).unwrap();

    let errors: Vec<String> = isolated(|| {
        [taken.as_str(), "", "..", "a/b", "cgroup.procs"]
            .map(|id| {
                let (io, _ends) = pipes();
                let result = Container::create_below(
                    cgroup_root(),
                    id,
                    &parse(sleeping()),
                    rootfs.path(),
                    Path::new("/b"),
                    &io,
                );
                result
                    .err()
                    .map(|error: ContainerError| error.to_string())
                    .unwrap_or_default()
            })
            .to_vec()
    });
    std::fs::remove_dir(cgroup_root().join(&taken)).unwrap();

    assert!(errors.iter().all(|error| !error.is_empty()), "{errors:?}");
}

#[test]
fn statistics_count_processes_and_time() {
    let rootfs = rootfs();

    let stats = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let stats = sleeper.container.stats().unwrap();
        sleeper.kill();
        stats.cpu_usage_us
    });

    // `cpu.stat` has usage even without the controller.
    assert!(stats > 0, "{stats}");
}

#[test]
fn paused_container_can_be_destroyed() {
    let rootfs = rootfs();

    let code = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        sleeper.container.pause().unwrap();
        sleeper.kill()
    });

    assert_eq!(code, -9);
}
