//! OCI bundles and images: loading, checking, refusing with a reason.
