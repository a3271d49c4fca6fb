//! The command line: global options as runc has them, and the verbs.

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_sandbox::error::chain;
use bulkhead_sandbox::paths::DEFAULT_ROOT;
use bulkhead_sandbox::timeline::printable;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::error::CommandError;
use crate::log::{self, Format};
use crate::version;

/// Containers, each in its own virtual machine with its own Linux kernel.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    version = version::text(),
    disable_version_flag = true,
    arg_required_else_help = true,
    propagate_version = false
)]
pub struct Cli {
    /// Directory for the state of containers.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub root: PathBuf,
    /// File for log messages, instead of standard error.
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of log messages.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log more.
    #[arg(long, global = true)]
    pub debug: bool,
    /// Have systemd make the container's control group: linux.cgroupsPath is slice:prefix:name.
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// As in runc, but for true, which is refused: Bulkhead needs root.
    #[arg(
        long,
        global = true,
        value_name = "true|false|auto",
        default_value = "auto",
        ignore_case = true
    )]
    rootless: Rootless,
    /// As in runc; nothing is done with it, there are no checkpoints.
    #[arg(long, global = true, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// Print the version.
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rootless {
    #[value(alias = "1", alias = "t")]
    True,
    #[value(alias = "0", alias = "f")]
    False,
    Auto,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container in its own virtual machine.
    Run(Box<commands::run::Args>),
    /// Make a container from a bundle, up to the moment before its program starts.
    Create(commands::create::Args),
    /// Start the program of a created container.
    Start(commands::start::Args),
    /// List containers.
    #[command(visible_alias = "ls")]
    List(commands::list::Args),
    /// Show the state of a container as JSON.
    State(commands::state::Args),
    /// Show the processes of a container.
    Ps(commands::ps::Args),
    /// Run a further command in a running container.
    Exec(Box<commands::exec::Args>),
    /// Send a signal to a container's init process.
    Kill(commands::kill::Args),
    /// Freeze all processes of a container.
    Pause(commands::pause::Args),
    /// Thaw a paused container.
    Resume(commands::pause::Args),
    /// Change limits of a running container.
    Update(commands::update::Args),
    /// Show what a container uses, again and again.
    Events(commands::events::Args),
    /// Show what configurations may ask for, as JSON.
    Features(commands::features::Args),
    /// Refused: there are no checkpoints of virtual machines in this version.
    #[command(hide = true)]
    Checkpoint(commands::refused::Args),
    /// Refused: there are no checkpoints of virtual machines in this version.
    #[command(hide = true)]
    Restore(commands::refused::Args),
    /// Remove a stopped container.
    #[command(visible_alias = "rm")]
    Delete(commands::delete::Args),
    /// Show what a container's guest wrote to its console.
    Logs(commands::logs::Args),
    /// Tell where the time of a start went and, after a failure, its cause and what to do.
    Why(commands::why::Args),
    /// Check the host, each finding with its remedy.
    Doctor(commands::doctor::Args),
    /// Write a configuration to start a bundle from.
    Spec(commands::spec::Args),
    /// Installed guest kernels.
    #[command(subcommand)]
    Kernel(commands::kernel::Args),
    /// Print a completion script for a shell.
    Completion(commands::completion::Args),
}

impl Cli {
    /// Why these global options cannot be followed.
    fn refused(&self) -> Option<&'static str> {
        (self.rootless == Rootless::True).then_some(
            "--rootless true is refused: namespaces, mounts and other users are set up for the jails, which \
             needs root; use auto or false",
        )
    }
}

/// What every verb may need.
#[derive(Debug)]
pub struct Globals {
    /// `--root`.
    pub root: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// When the command began (`CLOCK_MONOTONIC`, nanoseconds).
    pub began_ns: u64,
}

