//! What a machine has, before anything is said about it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::version;
use crate::engine;
use crate::nvidia::gpus::{self, Managed};
use crate::nvidia::{Driver, NoDevice, Places, driver, packages};
use crate::pysite;
use crate::runtime::cuda::Provider;
use crate::runtime::{self, Runtime, rtx};

/// A library that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Library {
    pub path: PathBuf,
    /// What the library says itself; `None` if it cannot be loaded or does not say.
    pub version: Option<String>,
    /// Why it cannot be used, in the loader's words.
    pub broken: Option<String>,
}

/// ONNX Runtime, and what is beside it.
#[derive(Clone, Debug)]
pub struct Ort {
    pub path: PathBuf,
    pub version: Option<String>,
    pub providers: Vec<String>,
    /// The CUDA provider beside it, if there is one; `Err` if its file is no library.
    pub provider: Result<Option<Provider>, String>,
    /// Wheels that write into the same folder: `onnxruntime 1.31.1`.
    pub wheels: Vec<String>,
}

/// TensorRT for RTX, which builds engines.
#[derive(Clone, Debug)]
pub struct Builder {
    pub path: PathBuf,
    pub version: String,
}

/// Everything that the findings are made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `Err` with what is wrong.
    pub ort: Result<Ort, String>,
    /// `Err` with what is wrong, and what mends it.
    pub builder: Result<Builder, (String, String)>,
    pub driver: Result<Driver, NoDevice>,
    /// What NVML tells, or its words.
    pub managed: Result<Managed, String>,
    /// CUDA's runtimes by their major version, oldest first.
    pub runtimes: Vec<(u32, Library)>,
    pub cudnn: Option<Library>,
    /// The CUDA that cuDNN's wheel is for, where it came as one.
    pub cudnn_cuda: Option<u32>,
    /// The plugin of TensorRT for RTX for ONNX Runtime, and the version of its wheel.
    pub plugin: Option<(PathBuf, Option<String>)>,
    /// TensorRT proper.
    pub tensorrt: Option<Library>,
    /// The `site-packages` of ONNX Runtime, for commands.
    pub site: Option<PathBuf>,
}

/// Majors of CUDA that are looked for.
const CUDA: [u32; 2] = [12, 13];

impl Facts {
    /// Looks at this machine.
    pub fn gather(ort_lib: Option<&Path>, trt_lib: Option<&Path>) -> Facts {
        let loaded = Runtime::load(ort_lib);
        let anchor = match &loaded {
            Ok(runtime) => runtime.library().path.clone(),
            // Where nothing was found, wheels can still be.
            Err(_) => PathBuf::new(),
        };
        let mut places = Places::around(&anchor);
        let site = pysite::around(&anchor);
        let sites = site.clone().into_iter().chain(pysite::site_packages());
        let trt = sites.map(|s| s.join("tensorrt_libs"));
        let mut trt_places = places.clone();
        trt_places.folders.splice(0..0, trt);
        // ONNX Runtime may be of the system while its needs are in wheels of the interpreter on the path.
        if places
            .find("libcudart.so.13")
            .or(places.find("libcudart.so.12"))
            .is_none()
        {
            for site in pysite::interpreter_site_packages() {
                places
                    .folders
                    .extend(crate::nvidia::libraries::wheel_folders(&site));
            }
        }
        Facts {
            ort: loaded.map_err(|e| e.to_string()).map(|r| ort(r, &places)),
            builder: builder(trt_lib),
            driver: driver::probe(),
            managed: gpus::examine(),
            runtimes: (CUDA.into_iter())
                .filter_map(|major| {
                    let path = places.find(&format!("libcudart.so.{major}"))?;
                    Some((major, library(path, version::cudart)))
                })
                .collect(),
            cudnn: places
                .find("libcudnn.so.9")
                .map(|p| library(p, version::cudnn)),
            cudnn_cuda: cudnn_cuda(&places),
            plugin: plugin(&anchor),
            tensorrt: ["libnvinfer.so.11", "libnvinfer.so.10"]
                .iter()
                .find_map(|name| trt_places.find(name))
                .map(|p| library(p, version::tensorrt)),
            site,
        }
    }

    /// The provider, if there is one that can be read.
    pub fn provider(&self) -> Option<&Provider> {
        self.ort.as_ref().ok()?.provider.as_ref().ok()?.as_ref()
    }

    /// The command that installs Python packages beside ONNX Runtime.
    pub fn pip(&self) -> String {
        packages::pip(self.site.as_deref())
    }
}

fn library(path: PathBuf, version: impl Fn(&Path) -> Option<String>) -> Library {
    let broken = version::loads(&path).err();
    let version = match broken {
        None => version(&path),
        Some(_) => None,
    };
    Library {
        path,
        version,
        broken,
    }
}

fn ort(runtime: &Runtime, places: &Places) -> Ort {
    let path = runtime.library().path.clone();
    let provider = Provider::within(&path, places).map_err(|e| e.to_string());
    let site = pysite::around(&path);
    let names = ["onnxruntime", "onnxruntime_gpu"];
    let wheels = names.iter().filter_map(|name| {
        let version = pysite::version(site.as_deref()?, name)?;
        Some(format!("{} {version}", name.replace('_', "-")))
    });
    Ort {
        version: runtime.version().map(str::to_string),
        providers: runtime::providers(),
        provider,
        wheels: wheels.collect(),
        path,
    }
}

fn builder(lib: Option<&Path>) -> Result<Builder, (String, String)> {
    let built = engine::locate(lib).and_then(|libraries| {
        let builder = engine::RtxBuilder::new(&libraries)?;
        Ok(Builder {
            path: libraries.core.clone(),
            version: builder.version().to_string(),
        })
    });
    built.map_err(|e| {
        let mend = e.hint().unwrap_or_else(|| engine::INSTALL.into());
        (e.to_string(), mend)
    })
}

fn plugin(anchor: &Path) -> Option<(PathBuf, Option<String>)> {
    let path = rtx::locate(anchor)?;
    let version = pysite::around(&path).and_then(|site| {
        let packages = pysite::packages(&site, "onnxruntime_ep_nv_tensorrt_rtx_cu");
        let name = packages.iter().find_map(|p| {
            let name = p.file_name()?.to_str()?;
            Some(
                name.strip_suffix(".dist-info")?
                    .split_once('-')?
                    .1
                    .to_string(),
            )
        });
        name
    });
    Some((path, version))
}

/// By the wheel's metadata, as wheels for different CUDAs install the same file.
fn cudnn_cuda(places: &Places) -> Option<u32> {
    let site = pysite::around(&places.find("libcudnn.so.9")?)?;
    let installed =
        |cuda: &u32| pysite::version(&site, &format!("nvidia_cudnn_cu{cuda}")).is_some();
    let mut installed = CUDA.into_iter().filter(installed);
    match (installed.next(), installed.next()) {
        (Some(one), None) => Some(one),
        // Both or none: nothing can be told.
        _ => None,
    }
}
