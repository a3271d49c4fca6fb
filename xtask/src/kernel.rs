//! Building the guest kernels from Debian's source package.
//!
//! A built kernel is kept outside the tree, under a key made from everything
//! that goes into it, so that a fresh clone on the same machine builds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_kernels::{Addition, Flavour, Store, sha256_hex};

use crate::command::{self, brief, command, lines, output, read, require_success, run};
use crate::{paths, setup};

/// The Debian package that holds the source, and the tarball in it.
const PACKAGE: &str = "linux-source-6.12";
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
const SERIES: &str = "6.12";

/// To be raised when the way of building changes and the inputs do not.
const RECIPE: u32 = 1;

/// Directories of the source whose contents no guest kernel of ours uses.
const UNUSED: &[&str] = &[
    "Documentation",
    "arch/alpha",
    "arch/arc",
    "arch/arm",
    "arch/arm64",
    "arch/loongarch",
    "arch/m68k",
    "arch/mips",
    "arch/parisc",
    "arch/powerpc",
    "arch/riscv",
    "arch/s390",
    "arch/sh",
    "arch/sparc",
    "arch/xtensa",
    "drivers/gpu",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/staging",
    "sound",
    "tools/perf",
    "tools/testing",
];

/// Longest time without a line of progress.
const TICK: Duration = Duration::from_secs(5);

/// How one kernel is built.
struct Recipe {
    /// What it is called here and in the cache.
    name: &'static str,
    flavour: Flavour,
    /// `ARCH=` of the kernel's makefile.
    arch: &'static str,
    /// Its target, and the file that the target makes.
    target: &'static str,
    /// Configuration files under guest/kernel/, in order.
    configs: &'static [&'static str],
    /// Directories of its patches, under guest/patches/, in order.
    patches: &'static [&'static str],
    /// Lines that the makefile prints on the way, for the percentage.
    steps: usize,
}

/// The kernels that are installed.
const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "uml",
        flavour: Flavour::Uml,
        arch: "um",
        target: "linux",
        configs: &["common.config", "uml.config"],
        patches: &["um"],
        steps: 1530,
    },
    Recipe {
        name: "vm",
        flavour: Flavour::Vm,
        arch: "x86_64",
        target: "vmlinux",
        configs: &["common.config", "vm-x86_64.config"],
        patches: &["vm"],
        steps: 2000,
    },
];

/// The kernel of tests on a host whose KVM interprets guest kernels.
const EMULATED: Recipe = Recipe {
    name: "emulated",
    flavour: Flavour::Vm,
    arch: "x86_64",
    target: "vmlinux",
    configs: &["emulated.config"],
    patches: &["vm", "emulated"],
    steps: 1360,
};

/// What goes into a kernel, by name, for one flavour.
struct Inputs {
    /// Text of the configuration files, one after the other.
    config: String,
    /// The patches, in order.
    patches: Vec<Patch>,
    /// Version of the source package and checksum of its tarball.
    source_version: String,
    source_sum: String,
    /// Versions of compiler and linker.
    tools: String,
}

/// A change to the source.
struct Patch {
    path: PathBuf,
    /// Of the file.
    name: String,
    contents: String,
}

/// Builds the kernels (of one flavour, or all) unless they are in the cache,
/// installs them in the build tree and makes them the defaults.
pub fn stage(flavour: Option<Flavour>) -> Result<()> {
    let store = Store::open(&paths::build_lib());
    for recipe in RECIPES
        .iter()
        .filter(|recipe| flavour.is_none_or(|one| one == recipe.flavour))
    {
        put(recipe, &store)?;
    }
    Ok(())
}

/// Builds the kernel for tests unless it is in the cache, and lays out a library directory with it and
/// the usual initramfs, beside the one that is installed.
pub fn stage_emulated() -> Result<()> {
    let lib = paths::build_emulated_lib();
    put(&EMULATED, &Store::open(&lib))?;
    let link = bulkhead_kernels::initramfs(&lib);
    let initramfs = bulkhead_kernels::initramfs(&paths::build_lib());
    if fs::read_link(&link).ok().as_ref() != Some(&initramfs) {
        remove_link(&link)?;
        std::os::unix::fs::symlink(&initramfs, &link)
            .with_context(|| format!("Cannot create {}", link.display()))?;
    }
    Ok(())
}

