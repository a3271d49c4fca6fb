//! The service the host calls: one file per method or small group of methods.

mod create;
mod destroy;
mod error;
mod info;
mod lifecycle;
mod network;
mod observe;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_agent_api::messages::{
    ContainerRequest, CreateContainerRequest, DevicesRequest, Empty, ExecRequest, ExitResponse,
    InfoRequest, InfoResponse, NetworkRequest, ProcessRequest, ProcessResponse, ProcessesResponse,
    ResizeRequest, SignalRequest, Span, StatsResponse, UpdateContainerRequest,
};
use bulkhead_agent_api::{Agent, create_agent};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

use self::error::RpcError;
use crate::home;
use crate::reaper::Reaper;
use crate::registry::Registry;
use crate::watched::Watched;

/// What all methods share.
#[derive(Debug, Clone)]
struct Service {
    registry: Arc<Registry>,
    reaper: Arc<Reaper>,
    boot: Arc<[Span]>,
}

/// Serves the host on its connection until it hangs up.
///
/// # Errors
/// When the server cannot be started.
pub async fn serve(
    socket: Watched,
    reaper: Arc<Reaper>,
    boot: Vec<Span>,
) -> Result<(), ttrpc::Error> {
    let service = Service {
        registry: Arc::default(),
        reaper,
        boot: boot.into(),
    };
    let (connection, ended) = home::listen(socket);
    let mut server = Server::new()
        .add_listener(Listener::new(connection))
        .register_service(create_agent(Arc::new(service)));
    server.start().await?;
    // A dropped sender means the same as a message: the connection is no more.
    let _ = ended.await;
    Ok(())
}

type Answer<T> = ttrpc::Result<T>;

/// Does `work` to its end, even if the caller sets a time limit that passes: half-done work would
/// leave things behind that have no name.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        // Panics end the guest, and nothing aborts these tasks.
        Err(error) => Err(ttrpc::Error::Others(error.to_string())),
    }
}

#[async_trait]
impl Agent for Service {
    async fn info(&self, _: &TtrpcContext, _: InfoRequest) -> Answer<InfoResponse> {
        Ok(info::info(self)?)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<ProcessResponse> {
        let service = self.clone();
        whole(async move { create::container(&service, request).await }).await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> Answer<ProcessResponse> {
        let service = self.clone();
        whole(async move { create::exec(&service, request).await }).await
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<ProcessResponse> {
        Ok(lifecycle::start(self, request).await?)
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<ExitResponse> {
        Ok(lifecycle::wait(self, request).await?)
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> Answer<Empty> {
        Ok(lifecycle::signal(self, request).await?)
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeRequest) -> Answer<Empty> {
        Ok(lifecycle::resize(self, request).await?)
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<Empty> {
        Ok(lifecycle::delete_exec(self, request).await?)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer<Empty> {
        Ok(lifecycle::update(self, &request)?)
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        Ok(lifecycle::pause(self, &request)?)
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        Ok(lifecycle::resume(self, &request)?)
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> Answer<ProcessesResponse> {
        Ok(observe::processes(self, &request)?)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<StatsResponse> {
        Ok(observe::stats(self, &request)?)
    }

    async fn destroy_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> Answer<Empty> {
        let service = self.clone();
        whole(async move { destroy::container(&service, &request.container_id).await }).await
    }

    async fn configure_network(&self, _: &TtrpcContext, request: NetworkRequest) -> Answer<Empty> {
        Ok(network::configure(&request).await?)
    }

    async fn change_devices(&self, _: &TtrpcContext, request: DevicesRequest) -> Answer<Empty> {
        let changed = crate::devices::change(&request.come, &request.go);
        changed.map_err(RpcError::from)?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        destroy::guest(self).await
    }
}
