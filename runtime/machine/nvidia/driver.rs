//! NVIDIA's driver: whether one is there, what it serves, and the devices that CUDA sees.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Serialize;

use super::told;
use crate::setting::DEVICE;

/// The driver's library, which applications load.
pub const LIBCUDA: &str = "libcuda.so.1";

/// A version of CUDA as the driver counts it: 1000 · major + 10 · minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(pub u32);

impl CudaVersion {
    pub fn major(self) -> u32 {
        self.0 / 1000
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl Serialize for CudaVersion {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A driver that answers, with at least one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Driver {
    /// The newest CUDA whose programs it runs.
    pub cuda: CudaVersion,
    /// The kernel module's release: `580.65.06`.
    pub release: Option<String>,
    /// In CUDA's order, which `CUDA_VISIBLE_DEVICES` decides.
    pub gpus: Vec<Gpu>,
}

/// A device as CUDA sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    pub name: String,
    /// Major and minor compute capability: `(9, 0)` is sm_90.
    pub capability: (u32, u32),
    /// Bytes.
    pub memory: u64,
    /// As the driver's tools write it: `GPU-4a6c…`.
    pub uuid: Option<String>,
}

impl Gpu {
    /// `sm_90`.
    pub fn target(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// Why there is no CUDA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum NoDevice {
    #[error("this machine shows no NVIDIA GPU")]
    NoGpu,
    #[error("this machine has an NVIDIA GPU, and no driver for it ({LIBCUDA} is not found)")]
    NoDriver,
    #[error(
        "the kernel has NVIDIA's driver {release}, and {LIBCUDA} is not found: this looks like a container that was \
         started without GPUs"
    )]
    Hidden { release: String },
    #[error("{LIBCUDA} cannot be used: {why}")]
    Broken { why: String },
    #[error("NVIDIA's driver fails: {call} returned {name} ({code})")]
    Fails {
        call: &'static str,
        code: i32,
        name: String,
    },
    #[error("CUDA_VISIBLE_DEVICES is \"{visible}\", which leaves no device")]
    Masked { visible: String },
    #[error("NVIDIA's driver answers and shows no device")]
    Empty,
}

impl NoDevice {
    /// The command that mends it, where one does.
    pub fn mend(&self) -> String {
        const DRIVER: &str =
            "apt-get install nvidia-driver (Debian non-free), or `ubuntu-drivers install` (Ubuntu)";
        match self {
            NoDevice::NoGpu => {
                format!("run on the CPU with `{DEVICE} cpu`; in a container, start it with `docker run --gpus all`")
            }
            NoDevice::NoDriver => format!("{DRIVER}; in a container, start it with `docker run --gpus all`"),
            NoDevice::Hidden { .. } => {
                "docker run --gpus all (it takes nvidia-container-toolkit on the host)".into()
            }
            NoDevice::Broken { .. } => format!("reinstall the driver: {DRIVER}"),
            NoDevice::Fails { code, .. } => match code {
                // CUDA_ERROR_NO_DEVICE
                100 => "nvidia-smi: it must list a GPU; in a container, start it with `docker run --gpus all`".into(),
                // CUDA_ERROR_SYSTEM_NOT_READY: NVSwitch systems want a service.
                802 => "systemctl start nvidia-fabricmanager".into(),
                // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: library and kernel module of two releases.
                803 => "reboot, so that the kernel module is of the same release as libcuda.so.1 (`nvidia-smi` tells both)".into(),
                // CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
                804 => "take the folder of CUDA's forward-compatibility package out of LD_LIBRARY_PATH: this GPU does not take it".into(),
                _ => "nvidia-smi: it must list a GPU; `dmesg | grep -i nvrm` has the kernel's reason".into(),
            },
            NoDevice::Masked { .. } => "unset CUDA_VISIBLE_DEVICES".into(),
            NoDevice::Empty => "nvidia-smi -L: it must list a GPU".into(),
        }
    }
}

/// Asks the driver of this machine. A device that answers is not yet one that is free or healthy.
///
/// # Errors
/// [`NoDevice`] says why there is none.
pub fn probe() -> Result<Driver, NoDevice> {
    probe_in(Path::new("/"), LIBCUDA)
}

/// As [`probe`], with the kernel's files under `root`, and this library.
pub(crate) fn probe_in(root: &Path, library: &str) -> Result<Driver, NoDevice> {
    let release = release(root);
    // SAFETY: loading runs the library's initializers, which NVIDIA's driver has for that purpose.
    let loaded = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) };
    let library = match loaded {
        Ok(library) => library,
        Err(why) => return Err(without_library(root, release, &told(&why))),
    };
    let cuda = Libcuda(&library);
    cuda.call(
        "cuInit",
        |f: unsafe extern "C" fn(c_uint) -> c_int| unsafe { f(0) },
    )?;
    let mut version: c_int = 0;
    cuda.call(
        "cuDriverGetVersion",
        |f: unsafe extern "C" fn(*mut c_int) -> c_int| unsafe { f(&mut version) },
    )?;
    let mut count: c_int = 0;
    cuda.call(
        "cuDeviceGetCount",
        |f: unsafe extern "C" fn(*mut c_int) -> c_int| unsafe { f(&mut count) },
    )?;
    let gpus = (0..count).map(|k| cuda.gpu(k)).collect::<Result<_, _>>()?;
    // Other libraries hold on to it, so it is never unloaded.
    std::mem::forget(library);
    if count == 0 {
        return Err(match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(visible) => NoDevice::Masked { visible },
            Err(_) => NoDevice::Empty,
        });
    }
    Ok(Driver {
        cuda: CudaVersion(version.unsigned_abs()),
        release,
        gpus,
    })
}

