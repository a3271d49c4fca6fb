//! Containers, each in its own virtual machine.
fn main() {}
