//! `ConfigureNetwork`.

use bulkhead_agent_api::messages::{Empty, NetworkRequest};

use super::error::RpcError;
use crate::{dns, network};

/// Removes cards that are not needed, makes the others what they are to be now, and serves names.
pub async fn configure(request: &NetworkRequest) -> Result<Empty, RpcError> {
    // In this order: a new card may be called what an old one was.
    network::remove(&request.unused)?;
    network::configure(&request.interfaces)?;
    dns::serve(&request.resolvers).await?;
    Ok(Empty::new())
}