fn without_library(root: &Path, release: Option<String>, why: &str) -> NoDevice {
    // The loader says "cannot open shared object file" of a library that is not there, and other things of a broken one.
    if !why.contains("No such file") {
        return NoDevice::Broken { why: why.into() };
    }
    match (release, has_gpu(root)) {
        (Some(release), _) => NoDevice::Hidden { release },
        (None, true) => NoDevice::NoDriver,
        (None, false) => NoDevice::NoGpu,
    }
}

struct Libcuda<'l>(&'l Library);

impl Libcuda<'_> {
    /// Calls a function of the driver that returns a `CUresult`.
    fn call<F: Copy>(
        &self,
        name: &'static str,
        call: impl FnOnce(F) -> c_int,
    ) -> Result<(), NoDevice> {
        // SAFETY: every caller gives the signature that cuda.h has for the name.
        let function = unsafe { self.0.get::<F>(name.as_bytes()) };
        let function = function.map_err(|e| NoDevice::Broken { why: told(&e) })?;
        match call(*function) {
            0 => Ok(()),
            code => Err(NoDevice::Fails {
                call: name,
                code,
                name: self.name_of(code),
            }),
        }
    }

    fn name_of(&self, code: c_int) -> String {
        type GetErrorName = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        // SAFETY: the signature is that of cuda.h.
        let Ok(function) = (unsafe { self.0.get::<GetErrorName>(b"cuGetErrorName") }) else {
            return "an error".into();
        };
        let mut name = std::ptr::null();
        // SAFETY: the driver sets the pointer to a constant of its own, or leaves it null.
        unsafe {
            if function(code, &mut name) != 0 || name.is_null() {
                return "an unknown error".into();
            }
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }

    fn gpu(&self, ordinal: c_int) -> Result<Gpu, NoDevice> {
        let mut device: c_int = 0;
        self.call(
            "cuDeviceGet",
            |f: unsafe extern "C" fn(*mut c_int, c_int) -> c_int| unsafe {
                f(&mut device, ordinal)
            },
        )?;
        let mut name: [c_char; 128] = [0; 128];
        self.call(
            "cuDeviceGetName",
            |f: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int| unsafe {
                f(name.as_mut_ptr(), name.len() as c_int - 1, device)
            },
        )?;
        let mut memory: usize = 0;
        self.call(
            "cuDeviceTotalMem_v2",
            |f: unsafe extern "C" fn(*mut usize, c_int) -> c_int| unsafe { f(&mut memory, device) },
        )?;
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        let mut capability = [0; 2];
        for (value, attribute) in capability.iter_mut().zip([75, 76]) {
            self.call(
                "cuDeviceGetAttribute",
                |f: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int| unsafe {
                    f(value, attribute, device)
                },
            )?;
        }
        // The GPU's own, for an instance of a partitioned one too.
        let mut uuid = [0u8; 16];
        let known = self.call(
            "cuDeviceGetUuid",
            |f: unsafe extern "C" fn(*mut u8, c_int) -> c_int| unsafe {
                f(uuid.as_mut_ptr(), device)
            },
        );
        // SAFETY: the driver wrote at most 127 bytes into the 128, which were zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(Gpu {
            name: name.to_string_lossy().into_owned(),
            capability: (capability[0].unsigned_abs(), capability[1].unsigned_abs()),
            memory: memory as u64,
            uuid: known.is_ok().then(|| spell(uuid)),
        })
    }
}

