//! `podman run --rm` and `docker run --rm` with each runtime behind them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::runtime::timed;
use crate::series::Series;

const IMAGE: &str = "localhost/bulkhead-bench:latest";

/// An engine with one of its runtimes.
#[derive(Debug)]
struct Row {
    name: String,
    command: Vec<String>,
}

/// Medians of all engines that are there, each with all runtimes that work.
///
/// Podman is given a storage of its own below `dir`. A Docker daemon is used as it is found
/// (`DOCKER_HOST`), with those of the runtimes it was configured with.
pub fn measure(dir: &Path, bulkhead: &Path, rootfs: &Path, runs: usize) -> Result<Vec<Series>> {
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
    match import_to_docker(&archive) {
        Ok(()) => candidates.extend(docker_rows()),
        Err(error) => println!("left out: docker: {error:#}"),
    }
    let mut rows = Vec::new();
    for row in candidates {
        match row.run() {
            Ok(_) => rows.push((Series::new(row.name.clone()), row)),
            Err(error) => println!("left out: {}: {error:#}", row.name),
        }
    }
    for _ in 0..runs {
        for (series, row) in &mut rows {
            series.add_ms(row.run()?);
        }
    }
    podman.clean_up();
    Ok(rows.into_iter().map(|(series, _)| series).collect())
}

impl Row {
    fn run(&self) -> Result<Duration> {
        let (program, arguments) = self.command.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        timed(command.args(arguments).stdin(Stdio::null()))
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
            let run = [
                "run",
                "--rm",
                "--network=none",
                "--ulimit=host",
                IMAGE,
                "/bin/true",
            ];
            command.extend(run.map(str::to_owned));
            Row {
                name: format!("podman {name}"),
                command,
            }
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

fn import_to_docker(archive: &Path) -> Result<()> {
    let output = Command::new("docker")
        .args(["import"])
        .arg(archive)
        .arg(IMAGE)
        .output()
        .context("run docker")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.lines().next().unwrap_or("no message"));
    }
    Ok(())
}

fn docker_rows() -> Vec<Row> {
    let row = |runtime: &str| {
        let run = [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "--runtime",
            runtime,
        ];
        Row {
            name: format!("docker {runtime}"),
            command: run
                .into_iter()
                .chain([IMAGE, "/bin/true"])
                .map(str::to_owned)
                .collect(),
        }
    };
    ["bulkhead", "runc", "crun", "runsc"].map(row).into()
}
