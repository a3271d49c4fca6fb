//! The Task service (containerd's shim API, version 3): a thin translation to [`Sandbox`].

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status as TaskStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, Message, MessageField};
use ttrpc::Result as RpcResult;
use ttrpc::r#async::TtrpcContext;

use crate::error::SandboxError;
use crate::limits;
use crate::pod::Pod;
use crate::state::Status;
use crate::stdio::Stdio;

/// Type of the details [`Task::pids`] gives of a process in the guest: `bulkhead.agent.v1.Process`.
/// Entries without details are processes on the host.
pub const PROCESS_TYPE: &str = "bulkhead.agent.v1.Process";

/// Metadata with which [`Task::stats`] tells of the container's machine instead of its control group.
pub const MACHINE_KEY: &str = "bulkhead.machine";

/// Type of that answer: [`crate::cost::MachineUse`] as JSON.
pub const MACHINE_TYPE: &str = "bulkhead.machine.v1.Use";

/// The service.
#[derive(Debug, Clone)]
pub struct TaskService(pub Arc<Pod>);

fn rpc<T>(result: Result<T, SandboxError>) -> RpcResult<T> {
    result.map_err(|error| error.to_rpc())
}

fn unsupported<T>(what: &'static str, why: &'static str) -> RpcResult<T> {
    Err(SandboxError::Unsupported { what, why }.to_rpc())
}

fn timestamp(ns: u64) -> MessageField<Timestamp> {
    const SECOND: u64 = 1_000_000_000;
    MessageField::some(Timestamp {
        seconds: i64::try_from(ns / SECOND).unwrap_or(i64::MAX),
        nanos: i32::try_from(ns % SECOND).unwrap_or(0),
        ..Default::default()
    })
}

fn task_status(status: Status) -> EnumOrUnknown<TaskStatus> {
    EnumOrUnknown::new(match status {
        Status::Creating => TaskStatus::UNKNOWN,
        Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    })
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> RpcResult<StateResponse> {
        let container = rpc(self.0.container(&req.id))?;
        let process = rpc(container.look_up(&req.id, &req.exec_id))?;
        let exit = process.exit.borrow().clone();
        Ok(StateResponse {
            id: req.id,
            bundle: container.request.bundle.display().to_string(),
            pid: process.standin().unwrap_or_else(|| {
                if req.exec_id.is_empty() {
                    std::process::id()
                } else {
                    process.pid()
                }
            }),
            status: task_status(process.status()),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.as_ref().map_or(0, |exit| exit.code),
            exited_at: exit.map_or(MessageField::none(), |exit| timestamp(exit.at_ns)),
            exec_id: req.exec_id,
            ..Default::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        req: CreateTaskRequest,
    ) -> RpcResult<CreateTaskResponse> {
        if !req.checkpoint.is_empty() {
            return unsupported(
                "restore",
                "a virtual machine cannot be restored from CRIU images",
            );
        }
        let stdio = Stdio {
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
        };
        let pid = rpc(rpc(self.0.container(&req.id))?.create(&req.id, stdio).await)?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> RpcResult<StartResponse> {
        let pid = rpc(rpc(self.0.container(&req.id))?
            .start(&req.id, &req.exec_id)
            .await)?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> RpcResult<DeleteResponse> {
        let (pid, exit) = rpc(rpc(self.0.container(&req.id))?
            .delete(&req.id, &req.exec_id)
            .await)?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: timestamp(exit.at_ns),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> RpcResult<PidsResponse> {
        let processes = rpc(rpc(self.0.container(&req.id))?.processes(&req.id).await)?;
        let on_host = rpc(self.0.container(&req.id))?
            .host_pids()
            .into_iter()
            .map(|pid| ProcessInfo {
                pid,
                ..Default::default()
            });
        let processes = on_host
            .chain(processes.iter().map(|process| {
                let info = Any {
                    type_url: PROCESS_TYPE.to_owned(),
                    value: process.write_to_bytes().unwrap_or_default(),
                    ..Default::default()
                };
                ProcessInfo {
                    pid: process.pid,
                    info: MessageField::some(info),
                    ..Default::default()
                }
            }))
            .collect();
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> RpcResult<Empty> {
        rpc(rpc(self.0.container(&req.id))?.pause(&req.id, false).await).map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> RpcResult<Empty> {
        rpc(rpc(self.0.container(&req.id))?.pause(&req.id, true).await).map(|()| Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> RpcResult<Empty> {
        unsupported("checkpoint", "CRIU cannot reach into a virtual machine")
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> RpcResult<Empty> {
        rpc(rpc(self.0.container(&req.id))?
            .kill(&req.id, &req.exec_id, req.signal, req.all)
            .await)
        .map(|()| Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> RpcResult<Empty> {
        let stdio = Stdio {
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
        };
        let spec = req
            .spec
            .into_option()
            .map(|any| any.value)
            .unwrap_or_default();
        rpc(rpc(self.0.container(&req.id))?.exec(&req.id, &req.exec_id, spec, stdio))
            .map(|()| Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> RpcResult<Empty> {
        rpc(rpc(self.0.container(&req.id))?
            .resize(&req.id, &req.exec_id, req.width, req.height)
            .await)
        .map(|()| Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> RpcResult<Empty> {
        // A process sees the end of its input when the last writer of the FIFO closes it; the
        // sandbox holds none open, so there is nothing more to close here.
        rpc(rpc(self.0.container(&req.id))?.look_up(&req.id, &req.exec_id)).map(|_| Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> RpcResult<Empty> {
        // A JSON document whatever its type's name is: `types.containerd.io/opencontainers/…`.
        let resources = serde_json::from_slice(&req.resources.value).map_err(SandboxError::Limits);
        let resources = rpc(resources)?;
        rpc(rpc(self.0.container(&req.id))?
            .update_limits(&req.id, &resources)
            .await)
        .map(|()| Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> RpcResult<WaitResponse> {
        let exit = rpc(rpc(self.0.container(&req.id))?
            .wait(&req.id, &req.exec_id)
            .await)?;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: timestamp(exit.at_ns),
            ..Default::default()
        })
    }

    async fn stats(&self, context: &TtrpcContext, req: StatsRequest) -> RpcResult<StatsResponse> {
        if context.metadata.contains_key(MACHINE_KEY) {
            let machine = rpc(rpc(self.0.container(&req.id))?.machine_use(&req.id).await)?;
            let json = rpc(serde_json::to_vec(&machine).map_err(SandboxError::Describe))?;
            return Ok(StatsResponse {
                stats: MessageField::some(Any {
                    type_url: MACHINE_TYPE.to_owned(),
                    value: json,
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
        let stats = rpc(rpc(self.0.container(&req.id))?.stats(&req.id).await)?;
        Ok(StatsResponse {
            stats: MessageField::some(limits::metrics(&stats)),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, req: ConnectRequest) -> RpcResult<ConnectResponse> {
        rpc(rpc(self.0.container(&req.id))?.look_up(&req.id, ""))?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, req: ShutdownRequest) -> RpcResult<Empty> {
        rpc(self.0.container(&req.id))?.shutdown().await;
        Ok(Empty::new())
    }
}
