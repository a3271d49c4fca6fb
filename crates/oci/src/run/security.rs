//! `--security-opt`.

use std::path::PathBuf;

use super::error::OptionError;
use super::seccomp::SeccompChoice;

/// What all `--security-opt` options together ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `seccomp=…`.
    pub seccomp: SeccompChoice,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `systempaths=unconfined`: nothing of /proc and /sys is hidden or read-only.
    pub system_paths_unconfined: bool,
    /// `apparmor=…` other than `unconfined`; refused when the configuration is checked.
    pub apparmor: Option<String>,
    /// `label=…` other than `disable`; refused when the configuration is checked.
    pub label: Option<String>,
}

impl Security {
    /// Parses the options, each `NAME=value` or, in docker's older form, `NAME:value`. Of
    /// two that set the same thing the last counts.
    ///
    /// # Errors
    ///
    /// [`OptionError::Security`] with the first that is not known.
    pub fn parse(options: &[String]) -> Result<Self, OptionError> {
        let mut security = Self::default();
        for option in options {
            let (name, value) = match option.split_once(['=', ':']) {
                Some((name, value)) => (name, Some(value)),
                None => (option.as_str(), None),
            };
            match (name, value) {
                ("seccomp", Some("unconfined")) => security.seccomp = SeccompChoice::Unconfined,
                ("seccomp", Some("builtin" | "default")) => {
                    security.seccomp = SeccompChoice::Default;
                }
                ("seccomp", Some(path)) if !path.is_empty() => {
                    security.seccomp = SeccompChoice::File(PathBuf::from(path));
                }
                ("no-new-privileges", None | Some("true")) => security.no_new_privileges = true,
                ("no-new-privileges", Some("false")) => security.no_new_privileges = false,
                ("systempaths", Some("unconfined")) => security.system_paths_unconfined = true,
                ("apparmor", Some("unconfined")) => security.apparmor = None,
                ("apparmor", Some(profile)) => security.apparmor = Some(profile.to_owned()),
                ("label", Some("disable")) => security.label = None,
                ("label", Some(label)) => security.label = Some(label.to_owned()),
                _ => return Err(OptionError::Security(option.clone())),
            }
        }
        Ok(security)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Security, OptionError> {
        Security::parse(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn parse_known_options_are_read_in_both_forms() {
        let security =
            parse(&["seccomp:/p.json", "no-new-privileges:true", "label=disable"]).unwrap();
        assert_eq!(security.seccomp, SeccompChoice::File("/p.json".into()));
        assert!(security.no_new_privileges);
        assert_eq!(security.label, None);
    }

    #[test]
    fn parse_last_one_counts() {
        let security = parse(&[
            "seccomp=/p.json",
            "seccomp=unconfined",
            "no-new-privileges",
            "no-new-privileges=false",
        ])
        .unwrap();
        assert_eq!(security.seccomp, SeccompChoice::Unconfined);
        assert!(!security.no_new_privileges);
    }

    #[test]
    fn parse_unknown_option_is_named() {
        for option in ["seccomp=", "seccomp", "nnp", "no-new-privileges=maybe", ""] {
            assert_eq!(parse(&[option]), Err(OptionError::Security(option.into())));
        }
    }
}
