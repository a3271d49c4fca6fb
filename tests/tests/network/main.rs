//! The container's network: what its network namespace has, the guest has, under the same names, and
//! its frames get where those of an ordinary container get.
//!
//! Each test makes its own namespaces. Those but under `ours` are proved on a peer runtime, as module
//! `peer`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod late;
mod running;
mod tap;
mod wire;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Bundle, Invocation, Output, Test, bundle_suite, tests_on};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use late::*;
use running::*;
use wire::{AROUND, AROUND6, INSIDE, INSIDE6, Wire};

bundle_suite! {
    both:
        ping_is_answered_both_ways,
        interface_is_as_in_the_namespace,
        bytes_arrive_both_ways,
        interface_that_comes_before_start_is_there;
    uml:
        connection_from_outside_is_accepted,
        several_interfaces_keep_their_names_and_routes,
        large_frames_pass_where_the_mtu_allows_them,
        macvlan_reaches_its_network,
        ipvlan_reaches_its_network,
        tap_reaches_the_program_at_its_other_end,
        interfaces_that_come_before_start_are_all_there,
        interface_comes_works_and_goes,
        several_interfaces_come_to_a_running_container,
        addresses_and_routes_change_while_it_runs,
        connection_survives_what_comes_beside_it,
        namespace_without_interfaces_has_loopback_only,
        configuration_without_a_path_has_loopback_only,
        addresses_that_come_before_start_are_there;
    ours:
        container_that_ended_leaves_its_interface_as_it_was,
        process_that_was_killed_leaves_its_interface_as_it_was,
        interface_of_a_running_container_is_refused_to_another,
        interface_with_filters_of_others_is_refused_and_left_alone,
        interface_that_is_a_port_of_a_bridge_is_refused_by_name,
        namespace_that_is_not_there_is_refused_with_its_path,
        namespace_of_the_host_is_refused,
        no_interface_at_start_leaves_loopback_only;
}

// One boot: where KVM interprets guest kernels it takes some ten seconds.
tests_on!(kvm, run_beside, [address_answers_and_is_reached]);

const SIZE: usize = 8 << 20;

/// Makes a configuration's container use a namespace, or one of its own.
fn join(config: &mut Value, path: Option<&Path>) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces.iter_mut().find(|ns| ns["type"] == "network");
    if let Some(path) = path {
        network.unwrap()["path"] = json!(path);
    }
    // For ping.
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut config["process"]["capabilities"][set];
        set.as_array_mut().unwrap().push(json!("CAP_NET_RAW"));
    }
}

fn bundle_on<'t>(test: &'t Test, wire: &Wire, script: &str) -> Bundle<'t> {
    test.bundle_sh(script, |config| join(config, Some(&wire.path())))
}

fn run_on(test: &Test, wire: &Wire, script: &str) -> Output {
    bundle_on(test, wire, script).output()
}

/// Bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(next());
    }
    bytes.truncate(len);
    bytes
}

/// The digest as `sha256sum` prints it.
fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ping_is_answered_both_ways(test: &Test) {
    let wire = Wire::new();
    let bundle = bundle_on(
        test,
        &wire,
        &format!("ping -c 2 -W 20 {AROUND} && ping -c 2 -W 20 {AROUND6} && echo ready && read x"),
    );
    let mut container = bundle.start().ready();

    for address in [INSIDE, INSIDE6] {
        let ping = wire.command_around(&format!("/bin/busybox ping -c 2 -W 20 {address}"));
        ping.output().expect_code(0);
    }

    container.write_line("");
    container.finish().expect_code(0);
}

/// As the one above, for a kernel without IPv6.
fn address_answers_and_is_reached(test: &Test) {
    let wire = Wire::empty();
    wire.add_veth("eth0", "addrgenmode none");
    wire.inside(&format!("addr add {INSIDE}/24 brd + dev eth0"));
    wire.inside(&format!("route add default via {AROUND}"));
    let script = format!("ping -c 2 -W 60 {AROUND} && echo ready && read x");
    let mut container = bundle_on(test, &wire, &script).start().ready();

    let ping = wire.command_around(&format!("/bin/busybox ping -c 2 -W 60 {INSIDE}"));
    ping.output().expect_code(0);

    container.write_line("");
    container.finish().expect_code(0);
}

