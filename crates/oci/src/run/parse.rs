//! Parsers of options: sizes, CPUs, limits, annotations, environment.

use super::error::OptionError;

/// Units of sizes, as docker and podman read them: all are powers of 1024.
const UNITS: &[(&str, u32)] = &[
    ("", 0),
    ("b", 0),
    ("k", 10),
    ("kb", 10),
    ("kib", 10),
    ("m", 20),
    ("mb", 20),
    ("mib", 20),
    ("g", 30),
    ("gb", 30),
    ("gib", 30),
    ("t", 40),
    ("tb", 40),
    ("tib", 40),
];

/// Decimal places that count, in sizes and in CPUs.
const PLACES: usize = 9;

/// Parses a size such as `512m`, `1.5g` or `1048576`; returns bytes, at least 1 and at
/// most `i64::MAX` (which is what a configuration can hold).
///
/// # Errors
///
/// [`OptionError::Size`] for anything else.
pub fn parse_size(text: &str) -> Result<u64, OptionError> {
    size(text).ok_or_else(|| OptionError::Size(text.to_owned()))
}

fn size(text: &str) -> Option<u64> {
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.')
        .count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit
        .strip_prefix(' ')
        .filter(|unit| !unit.is_empty())
        .unwrap_or(unit);
    let unit = unit.to_ascii_lowercase();
    let shift = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let bytes = billionths(number)?.checked_mul(1 << shift)? / 1_000_000_000;
    let bytes = u64::try_from(bytes).ok()?;
    (bytes > 0 && i64::try_from(bytes).is_ok()).then_some(bytes)
}

/// A share of CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// CPU time in each [`Cpus::PERIOD_US`], in microseconds; at least 1000.
    pub quota_us: i64,
}

impl Cpus {
    /// The period the quota is for, in microseconds.
    pub const PERIOD_US: u64 = 100_000;

    /// How many CPUs are needed to use the share up.
    pub fn rounded_up(self) -> u32 {
        let quota = u64::try_from(self.quota_us).unwrap_or_default();
        u32::try_from(quota.div_ceil(Self::PERIOD_US)).unwrap_or(u32::MAX)
    }
}

/// Parses a number of CPUs such as `1.5`: at least 0.01 and below 100000.
///
/// # Errors
///
/// [`OptionError::Cpus`] for anything else.
pub fn parse_cpus(text: &str) -> Result<Cpus, OptionError> {
    let quota = billionths(text).map(|cpus| cpus / 10_000);
    quota
        .and_then(|quota| i64::try_from(quota).ok())
        .filter(|quota| (1_000..10_000_000_000).contains(quota))
        .map(|quota_us| Cpus { quota_us })
        .ok_or_else(|| OptionError::Cpus(text.to_owned()))
}

/// Parses a decimal number without a sign into billionths; further places are cut off.
fn billionths(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let decimal = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if !decimal(whole) || !decimal(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    // u64 bounds the whole part, so that the product below cannot overflow.
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let places: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(PLACES)
        .collect();
    Some(u128::from(whole) * 1_000_000_000 + places.parse::<u128>().ok()?)
}

/// Parses a limit of processes: a number, or -1 or 0 for none.
///
/// # Errors
///
/// [`OptionError::Pids`] for anything else.
pub fn parse_pids_limit(text: &str) -> Result<Option<i64>, OptionError> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(None),
        Ok(limit) if limit > 0 => Ok(Some(limit)),
        _ => Err(OptionError::Pids(text.to_owned())),
    }
}

/// Parses an annotation, `NAME=value`.
///
/// # Errors
///
/// [`OptionError::Annotation`] if there is no name or no `=`.
pub fn parse_annotation(text: &str) -> Result<(String, String), OptionError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(OptionError::Annotation(text.to_owned())),
    }
}

/// Resolves `-e` options: `NAME=value` stays, `NAME` takes the caller's value from `lookup`
/// and is left out if there is none.
///
/// # Errors
///
/// [`OptionError::Env`] with the option's number, from 1, if it has no name. The value is
/// never part of the error.
pub fn resolve_env(
    options: &[String],
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, OptionError> {
    let mut env = Vec::with_capacity(options.len());
    for (index, option) in options.iter().enumerate() {
        let name = option.split('=').next().unwrap_or_default();
        if name.is_empty() || option.contains('\0') {
            return Err(OptionError::Env(index + 1));
        }
        if option.contains('=') {
            env.push(option.clone());
        } else if let Some(value) = lookup(name) {
            env.push(format!("{name}={value}"));
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_size_units_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("512m", 512 << 20),
            ("1g", 1 << 30),
            ("1G", 1 << 30),
            ("64KiB", 64 << 10),
            ("1.5g", 3 << 29),
            ("2 gb", 2 << 30),
            (".5k", 512),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn parse_size_anything_else_is_an_error() {
        for text in [
            "",
            "0",
            "m",
            "-1",
            "1x",
            "1e3",
            "1.2.3",
            "0.1b",
            "9223372036854775808",
            "99999999t",
            "ä",
            "1 ",
        ] {
            assert_eq!(parse_size(text), Err(OptionError::Size(text.into())));
        }
    }

    #[test]
    fn parse_cpus_fractions_become_quotas() {
        for (text, quota_us, rounded_up) in [
            ("1", 100_000, 1),
            ("1.5", 150_000, 2),
            ("0.01", 1_000, 1),
            (".25", 25_000, 1),
            ("64", 6_400_000, 64),
        ] {
            let cpus = parse_cpus(text).unwrap();
            assert_eq!(
                (cpus.quota_us, cpus.rounded_up()),
                (quota_us, rounded_up),
                "{text}"
            );
        }
        for text in ["", "0", "0.009", "-1", "100000", "1,5", "two", "."] {
            assert_eq!(parse_cpus(text), Err(OptionError::Cpus(text.into())));
        }
    }

    #[test]
    fn parse_pids_limit_minus_one_is_none() {
        assert_eq!(parse_pids_limit("-1"), Ok(None));
        assert_eq!(parse_pids_limit("100"), Ok(Some(100)));
        assert!(parse_pids_limit("-2").is_err());
        assert!(parse_pids_limit("many").is_err());
    }

    #[test]
    fn resolve_env_name_alone_takes_the_callers_value() {
        let options = ["A=1", "HOME", "GONE", "B="].map(String::from);
        let env = resolve_env(&options, |name| (name == "HOME").then(|| "/h".into()));
        assert_eq!(env.unwrap(), ["A=1", "HOME=/h", "B="]);
    }

    #[test]
    fn resolve_env_without_name_shows_no_value() {
        let error = resolve_env(&["=secret".into()], |_| None).unwrap_err();
        assert_eq!(error, OptionError::Env(1));
        assert!(!error.to_string().contains("secret"));
    }

    proptest! {
        #[test]
        fn parsers_any_text_never_panic(text in ".*") {
            let _ = parse_size(&text);
            let _ = parse_cpus(&text);
            let _ = parse_pids_limit(&text);
            let _ = parse_annotation(&text);
        }

        #[test]
        fn parse_size_plain_numbers_are_themselves(bytes in 1..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }
    }
}
