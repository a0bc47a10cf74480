//! Where models run, and on how many threads: the arguments that every command which runs one has.

use std::num::NonZeroUsize;

use super::help;
use crate::runtime::{self, DeviceChoice, DeviceRequest};

#[derive(clap::Args, Debug)]
pub(super) struct DeviceArgs {
    /// Where ONNX Runtime runs models: auto, cpu, cuda:N, rtx:N.
    ///
    /// auto is the first CUDA device if there is one that ONNX Runtime can use, else the CPU. rtx:N is TensorRT for RTX as a
    /// plugin of ONNX Runtime.
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "KILN_DEVICE", help_heading = help::RUNTIME)]
    device: DeviceChoice,
    /// The most GPU memory that one session may take: 8G, 512M.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = help::RUNTIME)]
    gpu_memory: Option<u64>,
    /// Threads of ONNX Runtime and of kiln [default: one for each core].
    ///
    /// TensorRT's builder has threads of its own, which this does not limit.
    #[arg(long, value_name = "N", env = "KILN_THREADS", help_heading = help::RUNTIME)]
    pub(super) threads: Option<NonZeroUsize>,
}

impl DeviceArgs {
    /// Where models run. From now on this process has so many threads as were asked for.
    pub(super) fn request(&self) -> DeviceRequest {
        if let Some(threads) = self.threads {
            runtime::limit_threads(threads);
        }
        DeviceRequest {
            choice: self.device,
            memory_limit: self.gpu_memory,
        }
    }
}

/// Bytes, with K, M or G for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("write a size such as 8G or 512M".into()),
    };
    let number: Option<u64> = digits.parse().ok().filter(|&n| n > 0);
    let bytes = number.and_then(|n| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| "write a size such as 8G or 512M".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("8G"), Ok(8 << 30));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "G", "0", "8GB", "8 G", "-1", "1.5G", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
