//! Which Python package has which library of CUDA, and what CUDA asks of drivers and GPUs.

use std::path::Path;

/// A library of NVIDIA by the beginning of its name, what it is, and the wheel that has it.
struct Row {
    stem: &'static str,
    what: &'static str,
    /// Without the suffix of a CUDA version.
    wheel: &'static str,
    naming: Naming,
}

#[derive(Clone, Copy, PartialEq)]
enum Naming {
    /// With the suffix of its CUDA before CUDA 13, without from then on; its version is that in the library's name.
    Toolkit,
    /// Always with the suffix.
    Suffixed,
    /// One wheel of this name, of whichever version.
    Fixed,
}

/// The names are those of the wheels' RECORD files. The first that a name begins with counts.
const ROWS: &[Row] = &[
    row(
        "libcudart",
        "CUDA runtime",
        "nvidia-cuda-runtime",
        Naming::Toolkit,
    ),
    row("libcublas", "cuBLAS", "nvidia-cublas", Naming::Toolkit),
    row("libcufft", "cuFFT", "nvidia-cufft", Naming::Toolkit),
    row("libcurand", "cuRAND", "nvidia-curand", Naming::Toolkit),
    row("libnvrtc", "NVRTC", "nvidia-cuda-nvrtc", Naming::Toolkit),
    row(
        "libnvJitLink",
        "nvJitLink",
        "nvidia-nvjitlink",
        Naming::Toolkit,
    ),
    row("libcudnn", "cuDNN", "nvidia-cudnn", Naming::Suffixed),
    row(
        "libtensorrt",
        "TensorRT for RTX",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        Naming::Fixed,
    ),
];

const fn row(stem: &'static str, what: &'static str, wheel: &'static str, naming: Naming) -> Row {
    Row {
        stem,
        what,
        wheel,
        naming,
    }
}

fn find(library: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| library.starts_with(row.stem))
}

/// Whether a wheel of CUDA or TensorRT has the library. The driver's own are not among them.
pub fn is_wheeled(library: &str) -> bool {
    find(library).is_some()
}

/// Whether the library comes with NVIDIA's driver.
pub fn is_driver(library: &str) -> bool {
    library.starts_with("libcuda.so") || library.starts_with("libnvidia-ml.so")
}

/// `cuBLAS` of `libcublasLt.so.13`.
pub fn what(library: &str) -> Option<&'static str> {
    find(library).map(|row| row.what)
}

/// The first number behind `.so.`.
pub fn soname_major(library: &str) -> Option<u32> {
    let (_, version) = library.split_once(".so.")?;
    version.split('.').next()?.parse().ok()
}

/// The CUDA that a library is for, by the names of what it needs; `None` if they do not say.
pub fn cuda_major<S: AsRef<str>>(needed: &[S]) -> Option<u32> {
    // These alone are numbered as CUDA is.
    let tells = [
        "libcudart.so",
        "libcublas.so",
        "libcublasLt.so",
        "libnvrtc.so",
    ];
    let names = needed.iter().map(AsRef::as_ref);
    let mut tell = names.filter(|n: &&str| tells.iter().any(|t| n.starts_with(t)));
    tell.find_map(soname_major)
}

/// What `pip install` takes to get the library: `nvidia-cublas~=13.0` or `nvidia-cudnn-cu12~=9.0`.
pub fn requirement(library: &str, cuda: u32) -> Option<String> {
    let row = find(library)?;
    let suffix = match row.naming {
        Naming::Fixed => return Some(row.wheel.to_string()),
        Naming::Toolkit if cuda >= 13 => String::new(),
        Naming::Toolkit | Naming::Suffixed => format!("-cu{cuda}"),
    };
    let version = soname_major(library).map_or(String::new(), |v| format!("~={v}.0"));
    Some(format!("{}{suffix}{version}", row.wheel))
}