/// A UUID as NVIDIA's tools write it.
pub fn spell(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|r| &hex[r]);
    format!("GPU-{}", parts.join("-"))
}

/// The release of NVIDIA's kernel module: the first number with a point in the line that names it.
pub(crate) fn release(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
    let line = text.lines().find(|l| l.starts_with("NVRM version:"))?;
    let mut words = line.split_whitespace();
    let number = |w: &&str| w.contains('.') && w.chars().all(|c| c.is_ascii_digit() || c == '.');
    words.find(number).map(str::to_string)
}

/// Whether the PCI bus shows a display controller or accelerator of NVIDIA.
pub(crate) fn has_gpu(root: &Path) -> bool {
    let Ok(devices) = root.join("sys/bus/pci/devices").read_dir() else {
        return false;
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    devices.flatten().any(|device| {
        let class = read(device.path().join("class"));
        // 0x03: display controllers, which NVIDIA's accelerators count among. 0x12: processing accelerators.
        read(device.path().join("vendor")).trim() == "0x10de"
            && ["0x03", "0x12"].iter().any(|c| class.starts_with(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const VERSION: (&str, &str) = (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\nGCC version:  gcc 12.3.0\n",
    );

    #[test]
    fn without_a_library_the_reason_is_what_the_kernel_shows() {
        let none = "libkiln-no-such.so.1";
        let gpu = [
            ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n"),
        ];
        // An audio controller of the same vendor is no GPU.
        let audio = [
            ("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n"),
        ];
        let probe = |files: &[(&str, &str)]| probe_in(tree(files).path(), none).unwrap_err();
        assert_eq!(probe(&audio), NoDevice::NoGpu);
        assert_eq!(probe(&gpu), NoDevice::NoDriver);
        let release = "580.65.06".to_string();
        assert_eq!(
            probe(&[VERSION, gpu[0], gpu[1]]),
            NoDevice::Hidden { release }
        );
    }

    #[test]
    fn a_file_that_is_no_library_is_broken() {
        let root = tree(&[("libcuda.so.1", "not a library")]);
        let path = root.path().join("libcuda.so.1");
        let error = probe_in(root.path(), path.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, NoDevice::Broken { .. }), "{error}");
    }

    #[test]
    fn versions_are_read_as_the_driver_writes_them() {
        assert_eq!(CudaVersion(12_040).to_string(), "12.4");
        assert_eq!(CudaVersion(13_000).to_string(), "13.0");
        assert_eq!(release(tree(&[VERSION]).path()).unwrap(), "580.65.06");
    }

    #[test]
    fn every_reason_has_a_remedy() {
        for code in [100, 802, 803, 804, 999] {
            let fails = NoDevice::Fails {
                call: "cuInit",
                code,
                name: String::new(),
            };
            assert!(!fails.mend().is_empty());
        }
        assert!(NoDevice::NoGpu.mend().contains(&format!("{DEVICE} cpu")));
    }
}
