//! The product that kiln was compiled for, TensorRT for RTX or TensorRT proper: its name, its files, its package.

/// The library that kiln was compiled for.
pub const LIBRARY: &str = match cfg!(feature = "tensorrt-enterprise") {
    true => "TensorRT",
    false => "TensorRT for RTX",
};

/// The pinned command that installs the libraries this crate was written against.
pub const INSTALL: &str = match cfg!(feature = "tensorrt-enterprise") {
    true => "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13-libs==11.4.0.106",
    false => "pip install tensorrt-rtx-cu13-libs==1.7.1.116",
};

/// The environment variable that names the folder of the libraries, or the core library itself.
pub const ENV_DIR: &str = match cfg!(feature = "tensorrt-enterprise") {
    true => "KILN_TENSORRT_DIR",
    false => "KILN_TENSORRT_RTX_DIR",
};

pub(super) const CORE: &[&str] = match cfg!(feature = "tensorrt-enterprise") {
    true => &["libnvinfer.so.11", "libnvinfer.so"],
    false => &["libtensorrt_rtx.so.1", "libtensorrt_rtx.so"],
};

pub(super) const PARSER: &[&str] = match cfg!(feature = "tensorrt-enterprise") {
    true => &["libnvonnxparser.so.11", "libnvonnxparser.so"],
    false => &[
        "libtensorrt_onnxparser_rtx.so.1",
        "libtensorrt_onnxparser_rtx.so",
    ],
};

/// The folder that its wheels install into: those named `tensorrt-rtx-cu*-libs`, or `tensorrt-cu*-libs`.
pub(super) const PACKAGE: &str = match cfg!(feature = "tensorrt-enterprise") {
    true => "tensorrt_libs",
    false => "tensorrt_rtx",
};
