"""An exception for each exit code of the command."""

from __future__ import annotations

from typing import Any


class KilnError(Exception):
    """The command ended with another exit code than 0.

    Attributes:
        exit_code: that of the command; negative: the signal that ended it.
        message: what it said last, without ``kiln:`` before it.
        stderr: all that it said, warnings too.
        report: what was found out before it stopped, as ``--report FILE.json`` has it; ``None`` where nothing was.
        result: what was written nevertheless, or ``None``; see `NotProved`.
    """

    exit_code: int = -1

    def __init__(
        self,
        message: str,
        *,
        exit_code: int,
        stderr: str = "",
        report: dict[str, Any] | None = None,
        result: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.stderr = stderr
        self.report = report
        self.result = result


class GateFailed(KilnError):
    """The result is not the same function, not the precision asked for, or another gate failed. No bundle is written."""

    exit_code = 1


class UsageError(KilnError):
    """An option is wrong, or a file cannot be written."""

    exit_code = 2


class ModelError(KilnError):
    """The model cannot be read, or is unsupported."""

    exit_code = 3


class EngineFailed(KilnError):
    """TensorRT built no engine."""

    exit_code = 4


class RuntimeMissing(KilnError):
    """A runtime or a GPU is missing; ``kiln doctor`` says which. The extras of this package bring the runtimes."""

    exit_code = 5


class NotProved(KilnError):
    """Nothing differs, and an output is not proved. The bundle is written: ``result`` is what ``compile`` would have given, or
    ``check``."""

    exit_code = 6


class Defect(KilnError):
    """A defect of kiln, or a crash: please report it with the model."""

    exit_code = 7


class SearchStopped(KilnError):
    """The search for nodes that must keep their precision stopped."""

    exit_code = 8


class TimingFailed(KilnError):
    """Something could not be timed."""

    exit_code = 9


class Interrupted(KilnError):
    """The command was interrupted, and left nothing half written."""

    exit_code = 130


BY_CODE: dict[int, type[KilnError]] = {
    kind.exit_code: kind
    for kind in (
        GateFailed,
        UsageError,
        ModelError,
        EngineFailed,
        RuntimeMissing,
        NotProved,
        Defect,
        SearchStopped,
        TimingFailed,
        Interrupted,
    )
}
BY_CODE[143] = Interrupted


def of(code: int, stderr: str, report: dict[str, Any] | None = None, result: Any = None) -> KilnError:
    """The exception of an exit code."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    own = [at for at, line in enumerate(lines) if line.startswith(("kiln: ", "error: "))]
    # A message may go over several lines.
    message = "\n".join(lines[own[-1] :]) if own else "\n".join(lines[-1:])
    for prefix in ("kiln: ", "error: "):
        if message.startswith(prefix):
            message = message[len(prefix) :]
    if code < 0:
        message = f"kiln was ended by signal {-code}. {message}".strip()
    kind = BY_CODE.get(code, Defect)
    return kind(message or f"exit code {code}", exit_code=code, stderr=stderr, report=report, result=result)
