//! The options of `run`, and which of its two forms they make.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_hypervisor::Wanted;
use bulkhead_oci::image::{Image, Limits, Store, Unpacked};
use bulkhead_oci::run::{
    CapabilityOption, Security, parse_annotation, parse_cpus, parse_pids_limit, parse_size,
    parse_tmpfs, parse_volume, resolve_env,
};
use bulkhead_oci::{Bundle, RunOptions, spec_for_run};
use bulkhead_sandbox::config::Config;
use bulkhead_sandbox::id::Id;
use bulkhead_sandbox::paths::{DATA_DIR, Paths};
use oci_spec::runtime::Spec;

use crate::detached::Options;
use crate::error::CommandError;

/// Options of `bulkhead run`.
#[derive(Debug, clap::Args)]
#[command(trailing_var_arg = true, after_help = EXAMPLES)]
pub struct Args {
    /// Run in this directory as root file system; it is written to directly.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["image", "bundle"])]
    rootfs: Option<PathBuf>,
    /// Run an image: an OCI layout directory, an OCI archive or a docker-archive, optionally with
    /// `:TAG`. The image itself is never changed.
    #[arg(long, value_name = "PATH[:TAG]", conflicts_with = "bundle")]
    image: Option<String>,
    /// Directory of an OCI bundle (runc's form).
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Name of the container.
    #[arg(long)]
    name: Option<String>,
    /// Pass standard input to the command.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it has ended.
    #[arg(long)]
    rm: bool,
    /// Set an environment variable; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory in the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group, of the command: names of the container or numbers.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Share a file or directory of the host; options: ro, rw.
    #[arg(short, long, value_name = "SRC:DST[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount a tmpfs; options as mount(8) has them.
    #[arg(long, value_name = "DST[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Host name of the container.
    #[arg(long)]
    hostname: Option<String>,
    /// Memory limit: bytes, or with k, m, g.
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPU limit, for example 1.5.
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Limit of processes and threads.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// Add a capability, or ALL.
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL.
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// seccomp=FILE, seccomp=unconfined, no-new-privileges.
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Add an annotation.
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// auto, kvm, uml or qemu.
    #[arg(long, value_name = "NAME")]
    pub hypervisor: Option<String>,
    /// Installed guest kernel (see `bulkhead kernel list`).
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// Leave the container running and return (only with --bundle).
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub detached: Options,
    /// Report the end as one line of JSON on standard error.
    #[arg(long)]
    pub json: bool,
    /// The command and its arguments; with --bundle the container's ID.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

const EXAMPLES: &str = "Examples:
  bulkhead run --rm --rootfs ./rootfs -- uname -r
  bulkhead run --rm -it --image ./alpine.tar -- sh
  bulkhead run --bundle ./bundle mycontainer

Exit code: the command's; 126 if it cannot be executed, 127 if it does not exist, 128+n if signal n
ended it, 125 if Bulkhead itself failed (1 in the --bundle form).";

/// Options a bundle's own configuration answers.
const BUNDLE_ONLY: &str = "is not an option of the --bundle form: set it in the bundle's \
     config.json, or use --rootfs or --image";

/// Which of the two commands this is.
#[derive(Debug)]
pub enum Form {
    /// `run [--bundle DIR] ID`.
    Bundle {
        /// The container's name.
        id: String,
        /// The bundle.
        dir: PathBuf,
    },
    /// `run (--rootfs DIR | --image IMAGE) COMMAND…`.
    Container {
        /// The container's name, if one was given.
        name: Option<String>,
    },
}

/// A container that is ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// Its configuration, to be written as a bundle; `None` for a bundle that exists.
    spec: Option<Spec>,
    bundle: Option<PathBuf>,
    /// Read-only directory to put a writable layer on.
    pub lower: Option<PathBuf>,
    /// Remove it when it has ended.
    pub auto_remove: bool,
    /// Pass standard input.
    pub stdin: bool,
    /// Give it a terminal.
    pub terminal: bool,
    /// Where to write the container's PID.
    pub pid_file: Option<PathBuf>,
}

