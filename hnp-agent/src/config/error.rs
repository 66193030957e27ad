//! Mistakes in a configuration: where, which key, what is wrong, what would be right.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One mistake.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Mistake {
    /// Line in the file, counted from 1.
    pub line: usize,
    /// Column in the line, counted from 1, in characters.
    pub column: usize,
    /// The key, such as `routes[0].upstream`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and after a semicolon what is allowed.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}:{}: {}", self.line, self.column, self.what)
        } else {
            write!(f, "{}:{}: {}: {}", self.line, self.column, self.key, self.what)
        }
    }
}

/// All mistakes of one file, in its order. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigErrors {
    /// The file, as it was named on the command line.
    pub path: PathBuf,
    /// The mistakes.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{mistake}", self.path.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Why a configuration file gave no Plan.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file is no configuration by its size alone.
    #[error("{}: has {bytes} bytes; at most {max} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The file is not UTF-8.
    #[error("{}: is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file was read and has mistakes.
    #[error(transparent)]
    Mistakes(#[from] ConfigErrors),
}
