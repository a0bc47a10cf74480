"""``kiln compile``, ``kiln check`` and ``kiln bench`` as functions."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from . import _binary, _errors

PathLike = Union[str, "os.PathLike[str]"]
#: One size, or (least, typical, most).
Sizes = Union[int, str, Tuple[int, int, int]]
Value = Union[bool, int, float, str, Sequence[Union[int, float]]]


@dataclass(frozen=True)
class Result:
    """A bundle that was written.

    Attributes:
        path: the bundle's folder.
        report: its manifest: what was done to the model, and what was proved.
        stderr: what was said while it was made.
    """

    path: Path
    report: dict[str, Any] = field(repr=False)
    stderr: str = field(default="", repr=False)

    @property
    def model(self) -> Path:
        """The rewritten model, ``model.onnx``."""
        return self.path / "model.onnx"

    @property
    def engine(self) -> Optional[Path]:
        """The engine, or ``None`` where none was built."""
        engine = self.path / "model.engine"
        return engine if engine.is_file() else None

    @property
    def proved(self) -> bool:
        """Whether every output was held against the original's, and is within its tolerance."""
        return bool(self.report.get("parity_outcome") == "passes")

    @property
    def warnings(self) -> List[str]:
        """What a user should know of the result."""
        return list(self.report.get("warnings", []))


@dataclass(frozen=True)
class Checked:
    """A comparison that passed.

    Attributes:
        report: what ``kiln check --json`` prints; ``kiln schema check`` has its schema.
    """

    report: dict[str, Any] = field(repr=False)
    stderr: str = field(default="", repr=False)


@dataclass(frozen=True)
class Benchmark:
    """A measurement.

    Attributes:
        report: what ``kiln bench --json`` prints; ``kiln schema bench`` has its schema.
    """

    report: dict[str, Any] = field(repr=False)
    stderr: str = field(default="", repr=False)


@dataclass(frozen=True)
class Difference:
    """What is different between two models.

    Attributes:
        same: whether they compute the same.
        report: what ``kiln diff --json`` prints; ``kiln schema diff`` has its schema.
    """

    same: bool
    report: dict[str, Any] = field(repr=False)
    stderr: str = field(default="", repr=False)