/// Libraries that ONNX Runtime's CUDA provider of this CUDA loads when an operator wants them, where it is not linked to
/// them: cuDNN for convolutions and some attention, cuFFT for Fourier transforms, NVRTC for kernels made at run time.
/// Source: its documentation of requirements, and `onnxruntime.preload_dlls`.
pub fn on_demand(cuda: u32) -> Vec<String> {
    let cufft = if cuda < 13 { 11 } else { 12 };
    vec![
        "libcudnn.so.9".into(),
        // The first that cuDNN itself loads, which is linked to libraries of the system.
        "libcudnn_graph.so.9".into(),
        format!("libcufft.so.{cufft}"),
        format!("libnvrtc.so.{cuda}"),
    ]
}

/// The oldest driver release that runs programs of a CUDA version. Source: NVIDIA, "CUDA Compatibility", table of minor
/// version compatibility (<https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html>).
pub const DRIVERS: &[(u32, u32)] = &[(11, 450), (12, 525), (13, 580)];

/// The oldest driver release for this CUDA, where the table knows it.
pub fn oldest_driver(cuda: u32) -> Option<u32> {
    DRIVERS.iter().find(|row| row.0 == cuda).map(|row| row.1)
}

/// The lowest compute capability that libraries of a CUDA version have kernels for. Source: NVIDIA, "CUDA Toolkit Release
/// Notes": 12.0 dropped Kepler (sm_35, sm_37), 13.0 Maxwell, Pascal and Volta (sm_50 to sm_72).
pub const CAPABILITIES: &[(u32, (u32, u32))] = &[(12, (5, 0)), (13, (7, 5))];

/// The lowest compute capability for this CUDA, where the table knows it.
pub fn lowest_capability(cuda: u32) -> Option<(u32, u32)> {
    CAPABILITIES
        .iter()
        .find(|row| row.0 == cuda)
        .map(|row| row.1)
}

/// `pip`, or that of the virtual environment that `site_packages` belongs to.
pub fn pip(site_packages: Option<&Path>) -> String {
    let venv = site_packages.and_then(|site| site.ancestors().nth(3));
    let own = venv.map(|v| v.join("bin/pip")).filter(|pip| pip.is_file());
    own.map_or("pip".into(), |pip| pip.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_named_as_their_cuda_names_them() {
        let wheel = |library, cuda| requirement(library, cuda).unwrap();
        assert_eq!(wheel("libcublasLt.so.13", 13), "nvidia-cublas~=13.0");
        assert_eq!(wheel("libcublas.so.12", 12), "nvidia-cublas-cu12~=12.0");
        assert_eq!(wheel("libcufft.so.12", 13), "nvidia-cufft~=12.0");
        assert_eq!(wheel("libcufft.so.11", 12), "nvidia-cufft-cu12~=11.0");
        assert_eq!(wheel("libcudnn.so.9", 13), "nvidia-cudnn-cu13~=9.0");
        assert_eq!(wheel("libcudnn_graph.so.9", 12), "nvidia-cudnn-cu12~=9.0");
        assert_eq!(requirement("libcuda.so.1", 13), None);
    }

    #[test]
    fn the_cuda_of_a_library_is_that_of_what_it_needs() {
        // As ONNX Runtime 1.31's provider needs them: cuRAND has a number of its own.
        let needed = ["libcurand.so.10", "libcublasLt.so.13", "libcuda.so.1"];
        assert_eq!(cuda_major(&needed), Some(13));
        assert_eq!(cuda_major(&["libcudart.so.12"]), Some(12));
        assert_eq!(cuda_major(&["libcurand.so.10", "libc.so.6"]), None);
    }

    #[test]
    fn the_driver_is_no_wheel() {
        assert!(is_driver("libcuda.so.1") && !is_wheeled("libcuda.so.1"));
        assert!(is_wheeled("libcudart.so.13") && !is_driver("libcudart.so.13"));
    }
}
