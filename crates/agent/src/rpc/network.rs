//! `ConfigureNetwork`.

use bulkhead_agent_api::messages::{Empty, NetworkRequest};

use super::error::RpcError;
use crate::network;

/// Makes cards what they are to be now, and removes those that are not needed.
pub fn configure(request: &NetworkRequest) -> Result<Empty, RpcError> {
    network::configure(&request.interfaces)?;
    network::remove(&request.unused)?;
    Ok(Empty::new())
}
