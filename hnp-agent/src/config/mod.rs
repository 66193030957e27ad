//! YAML -> a validated [`plan::Plan`]. Parsed once; no other room reads raw configuration.
//!
//! `yaml` turns text into a tree with positions, `read` takes typed values out of it and collects
//! mistakes, `values` and `hosts` know what single values look like, `parse` is the table of keys, `upstream_proxy` says which
//! upstreams a proxy is for, `gateway` whom the gateway serves, `spiffe` what a SPIFFE ID is, `environment` what variables amount to where there is no file. A pure
//! function of the text and of `surroundings` (CPUs, a few environment variables) from start to end: files that the configuration names are looked at by `hnp-agent check`
//! and when the agent starts, not here.

pub mod defaults;
pub mod end_to_end;
pub mod gateway;
pub mod plan;
pub mod selector;
pub mod spiffe;
pub mod upstream_proxy;

mod environment;
mod error;
mod hosts;
mod parse;
mod read;
mod surroundings;
mod values;
mod yaml;

use std::path::Path;
use std::time::Duration;

pub use environment::{EnvironmentErrors, FromEnvironment};
pub use error::{ConfigErrors, LoadError, Mistake};
pub use values::humane;

use plan::Plan;
use surroundings::Surroundings;

/// The largest configuration file that is read, in bytes: a hundred routes are some 50 KiB.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads a configuration. `path` is only used in messages.
///
/// # Errors
/// All mistakes, in the order of the file.
pub fn parse(text: &str, path: &Path) -> Result<Plan, ConfigErrors> {
    parse_with_warnings(text, path).map(|(plan, _)| plan)
}

/// The same, with what is allowed and still looks like a mistake (such as an identity that no route uses).
///
/// # Errors
/// All mistakes, in the order of the file.
pub fn parse_with_warnings(text: &str, path: &Path) -> Result<(Plan, Vec<Mistake>), ConfigErrors> {
    parse::plan(text, path, &Surroundings::here())
}

/// Reads a configuration file, with warnings.
///
/// # Errors
/// When the file cannot be read, or has mistakes.
pub fn load(path: &Path) -> Result<(Plan, Vec<Mistake>), LoadError> {
    Ok(parse_with_warnings(&read(path)?, path)?)
}

/// The configuration that the process's environment amounts to, where there is no file.
///
/// # Errors
/// All mistakes, by variable.
pub fn from_environment() -> Result<FromEnvironment, EnvironmentErrors> {
    environment::read(|name| std::env::var(name).ok(), &Surroundings::here())
}

/// Reads a time as the configuration has them: `500ms`, `10s`, `2m` or `1h`; at most a day.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn duration(text: &str) -> Result<Duration, String> {
    values::duration(text).map_err(|wrong| wrong.to_string())
}

/// The text of a configuration file.
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn read(path: &Path) -> Result<String, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned(), bytes: size, max: MAX_BYTES });
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|_| LoadError::NotText { path: path.to_owned() })
}
