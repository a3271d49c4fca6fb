//! `bulkhead completion SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

/// Prints the script; `source` it or put it where the shell looks.
pub fn run(args: &Args) -> ExitCode {
    let mut command = crate::options::Cli::command();
    clap_complete::generate(args.shell, &mut command, "bulkhead", &mut std::io::stdout());
    ExitCode::SUCCESS
}
