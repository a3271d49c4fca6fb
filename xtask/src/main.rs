//! Build the guest, run the suites, measure, package.
fn main() {}
