//! Pods, and Kubernetes' manifests.

use std::fs;

use bulkhead_tests::Podman;
use bulkhead_tests::harness::podman::IMAGE;

use crate::network::{SERVING, add_address, answer_on_host, wait_until_ready};
use crate::options::Loop;
use crate::podman_suite;

podman_suite! {
    both:
        containers_of_a_pod_share_network_and_name;
    uml:
        containers_of_a_pod_share_memory_files,
        containers_of_a_pod_share_processes_if_asked,
        container_of_a_pod_has_files_and_limits_of_its_own,
        container_that_cannot_start_leaves_the_others_alone,
        container_of_a_pod_is_removed_and_another_comes,
        container_of_a_pod_brings_a_disk_and_takes_it_along,
        processes_of_another_container_are_seen,
        network_that_is_not_shared_is_apart,
        pod_is_stopped_and_started,
        pod_with_ports_is_reached,
        manifest_is_played_and_taken_down,
        manifest_is_generated;
    newer:
        containers_of_a_pod_share_network_and_name,
        manifest_is_played_and_taken_down;
}

/// A pod without a network of its own.
fn pod(podman: &Podman, options: &[&str]) -> String {
    let name = podman.test.new_id();
    let create = podman.command(["pod", "create", "--network", "none", "--name", &name]);
    create.args(options).output().expect_code(0);
    name
}

/// A container of a pod in the background; its name.
fn member(podman: &Podman, pod: &str, script: &str) -> String {
    let name = podman.test.new_id();
    let run = [
        "run", "--detach", "--pod", pod, "--name", &name, IMAGE, "sh", "-c", script,
    ];
    podman.podman(&run).expect_code(0);
    name
}

fn containers_of_a_pod_share_network_and_name(podman: &Podman) {
    let pod = pod(podman, &["--hostname", "together"]);
    let server = member(podman, &pod, SERVING);
    wait_until_ready(podman, &server);

    let script = "hostname; until nc -w 5 127.0.0.1 80 </dev/null | grep hello; do sleep 0.1; done";
    let output = podman.podman(&["run", "--rm", "--pod", &pod, IMAGE, "sh", "-c", script]);

    assert_eq!(output.text(), "together\nhello");
}

fn containers_of_a_pod_share_memory_files(podman: &Podman) {
    let pod = pod(podman, &[]);
    let first = member(
        podman,
        &pod,
        "echo shared >/dev/shm/file; echo ready; sleep 1000",
    );
    wait_until_ready(podman, &first);

    let output = podman.podman(&["run", "--rm", "--pod", &pod, IMAGE, "cat", "/dev/shm/file"]);

    assert_eq!(output.text(), "shared");
}

fn containers_of_a_pod_share_processes_if_asked(podman: &Podman) {
    let pod = pod(podman, &["--share", "net,pid,uts,ipc"]);
    member(podman, &pod, "exec sleep 4321");

    let output = podman.podman(&["run", "--rm", "--pod", &pod, IMAGE, "ps", "-o", "args"]);

    let seen = output.text().lines().any(|line| line == "sleep 4321");
    assert!(seen, "{output}");
}

fn processes_of_another_container_are_seen(podman: &Podman) {
    let first = podman.detached(&[], "exec sleep 4321");

    let output = podman.ran(&["--pid", &format!("container:{first}")], "ps -o args");

    let seen = output.text().lines().any(|line| line == "sleep 4321");
    assert!(seen, "{output}");
    let output = podman.podman(&["exec", &first, "cat", "/proc/1/comm"]);
    assert_eq!(output.text(), "sleep");
}

fn network_that_is_not_shared_is_apart(podman: &Podman) {
    let first = podman.detached(&[], "echo ready; nc -l -p 80");
    wait_until_ready(podman, &first);

    let script = "ls /sys/class/net; nc -w 5 127.0.0.1 80 </dev/null || echo refused";
    let output = podman.ran(&["--pid", &format!("container:{first}")], script);

    assert_eq!(output.text(), "lo\nrefused");
}

fn container_of_a_pod_has_files_and_limits_of_its_own(podman: &Podman) {
    let pod = pod(podman, &[]);
    let first = member(podman, &pod, "echo mine >/file; echo ready; sleep 1000");
    wait_until_ready(podman, &first);
    let volume = podman.test.new_dir();
    fs::write(volume.join("file"), "of the host\n").unwrap();
    let volume = format!("{}:/volume", volume.display());

    let script = "ls /file || echo none; cat /volume/file; ulimit -n";
    let mut options = vec!["--pod", &pod, "--volume", &volume];
    options.extend(["--ulimit", "nofile=77:77", "--ulimit", "nproc=1000:1000"]);
    let output = podman.ran(&options, script);

    assert_eq!(output.text(), "none\nof the host\n77");
}

