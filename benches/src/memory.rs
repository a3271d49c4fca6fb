//! Memory of idle containers: the proportional set size of every host process, each memory map counted
//! once.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;

use anyhow::Result;

use crate::bundle::Bundle;
use crate::runtime::Runtime;

/// KiB for one idle container alone, and for each of many.
#[derive(Debug)]
pub struct Row {
    name: String,
    one: u64,
    each: u64,
    processes: usize,
}

/// Measures every runtime.
pub fn measure(runtimes: &[Runtime], idle: &Bundle, many: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for runtime in runtimes {
        let first = runtime.start_idle(idle, "memory-0")?;
        let (one, processes) = total(std::slice::from_ref(&first));
        let mut children = vec![first];
        for n in 1..many {
            children.push(runtime.start_idle(idle, &format!("memory-{n}"))?);
        }
        let each = total(&children).0 / many.max(1) as u64;
        for (n, child) in children.into_iter().enumerate() {
            runtime.stop(child, &format!("memory-{n}"))?;
        }
        rows.push(Row {
            name: runtime.name.to_owned(),
            one,
            each,
            processes,
        });
    }
    Ok(rows)
}

/// Prints a table in MiB.
pub fn print(rows: &[Row], many: usize) {
    println!(
        "memory of an idle container (PSS of all its host processes, the command included), MiB"
    );
    println!(
        "  {:<16} {:>10} {:>9} {:>12}",
        "",
        "processes",
        "one",
        format!("each of {many}")
    );
    for row in rows {
        let mib = |kib: u64| format!("{}.{}", kib / 1024, kib % 1024 * 10 / 1024);
        println!(
            "  {:<16} {:>10} {:>9} {:>12}",
            row.name,
            row.processes,
            mib(row.one),
            mib(row.each)
        );
    }
    println!();
}

/// The rows by name.
pub fn json(rows: &[Row]) -> serde_json::Value {
    rows.iter()
        .map(|row| {
            (
                row.name.clone(),
                serde_json::json!({ "one": row.one, "each": row.each }),
            )
        })
        .collect()
}

/// KiB of the commands and all their descendants, and how many processes those are.
fn total(commands: &[Child]) -> (u64, usize) {
    let commands: Vec<u32> = commands.iter().map(Child::id).collect();
    let family = family(&commands);
    (sum(&family), family.len())
}

/// Processes, and all that descend from them.
fn family(of: &[u32]) -> Vec<u32> {
    let parents = parents();
    let mut family = of.to_vec();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(
            parents
                .iter()
                .filter_map(|(pid, of)| (*of == parent).then_some(*pid)),
        );
        next += 1;
    }
    family
}

fn sum(processes: &[u32]) -> u64 {
    let mut counted: Vec<u32> = Vec::new();
    let mut sum = 0;
    for pid in processes {
        // User-Mode Linux has a helper process that shares its parent's memory.
        if !counted.iter().any(|other| same_memory(*pid, *other)) {
            sum += pss(*pid);
            counted.push(*pid);
        }
    }
    sum
}

/// The memory of what an engine leaves running when it has started a container, and then others.
#[derive(Debug)]
pub struct Engine {
    before: Vec<u32>,
    one: Option<(u64, usize)>,
}

impl Engine {
    /// Nothing of it runs yet. From here on, orphans come to this process.
    pub fn new() -> Self {
        // SAFETY: the call takes integers only; it cannot fail with these.
        let _ = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        Self {
            before: family(&[std::process::id()]),
            one: None,
        }
    }

    /// The first container runs.
    pub fn first(&mut self) {
        self.one = Some(self.now());
    }

    /// All `many` of them run.
    pub fn all(&self, name: &str, many: usize) -> Row {
        let (one, processes) = self.one.unwrap_or_default();
        Row {
            name: name.to_owned(),
            one,
            each: self.now().0 / many.max(1) as u64,
            processes,
        }
    }

    fn now(&self) -> (u64, usize) {
        let mut new = family(&[std::process::id()]);
        // Those that have ended and wait for somebody to ask have no memory.
        new.retain(|pid| !self.before.contains(pid) && pss(*pid) > 0);
        (sum(&new), new.len())
    }
}

fn parents() -> BTreeMap<u32, u32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let rest = stat.get(stat.rfind(')')? + 2..)?;
            Some((pid, rest.split(' ').nth(1)?.parse().ok()?))
        })
        .collect()
}

fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn same_memory(a: u32, b: u32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: `kcmp` takes integers only and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0 }
}