fn interface_is_as_in_the_namespace(test: &Test) {
    let wire = Wire::empty();
    wire.add_veth("net7", "mtu 1400 address 02:11:22:33:44:55");
    wire.give_addresses("net7");
    wire.inside("addr add 10.88.0.5/32 dev net7");
    wire.inside("route add 10.99.0.0/16 via 10.77.0.9 metric 77");
    wire.inside("route add 10.98.0.0/16 via 192.168.5.5 dev net7 onlink");
    wire.inside("route add 10.97.0.0/16 dev net7 src 10.88.0.5");
    wire.inside("-6 route add fd99::/48 via fd77::9 metric 33");
    wire.inside("neigh add 10.77.0.200 lladdr 02:aa:bb:cc:dd:ee dev net7 nud permanent");
    let script = "ls /sys/class/net; cat /sys/class/net/net7/mtu /sys/class/net/net7/address; \
                  ip -o addr show dev net7; ip route; ip -6 route; ip neigh";

    let output = run_on(test, &wire, script);

    let text = output.text();
    let words: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        words[..4],
        ["lo", "net7", "1400", "02:11:22:33:44:55"],
        "{text}"
    );
    let addresses: Vec<&str> = words
        .iter()
        .filter(|line| line.contains(": net7 inet"))
        .filter_map(|line| line.split(' ').nth(3))
        .collect();
    let mut wanted = vec![
        "10.77.0.2/24",
        "10.88.0.5/32",
        "fd77::2/64",
        "fe80::11:22ff:fe33:4455/64",
    ];
    let mut found = addresses.clone();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "{text}");
    for route in [
        "default via 10.77.0.1 dev net7",
        "10.77.0.0/24 dev net7 scope link src 10.77.0.2",
        "10.99.0.0/16 via 10.77.0.9 dev net7 metric 77",
        "10.98.0.0/16 via 192.168.5.5 dev net7 onlink",
        "10.97.0.0/16 dev net7 scope link src 10.88.0.5",
        "fd77::/64 dev net7 metric 256",
        "default via fd77::1 dev net7 metric 1024",
        "fd99::/48 via fd77::9 dev net7 metric 33",
    ] {
        assert!(words.iter().any(|line| line == route), "{route:?}: {text}");
    }
    let neighbour = "10.77.0.200 dev net7 lladdr 02:aa:bb:cc:dd:ee";
    let found = |line: &String| line.starts_with(neighbour) && line.ends_with("PERMANENT");
    assert!(words.iter().any(found), "{text}");
}

fn bytes_arrive_both_ways(test: &Test) {
    let wire = Wire::new();
    let listener = wire.in_outer(|| TcpListener::bind((AROUND, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    // What comes in, its digest, and the same bytes back.
    let script = format!(
        "nc {AROUND} {port} </dev/null >/tmp/x && sha256sum </tmp/x && nc {AROUND} {port} </tmp/x"
    );
    let bytes = noise(SIZE);
    let running = bundle_on(test, &wire, &script).start();

    let (mut first, _) = listener.accept().unwrap();
    first.write_all(&bytes).unwrap();
    drop(first);
    let (mut second, _) = listener.accept().unwrap();
    let mut back = Vec::with_capacity(SIZE);
    second.read_to_end(&mut back).unwrap();
    drop(second);

    let output = running.finish();
    assert!(back == bytes, "{} bytes came back: {output}", back.len());
    assert_eq!(output.text().split(' ').next().unwrap(), digest(&bytes));
}

fn connection_from_outside_is_accepted(test: &Test) {
    let wire = Wire::new();
    let script = "nc -l -p 5000 | sha256sum & \
                  until netstat -ltn | grep -q :5000; do :; done; echo ready; wait";
    let container = bundle_on(test, &wire, script).start().ready();
    let bytes = noise(SIZE);

    let mut stream = wire.in_outer(|| TcpStream::connect((INSIDE, 5000)).unwrap());
    stream.write_all(&bytes).unwrap();
    drop(stream);

    let output = container.finish();
    assert_eq!(output.text().split(' ').next().unwrap(), digest(&bytes));
}

fn several_interfaces_keep_their_names_and_routes(test: &Test) {
    let wire = Wire::empty();
    // The guest's kernel names them in the other order.
    wire.add_veth("eth1", "address 02:00:00:00:00:01");
    wire.add_veth("eth0", "address 02:00:00:00:00:02");
    wire.add_veth("db", "address 02:00:00:00:00:03");
    wire.around("addr add 10.78.0.1/24 dev br0");
    wire.around("addr add 10.79.0.1/24 dev br0");
    wire.give_addresses("eth0");
    wire.inside("addr add 10.78.0.2/24 dev eth1");
    wire.inside("addr add 10.79.0.2/24 dev db");
    let script = "for i in db eth0 eth1; do cat /sys/class/net/$i/address; done; ip route; \
                  for n in 77 78 79; do ping -c 1 -W 20 -q 10.$n.0.1 >/dev/null && echo $n; done";

    let output = run_on(test, &wire, script);

    let text = output.text();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        lines[..3],
        [
            "02:00:00:00:00:03",
            "02:00:00:00:00:02",
            "02:00:00:00:00:01"
        ],
        "{text}"
    );
    assert_eq!(lines[lines.len() - 3..], ["77", "78", "79"], "{text}");
    for route in [
        "10.78.0.0/24 dev eth1",
        "10.79.0.0/24 dev db",
        "default via 10.77.0.1 dev eth0",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(route)), "{text}");
    }
}

