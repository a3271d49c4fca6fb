//! A short run of each fuzz target.
//!
//! The targets are ordinary libFuzzer programs. The compiler's coverage pass is
//! all that they need, so that they are built here with the stable toolchain
//! and without cargo-fuzz.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::cpus;
use super::tally::Tally;
use crate::command::{cargo, command, lines, polite};
use crate::paths;

/// Time given to each target.
const SECONDS: u32 = 15;

const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    bin: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Builds the targets and runs each for some seconds, from its seeds; as many at once as there are
/// processors, and only on what other programs leave of them.
///
/// Every line it prints tells that it is from here: it may run beside something else.
pub fn smoke() -> Result<Tally> {
    let mut tally = Tally::default();
    let dir = paths::root().join("fuzz");
    let path = dir.join("Cargo.toml");
    if !path.is_file() {
        return Ok(tally);
    }
    let text = fs::read_to_string(&path)?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("Cannot parse {}", path.display()))?;
    let triple = "x86_64-unknown-linux-gnu";
    let mut build = cargo();
    build
        .args(["build", "--locked", "--release", "--manifest-path"])
        .arg(&path)
        .arg(format!("--target={triple}"))
        .arg("--target-dir=fuzz/target")
        .env("RUSTFLAGS", COVERAGE);
    println!("fuzz: building {} targets", manifest.bin.len());
    let status = lines(
        &mut polite(&build),
        Duration::from_secs(10),
        |line| match line {
            Some(line) => println!("fuzz: {}", line.trim_start()),
            None => println!("fuzz: building"),
        },
    )?;
    if !status.success() {
        tally.fail("the fuzz targets do not build");
        return Ok(tally);
    }
    let programs = dir.join("target").join(triple).join("release");
    let left = Mutex::new(manifest.bin.into_iter());
    let tally = Mutex::new(tally);
    let some = || -> Result<()> {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(Target { name }) = next else {
                return Ok(());
            };
            let outcome = one(&dir, &name, &programs.join(&name))?;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                None => tally.pass(),
                Some(failure) => tally.fail(failure),
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus()).map(|_| scope.spawn(some)).collect();
        workers.into_iter().try_for_each(|worker| {
            let done = worker.join();
            done.unwrap_or_else(|_| bail!("A thread that runs fuzz targets panicked"))
        })
    })?;
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a target; what failed, if something did.
fn one(dir: &Path, name: &str, program: &Path) -> Result<Option<String>> {
    let artifacts = dir.join("artifacts").join(name);
    let corpus = dir.join("corpus").join(name);
    fs::create_dir_all(&artifacts)?;
    fs::create_dir_all(&corpus)?;
    let mut fuzzer = command(program);
    fuzzer
        .arg(format!("-max_total_time={SECONDS}"))
        .args([
            "-timeout=5",
            "-rss_limit_mb=2048",
            "-verbosity=0",
            "-print_final_stats=1",
        ])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&corpus);
    let seeds = dir.join("seeds").join(name);
    if seeds.is_dir() {
        fuzzer.arg(seeds);
    }
    let mut output = String::new();
    let status = lines(&mut polite(&fuzzer), Duration::from_secs(10), |line| {
        if let Some(line) = line {
            output += line;
            output.push('\n');
        }
    })?;
    if status.success() {
        let runs = output
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("fuzz: {name}: {} inputs", runs.unwrap_or("?").trim());
        Ok(None)
    } else {
        print!("{output}");
        let artifacts = artifacts.display();
        let failure = format!("fuzz {name}: {status}; the input is in {artifacts}");
        Ok(Some(failure))
    }
}
