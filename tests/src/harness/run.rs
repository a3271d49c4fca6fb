//! `bulkhead run` in Docker's and Podman's form.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::container::Container;
use super::invocation::{Invocation, Output};
use super::test::Test;

/// A `bulkhead run` to be made. Without a change it is
/// `run --rm --hypervisor DRIVER --name NEW --rootfs ROOTFS -- COMMAND…`.
#[derive(Debug)]
pub struct Run<'t> {
    test: &'t Test,
    id: String,
    remove: bool,
    from: Vec<OsString>,
    options: Vec<OsString>,
    command: Vec<OsString>,
    invocation: Invocation,
}

impl<'t> Run<'t> {
    /// See [`Test::run`].
    pub(super) fn new<A: AsRef<OsStr>>(
        test: &'t Test,
        command: impl IntoIterator<Item = A>,
    ) -> Self {
        let command = command.into_iter();
        Self {
            test,
            id: test.new_id(),
            remove: true,
            from: Vec::new(),
            options: Vec::new(),
            command: command.map(|arg| arg.as_ref().to_owned()).collect(),
            invocation: test.verb(["run"]),
        }
    }

    /// Adds an option.
    #[must_use]
    pub fn option(mut self, option: impl AsRef<OsStr>) -> Self {
        self.options.push(option.as_ref().to_owned());
        self
    }

    /// Adds options.
    #[must_use]
    pub fn options<A: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = A>) -> Self {
        let options = options.into_iter().map(|option| option.as_ref().to_owned());
        self.options.extend(options);
        self
    }

    /// Shares a file or directory: `-v SOURCE:TARGET`, where the target may carry options.
    #[must_use]
    pub fn volume(self, source: &Path, target: &str) -> Self {
        let volume = format!("{}:{target}", source.display());
        self.options(["-v", &volume])
    }

    /// Names the container.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.id);
        self
    }

    /// Leaves `--rm` out.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.remove = false;
        self
    }

    /// Uses another root file system.
    #[must_use]
    pub fn rootfs(mut self, dir: impl Into<PathBuf>) -> Self {
        self.from = vec!["--rootfs".into(), dir.into().into()];
        self
    }

    /// Uses an image instead of the root file system.
    #[must_use]
    pub fn image(mut self, image: impl AsRef<OsStr>) -> Self {
        self.from = vec!["--image".into(), image.as_ref().to_owned()];
        self
    }

    /// Passes these bytes, then the end, as standard input: adds `-i`.
    #[must_use]
    pub fn interactive(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.invocation = self.invocation.stdin(bytes);
        self.option("-i")
    }

    /// Changes the command's own streams, environment, directory or limit of time.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(Invocation) -> Invocation) -> Self {
        self.invocation = change(self.invocation);
        self
    }

    /// The whole command.
    #[must_use]
    pub fn invocation(self) -> Invocation {
        let mut from = self.from;
        if from.is_empty() {
            from = vec!["--rootfs".into(), self.test.rootfs().into()];
        }
        let own = ["--hypervisor", self.test.driver.hypervisor()];
        self.invocation
            .args(own)
            .args(self.remove.then_some("--rm"))
            .args(["--name", &self.id])
            .args(from)
            .args(self.options)
            .arg("--")
            .args(self.command)
    }

    /// Runs it to its end.
    #[must_use]
    pub fn output(self) -> Output {
        self.invocation().output()
    }

    /// Starts it and leaves it running.
    #[must_use]
    pub fn start(self) -> Container<'t> {
        let (test, id) = (self.test, self.id.clone());
        Container::new(test, id, self.invocation().spawn())
    }
}
