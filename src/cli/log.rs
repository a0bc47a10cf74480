//! `--log`: what ran when, with whole messages of the runtimes.

use std::env;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;

use super::failure::Failure;

/// From now on, everything that is told goes into this file, behind what is in it.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn start(path: &Path, commit: Option<&str>) -> Result<(), Failure> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|e| {
        Failure::usage(anyhow!("the log {} cannot be written: {e}", path.display()))
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Arc::new(file));
    let all = tracing_subscriber::registry().with(lines.with_filter(LevelFilter::DEBUG));
    // There is one log, and this is called once.
    let _ = all.try_init();
    let args: Vec<String> = env::args_os()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let folder = env::current_dir().unwrap_or_default();
    tracing::info!(
        target: "kiln", "kiln {} ({}), process {}, in {}: {}",
        env!("CARGO_PKG_VERSION"),
        commit.unwrap_or("commit not recorded"),
        std::process::id(),
        folder.display(),
        args.join(" ")
    );
    Ok(())
}
