//! `bulkhead run` in Docker's and Podman's form: the process, its streams, its surroundings.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use bulkhead_tests::harness::rootfs::add_script;
use bulkhead_tests::{Container, Test, product, suite, wait};

suite! {
    both:
        exit_code_of_command_returned,
        command_that_does_not_exist_gives_127,
        every_byte_arrives_on_its_stream,
        stream_through_cat_arrives_with_bounded_memory,
        stalled_reader_stalls_nobody_else,
        closed_output_ends_producer,
        kernel_is_the_guests_own,
        json_reports_the_end;
    uml:
        gibibyte_through_cat_arrives_with_bounded_memory,
        files_as_streams_are_read_and_appended_to,
        closed_streams_do_no_harm,
        endless_input_is_left_when_the_command_ends,
        command_that_cannot_be_executed_gives_126,
        signal_that_ends_command_gives_128_and_its_number,
        command_is_process_one,
        no_command_is_an_error,
        input_ends_where_ours_ends,
        input_is_empty_without_interactive,
        output_of_orphans_arrives_before_the_end,
        environment_has_defaults_and_the_given,
        environment_variable_by_name_is_passed_on,
        working_directory_is_the_given,
        working_directory_that_is_missing_is_made,
        umask_is_the_usual,
        host_name_is_the_given,
        host_name_is_the_containers_name_by_default,
        options_after_the_command_are_the_commands,
        name_in_use_is_refused_and_left_alone,
        stopped_container_stays_with_its_exit_code,
        removed_container_leaves_nothing,
        hypervisor_auto_says_why,
        two_containers_run_side_by_side,
        bundle_in_a_private_directory_runs;
}

fn exit_code_of_command_returned(test: &Test) {
    let success = test.run(["true"]).output();
    let failure = test.sh("exit 3").output();

    success.expect_code(0);
    failure.expect_code(3);
}

fn command_that_does_not_exist_gives_127(test: &Test) {
    let output = test.run(["/bin/none"]).output();

    output.expect_code(127);
    output.expect_error(&["/bin/none"]);
}

fn command_that_cannot_be_executed_gives_126(test: &Test) {
    for path in ["/etc/passwd", "/etc"] {
        let output = test.run([path]).output();

        output.expect_code(126);
        output.expect_error(&[path]);
    }
}

fn signal_that_ends_command_gives_128_and_its_number(test: &Test) {
    let mut container = test.sh("echo ready; exec sleep 1000").start().ready();

    container.kill("KILL");

    container.end().expect_code(128 + 9);
}

fn command_is_process_one(test: &Test) {
    let output = test.sh("echo $$; exit 0").output();

    assert_eq!(output.text(), "1");
}

fn no_command_is_an_error(test: &Test) {
    let output = test.run(&[] as &[&str]).output();

    output.expect_code(125);
    output.expect_error(&["ommand"]);
}

fn every_byte_arrives_on_its_stream(test: &Test) {
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let other: Vec<u8> = bytes.iter().rev().copied().collect();
    fs::write(test.rootfs().join("other"), &other).unwrap();

    let output = test
        .sh("cat; cat /other >&2")
        .interactive(bytes.clone())
        .output();

    output.expect_code(0);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    assert!(output.stderr == other, "{} bytes", output.stderr.len());
}

fn input_ends_where_ours_ends(test: &Test) {
    let output = test.sh("cat; echo end").interactive("some text").output();

    assert_eq!(output.text(), "some textend");
}

fn input_is_empty_without_interactive(test: &Test) {
    let run = test
        .sh("cat; echo end")
        .with(|command| command.stdin("not for you"));

    assert_eq!(run.output().text(), "end");
}

fn output_of_orphans_arrives_before_the_end(test: &Test) {
    // The child is killed with its namespace; what it wrote until then is not lost.
    let script = "(seq 1 50000; echo done >/tmp/done) & until test -e /tmp/done; do :; done";

    let output = test.sh(script).output().expect(0);

    let wanted: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    assert!(
        output.stdout == wanted.as_bytes(),
        "{} bytes",
        output.stdout.len()
    );
}

/// Highest memory use of a process so far, KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.map_or(0, |number| number.parse().unwrap())
}

/// A mebibyte that is unlike every other: the same noise, marked with its number.
fn block(noise: &[u8], number: u64) -> Vec<u8> {
    let mut block = noise.to_vec();
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// Sends so many mebibytes through `cat` and compares each; watches the memory of every process on
/// the host that has to do with it.
fn through_cat(test: &Test, blocks: u64) {
    const MIB: usize = 1 << 20;
    let mut noise = vec![0; MIB];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut noise)
        .unwrap();
    let run = test.sh("echo ready; exec cat").option("-i");
    // Takes as long as it takes on a busy machine; this is no measurement.
    let limit = Duration::from_secs(300);
    let run = run.with(|command| command.stdin_pipe().limit(limit));
    let mut container = run.start().ready();
    let processes = host_processes(&container);
    let before: Vec<u64> = processes.iter().map(|pid| peak(*pid)).collect();

    let mut input = container.take_stdin();
    let sent = noise.clone();
    let writer = thread::spawn(move || {
        for number in 0..blocks {
            input.write_all(&block(&sent, number)).unwrap();
        }
        input
    });
    let mut output = container.take_stdout();
    let mut received = vec![0; MIB];
    for number in 0..blocks {
        output.read_exact(&mut received).unwrap();
        assert!(received == block(&noise, number), "block {number} differs");
    }
    assert_grown_little(&processes, &before);
    drop(writer.join().unwrap());
    assert_eq!(output.read(&mut received).unwrap(), 0);

    container.end().expect_code(0);
}

