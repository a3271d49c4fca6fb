//! Macro benchmarks: Bulkhead and its peers in turn, on the same bundle, in the same run.
//!
//! Absolute times on a shared machine mean little; what counts are medians and the ratios between rows
//! of one run. Nothing is asserted.

mod bundle;
mod cost;
mod engines;
mod memory;
mod runtime;
mod series;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use bundle::Bundle;
use runtime::Runtime;
use series::Series;

/// Measures Bulkhead beside the container runtimes that are installed.
#[derive(Debug, Parser)]
struct Args {
    /// The `bulkhead` executable.
    #[arg(long, default_value = "build/bin/bulkhead")]
    bulkhead: PathBuf,
    /// Counted runs of each start and exec; slow drivers get a quarter of them.
    #[arg(short = 'n', long, default_value_t = 20)]
    runs: usize,
    /// Idle containers started at once for the memory of many.
    #[arg(long, default_value_t = 10)]
    many: usize,
    /// MiB to stream in each direction.
    #[arg(long, default_value_t = 256)]
    stream_mib: u64,
    /// Only these parts: start, timeline, cost, memory, exec, stream, engines.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print JSON after the tables.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    runtime::private_mounts()?;
    let dir = tempfile::tempdir().context("make a working directory")?;
    let bundle = Bundle::make(&dir.path().join("true"), &["/bin/true"])?;
    let bulkhead = std::fs::canonicalize(&args.bulkhead)
        .with_context(|| format!("find {}: run `make build`", args.bulkhead.display()))?;
    let runtimes = Runtime::installed(&bulkhead, dir.path(), &bundle);
    let names: Vec<_> = runtimes.iter().map(|runtime| runtime.name).collect();
    println!("runtimes: {}\n", names.join(", "));
    let mut report = serde_json::Map::new();
    if args.wants("start") {
        let rows = start(args, &runtimes, &bundle)?;
        series::print("start to exit of /bin/true, ms", &rows);
        report.insert("start_ms".into(), series::json(&rows));
    }
    if args.wants("timeline") {
        for runtime in runtimes.iter().filter(|runtime| runtime.driver().is_some()) {
            println!("where a start of {} goes", runtime.name);
            println!("{}", runtime.timeline(&bundle)?);
        }
    }
    if args.wants("cost") {
        match cost::measure(&bulkhead, dir.path(), &bundle)? {
            Some(counts) => {
                cost::print(&counts);
                report.insert("cost".into(), counts);
            }
            None => println!("cost: left out, there is no /dev/kvm\n"),
        }
    }
    if args.wants("memory") {
        let idle = Bundle::make(&dir.path().join("idle"), &["/bin/sleep", "1000"])?;
        let rows = memory::measure(&runtimes, &idle, args.many)?;
        memory::print(&rows, args.many);
        report.insert("memory_kib".into(), memory::json(&rows));
    }
    if args.wants("exec") {
        let idle = Bundle::make(&dir.path().join("exec"), &["/bin/sleep", "1000"])?;
        let rows = exec(args, &runtimes, &idle)?;
        series::print("exec of /bin/true in a running container, ms", &rows);
        report.insert("exec_ms".into(), series::json(&rows));
    }
    if args.wants("stream") {
        let rows = stream(args, &runtimes, dir.path())?;
        series::print("streaming, MB/s", &rows);
        report.insert("stream_mb_s".into(), series::json(&rows));
    }
    if args.wants("engines") {
        let rootfs = bundle.dir.join("rootfs");
        let figures = engines::measure(dir.path(), &bulkhead, &rootfs, args.runs, args.many)?;
        series::print("run --rm of /bin/true through an engine, ms", &figures.run);
        report.insert("engines_ms".into(), series::json(&figures.run));
        series::print("exec of /bin/true through an engine, ms", &figures.exec);
        report.insert("engines_exec_ms".into(), series::json(&figures.exec));
        memory::print(&figures.memory, args.many);
        report.insert("engines_memory_kib".into(), memory::json(&figures.memory));
    }
    if args.json {
        println!("{}", serde_json::Value::Object(report));
    }
    Ok(())
}

/// In turn, A B C A B C …, so that a drift of the machine's speed meets all alike.
fn start(args: &Args, runtimes: &[Runtime], bundle: &Bundle) -> Result<Vec<Series>> {
    let mut rows: Vec<Series> = runtimes.iter().map(|r| Series::new(r.name)).collect();
    for runtime in runtimes {
        runtime.run(bundle, "warm-up")?;
    }
    for round in 0..args.runs {
        for (runtime, row) in runtimes.iter().zip(&mut rows) {
            if !runtime.is_slow() || round % 4 == 0 {
                row.add_ms(runtime.run(bundle, &format!("start-{round}"))?);
            }
        }
    }
    Ok(rows)
}

fn exec(args: &Args, runtimes: &[Runtime], idle: &Bundle) -> Result<Vec<Series>> {
    let mut rows = Vec::new();
    let mut running = Vec::new();
    // Debian's runsc loses sight of a container whose command has a pipe for its output.
    for runtime in runtimes.iter().filter(|runtime| runtime.name != "runsc") {
        running.push((runtime, runtime.start_idle(idle, "bench-exec")?));
        rows.push(Series::new(runtime.name));
    }
    for (runtime, _) in &running {
        runtime.exec("bench-exec", &["/bin/true"])?;
    }
    for round in 0..args.runs {
        for ((runtime, _), row) in running.iter().zip(&mut rows) {
            if !runtime.is_slow() || round % 4 == 0 {
                row.add_ms(runtime.exec("bench-exec", &["/bin/true"])?);
            }
        }
    }
    for (runtime, idle) in running {
        runtime.stop(idle, "bench-exec")?;
    }
    Ok(rows)
}

fn stream(args: &Args, runtimes: &[Runtime], dir: &std::path::Path) -> Result<Vec<Series>> {
    let bytes = args.stream_mib << 20;
    let count = format!("count={}", args.stream_mib);
    let out = Bundle::make(
        &dir.join("out"),
        &["/bin/dd", "if=/dev/zero", "of=/dev/stdout", "bs=1M", &count],
    )?;
    let into = Bundle::make(&dir.join("into"), &["/bin/dd", "of=/dev/null", "bs=1M"])?;
    let mut rows = Vec::new();
    for runtime in runtimes {
        let mut from_container = Series::new(format!("{} out", runtime.name));
        let mut to_container = Series::new(format!("{} in", runtime.name));
        for round in 0..3 {
            let took = runtime.stream_out(&out, &format!("out-{round}"), bytes)?;
            from_container.add(rate(bytes, took));
            let took = runtime.stream_in(&into, &format!("in-{round}"), bytes)?;
            to_container.add(rate(bytes, took));
        }
        rows.extend([from_container, to_container]);
    }
    Ok(rows)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn rate(bytes: u64, took: std::time::Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}
