//! Pods, and Kubernetes' manifests.

use std::fs;

use bulkhead_tests::Podman;
use bulkhead_tests::harness::podman::IMAGE;

use crate::podman_suite;

podman_suite! {
    both: ;
    uml:
        manifest_is_generated;
    not_yet:
        containers_of_a_pod_share_network_and_name = "the containers of a pod do not share a virtual machine",
        containers_of_a_pod_share_memory_files = "the containers of a pod do not share a virtual machine",
        pod_is_stopped_and_started = "the containers of a pod do not share a virtual machine",
        manifest_is_played_and_taken_down = "the containers of a pod do not share a virtual machine";
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
    let serving = "echo ready; while :; do echo hello | nc -l -p 80; done";
    let server = member(podman, &pod, serving);
    podman
        .command(["logs", "--follow", &server])
        .spawn()
        .line_is("ready");

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
    podman
        .command(["logs", "--follow", &first])
        .spawn()
        .line_is("ready");

    let output = podman.podman(&["run", "--rm", "--pod", &pod, IMAGE, "cat", "/dev/shm/file"]);

    assert_eq!(output.text(), "shared");
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
