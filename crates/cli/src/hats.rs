//! The parts `bulkhead` plays besides that of a command.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use bulkhead_sandbox::error::chain;
use serde::de::DeserializeOwned;

/// Name under which containerd looks for a shim.
const SHIM: &str = "containerd-shim-bulkhead-v2";

/// Runs the hat named by the program's name or first argument; `None` for a command.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new(SHIM)) {
        return Some(fail(
            "The containerd shim is not built yet: this version serves `bulkhead run` only; use \
             io.containerd.runc.v2 until a release note announces the shim",
        ));
    }
    let hat = args.next()?;
    let run: fn(&str) -> Result<(), String> = match hat.to_str()? {
        "sandbox" => sandbox,
        "device" => device,
        "jailed" => jailed,
        "vmm" => vmm,
        "standin" => standin,
        _ => return None,
    };
    let (Some(json), None) = (args.next(), args.next()) else {
        return Some(fail(
            "This command is Bulkhead's own and not meant to be called",
        ));
    };
    Some(match run(&json.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    })
}

fn fail(message: &str) -> ExitCode {
    eprintln!("bulkhead: {message}");
    ExitCode::FAILURE
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("Invalid configuration of a hat: {error}"))
}

fn sandbox(json: &str) -> Result<(), String> {
    // Standard error is the sandbox's own log file.
    crate::log::to_stderr(crate::log::Format::Text, false);
    bulkhead_sandbox::serve::serve(parse(json)?).map_err(|error| chain(&error))
}

fn device(json: &str) -> Result<(), String> {
    bulkhead_devices::run(parse(json)?).map_err(|error| chain(&error))
}

fn vmm(json: &str) -> Result<(), String> {
    bulkhead_vmm::run(parse(json)?)
        .map(drop)
        .map_err(|error| chain(&error))
}

fn standin(json: &str) -> Result<(), String> {
    Err(crate::standin::run(json))
}

fn jailed(json: &str) -> Result<(), String> {
    Err(chain(&bulkhead_jail::exec::main(parse(json)?)))
}