/// The command, the sandbox process and what descends from it.
fn host_processes(container: &Container<'_>) -> Vec<u32> {
    let mut processes = container.processes();
    processes.push(container.pid());
    processes
}

/// Asserts that no process holds a good part of what went through it.
fn assert_grown_little(processes: &[u32], before: &[u64]) {
    for (pid, before) in processes.iter().zip(before) {
        let grown = peak(*pid).saturating_sub(*before);
        assert!(grown < 64 * 1024, "process {pid} grew by {grown} KiB");
    }
}

fn gibibyte_through_cat_arrives_with_bounded_memory(test: &Test) {
    through_cat(test, 1024);
}

fn stream_through_cat_arrives_with_bounded_memory(test: &Test) {
    // More than all buffers on the way together, and soon through an emulated machine too.
    through_cat(test, 24);
}

fn stalled_reader_stalls_nobody_else(test: &Test) {
    let mut container = test.sh("echo ready; exec cat /dev/zero").start();
    container.line_is("ready");
    let processes = host_processes(&container);
    let before: Vec<u64> = processes.iter().map(|pid| peak(*pid)).collect();

    // Nobody reads what `cat` writes now.
    let others: Vec<String> = (0..5)
        .map(|_| container.sh("seq 1 10000 | tail -n 1").text().to_owned())
        .collect();

    assert_eq!(others, ["10000"; 5]);
    assert_grown_little(&processes, &before);
    container.close_stdout();
    container.end().expect_code(1);
}

fn files_as_streams_are_read_and_appended_to(test: &Test) {
    let (input, output) = (test.dir().join("input"), test.dir().join("output"));
    fs::write(&input, "new\n").unwrap();
    fs::write(&output, "old\n").unwrap();
    let appended = fs::OpenOptions::new().append(true).open(&output).unwrap();
    let run = test.run(["cat"]).option("-i").with(|command| {
        let input = fs::File::open(&input).unwrap();
        command.stdin_file(input).stdout_file(appended)
    });

    run.output().expect_code(0);

    assert_eq!(fs::read_to_string(&output).unwrap(), "old\nnew\n");
}

fn closed_streams_do_no_harm(test: &Test) {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let run = test.sh("cat; echo out; echo err >&2; exit 4").option("-i");
        let script = format!("\"$@\" {closed}");

        let output = run.with(|command| command.stdin("in ")).invocation();
        let output = output.in_shell(&script).output();

        output.expect_code(4);
    }
}

fn endless_input_is_left_when_the_command_ends(test: &Test) {
    let run = test.run(["head", "-n", "1"]).option("-i").invocation();

    let output = run.in_shell("yes | \"$@\"").output();

    assert_eq!(output.text(), "y");
}

fn closed_output_ends_producer(test: &Test) {
    let mut container = test.sh("yes; echo $? >&2").start();
    container.line_is("y");

    container.close_stdout();

    // 13 is SIGPIPE.
    let output = container.end().expect(0);
    assert_eq!(output.error(), "141\n");
}

fn environment_has_defaults_and_the_given(test: &Test) {
    let options = ["-e", "A=1 2", "--env", "EMPTY=", "--hostname", "here"];

    let output = test.run(["env"]).options(options).output();

    let mut lines: Vec<&str> = output.text().lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        lines,
        ["A=1 2", "EMPTY=", "HOME=/root", "HOSTNAME=here", path]
    );
}

fn environment_variable_by_name_is_passed_on(test: &Test) {
    let run = test
        .sh("echo $GIVEN${MISSING-none}")
        .options(["-e", "GIVEN", "-e", "MISSING"]);

    let output = run
        .with(|command| command.env("GIVEN", "from here "))
        .output();

    assert_eq!(output.text(), "from here none");
}

fn working_directory_is_the_given(test: &Test) {
    let default = test.run(["/bin/pwd"]).output();
    let given = test
        .run(["/bin/pwd"])
        .options(["-w", "/home/alice"])
        .output();

    assert_eq!(default.text(), "/");
    assert_eq!(given.text(), "/home/alice");
}

fn working_directory_that_is_missing_is_made(test: &Test) {
    let output = test
        .run(["/bin/pwd"])
        .options(["--workdir", "/a/b/c"])
        .output();

    assert_eq!(output.text(), "/a/b/c");
}

fn umask_is_the_usual(test: &Test) {
    let output = test.sh("umask").output();

    assert_eq!(output.text(), "0022");
}