fn remove_link(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Builds one kernel, or takes it from the cache, puts it into `store` and makes it the default there.
fn put(recipe: &Recipe, store: &Store) -> Result<()> {
    let inputs = Inputs::collect(recipe)?;
    let built = obtain(recipe, &inputs)?;
    let config = built.join("config");
    let name = format!("{}-{}", recipe.name, release(&config)?);
    let kernel = store.replace(
        &built.join(recipe.target),
        &Addition {
            config: Some(&config),
            name: Some(&name),
            source: &format!("Debian {PACKAGE} {}", inputs.source_version),
            patches: inputs.patches.into_iter().map(|patch| patch.name).collect(),
        },
    )?;
    if store.default_name(recipe.flavour).as_deref() != Some(&name) {
        store.set_default(&name)?;
    }
    println!(
        "kernel: {name}, {} KiB, at {}",
        kernel.manifest.size >> 10,
        kernel.image.display()
    );
    Ok(())
}

/// Kernel release that a configuration was made for.
fn release(config: &Path) -> Result<String> {
    bulkhead_kernels::Config::read(config)?
        .version
        .with_context(|| format!("{} does not name its kernel release", config.display()))
}

impl Inputs {
    fn collect(recipe: &Recipe) -> Result<Self> {
        let guest = paths::root().join("guest");
        let mut config = String::new();
        for name in recipe.configs {
            let path = guest.join("kernel").join(name);
            config += &fs::read_to_string(&path)
                .with_context(|| format!("Cannot read {}", path.display()))?;
        }
        let mut patches = Vec::new();
        for directory in recipe.patches {
            patches.extend(patches_in(&guest.join("patches").join(directory))?);
        }
        let source_version = setup::version(PACKAGE)
            .with_context(|| format!("{PACKAGE} is not installed; run `cargo xtask setup`"))?;
        let mut tools = String::new();
        for tool in ["gcc", "ld", "ldd"] {
            let text = output(command(tool).arg("--version"))?;
            tools += text.lines().next().unwrap_or_default();
            tools.push('\n');
        }
        Ok(Self {
            config,
            patches,
            source_version,
            source_sum: recorded_sum()?,
            tools,
        })
    }

    /// Names a built kernel in the cache.
    fn key(&self, recipe: &Recipe) -> String {
        let mut text = format!(
            "recipe {RECIPE}\n{} {}\n{} {}\n{}{}",
            recipe.arch,
            recipe.target,
            self.source_version,
            self.source_sum,
            self.tools,
            self.config
        );
        for patch in &self.patches {
            text += &patch.name;
            text += &patch.contents;
        }
        format!("{}-{}", recipe.name, &sha256_hex(text.as_bytes())[..16])
    }

    /// Names the patched source in the cache.
    fn source_key(&self) -> String {
        let mut text = format!("{RECIPE} {} {}\n", self.source_version, self.source_sum);
        for patch in &self.patches {
            text += &patch.name;
            text += &patch.contents;
        }
        format!("source-{}", &sha256_hex(text.as_bytes())[..16])
    }
}

/// The patches in a directory, in the order of their names.
fn patches_in(directory: &Path) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    let listed =
        fs::read_dir(directory).with_context(|| format!("Cannot list {}", directory.display()))?;
    for entry in listed {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".patch") {
            patches.push(Patch {
                name: name.into_owned(),
                contents: String::from_utf8_lossy(&read(&path)?).into_owned(),
                path,
            });
        }
    }
    patches.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(patches)
}

/// Checksum of the tarball as dpkg recorded it when it unpacked the package.
fn recorded_sum() -> Result<String> {
    let path = format!("/var/lib/dpkg/info/{PACKAGE}.md5sums");
    let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))?;
    text.lines()
        .find_map(|line| {
            let (sum, file) = line.split_once(char::is_whitespace)?;
            (Path::new("/").join(file.trim()) == Path::new(TARBALL)).then(|| sum.to_owned())
        })
        .with_context(|| format!("{path} does not name {TARBALL}"))
}

