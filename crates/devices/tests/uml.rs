//! Both devices in front of a real kernel in User-Mode Linux.
//!
//! Needs root and `BULKHEAD_TEST_UML=<kernel>`; says so and passes otherwise.

mod common;

use common::{Hypervisor, Machine};

#[test]
fn guest_boots_mounts_and_calls_home() {
    let Some(hypervisor) = Hypervisor::uml() else {
        return;
    };
    let mut machine = Machine::start(&hypervisor);
    std::fs::write(machine.share().join("hello"), "from the host").unwrap();

    assert_eq!(machine.tell("cat /share/hello"), "from the host");
    assert_eq!(machine.tell("connect 99"), "errno 104");
}
