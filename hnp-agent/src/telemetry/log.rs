//! Diagnostics: `tracing` to stderr, as JSON or text, filtered as the Plan says. Access lines go
//! to stdout on a way of their own (see `access`), so either can be dropped without the other.

use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::plan::{Log, LogFormat};

/// Libraries that talk at `info` about things only their authors need.
const QUIET: [&str; 8] = [
    "hickory_proto=warn",
    "hickory_resolver=warn",
    "hyper=warn",
    // An error a request; what it amounts to is said by the room that asked.
    "kube_client=off",
    "rustls=warn",
    "mio=warn",
    "notify=warn",
    "tower=warn",
];

/// Why diagnostics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error(
        "log.level {0:?} is not a filter; allowed: error, warn, info, debug, trace, or target=level pairs with commas"
    )]
    Filter(String),
    /// Something else in this process has set up `tracing` before.
    #[error("diagnostics are already set up: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
    /// Diagnostics are gone already.
    #[error("the filter cannot be changed: {0}")]
    Filtering(#[from] reload::Error),
}

/// Diagnostics, set up; their filter can be changed.
pub struct Diagnostics(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Diagnostics {
    /// Diagnostics that are not set up.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self(Box::new(|_| Ok(())))
    }

    /// Filters by another level from now on.
    ///
    /// # Errors
    /// When the filter is none.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        Ok((self.0)(filter(level)?)?)
    }
}

/// Sets up diagnostics for the whole process. Call once, first thing after reading the Plan.
///
/// # Errors
/// When the filter is none (the configuration's reader refuses it before) or on a second call.
pub fn init(log: &Log) -> Result<Diagnostics, LogError> {
    let filter = filter(&log.level)?;
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    Ok(match log.format {
        LogFormat::Json => {
            let json = base.json().flatten_event(true).with_current_span(false).with_filter_reloading();
            let handle = json.reload_handle();
            json.finish().try_init()?;
            Diagnostics(Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Text => {
            let text = base.with_ansi(false).with_filter_reloading();
            let handle = text.reload_handle();
            text.finish().try_init()?;
            Diagnostics(Box::new(move |filter| handle.reload(filter)))
        }
    })
}

/// The filter that `level` stands for: as written, and libraries kept quiet unless it names targets.
///
/// # Errors
/// When `level` is no filter.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let refused = || LogError::Filter(level.to_owned());
    if level.trim().is_empty() {
        return Err(refused());
    }
    // EnvFilter takes any bare word for a target; a misspelt level would silence everything.
    for directive in level.split(',').filter(|directive| !directive.contains('=')) {
        directive.trim().parse::<tracing::level_filters::LevelFilter>().map_err(|_| refused())?;
    }
    let all = if level.contains('=') { level.to_owned() } else { format!("{level},{}", QUIET.join(",")) };
    EnvFilter::builder().parse(all).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_pairs_are_filters_and_other_words_are_not() {
        for good in ["info", "WARN", "off", "hnp_agent::capture=debug,info", "trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "inof", "hnp=loud", "info;debug", "a=b=c"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
