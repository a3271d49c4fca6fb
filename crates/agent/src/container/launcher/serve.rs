//! The launcher's own side: it runs in a copy of the agent and never returns.

use std::{
    ffi::{CString, c_void},
    io::{self, IoSliceMut},
    mem::{ManuallyDrop, MaybeUninit},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr,
};

use rustix::{
    io::{Errno, fcntl_dupfd_cloexec},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send},
};

use super::{Answer, MAX_FDS, Step};
use crate::container::{
    Container, Io, capabilities, init, process,
    sharing::{self, Stack},
    sys,
    terminal::Terminal,
};

/// Its own descriptors beyond the standard ones; what is above came with a request.
const SOCKET: i32 = 3;
const INIT: i32 = 4;
const RECEIVED: u32 = 5;

/// Processes started by one launcher. What each of them allocated on its way stays behind in the
/// memory it shared, some kilobytes at the most.
const LAUNCHES: u32 = 256;

/// The first part of a request is read into this much, in bytes: mostly all of it.
const FIRST: usize = 16 << 10;

/// What a child needs, in the memory it shares. The descriptors are closed all at once, so nothing
/// here closes one.
struct Further {
    plan: init::ExecPlan<'static>,
    io: ManuallyDrop<Io>,
    terminal: Option<ManuallyDrop<Terminal>>,
    status: BorrowedFd<'static>,
}

struct Request {
    process: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// Serves requests until the agent hangs up.
pub fn serve(container: &Container, bounding: u64, socket: BorrowedFd<'_>) -> ! {
    // Without an answer the agent sees the end of the socket.
    let _ = try_serve(container, bounding, socket);
    sys::exit_now(0)
}

fn try_serve(container: &Container, bounding: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
    let (socket, init) = settle(socket, container.pidfd.as_fd())?;
    let stack = Stack::new()?;
    let joined = if container.namespaces.has_pid() {
        sys::setns(init, libc::CLONE_NEWPID)
    } else {
        Ok(())
    };
    capabilities::limit_bounding_set(bounding)
        .map_err(|failure| io::Error::from_raw_os_error(failure.errno))?;
    for _ in 0..LAUNCHES {
        let Some(request) = receive(socket)? else {
            return Ok(());
        };
        if let Err(error) = joined {
            return answer(socket, Answer::failed(Step::Join, &error));
        }
        let Some((further, cgroup)) = prepare(container, init, request) else {
            let error = Errno::INVAL.into();
            return answer(socket, Answer::failed(Step::Understand, &error));
        };
        let argument = ptr::from_ref(&further).cast();
        // SAFETY: this process is a single-threaded copy of a single-threaded one. Until the child
        // is over nothing happens here but system calls with values of this very stack, `further`
        // stays where it is, and the previous child on the stack is over.
        let started = unsafe { sharing::start(&stack, cgroup, enter, argument) };
        match started {
            Ok(sharing) => {
                let told = answer(socket, Answer::started(sharing.pid));
                let closed = sys::close_range(RECEIVED, u32::MAX);
                if !sharing.over() {
                    return Ok(());
                }
                told.and(closed)?;
                send(socket, &[1], SendFlags::NOSIGNAL)?;
            }
            Err(error) => {
                sys::close_range(RECEIVED, u32::MAX)?;
                answer(socket, Answer::failed(Step::Clone, &error))?;
            }
        }
    }
    Ok(())
}

/// Gives up everything of the agent's but the socket and the container's init process.
fn settle(
    socket: BorrowedFd<'_>,
    init: BorrowedFd<'_>,
) -> io::Result<(BorrowedFd<'static>, BorrowedFd<'static>)> {
    // Out of the way of both numbers.
    const ASIDE: i32 = 16;
    let socket = sys::leak(fcntl_dupfd_cloexec(socket, ASIDE)?);
    let init = sys::leak(fcntl_dupfd_cloexec(init, ASIDE)?);
    let settled = (sys::renumber(socket, SOCKET)?, sys::renumber(init, INIT)?);
    sys::close_range(RECEIVED, u32::MAX)?;
    Ok(settled)
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Request>> {
    let mut length = [0; 4];
    let mut process = vec![0; FIRST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut length), IoSliceMut::new(&mut process)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(socket, &mut parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    let Some(mut have) = received.checked_sub(length.len()) else {
        return Ok(None);
    };
    process.resize(usize::try_from(u32::from_ne_bytes(length)).unwrap_or(0), 0);
    while let Some(room) = process.get_mut(have..).filter(|room| !room.is_empty()) {
        match recv(socket, room, RecvFlags::empty()) {
            Ok((0, _)) => return Ok(None),
            Ok((count, _)) => have += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    Ok(Some(Request { process, fds }))
}

/// The agent has checked the process; the request is what it sent.
fn prepare(
    container: &Container,
    init: BorrowedFd<'static>,
    request: Request,
) -> Option<(Further, BorrowedFd<'static>)> {
    let mut fds = request.fds.into_iter();
    let (status, cgroup) = (sys::leak(fds.next()?), sys::leak(fds.next()?));
    let (first, further) = (fds.next()?, (fds.next(), fds.next()));
    let (io, terminal) = match further {
        (Some(stdout), Some(stderr)) => {
            let stdin = first;
            let io = Io::Pipes {
                stdin,
                stdout,
                stderr,
            };
            (io, None)
        }
        _ => {
            let (columns, rows) = (0, 0);
            let terminal = Terminal {
                master: first,
                path: CString::default(),
            };
            (
                Io::Terminal { columns, rows },
                Some(ManuallyDrop::new(terminal)),
            )
        }
    };
    let process = serde_json::from_slice(&request.process).ok()?;
    let process = process::Plan::new(
        &process,
        container.filter.clone(),
        container.personality.as_ref(),
        io.is_terminal(),
    );
    let plan = init::ExecPlan {
        init,
        namespaces: container.namespaces.clone(),
        process: process.ok()?,
    };
    let further = Further {
        plan,
        io: ManuallyDrop::new(io),
        terminal,
        status,
    };
    Some((further, cgroup))
}

/// The child.
extern "C" fn enter(argument: *const c_void) -> ! {
    // SAFETY: `try_serve` passes a `Further` that outlives the child's sharing of memory.
    let further = unsafe { &*argument.cast::<Further>() };
    let terminal = further.terminal.as_deref();
    init::run_exec(&further.plan, &further.io, terminal, further.status);
    sys::exit_now(1)
}

fn answer(socket: BorrowedFd<'_>, answer: Answer) -> io::Result<()> {
    // Short enough to be taken whole.
    send(socket, &answer.encode(), SendFlags::NOSIGNAL)?;
    Ok(())
}