def compile(
    model: PathLike | None = None,
    output: PathLike | None = None,
    *,
    target: str | Iterable[str] | None = None,
    fp16: bool = False,
    bf16: bool = False,
    int8: bool | str = False,
    fp8: bool = False,
    int4: bool | int = False,
    half_io: bool = False,
    calibrate: PathLike | None = None,
    tokenizer: PathLike | None = None,
    calibration_samples: int | None = None,
    calibration_cache: PathLike | None = None,
    dim: Mapping[str, Sizes] | None = None,
    shape: Mapping[str, str] | None = None,
    inputs: PathLike | None = None,
    input: Mapping[str, Value] | None = None,
    drop_inputs: bool = False,
    dialect: str | None = None,
    passes: str | None = None,
    keep: str | None = None,
    keep_op: Iterable[str] = (),
    tolerance: str | None = None,
    seed: int | None = None,
    engine: bool = True,
    check: bool = True,
    latency: bool | None = None,
    search: bool = True,
    max_latency_ratio: float | None = None,
    max_size_ratio: float | None = None,
    require: str | Iterable[str] = (),
    judge: str | None = None,
    judge_data: PathLike | None = None,
    judge_tokenizer: PathLike | None = None,
    device: str | None = None,
    cache: PathLike | None = None,
    recipe: PathLike | None = None,
    report: PathLike | Iterable[PathLike] = (),
    force: bool = False,
    no_clobber: bool = False,
    progress: bool = False,
    extra: Sequence[str] = (),
) -> Result:
    """Optimizes a model, converts it, builds its engine, proves that it computes the same, and times it.

    Each keyword is the option of ``kiln compile`` of that name; ``engine``, ``check`` and ``search`` are its
    ``--no-…`` options, turned round, and ``latency`` is ``--latency`` or ``--no-latency``. ``kiln compile --help`` has all of them.

    Args:
        model: an ONNX file, or a bundle, which is compiled again. May be left out if ``recipe`` names it.
        output: the bundle's folder; ``MODEL.kiln`` beside the model unless given.
        target: ``"sm_89"``, several of them, ``"local"`` or ``"cpu"``.
        int8: ``True`` for static ranges, or ``"dynamic"``.
        int4: ``True``, or the rows of a block.
        dim: sizes of symbolic dimensions: ``{"batch": (1, 8, 32), "seq": 128}``.
        input: inputs that are fixed: ``{"sr": 16000}``.
        cache: a folder or a URL; the bundle is taken from it if the same was compiled before.
        judge: a command of one's own whose exit code is a gate; docs/gates.md says what it is given.
        progress: show what kiln says on stderr while it works.
        extra: further options of the command, as they are: ``["--tf32"]``.

    Raises:
        GateFailed: the result is not the same function, or another gate failed; nothing is written.
        NotProved: an output is not proved; the exception has the `Result`.
        KilnError: any other failure, by its exit code.
    """
    options: list[str] = []
    if model is not None:
        options.append(os.fspath(model))
    given: dict[str, Any] = dict(
        recipe=recipe, target=_joined(target), fp16=fp16, bf16=bf16, fp8=fp8, half_io=half_io, calibrate=calibrate,
        tokenizer=tokenizer, calibration_samples=calibration_samples, calibration_cache=calibration_cache, inputs=inputs,
        drop_inputs=drop_inputs, dialect=dialect, passes=passes, keep=keep, keep_op=list(keep_op), tolerance=tolerance, seed=seed,
        no_engine=not engine, no_check=not check, latency=latency is True, no_latency=latency is False, no_search=not search,
        max_latency_ratio=max_latency_ratio, max_size_ratio=max_size_ratio, require=_several(require), judge=judge,
        judge_data=judge_data, judge_tokenizer=judge_tokenizer, device=device, cache=cache, report=_several(report), force=force, no_clobber=no_clobber,
    )  # fmt: skip
    for name, value in given.items():
        options += _option(name, value)
    options += _option("int8", int8) + _option("int4", int4)
    options += _pairs("dim", dim, ":") + _pairs("shape", shape, "x") + _pairs("input", input, ",")
    if output is None and model is not None and recipe is None:
        # As the command chooses it; a bundle's is chosen by its recipe, and refused if it is the bundle itself.
        output = Path(model).with_suffix(".kiln") if not Path(model).is_dir() else None
    options += _option("output", output) + list(extra)
    code, printed, said, found = _run("compile", options, progress)
    if code == 0 or (code == 6 and printed.strip()):
        manifest = _parsed(printed, said)
        place = output if output is not None else _said_output(manifest)
        result = Result(Path(place), manifest, said)
        if code == 0:
            return result
        raise _errors.of(code, said, manifest, result)
    raise _errors.of(code, said, found)


def check(
    candidate: PathLike,
    reference: PathLike | None = None,
    *,
    golden: PathLike | None = None,
    record: PathLike | None = None,
    inputs: PathLike | None = None,
    input: Mapping[str, Value] | None = None,
    tolerance: str | None = None,
    limit: str | Iterable[str] = (),
    require: str | Iterable[str] = (),
    judge: str | None = None,
    judge_data: PathLike | None = None,
    judge_tokenizer: PathLike | None = None,
    device: str | None = None,
    layers: bool = False,
    pieces: bool = False,
    bisect: bool = False,
    dim: Mapping[str, Sizes] | None = None,
    seed: int | None = None,
    report: PathLike | Iterable[PathLike] = (),
    progress: bool = False,
    extra: Sequence[str] = (),
) -> Checked:
    """Compares a model or bundle with its original, output by output. Each keyword is the option of ``kiln check`` of that name.

    Args:
        candidate: an ONNX file or a bundle.
        reference: the model that is right; or ``golden``, what ``record`` wrote.

    Raises:
        GateFailed: an output differs; ``report`` of the exception says which, and how much.
        NotProved: nothing differs, and an output is not proved.
        KilnError: any other failure, by its exit code.
    """
    given: dict[str, Any] = dict(
        reference=reference, golden=golden, record=record, inputs=inputs, tolerance=tolerance, limit=_several(limit),
        require=_several(require), judge=judge, judge_data=judge_data, judge_tokenizer=judge_tokenizer, device=device, layers=layers, pieces=pieces, bisect=bisect, seed=seed, report=_several(report),
    )  # fmt: skip
    options = [os.fspath(candidate)]
    for name, value in given.items():
        options += _option(name, value)
    options += _pairs("dim", dim, ":") + _pairs("input", input, ",") + list(extra)
    code, printed, said, found = _run("check", options, progress)
    if code == 0:
        return Checked(_parsed(printed, said), said)
    compared = _parsed(printed, said) if printed.strip() else found
    raise _errors.of(code, said, compared, Checked(compared, said) if code == 6 and compared else None)


