//! The table: of one run, and as `docs/conformance.md`.

use std::fmt::Write;
use std::fs;

use bulkhead_tests::harness::product::source_tree;

use crate::requirement::{Kind, Requirement};
use crate::runner::Outcome;

/// The name of the test that `docs/conformance.md` is what the requirements say.
pub const DOCUMENT: &str = "conformance::document_is_up_to_date";

/// A requirement and what came of it.
#[derive(Debug)]
pub struct Row {
    /// The requirement.
    pub requirement: &'static Requirement,
    /// In the order of [`Kind::ALL`].
    pub outcomes: [Outcome; 3],
}

impl Row {
    /// Why the test fails: a runtime does not do what is expected of it, for better or for worse.
    pub fn failure(&self) -> Option<String> {
        let problems: Vec<String> = Kind::ALL
            .iter()
            .zip(&self.outcomes)
            .filter_map(|(kind, outcome)| self.problem(*kind, outcome))
            .collect();
        (!problems.is_empty()).then(|| problems.join("\n"))
    }

    fn problem(&self, kind: Kind, outcome: &Outcome) -> Option<String> {
        match (outcome, self.requirement.exception(kind)) {
            (Outcome::Unmet(message), None) if kind == Kind::Bulkhead => {
                Some(format!("Bulkhead does not: {message}"))
            }
            (Outcome::Unmet(message), None) => {
                Some(format!("the test is not proved on {kind}: {message}"))
            }
            (Outcome::Met, Some(exception)) => Some(format!(
                "{kind} does: remove the exception from the table ({})",
                exception.reason()
            )),
            _ => None,
        }
    }
}

/// Prints the results of a run.
pub fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.requirement.text.len()).max();
    let width = width.unwrap_or_default();
    println!();
    let [first, second, third] = Kind::ALL;
    println!(
        "{:width$} | {first:7} | {second:7} | {third:7}",
        "requirement"
    );
    let mut section = "";
    for row in rows {
        if row.requirement.section != section {
            section = row.requirement.section;
            println!("-- {section}");
        }
        let cells: Vec<String> = Kind::ALL
            .iter()
            .zip(&row.outcomes)
            .map(|(kind, outcome)| format!("{:7}", cell(row.requirement, *kind, outcome)))
            .collect();
        println!("{:width$} | {}", row.requirement.text, cells.join(" | "));
    }
}

fn cell(requirement: &Requirement, kind: Kind, outcome: &Outcome) -> &'static str {
    match (outcome, requirement.exception(kind)) {
        (Outcome::Met, _) => "yes",
        (Outcome::Unmet(_), Some(exception)) => exception.word(),
        (Outcome::Unmet(_), None) => "FAILED",
        (Outcome::Absent(_), _) => "-",
    }
}

/// Compares `docs/conformance.md` with the requirements, or writes it if `BULKHEAD_UPDATE_DOCS` is set.
/// A run that passes has shown that each of its cells is right.
pub fn document_failure(requirements: &[&Requirement]) -> Option<String> {
    let path = source_tree().join("docs/conformance.md");
    let text = document(requirements);
    if std::env::var_os("BULKHEAD_UPDATE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    (written != text)
        .then(|| "docs/conformance.md is out of date: run with BULKHEAD_UPDATE_DOCS=1".to_owned())
}

fn document(requirements: &[&Requirement]) -> String {
    let met = |kind| {
        let met = |it: &&&Requirement| it.exception(kind).is_none();
        requirements.iter().filter(met).count()
    };
    let [runc, crun, bulkhead] = Kind::ALL.map(met);
    let mut text = format!(
        "# Conformance\n\n\
         What the OCI runtime specification (1.2) demands of a runtime, as far as it can be observed from outside,\n\
         and what engines rely on in runc's command line. Each line is a test of `tests/tests/conformance`, which runs on\n\
         runc, crun (as Debian 12 has them) and Bulkhead one after the other, and fails where a cell is wrong, in\n\
         either direction. This page is made from the same table: `BULKHEAD_UPDATE_DOCS=1 cargo test -p bulkhead-tests\n\
         --test conformance document` writes it.\n\n\
         Of {} requirements runc meets {runc}, crun {crun}, Bulkhead {bulkhead}. *cannot*: a virtual machine makes it\n\
         impossible; *differs*: on purpose; *not yet*: it is going to.\n",
        requirements.len()
    );
    let mut section = "";
    for requirement in requirements {
        if requirement.section != section {
            section = requirement.section;
            write!(
                text,
                "\n## {section}\n\n| requirement | runc | crun | Bulkhead | |\n|---|---|---|---|---|\n"
            )
            .unwrap();
        }
        let cells = Kind::ALL.map(|kind| match requirement.exception(kind) {
            None => "yes",
            Some(exception) => exception.word(),
        });
        let reasons: Vec<String> = requirement
            .exceptions
            .iter()
            .map(|it| format!("{}: {}", it.kind(), it.reason()))
            .collect();
        writeln!(
            text,
            "| {} | {} | {} |",
            requirement.text,
            cells.join(" | "),
            reasons.join("; ")
        )
        .unwrap();
    }
    text
}
