//! `bulkhead list`.

use std::process::ExitCode;

use bulkhead_sandbox::paths::Paths;
use bulkhead_sandbox::state::State;
use bulkhead_sandbox::sweep::{self, Found};
use clap::ValueEnum;

use super::state::describe;
use crate::error::CommandError;
use crate::options::Globals;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Form of the list.
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Names only.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub fn run(args: &Args, globals: &Globals) -> Result<ExitCode, CommandError> {
    let step = format!("read the state directory {}", globals.root.display());
    let names = sweep::names(&globals.root).map_err(CommandError::io(step))?;
    let mut states: Vec<State> = Vec::new();
    for name in names {
        match sweep::inspect(&Paths::new(&globals.root, &name)) {
            Ok(Found::State(state)) => states.push(*state),
            Ok(Found::Damaged(error)) => eprintln!("bulkhead: {error}"),
            // Being made, or gone in between.
            Ok(Found::Starting | Found::Removed) | Err(_) => {}
        }
    }
    if args.quiet {
        states.iter().for_each(|state| println!("{}", state.id));
    } else if args.format == Format::Json {
        let list: Vec<_> = states.iter().map(describe).collect();
        println!("{}", serde_json::Value::from(list));
    } else {
        print!("{}", table(&states));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(states: &[State]) -> String {
    let mut rows = vec![
        [
            "ID",
            "PID",
            "STATUS",
            "BUNDLE",
            "CREATED",
            "OWNER",
            "ISOLATION",
            "KERNEL",
        ]
        .map(String::from),
    ];
    rows.extend(states.iter().map(|state| {
        [
            state.id.clone(),
            state.engine_pid().to_string(),
            state.status.as_str().to_owned(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
            state.isolation.clone(),
            state.kernel.clone(),
        ]
    }));
    columns(&rows)
}

/// Rows as a table, columns three blanks apart as runc prints them.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_different_width_aligned_without_trailing_blanks() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "a      b\nlong   c\n");
    }
}