def bench(
    *models: PathLike,
    grid: Mapping[str, Iterable[int]] | None = None,
    inputs: PathLike | None = None,
    input: Mapping[str, Value] | None = None,
    warmup: int | None = None,
    runs: int | None = None,
    duration: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    engine: bool = False,
    profile: bool = False,
    baseline: PathLike | None = None,
    max_regression: float | None = None,
    strict: bool = False,
    seed: int | None = None,
    report: PathLike | Iterable[PathLike] = (),
    progress: bool = False,
    extra: Sequence[str] = (),
) -> Benchmark:
    """Times models or bundles side by side. Each keyword is the option of ``kiln bench`` of that name.

    Args:
        models: ONNX files or bundles; others are compared with the first.
        grid: sizes of symbolic dimensions: ``{"batch": [1, 8]}``.
        duration: seconds that each model is measured at least, at each point.
        max_regression: in percent.

    Raises:
        GateFailed: a model is slower than the baseline allows.
        KilnError: any other failure, by its exit code.
    """
    given: dict[str, Any] = dict(
        inputs=inputs, warmup=warmup, runs=runs, duration=duration, threads=threads, device=device, engine=engine, profile=profile,
        baseline=baseline, max_regression=max_regression, strict=strict, seed=seed, report=_several(report),
    )  # fmt: skip
    options = [os.fspath(model) for model in models]
    for name, value in given.items():
        options += _option(name, value)
    options += _pairs("grid", {k: list(v) for k, v in (grid or {}).items()}, ",") + _pairs("input", input, ",") + list(extra)
    code, printed, said, found = _run("bench", options, progress)
    if code == 0:
        return Benchmark(_parsed(printed, said), said)
    raise _errors.of(code, said, _parsed(printed, said) if printed.strip() else found)


def diff(
    a: PathLike,
    b: PathLike,
    *,
    report: PathLike | Iterable[PathLike] = (),
    progress: bool = False,
    extra: Sequence[str] = (),
) -> Difference:
    """Shows what is different between two models or bundles, by block and operator. That they differ is no exception.

    Args:
        a: an ONNX file or a bundle.
        b: the one that it is compared with.

    Raises:
        KilnError: one of them cannot be read, by its exit code.
    """
    options = [os.fspath(a), os.fspath(b), *_option("report", _several(report)), *extra]
    code, printed, said, _ = _run("diff", options, progress)
    if code in (0, 1) and printed.strip():
        return Difference(code == 0, _parsed(printed, said), said)
    raise _errors.of(code, said)


def _run(verb: str, options: Sequence[str], progress: bool) -> tuple[int, str, str, dict[str, Any] | None]:
    """Exit code, stdout, stderr, and the report where the command wrote one."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as scratch:
        # It is written where a gate fails, too, and then says more than the exit code.
        place = Path(scratch) / "report.json"
        code, printed, said = _binary.run([verb, *options, "--json", "--report", str(place)], progress)
        try:
            found = json.loads(place.read_text())
        except (OSError, ValueError):
            found = None
    return code, printed, said, found


def _parsed(printed: str, said: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(printed)
    except ValueError as e:
        raise _errors.Defect(f"kiln printed no JSON: {e}", exit_code=7, stderr=said) from e
    return value


def _said_output(manifest: Mapping[str, Any]) -> str:
    recipe = manifest["recipe"]
    return str(recipe.get("output") or Path(recipe["model"]).with_suffix(".kiln"))


def _option(name: str, value: Any) -> list[str]:
    """``fp16=True`` as ``--fp16``, a list as several options, nothing for ``None`` and ``False``."""
    option = "--" + name.replace("_", "-")
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    # With an equals sign, a value may begin with a dash.
    return [f"{option}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in values]


def _pairs(name: str, pairs: Mapping[str, Any] | None, between: str) -> list[str]:
    return [f"--{name}={key}={_text(value, between)}" for key, value in (pairs or {}).items()]


def _text(value: Any, between: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return str(value)
    return between.join(_text(v, between) for v in value)


def _joined(target: str | Iterable[str] | None) -> str | None:
    return target if target is None or isinstance(target, str) else ",".join(target)


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, os.PathLike)) else list(value)
