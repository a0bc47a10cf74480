"""kiln, a compiler for Transformer models, from Python.

>>> import kiln_compiler as kiln
>>> result = kiln.compile("model.onnx", fp16=True, target="sm_89")   # doctest: +SKIP
>>> result.path, result.engine, result.report["parity_outcome"]      # doctest: +SKIP

Models stay on the disk: the package starts kiln's binary and reads the JSON that it prints. It has no dependency.
"""

from ._binary import binary, version
from ._errors import (
    Defect,
    EngineFailed,
    GateFailed,
    Interrupted,
    KilnError,
    ModelError,
    NotProved,
    RuntimeMissing,
    SearchStopped,
    TimingFailed,
    UsageError,
)
from ._verbs import Benchmark, Checked, Difference, Result, bench, check, compile, diff

__all__ = [
    "Benchmark",
    "Checked",
    "Defect",
    "Difference",
    "EngineFailed",
    "GateFailed",
    "Interrupted",
    "KilnError",
    "ModelError",
    "NotProved",
    "Result",
    "RuntimeMissing",
    "SearchStopped",
    "TimingFailed",
    "UsageError",
    "bench",
    "binary",
    "check",
    "compile",
    "diff",
    "version",
]
