//! What Podman does with containers beside running them: files, images, numbers, pods, manifests.

use std::fs;

use bulkhead_tests::harness::podman::IMAGE;
use bulkhead_tests::{Podman, wait};

use crate::podman_suite;

podman_suite! {
    both:
        top_shows_processes,
        build_runs_its_steps,
        buildah_runs_a_command_and_commits_it;
    uml:
        top_with_descriptors_shows_the_first_process,
        stats_are_those_of_the_container,
        files_are_copied_both_ways,
        commit_makes_an_image,
        diff_has_the_changes,
        export_has_the_files;
    newer:
        build_runs_its_steps,
        stats_are_those_of_the_container,
        files_are_copied_both_ways;
}

fn top_shows_processes(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000 & sleep 2000; true");

    // With options of ps, Podman runs it in the container.
    let output = podman.podman(&["top", &name, "-o", "pid,comm"]);

    let rows: Vec<Vec<&str>> = output
        .text()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.contains(&vec!["1", "sh"]), "{output}");
    assert_eq!(
        rows.iter().filter(|row| row[1] == "sleep").count(),
        2,
        "{output}"
    );
}

fn top_with_descriptors_shows_the_first_process(podman: &Podman) {
    let name = podman.detached(&[], "sleep 1000 & sleep 2000; true");

    // Podman reads the host's /proc, where a virtual machine has no more than this one.
    let output = podman.podman(&["top", &name, "pid", "comm"]);

    let first = output.text().lines().nth(1).unwrap_or_default();
    assert_eq!(first.split_whitespace().collect::<Vec<_>>(), ["1", "sh"]);
}

fn stats_are_those_of_the_container(podman: &Podman) {
    let name = podman.detached(&["--memory", "128m"], "sleep 1000 & sleep 2000");

    let stats = podman
        .podman(&["stats", "--no-stream", "--format", "json", &name])
        .json();

    let row = &stats[0];
    assert_eq!(row["name"], name.as_str(), "{stats}");
    let usage = row["mem_usage"].as_str().unwrap();
    assert!(!usage.starts_with("0B"), "{usage}");
    assert!(
        row["pids"].as_str().unwrap().parse::<u32>().unwrap() >= 1,
        "{stats}"
    );
}

fn files_are_copied_both_ways(podman: &Podman) {
    let dir = podman.test.new_dir();
    fs::write(dir.join("in"), "text").unwrap();
    let name = podman.detached(&["--interactive"], "read line; cat /tmp/in");
    let (inward, outward) = (format!("{name}:/tmp/in"), format!("{name}:/etc/passwd"));

    let file = dir.join("in").display().to_string();
    podman.podman(&["cp", &file, &inward]).expect_code(0);
    let target = dir.join("out").display().to_string();
    podman.podman(&["cp", &outward, &target]).expect_code(0);

    assert!(fs::read_to_string(target).unwrap().contains("alice"));
    let mut attach = podman.command(["attach", &name]).stdin_pipe().spawn();
    attach.write_line("go");
    assert_eq!(attach.finish().text(), "text");
}

fn commit_makes_an_image(podman: &Podman) {
    let name = podman.detached(&[], "echo made >/file");
    let _ = podman.podman(&["wait", &name]);

    podman
        .podman(&["commit", "--quiet", &name, "localhost/made:v1"])
        .expect_code(0);

    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "localhost/made:v1",
        "cat",
        "/file",
    ];
    assert_eq!(podman.podman(&run).text(), "made");
}

fn diff_has_the_changes(podman: &Podman) {
    let name = podman.detached(&[], "echo made >/made; rm /etc/group; echo x >>/etc/passwd");
    let _ = podman.podman(&["wait", &name]);

    let output = podman.podman(&["diff", &name]);

    let lines: Vec<&str> = output.text().lines().collect();
    for wanted in ["A /made", "D /etc/group", "C /etc/passwd"] {
        assert!(lines.contains(&wanted), "{wanted}: {output}");
    }
}

fn export_has_the_files(podman: &Podman) {
    let name = podman.detached(&[], "echo made >/made");
    let _ = podman.podman(&["wait", &name]);
    let file = podman.test.new_dir().join("export.tar");

    let path = file.display().to_string();
    podman
        .podman(&["export", "--output", &path, &name])
        .expect_code(0);

    let tar = std::process::Command::new("tar")
        .args(["-tf", &path])
        .output()
        .unwrap();
    let list = String::from_utf8(tar.stdout).unwrap();
    assert!(
        list.lines()
            .any(|line| line.trim_start_matches("./") == "made"),
        "{list}"
    );
}

fn build_runs_its_steps(podman: &Podman) {
    let dir = podman.test.new_dir();
    let text = "FROM localhost/box:v1\nRUN uname -r >/kernel && echo step >/step\nCMD [\"cat\", \"/step\", \"/kernel\"]\n";
    fs::write(dir.join("Containerfile"), text).unwrap();

    let build = podman.command(["build", "--quiet", "--network", "none", "--pull-never"]);
    let build = build.args(["--tag", "localhost/built:v1"]).arg(&dir);
    build.output().expect_code(0);

    let output = podman.podman(&["run", "--rm", "--network", "none", "localhost/built:v1"]);
    let (step, kernel) = output.text().split_once('\n').unwrap();
    assert_eq!(step, "step");
    let same = kernel == wait::host_kernel();
    assert_eq!(same, podman.test.driver.is_peer(), "{kernel}");
}

fn buildah_runs_a_command_and_commits_it(podman: &Podman) {
    let from = podman.buildah(&["from", "--pull-never", IMAGE]);
    let name = from.text();

    let script = "uname -r; echo made >/made";
    let run = podman.buildah(&["run", "--network", "none", name, "--", "sh", "-c", script]);

    let on_host = run.text() == wait::host_kernel();
    assert_eq!(on_host, podman.test.driver.is_peer(), "{run}");
    let refused = podman.buildah(&["run", "--network", "none", name, "--", "false"]);
    assert_ne!(refused.code(), 0, "{refused}");
    let image = "localhost/by-buildah:v1";
    podman
        .buildah(&["commit", "--quiet", name, image])
        .expect_code(0);
    podman.buildah(&["rm", name]).expect_code(0);
    let run = ["run", "--rm", "--network", "none", image, "cat", "/made"];
    assert_eq!(podman.podman(&run).text(), "made");
}
