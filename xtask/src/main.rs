//! Build the guest, run the suites, measure, package.
//!
//! `make` is a thin front for this program; `cargo xtask --help` lists what it
//! can do. It needs nothing but Rust and a C compiler to start: everything else
//! it installs itself (`cargo xtask setup`).

mod build;
mod command;
mod cpio;
mod engines;
mod install;
mod kernel;
mod licences;
mod paths;
mod run;
mod setup;
mod spdx;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bulkhead_kernels::Flavour;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the Debian packages that are missing
    Setup,
    /// Build the guest kernels, or take them from the cache
    Kernel {
        /// Only this flavour
        #[arg(long)]
        flavour: Option<Flavour>,
        /// Instead, the one for tests on a KVM that interprets guest kernels
        #[arg(long, conflicts_with = "flavour")]
        emulated: bool,
    },
    /// Build the static agent that is the guest's PID 1
    Agent,
    /// Build the agent and pack it as the guest's initramfs
    Initramfs,
    /// Build everything and lay it out under build/
    Build {
        /// Only the kernel of this flavour
        #[arg(long)]
        flavour: Option<Flavour>,
    },
    /// Copy build/ to an installation prefix
    Install {
        /// Prefix under which bin/ and lib/ lie
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
        /// Stage under this directory, for packagers
        #[arg(long, env = "DESTDIR")]
        destdir: Option<PathBuf>,
    },
    /// Remove what `install` put under a prefix
    Uninstall {
        /// Prefix given to `install`
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
        /// Staging directory given to `install`
        #[arg(long, env = "DESTDIR")]
        destdir: Option<PathBuf>,
    },
    /// Run a container in its own virtual machine and show what was obtained
    Run {
        /// kvm, uml, qemu or auto
        #[arg(long, default_value = "auto")]
        hypervisor: String,
    },
    /// Unpack newer container engines than the distribution's, and print where they are
    Engines,
    /// Run everything CI runs; ends with `N passed, N failed, N skipped`
    Test(test::Options),
    /// Measure Bulkhead beside its peers
    Bench {
        /// Options of the benchmark; `-- --help` lists them
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Check the licences, sources and duplicates of all dependencies
    Licences,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::ensure(setup::Purpose::Everything, true)?,
        Task::Kernel { flavour, emulated } => {
            setup::ensure(setup::Purpose::Build, false)?;
            if emulated {
                kernel::stage_emulated()?;
            } else {
                kernel::stage(flavour)?;
            }
        }
        Task::Agent => {
            setup::ensure(setup::Purpose::Build, false)?;
            println!("{}", build::agent()?.display());
        }
        Task::Initramfs => {
            setup::ensure(setup::Purpose::Build, false)?;
            build::initramfs()?;
        }
        Task::Build { flavour } => {
            setup::ensure(setup::Purpose::Build, false)?;
            build::all(flavour)?;
        }
        Task::Install { prefix, destdir } => install::install(&prefix, destdir.as_deref())?,
        Task::Uninstall { prefix, destdir } => install::uninstall(&prefix, destdir.as_deref())?,
        Task::Run { hypervisor } => return run::run(&hypervisor),
        Task::Bench { options } => {
            setup::ensure(setup::Purpose::Everything, false)?;
            build::all(None)?;
            kernel::stage_emulated()?;
            command::run(
                command::cargo()
                    .args([
                        "run",
                        "--locked",
                        "--quiet",
                        "--release",
                        "--package=bulkhead-bench",
                        "--",
                    ])
                    .args(options),
            )?;
        }
        Task::Engines => {
            setup::ensure(setup::Purpose::Everything, false)?;
            println!("{}", engines::ensure()?.display());
        }
        Task::Test(options) => return test::run(&options),
        Task::Licences => licences::check()?.report()?,
    }
    Ok(ExitCode::SUCCESS)
}
