#!/usr/bin/env python3
"""Installs a built wheel into clean environments and uses it as a newcomer does, without Rust on the path.

    tools/wheel/check.py dist/kiln_compiler-*.whl MODEL.onnx [--python PYTHON]…

For each interpreter: `pip install WHEEL[rtx]`, `kiln compile MODEL --fp16`, the same from Python, and the package's own tests. Then
`[cpu]`, and the wheel without an extra, which must name the command that brings a runtime. Exit code 1: something is not as it is
documented."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The newest glibc symbol that manylinux_2_28 allows.
GLIBC = (2, 28)

failures = []


def expect(what, holds, details=""):
    print(f"  {'ok' if holds else 'FAILS':<6} {what}" + (f": {details}" if details and not holds else ""), flush=True)
    if not holds:
        failures.append(what)


def clean(venv):
    """The environment of someone who has neither Rust nor another environment."""
    return {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


def run(command, venv, cwd, activated=True):
    env = clean(venv)
    if not activated:
        env["PATH"] = "/usr/bin:/bin"
    return subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)


def environment(python, folder, requirement):
    venv = folder / "venv"
    subprocess.run([python, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement]
    subprocess.run(pip, check=True, cwd=folder, env=clean(venv))
    return venv


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        entries = {i.filename: i for i in archive.infolist()}
        binary = next(name for name in entries if name.endswith(".data/scripts/kiln"))
        data = archive.read(binary)
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB, the binary {len(data) / 1e6:.1f} MB")
    expect("the wheel is for any Python 3 and manylinux_2_28", "-py3-none-manylinux_2_28_" in wheel.name, wheel.name)
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_(\d+(?:\.\d+)+)\0", data)}
    newest = max(versions)
    expect("it needs no newer glibc", newest <= GLIBC, ".".join(map(str, newest)))
    for name in ("kiln_compiler/py.typed", "kiln_compiler/__init__.py"):
        expect(f"it holds {name}", name in entries)
    licences = [name for name in entries if "LICENSE" in name]
    expect("it holds both licences", len(licences) >= 2, str(licences))


def with_engine(python, wheel, model, folder):
    venv = environment(python, folder, f"{wheel}[rtx]")
    kiln = venv / "bin/kiln"
    where = run(["sh", "-c", "command -v cargo rustc || true"], venv, folder)
    expect("there is no Rust", not where.stdout.strip(), where.stdout)
    (folder / "model.onnx").write_bytes(model.read_bytes())
    done = run(["kiln", "compile", "model.onnx", "--fp16"], venv, folder)
    expect("kiln compile model.onnx --fp16", done.returncode == 0, done.stderr)
    expect("the bundle has an engine", (folder / "model.kiln/model.engine").is_file())
    expect("and says so", "engine   TensorRT for RTX" in done.stdout, done.stdout)
    # By its path, with no environment active: the runtimes are those beside the binary.
    done = run([kiln, "--version", "--verbose"], venv, folder, activated=False)
    expect("the runtimes are found beside the binary", done.stdout.count(str(venv)) == 2, done.stdout)
    code = (
        "import json, kiln_compiler as kiln\n"
        "r = kiln.compile('model.onnx', 'python.kiln', fp16=True, target='sm_89', latency=False)\n"
        "print(json.dumps([str(r.engine), r.proved, r.report['parity_outcome']]))\n"
    )
    done = run([venv / "bin/python", "-c", code], venv, folder, activated=False)
    expect("the call from Python", done.returncode == 0, done.stderr)
    if done.returncode == 0:
        expect("gives an engine and a proof", json.loads(done.stdout) == ["python.kiln/model.engine", True, "passes"], done.stdout)
    tests = [venv / "bin/python", "-m", "unittest", "discover", "-s", ROOT / "python/tests"]
    done = run(tests, venv, folder)
    expect("the package's tests", done.returncode == 0, done.stderr)


def without_engine(python, wheel, model, folder):
    venv = environment(python, folder, f"{wheel}[cpu]")
    (folder / "model.onnx").write_bytes(model.read_bytes())
    done = run(["kiln", "compile", "model.onnx", "--fp16", "--target", "cpu", "--no-latency"], venv, folder)
    expect("[cpu]: kiln compile --target cpu", done.returncode == 0, done.stderr)
    done = run(["kiln", "compile", "model.onnx", "--fp16", "--target", "sm_89"], venv, folder)
    expect("[cpu]: an engine's target ends with 5 and names the wheel", done.returncode == 5 and "tensorrt-rtx" in done.stderr, done.stderr)


def bare(python, wheel, model, folder):
    venv = environment(python, folder, str(wheel))
    done = run(["kiln", "compile", model, "--target", "cpu", "-o", "b.kiln"], venv, folder)
    expect("no extra: exit code 5, and the command that mends it", done.returncode == 5 and "pip install onnxruntime" in done.stderr, done.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", action="append", help="an interpreter [default: this one]; can be given several times")
    args = parser.parse_args()
    wheel, model = args.wheel.resolve(), args.model.resolve()
    contents(wheel)
    pythons = args.python or [sys.executable]
    for python in pythons:
        version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        print(f"{version}, [rtx]")
        with tempfile.TemporaryDirectory(prefix="kiln-wheel-") as folder:
            with_engine(python, wheel, model, Path(folder))
    print("other extras")
    for check in (without_engine, bare):
        with tempfile.TemporaryDirectory(prefix="kiln-wheel-") as folder:
            check(pythons[0], wheel, model, Path(folder))
    if failures:
        sys.exit(f"{len(failures)} of the wheel's promises do not hold")
    print("the wheel is as documented")


if __name__ == "__main__":
    main()
