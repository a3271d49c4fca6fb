//! Installed kernels: `bulkhead kernel …`, `--kernel`, the annotation, and what a kernel must have.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::{Invocation, Run, Test, product, suite};
use serde_json::{Value, json};

suite! {
    both:
        option_chooses_the_kernel,
        kernel_without_a_needed_feature_is_refused;
    uml:
        list_shows_flavours_and_defaults,
        inspect_prints_the_manifest,
        inspect_of_a_changed_image_is_an_error,
        inspect_of_an_unknown_kernel_names_the_installed,
        add_installs_beside_the_others,
        add_of_something_else_is_an_error,
        remove_removes,
        default_is_taken_when_none_is_asked_for,
        annotation_chooses_the_kernel,
        unknown_kernel_is_refused,
        kernel_of_the_other_flavour_is_refused,
        kernel_without_a_feature_nobody_needs_runs,
        doctor_tells_of_a_changed_image;
}

/// Installed kernels of the test's own, to be changed.
struct Lib {
    dir: PathBuf,
    /// Name of the kernel of the test's driver.
    name: String,
}

impl Lib {
    fn copy(test: &Test) -> Self {
        let dir = test.new_dir();
        copy(&product().lib, &dir);
        let kernels = product().kernels();
        let mut flavour = kernels
            .iter()
            .filter(|kernel| kernel["flavour"] == test.driver.flavour());
        let name = flavour.next().unwrap()["name"].as_str().unwrap().to_owned();
        Self { dir, name }
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("kernels").join(name).join("manifest.json")
    }

    fn image(&self) -> PathBuf {
        let manifest = read(&self.manifest(&self.name));
        self.dir
            .join("kernels")
            .join(&self.name)
            .join(manifest["image"].as_str().unwrap())
    }

    /// Changes the manifest of the kernel.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.manifest(&self.name);
        let mut manifest = read(&path);
        change(&mut manifest);
        fs::write(path, manifest.to_string()).unwrap();
    }

    /// Takes a feature out of the manifest.
    fn without(&self, feature: &str) {
        self.change(|manifest| {
            let features = manifest["features"].as_array_mut().unwrap();
            let before = features.len();
            features.retain(|name| name != feature);
            assert_eq!(features.len() + 1, before, "{feature} was not there");
        });
    }

    /// Adds a second kernel of the same image.
    fn add(&self, test: &Test, name: &str) {
        self.verb(
            test,
            &[
                "kernel",
                "add",
                self.image().to_str().unwrap(),
                "--name",
                name,
            ],
        )
        .output()
        .expect_code(0);
    }

    fn verb(&self, test: &Test, args: &[&str]) -> Invocation {
        test.verb(args).env("BULKHEAD_LIB", &self.dir)
    }

    fn run<'t>(&self, test: &'t Test) -> Run<'t> {
        let dir = self.dir.clone();
        test.run(["true"])
            .option("--json")
            .with(|command| command.env("BULKHEAD_LIB", dir))
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Copies directories, files and links.
fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// Which kernel a run that succeeded says it used.
#[track_caller]
fn kernel_of(run: Run<'_>) -> String {
    let output = run.output().expect(0);
    let report: Value = serde_json::from_str(output.error().trim_end()).unwrap();
    report["kernel"].as_str().unwrap().to_owned()
}

fn list_shows_flavours_and_defaults(test: &Test) {
    let lib = Lib::copy(test);

    let table = lib.verb(test, &["kernel", "list"]).output();
    let list = lib
        .verb(test, &["kernel", "list", "--json"])
        .output()
        .json();

    let heading = table.text().lines().next().unwrap();
    let columns: Vec<&str> = heading.split_whitespace().collect();
    assert_eq!(
        columns,
        ["NAME", "VERSION", "FLAVOUR", "ARCH", "DEFAULT", "SHA256"]
    );
    let row = table
        .text()
        .lines()
        .find(|line| line.starts_with(&lib.name))
        .unwrap();
    assert!(row.contains(" uml ") && row.contains(" yes "), "{row}");
    assert_eq!(
        list.as_array().map(Vec::len),
        Some(product().kernels().len())
    );
}

fn inspect_prints_the_manifest(test: &Test) {
    let lib = Lib::copy(test);

    let shown = lib
        .verb(test, &["kernel", "inspect", &lib.name])
        .output()
        .json();

    assert_eq!(shown, read(&lib.manifest(&lib.name)));
    assert_eq!(shown["sha256"].as_str().map(str::len), Some(64));
    assert!(
        shown["features"]
            .as_array()
            .unwrap()
            .contains(&json!("SECCOMP_FILTER"))
    );
}

/// Changes one byte of the kernel's image, at its end.
fn damage(lib: &Lib) {
    let mut bytes = fs::read(lib.image()).unwrap();
    let last = bytes.last_mut().unwrap();
    *last = !*last;
    fs::write(lib.image(), bytes).unwrap();
}

