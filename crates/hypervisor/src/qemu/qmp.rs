//! QEMU's machine protocol (QMP), as much of it as we speak: one command at a time over a
//! connection that exists before QEMU does.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::driver::Control;
use crate::{HypervisorError, Measurable, Pausable, Pluggable, Resizable};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest line taken from QEMU, which a guest may have taken over.
const LONGEST_LINE: u64 = 64 * 1024;

/// Most lines (events) skipped while waiting for one answer.
const MOST_LINES: usize = 1024;

/// The monitor of one QEMU process.
///
/// Nothing is exchanged until the first command: QEMU queues its greeting and, before the
/// negotiation that follows it, sends no events.
pub(crate) struct Monitor {
    has_balloon: bool,
    connection: Mutex<Connection>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// The monitor at `stream`, of a machine with a balloon or without.
    pub(crate) fn new(stream: UnixStream, has_balloon: bool) -> Self {
        let connection = Connection {
            stream: BufReader::new(stream),
            negotiated: false,
        };
        Self {
            has_balloon,
            connection: Mutex::new(connection),
        }
    }

    fn execute(&self, command: &'static str) -> Result<Value, HypervisorError> {
        self.execute_with(command, None)
    }

    fn execute_with(
        &self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, HypervisorError> {
        // A panic of another thread leaves at worst an unread answer behind, and answers carry the
        // name of the command they belong to.
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connection.negotiate()?;
        connection.execute(command, arguments)
    }
}

impl Pausable for Monitor {
    fn pause(&self) -> Result<(), HypervisorError> {
        self.execute("stop").map(drop)
    }

    fn resume(&self) -> Result<(), HypervisorError> {
        self.execute("cont").map(drop)
    }

    fn is_running(&self) -> Result<bool, HypervisorError> {
        let status = self.execute("query-status")?;
        Ok(status
            .get("running")
            .and_then(Value::as_bool)
            .unwrap_or(false))
    }
}

impl Resizable for Monitor {
    fn set_memory(&self, bytes: u64) -> Result<(), HypervisorError> {
        let arguments = json!({ "value": bytes });
        self.execute_with("balloon", Some(arguments)).map(drop)
    }

    fn memory(&self) -> Result<u64, HypervisorError> {
        let answer = self.execute("query-balloon")?;
        let bytes = answer.get("actual").and_then(Value::as_u64);
        bytes.ok_or_else(|| HypervisorError::Monitor {
            step: "query-balloon",
            source: io::Error::other("the answer has no size"),
        })
    }
}

impl Control for Monitor {
    fn as_pausable(&self) -> Option<&dyn Pausable> {
        Some(self)
    }

    fn as_measurable(&self) -> Option<&dyn Measurable> {
        None
    }

    fn as_resizable(&self) -> Option<&dyn Resizable> {
        self.has_balloon.then_some(self)
    }

    /// The buses of a microvm take no device once it runs.
    fn as_pluggable(&self) -> Option<&dyn Pluggable> {
        None
    }
}

struct Connection {
    stream: BufReader<UnixStream>,
    negotiated: bool,
}

impl Connection {
    fn negotiate(&mut self) -> Result<(), HypervisorError> {
        if self.negotiated {
            return Ok(());
        }
        let failed = |source| HypervisorError::Monitor {
            step: "negotiate",
            source,
        };
        self.stream
            .get_ref()
            .set_read_timeout(Some(PATIENCE))
            .map_err(failed)?;
        self.stream
            .get_ref()
            .set_write_timeout(Some(PATIENCE))
            .map_err(failed)?;
        let greeting = self.line().map_err(failed)?;
        if greeting.get("QMP").is_none() {
            return Err(failed(io::Error::other("the greeting is not one of QMP")));
        }
        self.execute("qmp_capabilities", None)?;
        self.negotiated = true;
        Ok(())
    }

    fn execute(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, HypervisorError> {
        let failed = |source| HypervisorError::Monitor {
            step: command,
            source,
        };
        // The command's own name is its identifier, returned with the answer.
        let mut order = json!({ "execute": command, "id": command });
        if let (Some(arguments), Some(order)) = (arguments, order.as_object_mut()) {
            order.insert("arguments".to_owned(), arguments);
        }
        let mut line = order.to_string();
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(failed)?;
        for _ in 0..MOST_LINES {
            let mut answer = self.line().map_err(failed)?;
            if answer.get("id").and_then(Value::as_str) != Some(command) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let reason = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given");
                return Err(HypervisorError::Refused {
                    command,
                    reason: reason.to_owned(),
                });
            }
            return Ok(answer
                .get_mut("return")
                .map(Value::take)
                .unwrap_or_default());
        }
        Err(failed(io::Error::other("too many events and no answer")))
    }

    fn line(&mut self) -> io::Result<Value> {
        use std::io::Read as _;
        let mut line = Vec::new();
        let read = self
            .stream
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Answers each command with the given lines; returns the commands.
    fn serve(script: Vec<&'static str>) -> (Monitor, thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            let mut commands = Vec::new();
            theirs
                .get_mut()
                .write_all(b"{\"QMP\": {\"version\": {}}}\n")
                .unwrap();
            for answer in script {
                let mut line = String::new();
                theirs.read_line(&mut line).unwrap();
                commands.push(line);
                theirs.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            commands
        });
        (Monitor::new(ours, true), server)
    }

    const AGREED: &str = "{\"return\": {}, \"id\": \"qmp_capabilities\"}\n";

    #[test]
    fn first_command_negotiates_and_skips_events() {
        let (monitor, server) = serve(vec![
            AGREED,
            "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {}, \"id\": \"stop\"}\n",
        ]);

        monitor.pause().unwrap();

        let commands = server.join().unwrap();
        assert!(commands[0].contains("qmp_capabilities"), "{commands:?}");
        assert!(commands[1].contains("\"stop\""), "{commands:?}");
    }

    #[test]
    fn status_is_read_from_the_answer() {
        let (monitor, _server) = serve(vec![
            AGREED,
            "{\"return\": {\"running\": true, \"status\": \"running\"}, \"id\": \"query-status\"}\n",
        ]);

        assert!(monitor.is_running().unwrap());
    }

    #[test]
    fn command_refused_carries_the_reason() {
        let (monitor, _server) = serve(vec![
            AGREED,
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}, \"id\": \"cont\"}\n",
        ]);

        let error = monitor.resume().unwrap_err();

        assert_eq!(error.to_string(), "QEMU refused the command cont: not now");
    }

    #[test]
    fn connection_closed_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);

        let error = Monitor::new(ours, true).pause().unwrap_err();

        assert!(
            matches!(
                error,
                HypervisorError::Monitor {
                    step: "negotiate",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn line_without_end_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            let _ = theirs.write_all(&vec![b'x'; 128 * 1024]);
        });

        assert!(Monitor::new(ours, true).pause().is_err());
        writer.join().unwrap();
    }
}
