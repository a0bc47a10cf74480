#!/usr/bin/env python3
"""Prints the options with which libclang reads C++ headers as zig compiles them, for BINDGEN_EXTRA_CLANG_ARGS.

libclang as a wheel has no headers of its own, and those of the machine are of another C++ library than the one that zig links."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = "x86_64-linux-gnu.2.28"


def ask(folder, *options):
    source = folder / "empty.cpp"
    source.touch()
    command = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET, *options, "-x", "c++", str(source), "-o", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    # With -### zig ends with an error after it has said what it would run.
    return done.stderr


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        searched = ask(folder, "-E", "-v")
        run = ask(folder, "-###", "-c")
    listed = searched.split("#include <...> search starts here:")[-1].split("End of search list.")[0]
    includes = [str(Path(line.strip()).resolve()) for line in listed.splitlines() if line.strip()]
    defines = sorted(set(re.findall(r'"-D" "(_LIBCPP_[^"]+)"', run)))
    if not includes or not defines:
        sys.exit(f"zig does not say how it compiles C++:\n{searched}\n{run}")
    args = ["--target=x86_64-linux-gnu", "-nostdinc"]
    for include in includes:
        args += ["-isystem", include]
    args += [f"-D{define}" for define in defines]
    if any(" " in arg for arg in args):
        sys.exit("the wheel cannot be built in a folder whose path has spaces")
    print(" ".join(args))


if __name__ == "__main__":
    main()
