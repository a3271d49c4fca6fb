//! The device process on its own: what `bulkhead device` is, for tests and measurements.
//!
//! `device CONFIG` runs it in its jail; `device --bare CONFIG` without one, so that it can be
//! traced. Messages go to standard error.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use bulkhead_devices::{DeviceConfig, DeviceError, Resources, run, serve};

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn bare(config: &DeviceConfig) -> Result<(), DeviceError> {
    let proc_fd: OwnedFd = std::fs::File::open("/proc/self/fd")
        .map_err(|source| DeviceError::Setup {
            what: "open /proc/self/fd",
            source,
        })?
        .into();
    serve(Resources::inherit(config, proc_fd)?, config)
}

fn main() -> ExitCode {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let mut args = std::env::args().skip(1).peekable();
    let bare_wanted = args.next_if(|arg| arg == "--bare").is_some();
    let Some(Ok(config)) = args
        .next()
        .map(|arg| serde_json::from_str::<DeviceConfig>(&arg))
    else {
        eprintln!("usage: device [--bare] CONFIG");
        return ExitCode::from(2);
    };
    let result = if bare_wanted {
        bare(&config)
    } else {
        run(config)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut error: &dyn std::error::Error = &e;
            eprint!("{error}");
            while let Some(source) = error.source() {
                eprint!(": {source}");
                error = source;
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}
