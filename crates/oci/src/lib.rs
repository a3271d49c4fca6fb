//! OCI bundles and images: loading, checking, refusing with a reason.
//!
//! The way of a container through this crate: [`Bundle::load`] reads and checks
//! a bundle (or [`run::spec_for_run`] makes the configuration from the options
//! of a `run` command and an [`image`]), what a virtual machine cannot do is
//! [refused](refuse) by name, and [`guest_plan`] splits the rest into what the
//! guest is told and what the host shares with it. [`needs`] lists what the
//! guest's kernel has to be able to do.
//!
//! Everything here is synchronous and trusts neither the configuration nor the
//! image.

pub mod bundle;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod id;
pub mod image;
pub mod needs;
pub mod plan;
pub mod refuse;
pub mod run;

mod beneath;
mod text;

pub use bundle::{Bundle, BundleError, check_resources};
pub use plan::{
    GuestPlan, Share, guest_plan, loopback_name_servers, network_namespace, strip_host_limits,
};
pub use refuse::Refusal;
pub use run::{RunError, RunOptions, spec_for_run};

/// The OCI types this crate speaks in, so that its users need not name the crate they are from.
pub use oci_spec::runtime as spec;