/// Parses the command line and carries the verb out.
pub fn run(began_ns: u64) -> ExitCode {
    if let Some(argument) = std::env::args_os()
        .skip(1)
        .find(|arg| arg.to_str().is_none())
    {
        eprintln!(
            "bulkhead: Argument {argument:?} is not valid UTF-8: OCI configurations are JSON and cannot hold it"
        );
        return ExitCode::from(125);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error),
    };
    let logging = match &cli.log {
        Some(path) => log::to_file(path, cli.log_format, cli.debug),
        None => {
            log::to_stderr(cli.log_format, cli.debug);
            Ok(())
        }
    };
    if let Err(error) = logging {
        let path = cli.log.unwrap_or_default();
        eprintln!(
            "bulkhead: Failed to open the log {}: {error}",
            path.display()
        );
        return ExitCode::FAILURE;
    }
    tracing::debug!(
        "Bulkhead {} carries out a verb for the containers of {}",
        env!("CARGO_PKG_VERSION"),
        cli.root.display()
    );
    let refused = cli.refused();
    let globals = Globals {
        root: absolute(cli.root),
        systemd_cgroup: cli.systemd_cgroup,
        began_ns,
    };
    let default_code = match &cli.command {
        // Docker's and Podman's code for an error that is not the container's own.
        Command::Run(args) if !args.is_bundle() => 125,
        Command::Exec(_) => 255,
        _ => 1,
    };
    let done = match refused {
        Some(reason) => Err(CommandError::Usage(reason.to_owned())),
        None => dispatch(cli.command, &globals),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let message = chain(&error);
            eprintln!("bulkhead: {message}");
            if let Some(path) = &cli.log {
                log::report_error(path, cli.log_format, &message);
            }
            ExitCode::from(error.exit_code(default_code))
        }
    }
}

/// Tells of a command line that cannot be parsed in one line, as of everything else; help and version
/// are no errors and come as they are.
fn misunderstood(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().skip(1).collect();
    let mut message = printable(&words.join(" "));
    if let Some(first) = message.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let command = Cli::command();
    let verb = std::env::args()
        .skip(1)
        .find(|word| command.find_subcommand(word).is_some());
    let code = match verb.as_deref() {
        Some("run") => 125,
        Some("exec") => 255,
        _ => 1,
    };
    let verb = verb.map_or_else(String::new, |verb| format!(" {verb}"));
    eprintln!("bulkhead: {message}: see `bulkhead{verb} --help`");
    ExitCode::from(code)
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn dispatch(command: Command, globals: &Globals) -> Result<ExitCode, CommandError> {
    match command {
        Command::Run(args) => commands::run::run(*args, globals),
        Command::Create(args) => commands::create::run(&args, globals),
        Command::Start(args) => commands::start::run(&args, globals),
        Command::List(args) => commands::list::run(&args, globals),
        Command::State(args) => commands::state::run(&args, globals),
        Command::Ps(args) => commands::ps::run(&args, globals),
        Command::Exec(args) => commands::exec::run(*args, globals),
        Command::Kill(args) => commands::kill::run(&args, globals),
        Command::Pause(args) => commands::pause::run(&args, globals, false),
        Command::Resume(args) => commands::pause::run(&args, globals, true),
        Command::Delete(args) => commands::delete::run(&args, globals),
        Command::Update(args) => commands::update::run(&args, globals),
        Command::Events(args) => commands::events::run(&args, globals),
        Command::Features(args) => Ok(commands::features::run(&args)),
        Command::Checkpoint(_) => commands::refused::run("checkpoint"),
        Command::Restore(_) => commands::refused::run("restore"),
        Command::Logs(args) => commands::logs::run(&args, globals),
        Command::Why(args) => commands::why::run(&args, globals),
        Command::Doctor(args) => commands::doctor::run(&args, globals),
        Command::Spec(args) => commands::spec::run(&args),
        Command::Kernel(args) => commands::kernel::run(&args),
        Command::Completion(args) => Ok(commands::completion::run(&args)),
    }
}
