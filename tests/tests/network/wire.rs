//! A network made for one test: a namespace for the container, and one with what is around it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_tests::Invocation;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the container's addresses come from; the first one is the bridge's around it.
pub const AROUND: &str = "10.77.0.1";
/// The container's on its first interface.
pub const INSIDE: &str = "10.77.0.2";
/// The same two for IPv6.
pub const AROUND6: &str = "fd77::1";
pub const INSIDE6: &str = "fd77::2";

/// Two network namespaces. The outer one has a bridge `br0`; veths lead from there into the inner
/// one, which is the container's. Both are deleted when it is dropped.
#[derive(Debug)]
pub struct Wire {
    /// Name of the container's namespace.
    pub inner: String,
    /// Name of the other one.
    pub outer: String,
}

impl Wire {
    /// Two namespaces, the inner one without any interface but a loopback that is up.
    pub fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |which| format!("bht{}-{number}{which}", std::process::id());
        let wire = Self {
            inner: name('i'),
            outer: name('o'),
        };
        for namespace in [&wire.inner, &wire.outer] {
            ip(&format!("netns add {namespace}"));
        }
        wire.inside("link set lo up");
        wire.around("link add br0 type bridge");
        wire.around(&format!("addr add {AROUND}/24 dev br0"));
        wire.around(&format!("-6 addr add {AROUND6}/64 dev br0 nodad"));
        wire.around("link set br0 up");
        wire
    }

    /// With an interface `eth0` that has the usual addresses and default routes.
    pub fn new() -> Self {
        let wire = Self::empty();
        wire.add_veth("eth0", "");
        wire.give_addresses("eth0");
        wire
    }

    /// Adds a veth `name` to the inner namespace, up and without addresses.
    pub fn add_veth(&self, name: &str, options: &str) {
        let inner = &self.inner;
        self.around(&format!(
            "link add to-{name} type veth peer name {name} netns {inner}"
        ));
        self.around(&format!("link set to-{name} master br0 up"));
        self.inside(&format!("link set {name} {options} up"));
    }

    /// Gives an interface the usual addresses and default routes.
    pub fn give_addresses(&self, name: &str) {
        self.inside(&format!("addr add {INSIDE}/24 brd + dev {name}"));
        self.inside(&format!("-6 addr add {INSIDE6}/64 dev {name} nodad"));
        self.inside(&format!("route add default via {AROUND}"));
        self.inside(&format!("-6 route add default via {AROUND6}"));
    }

    /// The inner namespace as a configuration names it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.inner)
    }

    /// `ip` in the inner namespace.
    pub fn inside(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.inner))
    }

    /// `ip` in the outer namespace.
    pub fn around(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.outer))
    }

    /// A command that is run in the outer namespace.
    pub fn command_around(&self, words: &str) -> Invocation {
        let namespace = format!("--net=/run/netns/{}", self.outer);
        Invocation::new("/usr/bin/nsenter")
            .arg(namespace)
            .args(words.split(' '))
    }

    /// Runs `work` on a thread that is in the outer namespace; sockets made there stay there.
    pub fn in_outer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.outer)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// What the runtime has put into the inner namespace: taps, and filters on its interfaces.
    pub fn traces(&self) -> Vec<String> {
        let links = self.inside("-o link");
        let taps = links.lines().filter(|line| line.contains("tap"));
        let qdiscs = run("tc", &format!("-n {} qdisc", self.inner));
        let filters = qdiscs.lines().filter(|line| line.contains("ingress"));
        taps.chain(filters).map(str::to_owned).collect()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [&self.inner, &self.outer] {
            // A test that failed early may not have made it.
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .output();
        }
    }
}

/// Whether this host's kernel knows a type of interface.
pub fn knows(kind: &str) -> bool {
    let wire = Wire::empty();
    wire.around("link add lower type veth peer name far");
    let words = format!("-n {} link add upper link lower type {kind}", wire.outer);
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let unknown = error.contains("Unknown device type");
    assert!(output.status.success() || unknown, "ip {words}: {error}");
    !unknown
}

pub fn ip(words: &str) -> String {
    run("ip", words)
}

fn run(program: &str, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
    let output = Command::new(program).args(&words).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed (iproute2): {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
