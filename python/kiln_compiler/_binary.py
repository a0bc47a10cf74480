"""Where the binary is, and how it is run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Iterator, Sequence

from ._errors import RuntimeMissing

#: Names another binary than the one that was installed with this package.
VARIABLE = "KILN_BINARY"


def binary() -> Path:
    """The binary that was installed with this package, unless ``KILN_BINARY`` names another.

    Raises:
        RuntimeMissing: there is none.
    """
    looked = list(_places())
    for place in looked:
        if place.is_file():
            return place
    raise RuntimeMissing(
        "kiln's binary is not found; looked at: " + ", ".join(map(str, looked)),
        exit_code=RuntimeMissing.exit_code,
    )


def _places() -> Iterator[Path]:
    named = os.environ.get(VARIABLE)
    if named:
        # A place that was named is the only one looked at.
        yield Path(named)
        return
    site = Path(__file__).resolve().parent.parent
    yield Path(sysconfig.get_path("scripts")) / "kiln"
    # `pip install --target` and `--user`, and a package that another interpreter imports.
    yield site / "bin" / "kiln"
    if len(site.parents) >= 3:
        yield site.parents[2] / "bin" / "kiln"
    found = shutil.which("kiln")
    if found:
        yield Path(found)


def version() -> str:
    """The version of the binary: ``0.1.0``."""
    done = subprocess.run([str(binary()), "--version"], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[1]


def run(arguments: Sequence[str], progress: bool) -> tuple[int, str, str]:
    """Runs the binary and gives its exit code, stdout and stderr; a negative code is the signal that ended it.

    With ``progress``, stderr is shown while it runs, too. An exception here, such as that of Ctrl-C, interrupts the binary and
    waits until it has cleaned up.
    """
    process = subprocess.Popen(
        [str(binary()), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    said: list[bytes] = []
    stderr = process.stderr

    def listen() -> None:
        for line in stderr:
            said.append(line)
            if progress:
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        printed = process.stdout.read()
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        listener.join()
        process.stdout.close()
        stderr.close()
    return code, printed.decode(errors="replace"), b"".join(said).decode(errors="replace")
