//! Runs requirements on every runtime, side by side, and prints the table.
//!
//! A runner of its own, with the command line and the output of the usual one: the results of all
//! requirements make one table, and one requirement is proved on the peers before ours is asked.

use std::cell::RefCell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use bulkhead_tests::harness::suite::skip;

use crate::requirement::{Kind, Requirement};
use crate::subject::Subject;
use crate::table::{self, Row};

/// What one runtime made of a requirement.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It meets it.
    Met,
    /// It does not; the test's message.
    Unmet(String),
    /// It could not be asked.
    Absent(String),
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs what the arguments select; the exit code is that of a test.
pub fn run(requirements: &[&'static Requirement]) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let selected: Vec<&'static Requirement> = requirements
        .iter()
        .copied()
        .filter(|it| arguments.selects(it.name))
        .collect();
    let with_document = arguments.selects(table::DOCUMENT);
    if arguments.list {
        selected.iter().for_each(|it| println!("{}: test", it.name));
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|info| {
        PANIC.set(info.to_string());
    }));
    let began = Instant::now();
    let count = selected.len() + usize::from(with_document);
    println!("\nrunning {count} tests");
    let mut rows = on_threads(&selected, arguments.threads);
    rows.sort_by_key(|row| {
        selected
            .iter()
            .position(|it| it.name == row.requirement.name)
    });
    let mut failures: Vec<(&str, String)> = rows
        .iter()
        .filter_map(|row| Some((row.requirement.name, row.failure()?)))
        .collect();
    if with_document {
        let failure = table::document_failure(requirements);
        say(table::DOCUMENT, failure.is_none());
        failures.extend(failure.map(|failure| (table::DOCUMENT, failure)));
    }
    if !rows.is_empty() {
        table::print(&rows);
    }
    report(&failures, count, requirements.len(), began);
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(101)
    }
}

fn on_threads(selected: &[&'static Requirement], threads: usize) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(requirement) = selected.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = ask_all(requirement);
                    say(requirement.name, row.failure().is_none());
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    rows.into_inner().unwrap()
}

/// Asks each runtime, the proving ones first.
fn ask_all(requirement: &'static Requirement) -> Row {
    let outcomes = Kind::ALL.map(|kind| ask(requirement, kind));
    let absent = |outcome: &Outcome| matches!(outcome, Outcome::Absent(_));
    if let [.., Outcome::Absent(why)] = &outcomes
        && outcomes.iter().all(absent)
    {
        skip(requirement.name, why);
    }
    Row {
        requirement,
        outcomes,
    }
}

fn ask(requirement: &Requirement, kind: Kind) -> Outcome {
    let subject = match Subject::new(kind, requirement.name) {
        Ok(subject) => subject,
        Err(why) => return Outcome::Absent(why),
    };
    let quietly = requirement.exception(kind).is_some();
    let outcome = catch_unwind(AssertUnwindSafe(|| (requirement.check)(&subject)));
    if outcome.is_err() {
        let message = PANIC.take();
        if !quietly && kind == Kind::Bulkhead {
            println!("---- {} on {kind}: {message}", requirement.name);
            subject.tell();
        }
        return Outcome::Unmet(message);
    }
    match catch_unwind(AssertUnwindSafe(|| subject.finish())) {
        Ok(()) => Outcome::Met,
        Err(_) => Outcome::Unmet(PANIC.take()),
    }
}

/// The line of a finished test, as the usual runner writes it.
fn say(name: &str, passed: bool) {
    let verdict = if passed { "ok" } else { "FAILED" };
    let line = format!("test {name} ... {verdict}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

fn report(failures: &[(&str, String)], count: usize, all: usize, began: Instant) {
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, failure) in failures {
            println!("---- {name} ----\n{failure}\n");
        }
        println!("failures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        count - failures.len(),
        failures.len(),
        (all + 1).saturating_sub(count),
        began.elapsed().as_secs_f64(),
    );
}

/// Those arguments of the usual runner that matter here.
#[derive(Debug)]
struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

impl Arguments {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        // Most of the time a runtime is waited for.
        let cpus = thread::available_parallelism().map_or(2, usize::from);
        let mut arguments = Self {
            filters: Vec::new(),
            skips: Vec::new(),
            exact: false,
            list: false,
            threads: cpus + 1,
        };
        let mut args = args.flat_map(|arg| match arg.split_once('=') {
            Some((option, value)) if option.starts_with("--") => {
                vec![option.to_owned(), value.to_owned()]
            }
            _ => vec![arg],
        });
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--skip" => arguments.skips.extend(args.next()),
                "--test-threads" => {
                    let number = args.next().and_then(|value| value.parse().ok());
                    arguments.threads = number.unwrap_or(1).max(1);
                }
                "--color" | "--format" | "--logfile" => drop(args.next()),
                option if option.starts_with('-') => {}
                _ => arguments.filters.push(arg),
            }
        }
        arguments
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}