impl Args {
    /// Whether this is runc's form.
    pub fn is_bundle(&self) -> bool {
        self.rootfs.is_none() && self.image.is_none()
    }

    fn first_foreign_option(&self) -> Option<&'static str> {
        let given = [
            (self.interactive, "--interactive"),
            (self.tty, "--tty"),
            (!self.env.is_empty(), "--env"),
            (self.workdir.is_some(), "--workdir"),
            (self.user.is_some(), "--user"),
            (!self.volume.is_empty(), "--volume"),
            (!self.tmpfs.is_empty(), "--tmpfs"),
            (self.read_only, "--read-only"),
            (self.hostname.is_some(), "--hostname"),
            (self.memory.is_some(), "--memory"),
            (self.cpus.is_some(), "--cpus"),
            (self.pids_limit.is_some(), "--pids-limit"),
            (!self.cap_add.is_empty(), "--cap-add"),
            (!self.cap_drop.is_empty(), "--cap-drop"),
            (!self.security_opt.is_empty(), "--security-opt"),
            (!self.annotation.is_empty(), "--annotation"),
        ];
        given
            .into_iter()
            .find_map(|(is_given, name)| is_given.then_some(name))
    }
}

impl Form {
    /// Tells the form from the options.
    ///
    /// # Errors
    /// Options that do not go together.
    pub fn of(args: &Args) -> Result<Self, CommandError> {
        if !args.is_bundle() {
            return Ok(Self::Container {
                name: args.name.clone(),
            });
        }
        if let Some(option) = args.first_foreign_option() {
            return Err(CommandError::Usage(format!("{option} {BUNDLE_ONLY}")));
        }
        let id = match (args.command.as_slice(), &args.name) {
            ([id], None) => id.clone(),
            ([], Some(name)) => name.clone(),
            ([], None) => {
                return Err(CommandError::Usage(
                    "Nothing to run: give --rootfs DIR or --image IMAGE and a command, or the ID \
                     of a container to make from the bundle in this directory"
                        .into(),
                ));
            }
            _ => {
                return Err(CommandError::Usage(
                    "Without --rootfs and --image this is `run [--bundle DIR] ID`: the command is \
                     in the bundle's config.json"
                        .into(),
                ));
            }
        };
        let dir = args.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Ok(Self::Bundle { id, dir })
    }

    /// The container's name, made up if none was given.
    ///
    /// # Errors
    /// A name that is not valid.
    pub fn id(&self) -> Result<Id, CommandError> {
        match self {
            Self::Bundle { id, .. } => Ok(id.parse()?),
            Self::Container { name: Some(name) } => Ok(name.parse()?),
            Self::Container { name: None } => Ok(Id::generate()),
        }
    }

    /// Makes the configuration; unpacks the image unless it is unpacked already.
    ///
    /// # Errors
    /// Whatever is wrong with options, image or bundle.
    pub fn prepare(&self, id: &Id, args: &Args) -> Result<Prepared, CommandError> {
        match self {
            Self::Bundle { dir, .. } => {
                let bundle = Bundle::load(dir)?;
                let process = bundle.spec.process().as_ref();
                Ok(Prepared {
                    spec: None,
                    bundle: Some(dir.clone()),
                    lower: None,
                    auto_remove: true,
                    stdin: true,
                    terminal: process
                        .and_then(|process| process.terminal())
                        .unwrap_or(false),
                    pid_file: args.detached.pid_file.clone(),
                })
            }
            Self::Container { .. } => {
                let unpacked = args.image.as_deref().map(unpack).transpose()?;
                let options = run_options(id, args, unpacked.as_ref())?;
                let config = unpacked.as_ref().map(|image| &image.config);
                Ok(Prepared {
                    spec: Some(spec_for_run(&options, config)?),
                    bundle: None,
                    lower: unpacked.map(|image| image.rootfs),
                    auto_remove: args.rm,
                    stdin: args.interactive,
                    terminal: args.tty,
                    pid_file: args.detached.pid_file.clone(),
                })
            }
        }
    }
}

