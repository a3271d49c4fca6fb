//! Containers with a network.

use bulkhead_tests::Podman;

use crate::podman_suite;

podman_suite! {
    both:
        published_port_is_reached;
    uml:
        bridge_gives_an_address_and_a_route,
        two_networks_give_two_interfaces,
        containers_reach_each_other_by_name,
        address_and_mac_are_the_asked_for,
        network_is_connected_to_a_running_container_and_disconnected,
        container_networks_are_joined;
    newer:
        published_port_is_reached,
        two_networks_give_two_interfaces,
        containers_reach_each_other_by_name;
}

/// Answers every connection.
pub const SERVING: &str = "echo ready; while :; do echo hello | nc -l -p 80; done";

pub fn wait_until_ready(podman: &Podman, name: &str) {
    podman
        .command(["logs", "--follow", name])
        .spawn()
        .line_is("ready");
}

/// Asks a server until it answers.
fn ask(address: &str, port: &str) -> String {
    format!("until nc -w 5 {address} {port} </dev/null | grep hello; do sleep 0.1; done")
}

fn bridge_gives_an_address_and_a_route(podman: &Podman) {
    let script = "ip -4 -o address show dev eth0; ip route; echo ready; sleep 1000";
    let name = podman.detached(&["--network", "podman"], script);
    wait_until_ready(podman, &name);
    let settings = podman.inspect(&name)["NetworkSettings"]["Networks"]["podman"].clone();

    let logs = podman.podman(&["logs", &name]);

    let address = settings["IPAddress"].as_str().unwrap();
    assert!(logs.text().contains(&format!("{address}/16")), "{logs}");
    let gateway = settings["Gateway"].as_str().unwrap();
    assert!(
        logs.text().contains(&format!("default via {gateway}")),
        "{logs}"
    );
}

fn network_is_connected_to_a_running_container_and_disconnected(podman: &Podman) {
    let (first, second) = (podman.test.new_id(), podman.test.new_id());
    for network in [&first, &second] {
        podman
            .podman(&["network", "create", network])
            .expect_code(0);
    }
    let script =
        "echo ready; until ip -4 -o addr show dev eth1 2>/dev/null | grep inet; do sleep 0.1; done
                  while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; echo gone; sleep 1000";
    let name = podman.detached(&["--network", &first], script);
    let mut logs = podman.command(["logs", "--follow", &name]).spawn();
    logs.line_is("ready");

    podman
        .podman(&["network", "connect", &second, &name])
        .expect_code(0);

    let networks = podman.inspect(&name)["NetworkSettings"]["Networks"].clone();
    let address = networks[&second]["IPAddress"].as_str().unwrap().to_owned();
    let line = logs.line();
    assert!(line.contains(&format!("inet {address}/")), "{line}");
    podman
        .podman(&["network", "disconnect", &second, &name])
        .expect_code(0);
    logs.line_is("gone");
    podman.podman(&["rm", "--force", &name]).expect_code(0);
    for network in [&first, &second] {
        podman.podman(&["network", "rm", network]).expect_code(0);
    }
}

/// Gives the host an address of its own to publish ports on.
pub fn add_address(podman: &Podman) {
    let address = ["address", "add", "10.200.0.1/32", "dev", "lo"];
    podman
        .ground()
        .command("ip")
        .args(address)
        .output()
        .expect_code(0);
}

/// What a server says to a client on the host.
pub fn answer_on_host(podman: &Podman, port: &str) -> String {
    let client = podman.ground().command("busybox");
    let output = client.args(["sh", "-c", &ask("10.200.0.1", port)]).output();
    output.text().to_owned()
}

fn published_port_is_reached(podman: &Podman) {
    add_address(podman);
    let options = ["--network", "podman", "--publish", "10.200.0.1:8080:80"];
    let name = podman.detached(&options, SERVING);
    wait_until_ready(podman, &name);

    assert_eq!(answer_on_host(podman, "8080"), "hello");
}

fn two_networks_give_two_interfaces(podman: &Podman) {
    for network in ["one", "two"] {
        podman
            .podman(&["network", "create", network])
            .expect_code(0);
    }

    let output = podman.ran(
        &["--network", "one", "--network", "two"],
        "ls /sys/class/net",
    );

    assert_eq!(output.text(), "eth0\neth1\nlo");
}

fn containers_reach_each_other_by_name(podman: &Podman) {
    podman
        .podman(&["network", "create", "named"])
        .expect_code(0);
    let server = podman.detached(
        &["--network", "named", "--network-alias", "server"],
        SERVING,
    );
    wait_until_ready(podman, &server);

    let output = podman.ran(&["--network", "named"], &ask("server", "80"));

    assert_eq!(output.text(), "hello");
}

fn container_networks_are_joined(podman: &Podman) {
    let server = podman.detached(&["--network", "podman"], SERVING);
    wait_until_ready(podman, &server);
    let network = format!("container:{server}");
    let address =
        podman.inspect(&server)["NetworkSettings"]["Networks"]["podman"]["IPAddress"].clone();

    let output = podman.ran(&["--network", &network], "ip -4 -o address show dev eth0");

    assert!(
        output.text().contains(address.as_str().unwrap()),
        "{output}"
    );
}

fn address_and_mac_are_the_asked_for(podman: &Podman) {
    let create = ["network", "create", "--subnet", "10.77.0.0/24", "known"];
    podman.podman(&create).expect_code(0);
    let options = [
        "--network",
        "known",
        "--ip",
        "10.77.0.9",
        "--mac-address",
        "02:11:22:33:44:55",
    ];

    let output = podman.ran(
        &options,
        "ip -4 -o address show dev eth0; cat /sys/class/net/eth0/address",
    );

    assert!(output.text().contains("10.77.0.9/24"), "{output}");
    assert!(output.text().ends_with("02:11:22:33:44:55"), "{output}");
}
