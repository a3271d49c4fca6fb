//! Installed guest kernels and their manifests.
