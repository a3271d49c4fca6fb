//! What a guest must not reach, and how to tell that it has not.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bulkhead_tests::{Invocation, Output, Test};

/// A directory of the host with a secret in it, beside those that are shared.
#[derive(Debug)]
pub struct Outside {
    /// The directory.
    pub dir: PathBuf,
    /// The file.
    pub path: PathBuf,
    /// Its contents.
    pub secret: String,
    before: Vec<String>,
}

impl Outside {
    /// Makes it.
    pub fn new(test: &Test) -> Self {
        let dir = test.new_dir();
        let path = dir.join("secret");
        let mut random = [0_u8; 16];
        getrandom(&mut random);
        let secret = random
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        fs::write(&path, &secret).unwrap();
        let before = snapshot(&dir);
        Self {
            dir,
            path,
            secret,
            before,
        }
    }

    /// Asserts that the secret was neither seen nor changed.
    #[track_caller]
    pub fn assert_untouched(&self, output: &Output) {
        let seen = [&output.stdout, &output.stderr];
        let leaked = seen.iter().any(|bytes| {
            bytes
                .windows(self.secret.len())
                .any(|window| window == self.secret.as_bytes())
        });
        assert!(!leaked, "the guest read a secret of the host: {output}");
        assert_eq!(
            snapshot(&self.dir),
            self.before,
            "the guest changed a file of the host"
        );
    }
}

fn getrandom(buffer: &mut [u8]) {
    let count = rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty());
    assert_eq!(count.unwrap(), buffer.len());
}

/// Everything about the files of a directory that somebody could change, one line each. The time of
/// the last change covers permissions, owners, links and attributes.
pub fn snapshot(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut paths = vec![dir.to_owned()];
    while let Some(path) = paths.pop() {
        let data = fs::symlink_metadata(&path).unwrap();
        let content = if data.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        lines.push(format!(
            "{} {:o} {}:{} {} {}.{} {}.{} {}",
            path.display(),
            data.mode(),
            data.uid(),
            data.gid(),
            data.nlink(),
            data.mtime(),
            data.mtime_nsec(),
            data.ctime(),
            data.ctime_nsec(),
            String::from_utf8_lossy(&content)
        ));
        if data.is_dir() {
            paths.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    lines.sort();
    lines
}

/// The names of a file's extended attributes.
pub fn attributes(path: &Path) -> Vec<String> {
    let mut buffer = vec![0_u8; 65536];
    let count = rustix::fs::llistxattr(path, &mut *buffer).unwrap();
    buffer[..count]
        .split_inclusive(|byte| *byte == 0)
        .map(|name| {
            CStr::from_bytes_with_nul(name)
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

/// Standard output as text, whatever bytes it has.
pub fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The compiled `attack.c`.
pub fn attack_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attack");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/share/attack.c");
        let compiled = Command::new("gcc")
            .args([
                "-static",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Wno-unused-result",
                "-Wno-format-truncation",
                "-o",
            ])
            .arg(&program)
            .arg(source)
            .status();
        assert!(compiled.expect("gcc is installed").success());
        program
    })
}

/// The same command with so many open files at most, for it and all it starts.
pub fn with_open_files(invocation: Invocation, most: u32) -> Invocation {
    let command = invocation.into_command();
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let limited = Invocation::new("prlimit").arg(format!("--nofile={most}:{most}"));
    let limited = environment.fold(limited, |limited, (name, value)| limited.env(name, value));
    limited.arg(command.get_program()).args(command.get_args())
}