impl Prepared {
    /// The bundle to start from, written if it does not exist yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_bundle(&self, paths: &Paths) -> Result<PathBuf, CommandError> {
        let (Some(spec), None) = (&self.spec, &self.bundle) else {
            return Ok(self.bundle.clone().unwrap_or_default());
        };
        let dir = paths.bundle();
        let step = format!("write the bundle {}", dir.display());
        let write = || {
            fs::create_dir(&dir)?;
            fs::write(dir.join("config.json"), serde_json::to_vec(spec)?)
        };
        write().map_err(CommandError::io(step))?;
        Ok(dir)
    }
}

/// The image, unpacked once and then taken from the store.
fn unpack(reference: &str) -> Result<Unpacked, CommandError> {
    let image = Image::find(reference)?;
    let store = Store::open(&Path::new(DATA_DIR).join("images"))?;
    Ok(store.unpack(&image, &Limits::default())?)
}

fn run_options(id: &Id, args: &Args, image: Option<&Unpacked>) -> Result<RunOptions, CommandError> {
    let rootfs = match (image, &args.rootfs) {
        (Some(image), _) => image.rootfs.clone(),
        (None, Some(rootfs)) => std::path::absolute(rootfs).unwrap_or_else(|_| rootfs.clone()),
        (None, None) => return Err(CommandError::Usage("Give --rootfs or --image".into())),
    };
    let here = std::env::current_dir().map_err(CommandError::io("find the current directory"))?;
    Ok(RunOptions {
        id: id.to_string(),
        rootfs,
        args: args.command.clone(),
        entrypoint: None,
        terminal: args.tty,
        env: resolve_env(&args.env, |name| std::env::var(name).ok())?,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        volumes: args
            .volume
            .iter()
            .map(|text| parse_volume(text, &here, false))
            .collect::<Result<_, _>>()?,
        tmpfs: args
            .tmpfs
            .iter()
            .map(|text| parse_tmpfs(text))
            .collect::<Result<_, _>>()?,
        read_only: args.read_only,
        hostname: args.hostname.clone(),
        memory_bytes: args.memory.as_deref().map(parse_size).transpose()?,
        cpus: args.cpus.as_deref().map(parse_cpus).transpose()?,
        pids_limit: args
            .pids_limit
            .as_deref()
            .map(parse_pids_limit)
            .transpose()?
            .flatten(),
        cap_add: capabilities(&args.cap_add)?,
        cap_drop: capabilities(&args.cap_drop)?,
        security: Security::parse(&args.security_opt)?,
        annotations: args
            .annotation
            .iter()
            .map(|text| parse_annotation(text))
            .collect::<Result<_, _>>()?,
        compat_32_bit: guest_runs_32_bit(args),
    })
}

/// Whether the guest's kernel runs 32-bit programs, as far as it can be told before the sandbox process
/// chooses it. What is wrong with the choice is the sandbox process's to say.
fn guest_runs_32_bit(args: &Args) -> bool {
    let config = Config::load().unwrap_or_default();
    let wanted = match args.hypervisor.as_deref().unwrap_or(&config.hypervisor) {
        "uml" => Wanted::Uml,
        "qemu" => Wanted::Qemu,
        "kvm" => Wanted::Kvm,
        _ => Wanted::Auto,
    };
    let Ok(choice) = bulkhead_hypervisor::choose(wanted) else {
        return false;
    };
    let name = args.kernel.as_deref().or(config.kernel.as_deref());
    bulkhead_kernels::Store::open(&bulkhead_kernels::lib_dir())
        .find(choice.driver.flavour(), name)
        .is_ok_and(|kernel| kernel.has("IA32_EMULATION"))
}

fn capabilities(names: &[String]) -> Result<Vec<CapabilityOption>, CommandError> {
    // Docker takes several in one option, parted by commas.
    let names = names.iter().flat_map(|names| names.split(','));
    Ok(names.map(str::parse).collect::<Result<_, _>>()?)
}