/// The directory in the cache that holds the built kernel and its `config`.
fn obtain(recipe: &Recipe, inputs: &Inputs) -> Result<PathBuf> {
    let cache = paths::cache()?.join("kernels");
    let built = cache.join(inputs.key(recipe));
    if built.is_dir() {
        return Ok(built);
    }
    fs::create_dir_all(&cache).with_context(|| format!("Cannot create {}", cache.display()))?;
    let _lock = paths::lock(&cache, "kernel")?;
    if built.is_dir() {
        return Ok(built); // somebody else built it while we waited
    }
    println!(
        "kernel {}: building from {PACKAGE} {}, to be kept at {}",
        recipe.name,
        inputs.source_version,
        built.display()
    );
    let start = Instant::now();
    let source = unpack(&cache, inputs)?;
    // Named by the key: a build that was interrupted goes on where it was.
    let work = cache.join(format!("work-{}", inputs.key(recipe)));
    if !work.is_dir() {
        remove_all(&cache, &format!("work-{}", recipe.name))?;
        fs::create_dir(&work).with_context(|| format!("Cannot create {}", work.display()))?;
    }
    configure(recipe, inputs, &source, &work)?;
    compile(recipe, &source, &work)?;
    let fresh = work.join("result");
    remove(&fresh)?;
    remove(&built)?;
    fs::create_dir(&fresh)?;
    let image = fresh.join(recipe.target);
    run(command("objcopy")
        .arg("--strip-all")
        .arg(work.join(recipe.target))
        .arg(&image))?;
    fs::copy(work.join(".config"), fresh.join("config"))?;
    fs::rename(&fresh, &built)
        .with_context(|| format!("Cannot put the kernel at {}", built.display()))?;
    remove(&work)?;
    let waiting = RECIPES.iter().any(|other| {
        Inputs::collect(other).is_ok_and(|theirs| {
            theirs.source_key() == inputs.source_key() && !cache.join(theirs.key(other)).is_dir()
        })
    });
    if !waiting {
        remove(&source)?; // 1.7 GB nobody needs any more
    }
    println!(
        "kernel {}: built in {}",
        recipe.name,
        brief(start.elapsed())
    );
    Ok(built)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("Cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the directories whose names begin with `prefix`.
fn remove_all(cache: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Unpacks and patches the source, unless that has been done.
fn unpack(cache: &Path, inputs: &Inputs) -> Result<PathBuf> {
    let source = cache.join(inputs.source_key());
    if source.is_dir() {
        return Ok(source);
    }
    remove_all(cache, "source-")?; // of other versions, and unfinished ones
    let sum = output(command("md5sum").arg(TARBALL))?;
    ensure!(
        sum.starts_with(&inputs.source_sum),
        "{TARBALL} is damaged; run: apt-get install --reinstall {PACKAGE}"
    );
    let fresh = cache.join("source-unpacking");
    fs::create_dir(&fresh)?;
    let mut tar = command("tar");
    tar.args([
        "--extract",
        "--strip-components=1",
        "--file",
        TARBALL,
        "--directory",
    ])
    .arg(&fresh);
    // Anchored patterns fail at the first letter; the others are slow.
    tar.arg("--anchored");
    // Most of the tree is code of other machines. What describes it (Kconfig,
    // makefiles) is referred to from everywhere and stays.
    for unused in UNUSED {
        for kind in ["*.[chS]", "*.dts", "*.dtsi", "*.rst", "*.yaml", "*.json"] {
            tar.arg(format!("--exclude={PACKAGE}/{unused}/{kind}"));
        }
    }
    let start = Instant::now();
    let status = lines(&mut tar, TICK, |line| match line {
        Some(line) => eprintln!("{line}"),
        None => println!("kernel: unpacking the source, {}", brief(start.elapsed())),
    })?;
    require_success(&tar, status)?;
    for Patch { path, name, .. } in &inputs.patches {
        let mut patch = command("patch");
        patch
            .args(["--strip=1", "--fuzz=0", "--quiet", "--input"])
            .arg(path)
            .current_dir(&fresh);
        run(&mut patch).with_context(|| format!("Patch {name} does not apply to {PACKAGE}"))?;
    }
    fs::rename(&fresh, &source)?;
    Ok(source)
}

/// Starts from nothing, adds our options, and checks that all of them arrived.
fn configure(recipe: &Recipe, inputs: &Inputs, source: &Path, work: &Path) -> Result<()> {
    let wanted = work.join("wanted.config");
    fs::write(&wanted, &inputs.config)?;
    let mut make = make(recipe, source, work);
    make.arg("--silent")
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &wanted);
    let output = make.output().context("Cannot start make")?;
    if !output.status.success() {
        bail!(
            "The kernel cannot be configured:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let config = fs::read_to_string(work.join(".config"))?;
    ensure!(
        config
            .lines()
            .any(|line| line.contains(&format!(" {SERIES}."))),
        "{TARBALL} does not hold Linux {SERIES}"
    );
    let lost = not_taken(&inputs.config, &config);
    ensure!(
        lost.is_empty(),
        "The kernel's configuration did not take these lines of guest/kernel/{}: {}",
        recipe.configs.join(" and "),
        lost.join("; ")
    );
    Ok(())
}

/// The lines of `wanted` that `config` contradicts. Of lines about the same
/// option the last counts.
fn not_taken<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let mut last = BTreeMap::new();
    for line in wanted.lines() {
        if let Some((option, value)) = setting(line) {
            last.insert(option, (value, line));
        }
    }
    let have: BTreeMap<_, _> = config.lines().filter_map(setting).collect();
    last.iter()
        .filter(|(option, (value, _))| have.get(*option).copied().unwrap_or("n") != *value)
        .map(|(_, (_, line))| *line)
        .collect()
}

/// `CONFIG_X=v` as `(CONFIG_X, v)`; `# CONFIG_X is not set` as `(CONFIG_X, n)`.
fn setting(line: &str) -> Option<(&str, &str)> {
    if line.starts_with("CONFIG_") {
        return line.split_once('=');
    }
    Some((line.strip_prefix("# ")?.strip_suffix(" is not set")?, "n"))
        .filter(|(option, _)| option.starts_with("CONFIG_"))
}

fn make(recipe: &Recipe, source: &Path, work: &Path) -> std::process::Command {
    let mut make = command("make");
    make.arg("--directory")
        .arg(source)
        .arg(format!("O={}", work.display()))
        .arg(format!("ARCH={}", recipe.arch))
        // Nothing of the building machine goes into the image.
        .args([
            "KBUILD_BUILD_USER=bulkhead",
            "KBUILD_BUILD_HOST=bulkhead",
            "KBUILD_BUILD_VERSION=1",
        ])
        .env("LC_ALL", "C");
    if let Ok(date) = output(command("date").args(["--utc", "--reference", TARBALL])) {
        make.arg(format!("KBUILD_BUILD_TIMESTAMP={}", date.trim()));
    }
    make
}

fn compile(recipe: &Recipe, source: &Path, work: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut make = make(recipe, source, work);
    make.arg(format!("--jobs={jobs}")).arg(recipe.target);
    let start = Instant::now();
    let mut done = 0_usize;
    let mut log = String::new();
    let status = lines(&mut make, TICK, |line| {
        if let Some(line) = line {
            // Steps look like `  CC      kernel/fork.o`.
            done += usize::from(line.starts_with("  "));
            log += line;
            log.push('\n');
            return;
        }
        // The count of steps is an estimate: never claim to be done.
        let percent = (done * 100 / recipe.steps).min(99);
        println!(
            "kernel {}: {percent} % ({done} steps), {}",
            recipe.name,
            brief(start.elapsed())
        );
    })?;
    if !status.success() {
        let path = work.join("build.log");
        fs::write(&path, &log)?;
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        for line in tail.into_iter().rev() {
            eprintln!("{line}");
        }
        bail!(
            "The {} kernel does not build ({}: {status}); all of the output is in {}",
            recipe.name,
            command::show(&make),
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_taken_leaves_nothing() {
        let wanted = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=10\n";

        assert_eq!(
            not_taken(wanted, "CONFIG_A=y\nCONFIG_C=10\nCONFIG_D=y\n"),
            [""; 0]
        );
    }

    #[test]
    fn configuration_contradicted_names_the_lines() {
        let wanted = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=10\n";

        let lost = not_taken(wanted, "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=16\n");

        assert_eq!(lost, ["CONFIG_A=y", "# CONFIG_B is not set", "CONFIG_C=10"]);
    }

    #[test]
    fn configuration_line_repeated_counts_the_last() {
        let wanted = "CONFIG_A=y\n# CONFIG_A is not set\n";

        assert_eq!(not_taken(wanted, ""), [""; 0]);
        assert_eq!(not_taken(wanted, "CONFIG_A=y\n"), ["# CONFIG_A is not set"]);
    }

    #[test]
    fn key_changes_with_each_input() {
        let inputs = |config: &str, patch: &str, version: &str, tools: &str| Inputs {
            config: config.to_owned(),
            patches: vec![Patch {
                path: PathBuf::new(),
                name: "0001.patch".to_owned(),
                contents: patch.to_owned(),
            }],
            source_version: version.to_owned(),
            source_sum: "sum".to_owned(),
            tools: tools.to_owned(),
        };
        let [uml, vm] = &RECIPES;
        let base = inputs("a", "b", "c", "d").key(uml);

        for other in [
            inputs("x", "b", "c", "d").key(uml),
            inputs("a", "x", "c", "d").key(uml),
            inputs("a", "b", "x", "d").key(uml),
            inputs("a", "b", "c", "x").key(uml),
            inputs("a", "b", "c", "d").key(vm),
        ] {
            assert_ne!(other, base);
        }
        assert_eq!(inputs("a", "b", "c", "d").key(uml), base);
    }
}