fn large_frames_pass_where_the_mtu_allows_them(test: &Test) {
    let wire = Wire::empty();
    wire.add_veth("eth0", "mtu 9000");
    wire.around("link set to-eth0 mtu 9000");
    wire.around("link set br0 mtu 9000");
    wire.give_addresses("eth0");
    let capabilities = "cat /sys/class/net/eth0/mtu";

    // 28 bytes of headers make it 9000.
    let script = format!("{capabilities}; ping -c 1 -W 20 -s 8972 {AROUND}");
    let output = run_on(test, &wire, &script);

    let text = output.text();
    assert_eq!(text.lines().next(), Some("9000"));
    assert!(text.contains("8980 bytes from"), "{text}");
}

fn macvlan_reaches_its_network(test: &Test) {
    reaches_its_network_on_a_lower_one(test, "macvlan mode bridge");
}

fn ipvlan_reaches_its_network(test: &Test) {
    if !wire::knows("ipvlan") {
        return skip(&test.name, "this host's kernel has no ipvlan");
    }
    reaches_its_network_on_a_lower_one(test, "ipvlan mode l2");
}

/// With an interface of this type on one that stays outside.
fn reaches_its_network_on_a_lower_one(test: &Test, kind: &str) {
    let wire = Wire::empty();
    wire.around("link add lower type veth peer name far");
    wire.around("link set far master br0 up");
    wire.around("link set lower up");
    let inner = &wire.inner;
    wire.around(&format!("link add upper link lower type {kind}"));
    wire.around(&format!("link set upper netns {inner} name eth0"));
    wire.inside("link set eth0 up");
    wire.give_addresses("eth0");
    is_reached_and_reaches(test, &wire);
}

fn tap_reaches_the_program_at_its_other_end(test: &Test) {
    let wire = Wire::empty();
    let program = tap::Program::start(&wire);
    wire.give_addresses("eth0");
    is_reached_and_reaches(test, &wire);
    drop(program);
}

fn is_reached_and_reaches(test: &Test, wire: &Wire) {
    let script =
        format!("ping -c 1 -W 20 {AROUND} && ping -c 1 -W 20 {AROUND6} && echo ready && read x");
    let mut container = bundle_on(test, wire, &script).start().ready();

    for address in [INSIDE, INSIDE6] {
        let ping = wire.command_around(&format!("/bin/busybox ping -c 1 -W 20 {address}"));
        ping.output().expect_code(0);
    }

    container.write_line("");
    container.finish().expect_code(0);
}

