//! Counting what suites report.

/// Why tests of modules `on_kvm` are ignored.
const ON_KVM: &str = ": runs when KVM is asked for";

/// The sum over all suites.
#[derive(Debug, Default)]
pub struct Tally {
    /// Tests that passed.
    pub passed: usize,
    /// Names of tests that failed.
    pub failed: Vec<String>,
    /// Tests that did not run, each with its reason.
    pub skipped: Vec<String>,
    /// Tests that are not of this run: they run on KVM, when asked for.
    pub on_kvm: usize,
    /// Tests that failed once and passed when they were run again alone.
    pub unsteady: Vec<String>,
}

impl Tally {
    /// One more passed.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// One more failed.
    pub fn fail(&mut self, name: impl Into<String>) {
        self.failed.push(name.into());
    }

    /// One more skipped.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.push(format!("{name}: {reason}"));
    }

    /// Takes over another's passed and failed ones.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }

    /// Prints what was skipped and what failed.
    pub fn print(&self) {
        println!();
        if self.on_kvm > 0 {
            println!("{} more with --hypervisor kvm", self.on_kvm);
        }
        for skipped in &self.skipped {
            println!("skipped  {skipped}");
        }
        for unsteady in &self.unsteady {
            println!("UNSTEADY {unsteady}: failed at first, passed alone");
        }
        for failed in &self.failed {
            println!("FAILED   {failed}");
        }
    }
}

/// Reads what `cargo test` prints.
///
/// The numbers come from the result line of each test binary, which is right
/// even where a test's own output got between the others.
#[derive(Debug, Default)]
pub struct Reader {
    passed: usize,
    failed_count: usize,
    failed: Vec<String>,
    ignored_count: usize,
    ignored: Vec<String>,
    in_failures: bool,
    listed: Vec<String>,
    named: Vec<String>,
}

impl Reader {
    /// Takes one line of output.
    pub fn line(&mut self, line: &str) {
        let failed = line.strip_prefix("test ");
        if let Some(name) = failed.and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.named.push(name.to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.in_failures = false;
            self.failed.append(&mut self.listed);
            self.passed += number_before(result, " passed");
            self.failed_count += number_before(result, " failed");
            self.ignored_count += number_before(result, " ignored");
        } else if line == "failures:" {
            self.in_failures = true;
            // The first list of a binary holds outputs, of which a line may look like a name; the second, which
            // is the last before its result, the names.
            self.listed.clear();
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.in_failures) {
            self.listed.push(name.to_owned());
        } else if let Some((name, reason)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            let reason = reason.trim_start_matches(", ");
            self.ignored.push(match reason {
                "" => format!("{name}: ignored without a reason"),
                reason => format!("{name}: {reason}"),
            });
        }
    }

    /// The tests that failed, if each of them was named.
    pub fn named(&self) -> Option<&[String]> {
        (self.named.len() == self.failed_count).then_some(&self.named)
    }

    /// A test that failed has passed now.
    pub fn forgive(&mut self, name: &str) {
        self.passed += 1;
        self.failed_count = self.failed_count.saturating_sub(1);
        self.named.retain(|other| other != name);
        self.failed = self.named.clone();
    }

    /// Whether something passed and nothing failed.
    pub fn is_good(&self) -> bool {
        self.passed > 0 && self.failed_count == 0
    }

    /// Number of tests that failed.
    pub fn failed(&self) -> usize {
        self.failed_count
    }

    /// Adds the results; `skips` are the lines `name: reason` of tests that
    /// found out while running that they cannot run here.
    pub fn add_to(self, tally: &mut Tally, skips: &str) {
        let skips: Vec<&str> = skips.lines().filter(|line| !line.is_empty()).collect();
        tally.passed += self.passed.saturating_sub(skips.len());
        tally.skipped.extend(skips.into_iter().map(str::to_owned));
        for index in 0..self.ignored_count {
            match self.ignored.get(index) {
                Some(named) if named.ends_with(ON_KVM) => tally.on_kvm += 1,
                Some(named) => tally.skipped.push(named.clone()),
                None => tally.skipped.push("a test that was ignored".to_owned()),
            }
        }
        for index in 0..self.failed_count {
            let known = self.failed.get(index).cloned();
            tally
                .failed
                .push(known.unwrap_or_else(|| "a test; see above".to_owned()));
        }
    }
}

/// `3` from `ok. 3 passed; …`.
fn number_before(text: &str, word: &str) -> usize {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str, skips: &str) -> Tally {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        let mut tally = Tally::default();
        reader.add_to(&mut tally, skips);
        tally
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let sum = tally(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 13 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out\n",
            "",
        );

        assert_eq!(
            (sum.passed, sum.failed.len(), sum.skipped.len()),
            (15, 0, 0)
        );
    }

    #[test]
    fn failure_that_is_forgiven_counts_as_passed() {
        let mut reader = Reader::default();
        let text = "test a ... FAILED\ntest b ... FAILED\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        text.lines().for_each(|line| reader.line(line));
        assert_eq!(reader.named().unwrap(), ["a", "b"]);

        reader.forgive("a");
        let mut sum = Tally::default();
        reader.add_to(&mut sum, "");

        assert_eq!((sum.passed, sum.failed), (2, vec!["b".to_owned()]));
    }

    #[test]
    fn failure_is_counted_and_named() {
        let sum = tally(
            "test a::b ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n    left: 1\n\n\
             failures:\n    a::b\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            "",
        );

        assert_eq!(sum.passed, 1);
        assert_eq!(sum.failed, ["a::b"]);
    }

    #[test]
    fn failures_of_several_binaries_are_named_without_lines_of_their_outputs() {
        let failed = |name: &str| {
            format!(
                "test {name} ... FAILED\n\nfailures:\n\n---- {name} stdout ----\n             at ./src/{name}.rs:1\n\n\
                 failures:\n    {name}\n\n\
                 test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n"
            )
        };

        let sum = tally(&(failed("a") + &failed("b")), "");

        assert_eq!(sum.failed, ["a", "b"]);
    }

    #[test]
    fn test_ignored_is_skipped_with_its_reason() {
        let sum = tally(
            "test slow ... ignored, needs /dev/kvm\ntest other ... ignored\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n",
            "",
        );

        assert_eq!(
            sum.skipped,
            ["slow: needs /dev/kvm", "other: ignored without a reason"]
        );
    }

    #[test]
    fn test_that_waits_for_kvm_to_be_asked_for_is_only_counted() {
        let sum = tally(
            "test on_kvm::a ... ignored, runs when KVM is asked for\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n",
            "",
        );

        assert_eq!((sum.passed, sum.skipped.len(), sum.on_kvm), (2, 0, 1));
    }

    #[test]
    fn test_that_skipped_itself_does_not_count_as_passed() {
        let sum = tally(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
            "kvm_boots: no hardware virtualisation\n",
        );

        assert_eq!(sum.passed, 2);
        assert_eq!(sum.skipped, ["kvm_boots: no hardware virtualisation"]);
    }
}
