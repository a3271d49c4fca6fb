//! The hats `bulkhead jailed` and `bulkhead vmm` alone, for the tests of this crate.

use std::error::Error;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(hat), Some(json), None) = (args.next(), args.next(), args.next()) else {
        panic!("usage: jailed_hat (jailed|vmm) CONFIG");
    };
    let error: Box<dyn Error> = match hat.as_str() {
        "jailed" => Box::new(bulkhead_jail::exec::main(parse(&json))),
        "vmm" => match bulkhead_vmm::run(parse(&json)) {
            Ok(_) => return,
            Err(error) => Box::new(error),
        },
        other => panic!("there is no hat {other}"),
    };
    eprint!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    std::process::exit(125);
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> T {
    match serde_json::from_str(json) {
        Ok(config) => config,
        Err(error) => panic!("invalid configuration: {error}"),
    }
}
