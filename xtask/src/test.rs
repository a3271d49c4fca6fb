//! `make test`: everything CI runs, summed up in one line.

mod fuzz;
mod tally;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{brief, cargo, lines, show, succeeds, under};
use crate::{build, engines, kernel, licences, paths, setup};
use tally::{Reader, Tally};

/// A suite that takes longer hangs; seconds.
const SUITE_LIMIT: u64 = 2700;
/// The same for all end-to-end suites on KVM, which may interpret guest kernels.
const KVM_LIMIT: u64 = 8 * 3600;

/// The suite whose tests take inventories of the machine, each alone: what else runs beside it must leave
/// no trace that could be a container's. It uses half of a small machine.
const ONE_AT_A_TIME: &str = "faults";

/// How many tests of a suite run at once. Those of containers wait for machines and daemons half of the
/// time.
const THREADS: &str = "RUST_TEST_THREADS";

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Run the end-to-end suites on this hypervisor only; kvm: all of them, not the few that always run
    #[arg(long, value_parser = ["uml", "qemu", "kvm", "peer"])]
    hypervisor: Option<String>,
    /// Run only the tests whose name contains this; leaves the checks out
    filter: Option<String>,
}

/// Runs the suites and prints the sum; fails if a test failed.
pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    setup::ensure(setup::Purpose::Everything, false)?;
    let mut tally = Tally::default();
    if options.filter.is_none() {
        checks(&mut tally)?;
    }
    // Built before the suites, so that a test's time is the test's.
    build::all(None)?;
    kernel::stage_emulated()?;
    suites(options, &mut tally)?;
    tally.print();
    println!("time: {}", brief(start.elapsed()));
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed.len(),
        tally.skipped.len()
    );
    Ok(if tally.failed.is_empty() && tally.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Each check counts as one test.
fn checks(tally: &mut Tally) -> Result<()> {
    heading("checks");
    if succeeds(cargo().args(["fmt", "--version"])) {
        step(
            tally,
            "formatting",
            cargo().args(["fmt", "--all", "--check"]),
        )?;
    } else {
        tally.skip(
            "formatting",
            "rustfmt is not installed: rustup component add rustfmt",
        );
    }
    if succeeds(cargo().args(["clippy", "--version"])) {
        step(
            tally,
            "clippy",
            cargo()
                .args([
                    "clippy",
                    "--quiet",
                    "--locked",
                    "--workspace",
                    "--all-targets",
                ])
                .args(["--", "--deny=warnings"]),
        )?;
    } else {
        tally.skip("clippy", "it is not installed: rustup component add clippy");
    }
    match licences::check()?.report() {
        Ok(()) => tally.pass(),
        Err(err) => tally.fail(format!("licences: {err:#}")),
    }
    Ok(())
}

fn step(tally: &mut Tally, name: &str, command: &mut Command) -> Result<()> {
    println!("{name}: {}", show(command));
    let status = lines(command, Duration::from_secs(5), |line| {
        if let Some(line) = line {
            println!("{line}");
        }
    })?;
    if status.success() {
        tally.pass()
    } else {
        tally.fail(format!("{name}: {status}"))
    }
    Ok(())
}

/// Unit and integration tests of the crates, then the end-to-end suites, each
/// as far as it is there, and the fuzz targets.
fn suites(options: &Options, tally: &mut Tally) -> Result<()> {
    let filter = options.filter.as_deref();
    if options.hypervisor.is_none() {
        heading("unit tests");
        let mut unit = cargo();
        unit.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
        if has_end_to_end() {
            unit.args(["--exclude", "bulkhead-tests"]);
        }
        suite(tally, &mut unit, &[], filter)?;
    }
    if has_end_to_end() {
        end_to_end(options, tally)
    } else if filter.is_none() {
        heading("fuzz targets");
        tally.add(fuzz::smoke()?);
        Ok(())
    } else {
        Ok(())
    }
}

fn end_to_end(options: &Options, tally: &mut Tally) -> Result<()> {
    let filter = options.filter.as_deref();
    let newer = match engines::ensure() {
        Ok(root) => ("BULKHEAD_NEWER_ENGINES", root.into_os_string()),
        // The tests that want them are skipped, and say so.
        Err(error) => ("BULKHEAD_NO_NEWER_ENGINES", format!("{error:#}").into()),
    };
    let on_kvm = options.hypervisor.as_deref() == Some("kvm");
    let command = |suites: &[&str]| {
        let mut tests = cargo();
        tests.args(["test", "--locked", "--package=bulkhead-tests"]);
        tests.args(["--no-fail-fast"]).args(suites);
        if let Some(hypervisor) = &options.hypervisor {
            tests.env("BULKHEAD_TEST_HYPERVISOR", hypervisor);
        }
        tests.env(newer.0, &newer.1);
        // A guest kernel that KVM interprets keeps a processor busy.
        if !on_kvm && std::env::var_os(THREADS).is_none() {
            tests.env(THREADS, (2 * cpus()).to_string());
        }
        tests
    };
    let libtest: &[&str] = if on_kvm { &["--include-ignored"] } else { &[] };
    heading("end-to-end tests");
    if filter.is_some() {
        return suite(tally, &mut command(&[]), libtest, filter);
    }
    let names = suite_names()?;
    let side_by_side = names.iter().filter(|name| *name != ONE_AT_A_TIME);
    let mut arguments = vec!["--lib"];
    arguments.extend(side_by_side.flat_map(|name| ["--test", name]));
    suite(tally, &mut command(&arguments), libtest, None)?;
    heading("end-to-end tests one at a time, and fuzz targets");
    thread::scope(|scope| {
        let fuzz = scope.spawn(fuzz::smoke);
        let tested = suite(
            tally,
            &mut command(&["--test", ONE_AT_A_TIME]),
            libtest,
            None,
        );
        let fuzzed = fuzz.join();
        tally.add(fuzzed.unwrap_or_else(|_| bail!("The thread of the fuzz targets panicked"))?);
        tested
    })
}

/// Processors there are.
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The end-to-end suites, sorted: as cargo finds them, files, and directories with a `main.rs`.
fn suite_names() -> Result<Vec<String>> {
    let dir = paths::root().join("tests/tests");
    let entries = fs::read_dir(&dir).with_context(|| format!("Cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_file = path.extension().is_some_and(|extension| extension == "rs");
        if is_file || path.join("main.rs").is_file() {
            names.extend(path.file_stem().map(|name| name.display().to_string()));
        }
    }
    names.sort();
    Ok(names)
}

fn has_end_to_end() -> bool {
    paths::root().join("tests/Cargo.toml").is_file()
}

/// Runs one `cargo test` and adds its results.
///
/// A test that finds that it cannot run here appends `name: reason` to the file
/// named by `BULKHEAD_SKIPS` and returns: it then counts as skipped.
fn suite(
    tally: &mut Tally,
    cargo: &mut Command,
    options: &[&str],
    filter: Option<&str>,
) -> Result<()> {
    let skips = Skips::new()?;
    cargo.env("BULKHEAD_SKIPS", &skips.path);
    cargo.arg("--").args(options).args(filter);
    let limit = if options.is_empty() {
        SUITE_LIMIT
    } else {
        KVM_LIMIT
    };
    let mut reader = Reader::default();
    println!("{}", show(cargo));
    let status = lines(
        &mut guarded(cargo, limit),
        Duration::from_secs(10),
        |line| {
            if let Some(line) = line {
                println!("{line}");
                reader.line(line);
            }
        },
    )?;
    let failed = reader.failed();
    try_again(tally, &mut reader, cargo)?;
    reader.add_to(tally, &fs::read_to_string(&skips.path).unwrap_or_default());
    if !status.success() && failed == 0 {
        // It did not compile, or a test took the whole process with it.
        let why = match status.code() {
            Some(124 | 137) => "it took too long",
            _ => "it did not compile or died; see above",
        };
        tally.fail(format!("{}: {why}", show(cargo)));
    }
    Ok(())
}

/// Runs the few tests that failed once more, alone. On a machine that others use too a test may run
/// into its own patience; one that passes alone is named, but does not fail the run.
fn try_again(tally: &mut Tally, reader: &mut Reader, cargo: &Command) -> Result<()> {
    const FEW: usize = 12;
    let names = reader.named().filter(|names| names.len() <= FEW);
    let names = names.map(<[String]>::to_vec).unwrap_or_default();
    for name in names {
        println!("\nagain, alone: {name}");
        let mut again = guarded(cargo, SUITE_LIMIT);
        // The last arguments are those behind `--`.
        again.args(["--exact", &name]);
        let mut second = Reader::default();
        let status = lines(&mut again, Duration::from_secs(10), |line| {
            if let Some(line) = line {
                println!("{line}");
                second.line(line);
            }
        })?;
        if status.success() && second.is_good() {
            reader.forgive(&name);
            tally.unsteady.push(name);
        }
    }
    Ok(())
}

/// The same command under `timeout`, which ends the whole process group.
fn guarded(command: &Command, seconds: u64) -> Command {
    let options = ["--kill-after=10", &seconds.to_string()];
    under("timeout", &options, command)
}

/// A file in which tests note that they were skipped; gone when dropped.
struct Skips {
    path: PathBuf,
}

impl Skips {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("bulkhead-skips-{}", std::process::id()));
        fs::write(&path, "").with_context(|| format!("Cannot create {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Skips {
    fn drop(&mut self) {
        // Nothing depends on it any more.
        let _ = fs::remove_file(&self.path);
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}
