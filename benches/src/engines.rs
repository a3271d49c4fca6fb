//! Podman and Docker with each runtime behind them: start, exec and memory.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bulkhead_tests::Engines;
use bulkhead_tests::harness::docker::Daemons;
use serde_json::json;

use crate::memory;
use crate::runtime::timed;
use crate::series::Series;

const IMAGE: &str = "localhost/bulkhead-bench:latest";

/// No more than a machine's administrator may allow root: runc and crun fail where they cannot set
/// Podman's own.
const ULIMITS: [&str; 2] = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"];

/// What was measured, a row for each engine and runtime.
#[derive(Debug, Default)]
pub struct Figures {
    /// `run --rm` of `/bin/true`, ms.
    pub run: Vec<Series>,
    /// `exec` of `/bin/true`, ms.
    pub exec: Vec<Series>,
    /// Of idle containers.
    pub memory: Vec<memory::Row>,
}

/// An engine with one of its runtimes.
#[derive(Debug)]
struct Row {
    name: String,
    /// Program and options, up to the verb.
    command: Vec<String>,
    /// Options of `run`.
    run: Vec<String>,
}

/// Medians of all engines that are there, each with all runtimes that work.
///
/// Podman is given a storage of its own below `dir`, Docker daemons of their own, in namespaces of their
/// own.
pub fn measure(
    dir: &Path,
    bulkhead: &Path,
    rootfs: &Path,
    runs: usize,
    many: usize,
) -> Result<Figures> {
    let archive = dir.join("rootfs.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(rootfs).arg("-cf").arg(&archive).arg(".");
    timed(&mut tar).context("pack the root file system")?;
    let podman = Podman::make(dir)?;
    let mut candidates = Vec::new();
    match podman.import(&archive) {
        Ok(()) => candidates.extend(podman.rows(bulkhead)),
        Err(error) => println!("left out: podman: {error:#}"),
    }
    // Kept until all is measured.
    let daemons = docker(bulkhead, &archive);
    match &daemons {
        Ok(daemons) => candidates.extend(docker_rows(&daemons.host())),
        Err(error) => println!("left out: docker: {error:#}"),
    }
    let mut rows = Vec::new();
    for row in candidates {
        match row.run() {
            Ok(_) => rows.push(row),
            Err(error) => println!("left out: {}: {error:#}", row.name),
        }
    }
    let figures = Figures {
        run: each_in_turn(&rows.iter().collect::<Vec<_>>(), runs, Row::run)?,
        memory: rows
            .iter()
            .map(|row| row.memory(many))
            .collect::<Result<_>>()?,
        exec: exec(&rows, runs)?,
    };
    podman.clean_up();
    Ok(figures)
}

/// In turn, A B C A B C …, so that a drift of the machine's speed meets all alike.
fn each_in_turn(
    rows: &[&Row],
    runs: usize,
    measured: impl Fn(&Row) -> Result<Duration>,
) -> Result<Vec<Series>> {
    let new = |row: &&Row| Series::new(row.name.clone());
    let mut series: Vec<_> = rows.iter().map(new).collect();
    for _ in 0..runs {
        for (series, row) in series.iter_mut().zip(rows) {
            series.add_ms(measured(row)?);
        }
    }
    Ok(series)
}

fn exec(rows: &[Row], runs: usize) -> Result<Vec<Series>> {
    let mut running = Vec::new();
    for row in rows {
        row.start_idle(&row.idle())?;
        match row.exec() {
            Ok(_) => running.push(row),
            Err(error) => println!("left out: exec, {}: {error:#}", row.name),
        }
    }
    let series = each_in_turn(&running, runs, |row| row.exec())?;
    for row in rows {
        row.verb(&["rm", "--force", &row.idle()])?;
    }
    Ok(series)
}

impl Row {
    fn new(engine: &str, runtime: &str, command: &[String], options: &[&str]) -> Self {
        Self {
            name: format!("{engine} {runtime}"),
            command: command.to_vec(),
            run: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    fn verb(&self, args: &[&str]) -> Result<Duration> {
        let (program, options) = self.command.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        timed(command.args(options).args(args).stdin(Stdio::null()))
    }

    fn start(&self, options: &[&str], program: &[&str]) -> Result<Duration> {
        let own = self.run.iter().map(String::as_str);
        let run = ["run", "--network=none"].into_iter().chain(own);
        let run = run.chain(options.iter().copied()).chain([IMAGE]);
        let run: Vec<&str> = run.chain(program.iter().copied()).collect();
        self.verb(&run)
    }

    fn run(&self) -> Result<Duration> {
        self.start(&["--rm"], &["/bin/true"])
    }

    /// Name of a container of the row's own: rows of one engine share its containers.
    fn idle(&self) -> String {
        format!("bench-{}", self.name.replace(' ', "-"))
    }

    fn exec(&self) -> Result<Duration> {
        self.verb(&["exec", &self.idle(), "/bin/true"])
    }

    fn start_idle(&self, name: &str) -> Result<Duration> {
        self.start(&["--detach", "--name", name], &["/bin/sleep", "1000"])
    }

    fn memory(&self, many: usize) -> Result<memory::Row> {
        let mut memory = memory::Engine::new();
        let names: Vec<String> = (0..many.max(1)).map(|n| format!("bench-{n}")).collect();
        for (n, name) in names.iter().enumerate() {
            self.start_idle(name)?;
            if n == 0 {
                memory.first();
            }
        }
        let row = memory.all(&self.name, names.len());
        let all = names.iter().map(String::as_str);
        let remove: Vec<&str> = ["rm", "--force"].into_iter().chain(all).collect();
        self.verb(&remove)?;
        Ok(row)
    }
}

/// Podman with directories of its own.
#[derive(Debug)]
struct Podman {
    dir: PathBuf,
}

impl Podman {
    fn make(dir: &Path) -> Result<Self> {
        let dir = dir.join("podman");
        fs::create_dir_all(&dir).context("make podman's directory")?;
        Ok(Self { dir })
    }

    fn command(&self) -> Vec<String> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command = vec!["podman".to_owned()];
        for (option, value) in [
            ("--root", at("root")),
            ("--runroot", at("runroot")),
            ("--tmpdir", at("tmp")),
            ("--cgroup-manager", "cgroupfs".to_owned()),
            ("--events-backend", "none".to_owned()),
        ] {
            command.extend([option.to_owned(), value]);
        }
        command
    }

    fn import(&self, archive: &Path) -> Result<()> {
        let command = self.command();
        let mut podman = Command::new("podman");
        podman.args(command.iter().skip(1)).arg("import");
        timed(podman.arg(archive).arg(IMAGE)).map(drop)
    }

    fn rows(&self, bulkhead: &Path) -> Vec<Row> {
        let row = |name: &str, runtime: &str, flags: &[&str]| {
            let mut command = self.command();
            command.extend(["--runtime".to_owned(), runtime.to_owned()]);
            for flag in flags {
                command.extend(["--runtime-flag".to_owned(), (*flag).to_owned()]);
            }
            Row::new("podman", name, &command, &ULIMITS)
        };
        vec![
            row("bulkhead", &bulkhead.display().to_string(), &[]),
            row("runc", "/usr/sbin/runc", &[]),
            row("crun", "/usr/bin/crun", &[]),
            row(
                "runsc",
                "/usr/bin/runsc",
                &["platform=ptrace", "network=none"],
            ),
        ]
    }

    fn clean_up(&self) {
        let command = self.command();
        let mut podman = Command::new("podman");
        podman.args(command.iter().skip(1));
        podman.args(["system", "reset", "--force"]);
        if let Err(error) = timed(&mut podman) {
            println!(
                "podman's storage in {} stays: {error:#}",
                self.dir.display()
            );
        }
    }
}

/// containerd and dockerd, with the image.
fn docker(bulkhead: &Path, archive: &Path) -> Result<Daemons> {
    let engines = Engines::chosen(&Daemons::PROGRAMS).map_err(|reason| anyhow!(reason))?;
    let runtimes = [
        ("bulkhead", json!({ "path": bulkhead })),
        ("crun", json!({ "path": "/usr/bin/crun" })),
        (
            "runsc",
            json!({
                "path": "/usr/bin/runsc",
                "runtimeArgs": ["--platform=ptrace", "--network=none"],
            }),
        ),
    ];
    let daemons = catch_unwind(|| Daemons::start_with(&engines, &[], &runtimes));
    let daemons = daemons.map_err(|_| anyhow!("its daemons did not start, see above"))?;
    let mut import = Command::new("docker");
    import.env("DOCKER_HOST", daemons.host()).arg("import");
    timed(import.arg(archive).arg(IMAGE)).context("import the image")?;
    Ok(daemons)
}

fn docker_rows(host: &str) -> Vec<Row> {
    let command = ["docker", "--host", host].map(str::to_owned);
    let row = |runtime: &str| Row::new("docker", runtime, &command, &["--runtime", runtime]);
    ["bulkhead", "runc", "crun", "runsc"].map(row).into()
}