fn host_name_is_the_given(test: &Test) {
    let output = test
        .sh("hostname; cat /proc/sys/kernel/hostname")
        .options(["--hostname", "mars"])
        .output();

    assert_eq!(output.text(), "mars\nmars");
}

fn host_name_is_the_containers_name_by_default(test: &Test) {
    let output = test.run(["hostname"]).name("my-box").output();

    assert_eq!(output.text(), "my-box");
}

fn options_after_the_command_are_the_commands(test: &Test) {
    add_script(test.rootfs(), "/bin/args", "for a; do echo \"<$a>\"; done");
    let command = ["args", "--rm", "-e", "--", "--name=x", "", "a b"];

    let output = test.run(command).output();

    assert_eq!(output.text(), "<--rm>\n<-e>\n<-->\n<--name=x>\n<>\n<a b>");
}

fn kernel_is_the_guests_own(test: &Test) {
    let output = test.run(["uname", "-r"]).output();

    let release = output.text();
    assert_ne!(release, wait::host_kernel());
    let kernels = product().kernels();
    let flavour = kernels
        .iter()
        .filter(|kernel| kernel["flavour"] == test.driver.flavour());
    let mut versions = flavour.map(|kernel| kernel["version"].as_str().unwrap());
    assert!(
        versions.any(|version| version == release),
        "{release}: {kernels:?}"
    );
}

fn json_reports_the_end(test: &Test) {
    let output = test.sh("echo text >&2; exit 7").option("--json").output();

    output.expect_code(7);
    let error = output.error();
    let (text, report) = error.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(text, "text");
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    assert_eq!(report["exitCode"], 7);
    assert_eq!(report["hypervisor"], test.driver.hypervisor());
    assert_eq!(report["oomKilled"], false);
    assert!(
        report["timeline"]["spans"]
            .as_array()
            .is_some_and(|spans| !spans.is_empty())
    );
    let isolations = ["user-mode-kernel", "emulated-vm", "hardware-vm"];
    assert!(
        isolations.contains(&report["isolation"].as_str().unwrap()),
        "{report}"
    );
}

fn name_in_use_is_refused_and_left_alone(test: &Test) {
    let mut container = test
        .sh("echo ready; exec cat")
        .option("-i")
        .with(|c| c.stdin_pipe())
        .start()
        .ready();

    let second = test.run(["true"]).name(&container.id).output();

    second.expect_code(125);
    second.expect_error(&[&container.id, "in use"]);
    container.write_line("still here");
    assert_eq!(container.line(), "still here");
    container.end().expect_code(0);
}

fn stopped_container_stays_with_its_exit_code(test: &Test) {
    let id = test.new_id();
    test.sh("exit 9").name(&id).keep().output().expect_code(9);

    let list = test.verb(["list", "--format", "json"]).output().json();
    let state = test.verb(["state", &id]).output().json();
    test.verb(["delete", &id]).output().expect_code(0);

    assert_eq!(list.as_array().map(Vec::len), Some(1));
    assert_eq!(list[0]["id"], id);
    assert_eq!(list[0]["status"], "stopped");
    assert_eq!(
        (&state["status"], &state["exitCode"]),
        (&"stopped".into(), &9.into())
    );
    assert_eq!(state["pid"], 0);
    assert_eq!(test.verb(["list", "-q"]).output().text(), "");
}

fn removed_container_leaves_nothing(test: &Test) {
    test.run(["true"]).output().expect_code(0);

    assert_eq!(test.verb(["list", "-q"]).output().text(), "");
    assert_eq!(test.containers(), [""; 0]);
}

fn hypervisor_auto_says_why(test: &Test) {
    let rootfs = test.rootfs().display().to_string();
    let args = [
        "run",
        "--rm",
        "--hypervisor",
        "auto",
        "--json",
        "--rootfs",
        &rootfs,
        "--",
        "true",
    ];

    let output = test.verb(args).output().expect(0);

    let report: serde_json::Value = serde_json::from_str(output.error().trim_end()).unwrap();
    assert!(["uml", "qemu"].contains(&report["hypervisor"].as_str().unwrap()));
    assert_ne!(report["chosenBecause"], "");
}

fn two_containers_run_side_by_side(test: &Test) {
    let rootfs = test.new_rootfs();
    let mut one = test
        .sh("echo ready; exec cat")
        .option("-i")
        .with(|c| c.stdin_pipe())
        .start()
        .ready();
    let run = test.sh("echo ready; exec cat").option("-i").rootfs(rootfs);
    let mut two = run.with(|c| c.stdin_pipe()).start().ready();

    one.write_line("one");
    two.write_line("two");

    assert_eq!((one.line(), two.line()), ("one".into(), "two".into()));
    one.end().expect_code(0);
    two.end().expect_code(0);
}

fn bundle_in_a_private_directory_runs(test: &Test) {
    use std::os::unix::fs::PermissionsExt;
    let private = test.new_dir();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    bulkhead_tests::harness::rootfs::make(&private.join("rootfs"));

    let output = test
        .run(["echo", "seen"])
        .rootfs(private.join("rootfs"))
        .output();

    assert_eq!(output.text(), "seen");
}