fn container_of_a_pod_brings_a_disk_and_takes_it_along(podman: &Podman) {
    let pod = pod(podman, &[]);
    let first = member(podman, &pod, "echo ready; sleep 1000");
    wait_until_ready(podman, &first);
    let (one, other) = (Loop::new(podman), Loop::new(podman));
    let option = |disk: &Loop| format!("{}:/dev/disk", disk.node);
    let run = |disk: &Loop, script: &str| {
        let device = option(disk);
        let run = [
            "run", "--rm", "--pod", &pod, "--device", &device, IMAGE, "sh", "-c", script,
        ];
        podman.podman(&run).text().to_owned()
    };

    let script = "head -c 3 /dev/disk; printf written >/dev/disk; sync; echo; wc -c </dev/disk";
    assert_eq!(run(&one, script), "...\n1048576");
    assert!(one.begins_with("written"));
    assert_eq!(run(&other, "head -c 3 /dev/disk"), "...");

    // What a container brought went with it, and those that stay have not noticed.
    if !podman.test.driver.is_peer() {
        let exec = podman.podman(&[
            "exec",
            &first,
            "sh",
            "-c",
            "ls /sys/block | grep -c vd || :",
        ]);
        assert_eq!(exec.text(), "0");
    }
    assert_eq!(
        podman.podman(&["exec", &first, "echo", "well"]).text(),
        "well"
    );
}

fn container_that_cannot_start_leaves_the_others_alone(podman: &Podman) {
    let pod = pod(podman, &[]);
    let first = member(podman, &pod, "exec sleep 1000");

    let missing = ["run", "--rm", "--pod", &pod, IMAGE, "/no/such/program"];
    podman.podman(&missing).expect_code(127);
    let failing = ["run", "--rm", "--pod", &pod, IMAGE, "sh", "-c", "exit 3"];
    podman.podman(&failing).expect_code(3);

    let output = podman.podman(&["exec", &first, "echo", "still here"]);
    assert_eq!(output.text(), "still here");
}

fn container_of_a_pod_is_removed_and_another_comes(podman: &Podman) {
    let pod = pod(podman, &[]);
    let first = member(podman, &pod, "exec sleep 1000");
    let second = member(podman, &pod, "exec sleep 1000");

    let remove = ["rm", "--force", "--time", "0", &first];
    podman.podman(&remove).expect_code(0);
    let third = member(podman, &pod, "exec sleep 1000");

    for name in [&second, &third] {
        let output = podman.podman(&["exec", name, "echo", "here"]);
        assert_eq!(output.text(), "here");
    }
}

fn pod_with_ports_is_reached(podman: &Podman) {
    add_address(podman);
    let pod = podman.test.new_id();
    let publish = ["--network", "podman", "--publish", "10.200.0.1:8081:80"];
    let create = podman.command(["pod", "create", "--name", &pod]);
    create.args(publish).output().expect_code(0);
    let server = member(podman, &pod, SERVING);
    wait_until_ready(podman, &server);

    assert_eq!(answer_on_host(podman, "8081"), "hello");
}

fn pod_is_stopped_and_started(podman: &Podman) {
    let pod = pod(podman, &[]);
    let name = member(podman, &pod, "echo ready; exec sleep 1000");

    podman
        .podman(&["pod", "stop", "--time", "0", &pod])
        .expect_code(0);
    assert_eq!(podman.inspect(&name)["State"]["Status"], "exited");
    podman.podman(&["pod", "start", &pod]).expect_code(0);

    assert_eq!(podman.inspect(&name)["State"]["Status"], "running");
    podman
        .podman(&["pod", "rm", "--force", "--time", "0", &pod])
        .expect_code(0);
    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
}

const MANIFEST: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: played
spec:
  hostNetwork: false
  restartPolicy: Never
  containers:
  - name: box
    image: localhost/box:v1
    imagePullPolicy: Never
    command: [\"sh\", \"-c\", \"echo $GREETING; exec sleep 1000\"]
    env:
    - name: GREETING
      value: hello
";

fn manifest_is_played_and_taken_down(podman: &Podman) {
    let file = podman.test.new_dir().join("pod.yaml");
    fs::write(&file, MANIFEST).unwrap();
    let file = file.to_str().unwrap();

    podman
        .podman(&["play", "kube", "--network", "none", file])
        .expect_code(0);

    podman
        .command(["logs", "--follow", "played-box"])
        .spawn()
        .line_is("hello");
    podman
        .podman(&["play", "kube", "--down", file])
        .expect_code(0);
    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).text(), "");
}

fn manifest_is_generated(podman: &Podman) {
    let name = podman.detached(&["--env", "A=b"], "sleep 1000");

    let output = podman.podman(&["generate", "kube", &name]);

    assert!(output.text().contains("kind: Pod"), "{output}");
    assert!(
        output.text().contains("image: localhost/box:v1"),
        "{output}"
    );
}
