//! Networks that change while a container runs.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;

use bulkhead_tests::{Bundle, Test, tests_on, wait};

use crate::bundle_on;
use crate::wire::{AROUND, INSIDE, Wire};

// One boot: where KVM interprets guest kernels it takes some ten seconds. QEMU's machines get no further cards.
tests_on!(kvm, run_beside, [interface_comes_works_and_goes]);
tests_on!(
    qemu,
    run_beside,
    [interface_that_comes_is_told_of_and_the_rest_goes_on]
);

/// Without IPv6, which the kernel for hosts that interpret guest kernels has not.
const PLAIN: &str = "addrgenmode none";

/// Waits inside until a network interface is there, or is not.
const UNTIL_IT_COMES: &str =
    "until ip -4 -o addr show dev net1 2>/dev/null | grep -q inet; do sleep 0.1; done";
const UNTIL_IT_GOES: &str = "while [ -e /sys/class/net/net1 ]; do sleep 0.1; done";

/// A namespace with an interface `eth0` that has another network's address.
fn wire() -> Wire {
    let wire = Wire::empty();
    wire.add_veth("eth0", PLAIN);
    wire.inside("addr add 10.66.0.2/24 dev eth0");
    wire
}

fn bundle<'t>(test: &'t Test, wire: &Wire, script: &str) -> Bundle<'t> {
    bundle_on(test, wire, &format!("echo ready; {script}"))
}

pub fn interface_comes_works_and_goes(test: &Test) {
    let wire = wire();
    let script = format!(
        "{UNTIL_IT_COMES}; cat /sys/class/net/net1/mtu; ping -c 1 -W 60 {AROUND} >/dev/null && echo reached
         {UNTIL_IT_GOES}; echo gone
         {UNTIL_IT_COMES}; cat /sys/class/net/net1/mtu; read x"
    );
    let mut container = bundle(test, &wire, &script).start().ready();

    wire.add_veth("net1", &format!("{PLAIN} mtu 1400"));
    wire.inside(&format!("addr add {INSIDE}/24 dev net1"));
    container.line_is("1400");
    container.line_is("reached");
    let ping = wire.command_around(&format!("/bin/busybox ping -c 1 -W 60 {INSIDE}"));
    ping.output().expect_code(0);
    wire.inside("link del net1");
    container.line_is("gone");
    wire.add_veth("net1", &format!("{PLAIN} mtu 1300"));
    wire.inside(&format!("addr add {INSIDE}/24 dev net1"));
    container.line_is("1300");

    container.write_line("");
    container.finish().expect_code(0);
    if !test.driver.is_peer() {
        let traces = wire.traces();
        assert_eq!(traces, Vec::<String>::new());
    }
}

pub fn several_interfaces_come_to_a_running_container(test: &Test) {
    const MORE: u32 = 5;
    let wire = Wire::empty();
    let script = format!(
        "until [ $(ls /sys/class/net | wc -l) = {} ]; do sleep 0.1; done; ls /sys/class/net",
        MORE + 1
    );
    let mut container = bundle(test, &wire, &script).start().ready();

    for number in 0..MORE {
        wire.add_veth(&format!("late{number}"), PLAIN);
    }

    container.line_is("late0");
    container.finish().expect_code(0);
}

pub fn addresses_and_routes_change_while_it_runs(test: &Test) {
    let wire = wire();
    let script = format!(
        "until ip -4 -o addr show dev eth0 | grep -q {INSIDE}; do sleep 0.1; done
         until ip route | grep -q 10.55.0.0; do sleep 0.1; done
         until ! ip -4 -o addr show dev eth0 | grep -q 10.66; do sleep 0.1; done
         until [ $(cat /sys/class/net/eth0/mtu) = 1380 ]; do sleep 0.1; done
         ping -c 1 -W 60 {AROUND} >/dev/null && echo reached"
    );
    let mut container = bundle(test, &wire, &script).start().ready();

    wire.inside(&format!("addr add {INSIDE}/24 dev eth0"));
    wire.inside(&format!("route add 10.55.0.0/16 via {AROUND}"));
    wire.inside("addr del 10.66.0.2/24 dev eth0");
    wire.inside("link set eth0 mtu 1380");

    container.line_is("reached");
    container.finish().expect_code(0);
}

/// What a program has open is not disturbed by what comes beside it.
pub fn connection_survives_what_comes_beside_it(test: &Test) {
    let wire = wire();
    wire.inside(&format!("addr add {INSIDE}/24 dev eth0"));
    let script = format!(
        "nc -l -p 7 >/tmp/heard & until netstat -ltn 2>/dev/null | grep -q :7; do sleep 0.1; done
         echo listening; {UNTIL_IT_COMES}; echo there; wait; cat /tmp/heard"
    );
    let mut container = bundle(test, &wire, &script).start().ready();
    container.line_is("listening");

    let mut stream = wire.in_outer(|| TcpStream::connect((INSIDE, 7)).unwrap());
    stream.write_all(b"before ").unwrap();
    wire.add_veth("net1", PLAIN);
    wire.inside("addr add 10.88.0.2/24 dev net1");
    container.line_is("there");
    stream.write_all(b"and after\n").unwrap();
    drop(stream);
    let text = container.line();

    assert_eq!(text, "before and after");
    container.finish().expect_code(0);
}

fn interface_that_comes_is_told_of_and_the_rest_goes_on(test: &Test) {
    let wire = wire();
    let script = format!(
        "until ip -4 -o addr show dev eth0 | grep -q {INSIDE}; do sleep 0.1; done
         ping -c 1 -W 60 {AROUND} >/dev/null && echo reached; ls /sys/class/net; read x"
    );
    let mut container = bundle(test, &wire, &script).start().ready();

    wire.inside(&format!("addr add {INSIDE}/24 dev eth0"));
    container.line_is("reached");
    container.line_is("eth0");
    container.line_is("lo");
    wire.add_veth("net1", PLAIN);

    let dir = test.root().join(&container.id);
    wait::until_changed(&dir, || {
        let log = fs::read_to_string(dir.join("sandbox.log")).unwrap_or_default();
        log.contains("Network interfaces net1 came after the container was created")
    });
    container.write_line("");
    container.finish().expect_code(0);
}
