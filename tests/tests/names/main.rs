//! Name servers that only the container's network namespace has, as Docker's at 127.0.0.11.
//!
//! Each test makes its own namespace, with a server in it. Those but under `ours` are proved on a
//! peer runtime, as module `peer`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod server;

use std::fs;

use bulkhead_tests::{Bundle, Test, bundle_suite};
use serde_json::json;

use server::{ADDRESS, LARGE, Namespace, Server};

bundle_suite! {
    both:
        name_is_resolved_by_programs;
    uml:
        many_names_at_once_are_resolved,
        name_that_is_not_there_is_an_error,
        large_answer_arrives_over_tcp,
        server_started_anew_answers_again,
        server_that_stopped_is_an_error;
    ours:
        port_of_the_server_is_free_for_the_container,
        nested_namespace_has_its_own_addresses;
}

/// A container in the namespace whose resolv.conf names the server.
fn bundle<'t>(test: &'t Test, namespace: &Namespace, script: &str) -> Bundle<'t> {
    let resolv_conf = test.new_dir().join("resolv.conf");
    let text = format!("search nowhere\nnameserver {ADDRESS}\noptions ndots:0\n");
    fs::write(&resolv_conf, text).unwrap();
    test.bundle_sh(script, |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        let network = namespaces.iter_mut().find(|ns| ns["type"] == "network");
        network.unwrap()["path"] = json!(namespace.path());
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/etc/resolv.conf", "type": "bind", "source": resolv_conf,
            "options": ["rbind", "ro"],
        }));
        // For ping, for a port below 1024, and for a namespace of its own.
        for set in ["bounding", "effective", "permitted"] {
            let set = &mut config["process"]["capabilities"][set];
            let more = [
                "CAP_NET_RAW",
                "CAP_NET_BIND_SERVICE",
                "CAP_SYS_ADMIN",
                "CAP_NET_ADMIN",
            ];
            set.as_array_mut()
                .unwrap()
                .extend(more.map(|name| json!(name)));
        }
    })
}

/// Prints the address of a name.
const LOOK_UP: &str =
    "look_up() { nslookup -type=a $1 | sed -n 's/^Address: *\\(10.*\\)$/\\1/p'; };";

/// Asks over TCP for the addresses of `large.test`.
const ASK: &str = r"printf '\0\034\022\064\1\0\0\1\0\0\0\0\0\0\5large\4test\0\0\1\0\1'";

fn name_is_resolved_by_programs(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);
    let script = format!("{LOOK_UP} look_up 7.test; ping -c 1 -W 20 here.test");

    let output = bundle(test, &namespace, &script).output();

    let text = output.text();
    assert_eq!(text.lines().next(), Some("10.0.0.7"), "{text}");
    assert!(text.contains("64 bytes from 127.0.0.1"), "{text}");
}

fn many_names_at_once_are_resolved(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);
    let script = format!("{LOOK_UP} for n in $(seq 50); do look_up $n.test & done; wait");

    let output = bundle(test, &namespace, &script).output();

    let text = output.text();
    let mut found: Vec<&str> = text.lines().collect();
    let mut wanted: Vec<String> = (1..=50).map(|n| format!("10.0.0.{n}")).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

fn name_that_is_not_there_is_an_error(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);

    let output = bundle(test, &namespace, "nslookup -type=a nobody.test 2>&1").output();

    assert_eq!(output.code(), 1, "{output}");
    assert!(output.to_string().contains("NXDOMAIN"), "{output}");
}

fn large_answer_arrives_over_tcp(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);
    let script = format!("{ASK} | nc {ADDRESS} 53 | wc -c");

    let output = bundle(test, &namespace, &script).output();

    // Length, header, question, and a reference, type, class, time and address each.
    assert_eq!(output.text(), (2 + 12 + 16 + 16 * LARGE).to_string());
}

fn server_started_anew_answers_again(test: &Test) {
    let namespace = Namespace::new();
    let server = Server::start(&namespace);
    let script = format!("{LOOK_UP} look_up 7.test; echo ready; read x; look_up 8.test");
    let mut container = bundle(test, &namespace, &script).start().ready();

    drop(server);
    let _server = Server::start(&namespace);
    container.write_line("");

    let output = container.finish();
    assert_eq!(output.text(), "10.0.0.8");
}

fn server_that_stopped_is_an_error(test: &Test) {
    let namespace = Namespace::new();
    let server = Server::start(&namespace);
    let script = "echo ready; read x; nslookup -type=a 7.test";
    let mut container = bundle(test, &namespace, script).start().ready();

    drop(server);
    container.write_line("");

    assert_eq!(container.finish().code(), 1);
}

fn port_of_the_server_is_free_for_the_container(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);
    let script = format!(
        "{LOOK_UP} netstat -lnut | grep -c ':53 '; echo mine | nc -l -p 53 & \
         until netstat -lnt | grep -q ':53 '; do :; done; look_up 7.test; \
         nc 127.0.0.1 53 </dev/null"
    );

    let output = bundle(test, &namespace, &script).output();

    assert_eq!(output.text(), "0\n10.0.0.7\nmine");
}

fn nested_namespace_has_its_own_addresses(test: &Test) {
    let namespace = Namespace::new();
    let _server = Server::start(&namespace);
    let script = format!(
        "unshare -n sh -c 'ip link set lo up; (echo own | nc -l -p 53) & \
         until netstat -ltn | grep -q :53; do :; done; nc {ADDRESS} 53 </dev/null'"
    );

    let output = bundle(test, &namespace, &script).output();

    assert_eq!(output.text(), "own");
}
