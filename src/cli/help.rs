//! What `--help` says beside the options: the names of its sections, exit codes and the environment.

pub(super) const INPUT: &str = "Input";
pub(super) const TARGET: &str = "Target and precision";
pub(super) const SIZES: &str = "Sizes";
pub(super) const DATA: &str = "Data";
pub(super) const PROOF: &str = "Proof";
pub(super) const MEASUREMENT: &str = "Measurement";
pub(super) const ENGINE: &str = "Engine";
pub(super) const OUTPUT: &str = "Output";
pub(super) const RUNTIME: &str = "Device and runtimes";
pub(super) const DIAGNOSTICS: &str = "Diagnostics";

/// Below the short help.
pub(super) const SHORT: &str = "`kiln --help` lists exit codes and environment variables, `kiln COMMAND --help` explains each option.";

/// Below the full help.
pub(super) const LONG: &str = "\
EXIT CODES:
  0  done
  1  a gate failed: the result is not the same function, or not the
     precision asked for; of diff: the models are not the same
  2  usage error, or a file that cannot be written
  3  the model cannot be read, or is not supported
  4  the engine build failed
  5  a runtime is missing; `kiln doctor` says which, and the command that
     installs it
  6  nothing differs, but an output is not proved: it is random, not
     finite, or the same for all inputs; the bundle is written and says so
  7  a defect of kiln: the graph is broken, or ONNX Runtime refuses what
     was made of a model that it runs
  8  the search for nodes that must keep their precision stopped
  9  something could not be timed
  130, 143  interrupted; what was half written is removed

ENVIRONMENT:
  KILN_TARGET   --target of compile and bisect; recipes come before it
  KILN_DEVICE   --device
  KILN_THREADS  --threads
  KILN_LOG      --log
  KILN_CACHE_AUTHORIZATION
                what a server of --cache is told: Bearer …, Basic …
  ORT_DYLIB_PATH
                ONNX Runtime's library; --ort-lib comes before it
  KILN_TENSORRT_RTX_DIR
                TensorRT for RTX; --trt-lib comes before it
  NO_COLOR      no colours
  COLUMNS       columns of tables and lines";
