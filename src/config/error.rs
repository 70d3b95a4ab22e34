//! What can be wrong with a configuration, in sentences an operator can act on.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Everything that is wrong with a configuration, found in one go: a sentence a line.
#[derive(Debug, Error)]
pub struct ConfigError {
    /// The problems, never empty, in the order in which the layers are read.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Error)]
pub enum Problem {
    /// A file that was asked for by name cannot be read.
    #[error("`{key}` is {}, give a file that can be read: {reason}", file.display())]
    Unreadable {
        /// The option or key that named the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The file is not TOML. The offending text is not repeated, because it may be a password.
    #[error("{reason} ({place})")]
    Syntax {
        /// What the parser said.
        reason: String,
        /// Where.
        place: Place,
    },
    /// A key, or a whole section, that does not exist.
    #[error("`{key}` is not a key, the nearest is `{nearest}` ({place})")]
    UnknownKey {
        /// As written, `section.key`.
        key: String,
        /// The key that was probably meant.
        nearest: String,
        /// Where it stands.
        place: Place,
    },
    /// A value of the wrong type, out of range or in conflict with another.
    #[error("`{key}` is {value}, give {wish} ({place})")]
    BadValue {
        /// `section.key`.
        key: String,
        /// The value, shortened; for secrets only words.
        value: String,
        /// What would be right.
        wish: String,
        /// Where it stands.
        place: Place,
    },
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The compiled-in `default.toml`.
    BuiltIn,
    /// A line of the file given with `--config`.
    File {
        /// As given.
        file: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// An option of the command line.
    Option(&'static str),
    /// Set by the program that uses this library.
    Program,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in default"),
            Self::File { file, line } => write!(f, "{} line {line}", file.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Option(name) => write!(f, "option {name}"),
            Self::Program => f.write_str("set by the program"),
        }
    }
}
