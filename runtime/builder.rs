//! Sessions that are being made: options, threads and providers.

use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};

use super::device::{Device, Unusable};
use super::options::{Optimization, SessionOptions};
use super::{Error, Runtime, cuda, messages, rtx, threads};

impl SessionOptions {
    /// The processors of all threads but the calling one, as ONNX Runtime wants them: counted from 1.
    fn affinities(&self) -> Option<String> {
        let threads = self.intra_threads.filter(|_| self.pinned)?.get();
        let processors = processors()?;
        let others = processors.get(1..threads).filter(|o| !o.is_empty())?;
        let others: Vec<String> = others.iter().map(|p| (p + 1).to_string()).collect();
        Some(others.join(";"))
    }
}

/// The processors that this process may use, where the system tells.
fn processors() -> Option<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        all.extend(from.parse().ok()?..=to.parse::<usize>().ok()?);
    }
    Some(all)
}

pub(super) fn builder(runtime: &Runtime, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let level = match options.optimization {
        Optimization::Disabled => GraphOptimizationLevel::Disable,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let builder = ort::session::Session::builder(&runtime.environment)?
        .with_log_level(messages::level())?
        .with_optimization_level(level)?
        // Threads of an idle session would else spin for milliseconds and take the cores of the next session.
        .with_config_entry("session.force_spinning_stop", "1")?;
    let builder = match options.without_nchwc {
        true => builder.with_config_entry(
            "optimization.disable_specified_optimizers",
            "NchwcTransformer",
        )?,
        false => builder,
    };
    let builder = match options.without_prepacking {
        true => builder.with_prepacking(false)?,
        false => builder,
    };
    let mut builder = match options.intra_threads.or(threads::limit()) {
        Some(threads) => builder.with_intra_threads(threads.get())?,
        None => builder,
    };
    if let Some(cores) = options.affinities() {
        builder = builder.with_config_entry("session.intra_op_thread_affinities", cores)?;
    }
    // Without this, the crate lets ONNX Runtime pick whichever device saves the most power. What is named still counts.
    Ok(builder.with_auto_device(AutoDevicePolicy::PreferCPU)?)
}

/// The options with the provider of the device in them.
pub(super) fn on_device(
    runtime: &'static Runtime,
    mut builder: SessionBuilder,
    options: &SessionOptions,
) -> Result<SessionBuilder, Error> {
    let device = options.device;
    let unusable = |e: Unusable| Error::Device {
        device,
        reason: e.reason,
        mend: e.mend,
    };
    match device {
        Device::Cpu => Ok(builder),
        Device::Cuda(gpu) => {
            cuda::prepare(runtime).map_err(unusable)?;
            cuda::append(&mut builder, gpu, options).map_err(|e| unusable(cuda::failed(e)))?;
            Ok(builder)
        }
        Device::Rtx(gpu) => {
            rtx::register(runtime).map_err(unusable)?;
            rtx::append(runtime, builder, gpu, options).map_err(|e| unusable(cuda::failed(e)))
        }
    }
}
