//! The service over a socket of this machine, as the host calls it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bulkhead_agent_api::messages::{
    ContainerRequest, CreateContainerRequest, ExecRequest, ProcessRequest, ResizeRequest,
    SignalRequest, Span,
};
use bulkhead_agent_api::{AgentClient, StartFailure};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::{Code, context};

use super::serve;
use crate::reaper::Reaper;
use crate::watched;

/// Runs `test` with a client of a served agent, and checks that the service ends with its
/// connection.
fn with_agent(test: impl AsyncFnOnce(AgentClient)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (agent, host) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let host = tokio::net::UnixStream::from_std(host).unwrap();
        let client = AgentClient::new(Client::new(Socket::new(host)));
        let agent = watched::both_ways(agent.into()).unwrap();
        let boot = vec![Span::new()];
        let served = tokio::spawn(serve(agent, Arc::new(Reaper::default()), boot));
        test(client).await;
        served.await.unwrap().unwrap();
    });
}

fn code<T>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("an error was expected"),
    }
}

fn process(container: &str, exec: &str) -> ProcessRequest {
    let mut request = ProcessRequest::new();
    request.container_id = container.to_owned();
    request.exec_id = exec.to_owned();
    request
}

fn creation(id: &str, spec: &str, rootfs: &str) -> CreateContainerRequest {
    let mut request = CreateContainerRequest::new();
    request.container_id = id.to_owned();
    request.spec_json = spec.as_bytes().to_vec();
    request.rootfs = rootfs.to_owned();
    request
}

#[test]
fn calls_about_unknown_names_are_not_found() {
    with_agent(async |client| {
        let context = context::Context::default;
        let mut container = ContainerRequest::new();
        container.container_id = "nobody".to_owned();
        let mut exec = ExecRequest::new();
        exec.container_id = "nobody".to_owned();
        exec.exec_id = "x".to_owned();
        exec.process_json =
            br#"{"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}}"#.to_vec();
        let mut signal = SignalRequest::new();
        signal.container_id = "nobody".to_owned();
        signal.signal = 15;
        let one = process("nobody", "");
        let codes = [
            code(client.start(context(), &one).await),
            code(client.wait(context(), &one).await),
            code(client.signal(context(), &signal).await),
            code(client.exec(context(), &exec).await),
            code(client.delete_exec(context(), &process("nobody", "x")).await),
            code(client.processes(context(), &container).await),
            code(client.stats(context(), &container).await),
            code(client.pause(context(), &container).await),
            code(client.resume(context(), &container).await),
            code(client.destroy_container(context(), &container).await),
        ];
        for (code, message) in codes {
            assert_eq!(code, Code::NOT_FOUND, "{message}");
            assert!(message.contains("\"nobody\""), "{message}");
        }
    });
}

#[test]
fn create_with_broken_requests_names_the_field() {
    with_agent(async |client| {
        let spec = r#"{"ociVersion": "1.2.0"}"#;
        for (request, field) in [
            (creation("", spec, "c/rootfs"), "container_id"),
            (creation("a/b", spec, "c/rootfs"), "container_id"),
            (creation("c", spec, "../etc"), "rootfs"),
            (creation("c", "{", "c/rootfs"), "spec_json"),
        ] {
            let answer = client
                .create_container(context::Context::default(), &request)
                .await;
            let (code, message) = code(answer);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(message.contains(field), "{message}");
            assert_eq!(StartFailure::parse(&message).0, StartFailure::Other);
        }
    });
}

#[test]
fn failed_creation_frees_the_name_for_those_who_wait() {
    with_agent(async |client| {
        // Read and parsed, and then refused by the container set-up: it has no process.
        let request = creation("c", r#"{"ociVersion": "1.2.0"}"#, "c/rootfs");
        let (context, one) = (context::Context::default, process("c", ""));
        let (created, started, waited) = tokio::join!(
            client.create_container(context(), &request),
            client.start(context(), &one),
            client.wait(context(), &one),
        );
        assert_eq!(code(created).0, Code::INVALID_ARGUMENT);
        assert_eq!(code(started).0, Code::NOT_FOUND);
        assert_eq!(code(waited).0, Code::NOT_FOUND);
    });
}

#[test]
fn impossible_numbers_are_refused() {
    with_agent(async |client| {
        let context = context::Context::default;
        let mut signal = SignalRequest::new();
        signal.container_id = "c".to_owned();
        for number in [65, u32::MAX] {
            signal.signal = number;
            let (code, message) = code(client.signal(context(), &signal).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        }
        let mut size = ResizeRequest::new();
        size.container_id = "c".to_owned();
        size.columns = 65_536;
        let (code, message) = code(client.resize_terminal(context(), &size).await);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
    });
}
