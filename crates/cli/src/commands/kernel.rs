//! `bulkhead kernel list|inspect|add|remove|default`.

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_kernels::{Addition, Flavour, Store, lib_dir};
use serde_json::json;

use super::list::columns;
use crate::error::CommandError;

#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// List the installed kernels.
    #[command(visible_alias = "ls")]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a kernel's manifest after checking its image against the digest.
    Inspect {
        /// The kernel.
        name: String,
    },
    /// Install a kernel image: a User-Mode Linux executable or an x86-64 ELF image with a PVH entry.
    Add {
        /// The image.
        image: PathBuf,
        /// Its configuration; not needed when the image carries it (CONFIG_IKCONFIG).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Name to install it under; taken from its version and flavour otherwise.
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove an installed kernel; machines that run it are not disturbed.
    #[command(visible_alias = "rm")]
    Remove {
        /// The kernel.
        name: String,
    },
    /// Use a kernel when none is asked for.
    Default {
        /// The kernel.
        name: String,
    },
}

pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let store = Store::open(&lib_dir());
    match args {
        Args::List { json } => list(&store, *json)?,
        Args::Inspect { name } => {
            let kernel = store.inspect(name)?;
            println!("{:#}", json!(kernel.manifest));
        }
        Args::Add {
            image,
            config,
            name,
        } => {
            let addition = Addition {
                name: name.as_deref(),
                config: config.as_deref(),
                ..Addition::default()
            };
            let kernel = store.add(image, &addition)?;
            println!("{}", kernel.manifest.name);
        }
        Args::Remove { name } => store.remove(name)?,
        Args::Default { name } => store.set_default(name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, json: bool) -> Result<(), CommandError> {
    let kernels = store.list()?;
    if json {
        let manifests: Vec<_> = kernels
            .iter()
            .map(|kernel| json!(kernel.manifest))
            .collect();
        println!("{:#}", serde_json::Value::from(manifests));
        return Ok(());
    }
    let mut rows =
        vec![["NAME", "VERSION", "FLAVOUR", "ARCH", "DEFAULT", "SHA256"].map(String::from)];
    for flavour in Flavour::ALL {
        let default = store
            .find(flavour, None)
            .ok()
            .map(|kernel| kernel.manifest.name);
        for kernel in kernels
            .iter()
            .filter(|kernel| kernel.manifest.flavour == flavour)
        {
            let manifest = &kernel.manifest;
            let is_default = default.as_ref() == Some(&manifest.name);
            rows.push([
                manifest.name.clone(),
                manifest.version.clone(),
                flavour.as_str().to_owned(),
                manifest.arch.clone(),
                if is_default { "yes" } else { "" }.to_owned(),
                manifest.sha256.get(..12).unwrap_or_default().to_owned(),
            ]);
        }
    }
    print!("{}", columns(&rows));
    for entry in store.entries()? {
        if let Err(error) = entry.kernel {
            eprintln!("bulkhead: {}", bulkhead_sandbox::error::chain(&error));
        }
    }
    Ok(())
}
