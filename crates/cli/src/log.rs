//! Where our own messages go: standard error, or the file of `--log` as engines expect it.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line of text each.
    Text,
    /// One JSON object each, with `level`, `msg` and `time`, as runc writes it.
    Json,
}

/// Sends messages to standard error.
pub fn to_stderr(format: Format, debug: bool) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level(debug))
        .with_ansi(false)
        .with_target(false)
        // It would be told on standard error, with a panic when that fails, too: a full disk.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        Format::Text => builder.init(),
        Format::Json => builder.event_format(Engine(format)).init(),
    }
}

/// Sends messages to a file.
///
/// # Errors
/// When it cannot be opened.
pub fn to_file(path: &Path, format: Format, debug: bool) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    tracing_subscriber::fmt()
        .with_max_level(level(debug))
        .with_ansi(false)
        .log_internal_errors(false)
        .event_format(Engine(format))
        .with_writer(Mutex::new(file))
        .init();
    Ok(())
}

fn level(debug: bool) -> LevelFilter {
    if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::WARN
    }
}

/// One message in the form engines parse (runc's): a JSON object with `level`, `msg` and `time`, or a
/// line of text, without the line's end.
fn line(format: Format, level: &str, message: &str) -> String {
    let time = bulkhead_sandbox::clock::rfc3339_now();
    match format {
        Format::Json => {
            serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
        }
        Format::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
    }
}

/// Writes what is told on the way as [`report_error`] writes a verb's error: whoever reads the file
/// has one form to understand.
struct Engine(Format);

impl<S, N> FormatEvent<S, N> for Engine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        let level = level_name(*event.metadata().level());
        writeln!(writer, "{}", line(self.0, level, &message.0))
    }
}

/// The text of an event, and any further fields after it.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => {
                let rest = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{rest}")
            }
            // Where in the program it was told, of what came by the crate `log`.
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// As runc calls a level.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// Appends an error to the file of `--log` in the form engines parse.
pub fn report_error(path: &Path, format: Format, message: &str) {
    let line = line(format, "error", message);
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!(
            "bulkhead: Failed to write the log {}: {error}",
            path.display()
        );
    }
}
