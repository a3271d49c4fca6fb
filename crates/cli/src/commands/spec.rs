//! `bulkhead spec [--bundle DIR]`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_oci::run::default_spec;

use crate::error::CommandError;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write `config.json` to.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

/// Writes the configuration of a shell, as `runc spec` does; an existing file is left alone.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let path = args.bundle.join("config.json");
    let step = format!("write {}", path.display());
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.write_all(&serde_json::to_vec_pretty(&default_spec())?)?;
        file.write_all(b"\n")
    };
    match write() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(
            CommandError::Usage(format!("{} exists: remove it first", path.display())),
        ),
        written => written
            .map(|()| ExitCode::SUCCESS)
            .map_err(CommandError::io(step)),
    }
}
