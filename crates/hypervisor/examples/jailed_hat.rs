//! The `bulkhead jailed` hat alone, for the tests of this crate.

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(hat), Some(json), None) = (args.next(), args.next(), args.next()) else {
        panic!("usage: jailed_hat jailed CONFIG");
    };
    assert_eq!(hat, "jailed");
    let config = match serde_json::from_str(&json) {
        Ok(config) => config,
        Err(error) => panic!("invalid configuration: {error}"),
    };
    let error: &dyn std::error::Error = &bulkhead_jail::exec::main(config);
    let chain = std::iter::successors(Some(error), |error| error.source());
    eprintln!(
        "{}",
        chain
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    );
    std::process::exit(125);
}
