//! `ConfigureNetwork`.

use bulkhead_agent_api::messages::{Empty, NetworkRequest};

use super::error::RpcError;
use crate::{dns, network};

/// Makes cards what they are to be now, removes those that are not needed, and serves names.
pub async fn configure(request: &NetworkRequest) -> Result<Empty, RpcError> {
    network::configure(&request.interfaces)?;
    network::remove(&request.unused)?;
    dns::serve(&request.resolvers).await?;
    Ok(Empty::new())
}