fn namespace_without_interfaces_has_loopback_only(test: &Test) {
    let wire = Wire::empty();

    let output = run_on(test, &wire, "ls /sys/class/net; ping -c 1 -W 20 127.0.0.1");

    let text = output.text();
    assert_eq!(text.lines().next(), Some("lo"), "{text}");
    assert!(text.contains("64 bytes from 127.0.0.1"), "{text}");
}

fn configuration_without_a_path_has_loopback_only(test: &Test) {
    let output = test.bundle_sh("ls /sys/class/net", |_| {}).output();

    assert_eq!(output.text(), "lo");
}

fn container_that_ended_leaves_its_interface_as_it_was(test: &Test) {
    let wire = Wire::new();
    let state = || {
        // The kernel may still have been looking for others with the same link-local address.
        let addresses = wire.inside("-o addr").replace(" tentative", "");
        (addresses, wire.inside("route"), wire.traces())
    };
    let before = state();

    run_on(test, &wire, "echo ready").expect_code(0);

    assert_eq!(state(), before);
    // It is the engine's again.
    let ping = format!(
        "--net={} /bin/busybox ping -c 1 -W 20 {AROUND}",
        wire.path().display()
    );
    let ping = Invocation::new("/usr/bin/nsenter").args(ping.split(' '));
    ping.output().expect_code(0);
}

fn process_that_was_killed_leaves_its_interface_as_it_was(test: &Test) {
    let wire = Wire::new();
    // The sandbox process, and those it has started: the device process and the hypervisor.
    for victim in 0..3 {
        let bundle = bundle_on(test, &wire, "echo ready; read x");
        let container = bundle.start().ready();
        assert!(!wire.traces().is_empty());
        let processes = container.processes();
        let pid = Pid::from_raw(i32::try_from(processes[victim]).unwrap());

        kill_process(pid.unwrap(), Signal::KILL).unwrap();

        assert_ne!(container.finish().code(), 0);
        processes.into_iter().for_each(bulkhead_tests::wait::gone);
        assert_eq!(wire.traces(), Vec::<String>::new(), "process {victim}");
    }
    run_on(test, &wire, &format!("ping -c 1 -W 20 {AROUND}")).expect_code(0);
}

fn interface_of_a_running_container_is_refused_to_another(test: &Test) {
    let wire = Wire::new();
    let script = format!("echo ready; read x; ping -c 1 -W 20 {AROUND}");
    let mut container = bundle_on(test, &wire, &script).start().ready();

    let other = run_on(test, &wire, "true");

    other.expect_error(&["eth0", "another container's virtual machine"]);
    container.write_line("");
    container.finish().expect_code(0);
}

fn interface_with_filters_of_others_is_refused_and_left_alone(test: &Test) {
    let wire = Wire::new();
    let tc = format!("-n {} qdisc add dev eth0 clsact", wire.inner);
    Invocation::new("/usr/sbin/tc")
        .args(tc.split(' '))
        .output()
        .expect_code(0);

    let output = run_on(test, &wire, "true");

    output.expect_error(&["eth0", "filters for incoming traffic", "tc qdisc del"]);
    let qdiscs = format!("-n {} qdisc", wire.inner);
    let qdiscs = Invocation::new("/usr/sbin/tc")
        .args(qdiscs.split(' '))
        .output();
    assert!(qdiscs.text().contains("clsact"));
}

fn interface_that_is_a_port_of_a_bridge_is_refused_by_name(test: &Test) {
    let wire = Wire::new();
    wire.inside("link add br7 type bridge");
    wire.inside("link set eth0 master br7");

    let output = run_on(test, &wire, "true");

    output.expect_error(&["eth0", "port of br7"]);
    assert_eq!(wire.traces(), Vec::<String>::new());
}

fn namespace_that_is_not_there_is_refused_with_its_path(test: &Test) {
    for path in ["/run/netns/there-is-none", "/etc/passwd"] {
        let bundle = test.bundle(|config| join(config, Some(path.as_ref())));

        bundle.output().expect_error(&["network namespace", path]);
    }
}

fn namespace_of_the_host_is_refused(test: &Test) {
    let bundle = test.bundle(|config| join(config, Some("/proc/self/ns/net".as_ref())));

    bundle
        .output()
        .expect_error(&["/proc/self/ns/net", "host's own"]);
}
