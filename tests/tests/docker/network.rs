//! Containers with a network.

use std::fs;

use bulkhead_tests::Docker;
use bulkhead_tests::harness::docker::IMAGE;
use bulkhead_tests::harness::engines::Engines;
use bulkhead_tests::harness::suite::skip;
use serde_json::json;

use crate::docker_suite;

docker_suite! {
    both:
        published_port_is_reached;
    uml:
        bridge_gives_an_address_and_a_route,
        containers_reach_each_other_by_address,
        containers_reach_each_other_by_name,
        networks_are_connected_to_a_running_container_and_disconnected,
        services_of_a_compose_file_reach_each_other_by_name;
    newer:
        published_port_is_reached,
        containers_reach_each_other_by_name;
}

/// Answers every connection.
const SERVING: &str = "echo ready; while :; do echo hello | nc -l -p 80; done";

fn wait_until_ready(docker: &Docker, name: &str) {
    docker
        .command(["logs", "--follow", name])
        .spawn()
        .line_is("ready");
}

fn bridge_gives_an_address_and_a_route(docker: &Docker) {
    let script =
        "ip -4 -o address show dev eth0; ip route; cat /etc/resolv.conf | wc -l; sleep 1000";
    let name = docker.detached(&["--network=bridge"], script);
    let address = docker.inspect(&name)["NetworkSettings"]["IPAddress"].clone();
    let gateway = docker.inspect(&name)["NetworkSettings"]["Gateway"].clone();

    let mut logs = docker.command(["logs", "--follow", &name]).spawn();

    let line = logs.line();
    assert!(line.contains(address.as_str().unwrap()), "{line}");
    let route = logs.line();
    assert!(
        route.contains(&format!("default via {}", gateway.as_str().unwrap())),
        "{route}"
    );
}

fn published_port_is_reached(docker: &Docker) {
    let name = docker.detached(&["--network=bridge", "--publish", "127.0.0.1::80"], SERVING);
    wait_until_ready(docker, &name);
    let port = docker.docker(&["port", &name, "80/tcp"]);
    let port = port.text().rsplit(':').next().unwrap().to_owned();

    let script =
        format!("until nc -w 5 127.0.0.1 {port} </dev/null | grep hello; do sleep 0.1; done");
    let client = docker
        .daemons
        .ground()
        .command("busybox")
        .args(["sh", "-c", &script]);

    assert_eq!(client.output().text(), "hello");
}

fn containers_reach_each_other_by_address(docker: &Docker) {
    let server = docker.detached(&["--network=bridge"], SERVING);
    wait_until_ready(docker, &server);
    let address = docker.inspect(&server)["NetworkSettings"]["IPAddress"].clone();
    let address = address.as_str().unwrap();

    let script = format!("until nc -w 5 {address} 80 </dev/null | grep hello; do sleep 0.1; done");
    let output = docker.ran(&["--network=bridge"], &script);

    assert_eq!(output.text(), "hello");
}

/// A network of the user's, and a container in it that is called `server` there and answers.
fn served_network(docker: &Docker) -> (String, String) {
    let network = docker.test.new_id();
    docker
        .docker(&["network", "create", &network])
        .expect_code(0);
    let option = format!("--network={network}");
    let server = docker.detached(&[&option, "--network-alias", "server"], SERVING);
    wait_until_ready(docker, &server);
    (network, server)
}

fn containers_reach_each_other_by_name(docker: &Docker) {
    let (network, server) = served_network(docker);

    let script = "until nc -w 5 server 80 </dev/null | grep hello; do sleep 0.1; done";
    let output = docker.ran(&[&format!("--network={network}")], script);

    assert_eq!(output.text(), "hello");
    docker.docker(&["rm", "--force", &server]).expect_code(0);
    docker.docker(&["network", "rm", &network]).expect_code(0);
}

fn networks_are_connected_to_a_running_container_and_disconnected(docker: &Docker) {
    let (network, server) = served_network(docker);
    let script = "echo ready; until nc -w 5 server 80 </dev/null | grep hello; do sleep 0.1; done
                  while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; echo gone; sleep 1000";
    let client = docker.detached(&["--network=bridge"], script);
    let mut logs = docker.command(["logs", "--follow", &client]).spawn();
    logs.line_is("ready");

    // Only with this network are there names.
    docker
        .docker(&["network", "connect", &network, &client])
        .expect_code(0);
    logs.line_is("hello");
    docker
        .docker(&["network", "disconnect", &network, &client])
        .expect_code(0);

    logs.line_is("gone");
    for name in [&server, &client] {
        docker.docker(&["rm", "--force", name]).expect_code(0);
    }
    docker.docker(&["network", "rm", &network]).expect_code(0);
}

fn services_of_a_compose_file_reach_each_other_by_name(docker: &Docker) {
    match Engines::chosen(&["docker-compose"]) {
        Ok(Engines::Installed) => {}
        Ok(Engines::Newer(_)) => {
            return skip(&docker.test.name, "docker-compose is not among those");
        }
        Err(reason) => return skip(&docker.test.name, &reason),
    }
    let script = "until nc -w 5 server 80 </dev/null | grep hello; do sleep 0.1; done";
    // `$` is Compose's.
    let service = |script: &str| {
        json!({
            "image": IMAGE,
            "runtime": docker.runtime(),
            "command": ["sh", "-c", script.replace('$', "$$")],
        })
    };
    let file = docker.test.new_dir().join("compose.yaml");
    let project = docker.test.new_id();
    // JSON is YAML.
    let content = json!({
        "version": "2.4",
        "services": { "server": service(SERVING), "client": service(script) },
    });
    fs::write(&file, content.to_string()).unwrap();
    let compose = |args: &[&str]| {
        let compose = docker
            .daemons
            .compose(["--project-name", &project, "--file"]);
        compose.arg(&file).args(args).output()
    };

    let up = compose(&["up", "--no-color", "--abort-on-container-exit"]);

    let down = compose(&["down", "--timeout", "0"]);
    let said = String::from_utf8_lossy(&up.stdout).into_owned();
    let heard = said
        .lines()
        .any(|line| line.starts_with("client") && line.ends_with("hello"));
    assert!(heard, "{up}");
    down.expect_code(0);
}
