//! What ONNX Runtime says while it works.

use std::sync::Arc;

use ort::environment::EnvironmentBuilder;
use ort::logging::LogLevel;

const TARGET: &str = "onnxruntime";

/// Whether someone keeps a log.
fn kept() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::WARN)
}

/// What sessions say. Failures come back as errors, so ONNX Runtime need not print them as well; a log has the rest.
pub(super) fn level() -> LogLevel {
    match kept() {
        true => LogLevel::Warning,
        false => LogLevel::Fatal,
    }
}

/// Messages go whole into the log, if one is kept.
pub(super) fn logged(builder: EnvironmentBuilder) -> EnvironmentBuilder {
    if !kept() {
        return builder;
    }
    builder.with_logger(Arc::new(|level, _, _, place, message| match level {
        LogLevel::Verbose => tracing::trace!(target: TARGET, "{message} ({place})"),
        LogLevel::Info => tracing::trace!(target: TARGET, "{message} ({place})"),
        LogLevel::Warning => tracing::warn!(target: TARGET, "{message} ({place})"),
        LogLevel::Error | LogLevel::Fatal => {
            tracing::error!(target: TARGET, "{message} ({place})");
        }
    }))
}