fn inspect_of_a_changed_image_is_an_error(test: &Test) {
    let lib = Lib::copy(test);
    damage(&lib);

    let output = lib.verb(test, &["kernel", "inspect", &lib.name]).output();

    output.expect_error(&[&lib.name]);
}

fn doctor_tells_of_a_changed_image(test: &Test) {
    let lib = Lib::copy(test);
    damage(&lib);

    let findings = lib.verb(test, &["doctor", "--json"]).output();

    let findings: Value = serde_json::from_slice(&findings.stdout).unwrap();
    let mut findings = findings.as_array().unwrap().iter();
    let kernel = findings
        .find(|finding| finding["check"] == "kernel uml")
        .unwrap();
    assert_ne!(kernel["verdict"], "ok", "{kernel}");
    assert!(
        kernel["evidence"].as_str().unwrap().contains(&lib.name),
        "{kernel}"
    );
}

fn inspect_of_an_unknown_kernel_names_the_installed(test: &Test) {
    let lib = Lib::copy(test);

    let output = lib.verb(test, &["kernel", "inspect", "none"]).output();

    output.expect_error(&["none", &lib.name]);
}

fn add_installs_beside_the_others(test: &Test) {
    let lib = Lib::copy(test);

    let add = lib.verb(
        test,
        &[
            "kernel",
            "add",
            lib.image().to_str().unwrap(),
            "--name",
            "second",
        ],
    );
    let added = add.output();

    assert_eq!(added.text(), "second");
    let (first, second) = (
        read(&lib.manifest(&lib.name)),
        read(&lib.manifest("second")),
    );
    for field in ["version", "flavour", "arch", "sha256", "features"] {
        assert_eq!(first[field], second[field], "{field}");
    }
    assert_eq!(
        kernel_of(lib.run(test).options(["--kernel", "second"])),
        "second"
    );
}

fn add_of_something_else_is_an_error(test: &Test) {
    let lib = Lib::copy(test);

    let output = lib
        .verb(test, &["kernel", "add", "/bin/busybox", "--name", "second"])
        .output();

    output.expect_error(&["/bin/busybox"]);
    assert!(!lib.dir.join("kernels/second").exists());
}

fn remove_removes(test: &Test) {
    let lib = Lib::copy(test);
    lib.add(test, "second");

    lib.verb(test, &["kernel", "remove", "second"])
        .output()
        .expect_code(0);

    assert!(!lib.dir.join("kernels/second").exists());
    lib.run(test).output().expect_code(0);
}

fn default_is_taken_when_none_is_asked_for(test: &Test) {
    let lib = Lib::copy(test);
    lib.add(test, "second");

    lib.verb(test, &["kernel", "default", "second"])
        .output()
        .expect_code(0);

    assert_eq!(kernel_of(lib.run(test)), "second");
    assert_eq!(
        kernel_of(lib.run(test).options(["--kernel", &lib.name])),
        lib.name
    );
}

fn option_chooses_the_kernel(test: &Test) {
    let lib = Lib::copy(test);
    lib.add(test, "second");

    let found = kernel_of(lib.run(test).options(["--kernel", "second"]));

    assert_eq!(found, "second");
}

fn annotation_chooses_the_kernel(test: &Test) {
    let lib = Lib::copy(test);
    lib.add(test, "second");

    let found = kernel_of(
        lib.run(test)
            .options(["--annotation", "io.bulkhead.kernel=second"]),
    );

    assert_eq!(found, "second");
}

fn unknown_kernel_is_refused(test: &Test) {
    let output = test.run(["true"]).options(["--kernel", "none"]).output();

    output.expect_code(125);
    output.expect_error(&["none", "installed"]);
}

fn kernel_of_the_other_flavour_is_refused(test: &Test) {
    let kernels = product().kernels();
    let other = kernels
        .iter()
        .find(|kernel| kernel["flavour"] != test.driver.flavour());
    let name = other.unwrap()["name"].as_str().unwrap();

    let output = test.run(["true"]).options(["--kernel", name]).output();

    output.expect_code(125);
    output.expect_error(&[name]);
}

fn kernel_without_a_needed_feature_is_refused(test: &Test) {
    for (feature, options, field) in [
        (
            "CGROUP_PIDS",
            ["--pids-limit", "10"],
            "linux.resources.pids",
        ),
        ("MEMCG", ["--memory", "64m"], "linux.resources.memory"),
        ("CFS_BANDWIDTH", ["--cpus", "0.5"], "linux.resources.cpu"),
        ("SECCOMP_FILTER", ["-e", "A=B"], "linux.seccomp"),
    ] {
        let lib = Lib::copy(test);
        lib.without(feature);

        let output = lib.run(test).options(options).output();

        output.expect_code(125);
        output.expect_error(&[&lib.name, feature, field]);
        assert_eq!(test.containers(), [""; 0]);
        fs::remove_dir_all(&lib.dir).unwrap();
    }
}

fn kernel_without_a_feature_nobody_needs_runs(test: &Test) {
    let lib = Lib::copy(test);
    lib.without("CGROUP_PIDS");

    lib.run(test).output().expect_code(0);
}
