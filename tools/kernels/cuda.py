#!/usr/bin/env python3
"""cuda.py WHEEL: the kernels that ONNX Runtime's CUDA provider registers, without CUDA.

WHEEL is that of onnxruntime-gpu, for the Python that runs this. It is unpacked into a folder of its own, CUDA's libraries are
stood in for by functions that do nothing, and the runtime is asked for its registry. Writes what
`passes/targets/cuda_kernels.txt` holds. Takes onnx, gcc, g++ and objdump."""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Operator sets that end before this one are not written: kiln raises models beyond them.
OLDEST = 18
LIBRARIES = {
    "libcublasLt.so.13": r"cublasLt", "libcublas.so.13": r"cublas(?!Lt)", "libcurand.so.10": r"curand",
    "libcudart.so.13": r"(cuda|__cuda)", "libcuda.so.1": r"cu[A-Z]", "libcufft.so.12": r"cufft", "libcudnn.so.9": r"cudnn",
}
ANSWERS = {
    "cudaGetDeviceCount": "int {0}(int *n) {{ *n = 1; return 0; }}",
    "cudaGetDevice": "int {0}(int *n) {{ *n = 0; return 0; }}",
    "cudaMemGetInfo": "int {0}(unsigned long *a, unsigned long *b) {{ *a = *b = 1UL << 34; return 0; }}",
}
# The list of providers has TensorRT's, too: here it is CUDA's once more.
TENSORRT = r"""
#include <cstdlib>
#include <dlfcn.h>
#include <memory>
struct Factory;
struct Provider {
  virtual std::shared_ptr<Factory> by_options(const void *); virtual std::shared_ptr<Factory> by_device(int);
  virtual void *c(); virtual void d(); virtual void e(); virtual void f(); virtual void g(); virtual void h();
};
static char options[4096];
static Provider *cuda() {
  void *library = dlopen(getenv("KILN_CUDA_PROVIDER"), RTLD_NOW);
  return ((Provider * (*)()) dlsym(library, "GetProvider"))();
}
std::shared_ptr<Factory> Provider::by_options(const void *) { return cuda()->by_options(options); }
std::shared_ptr<Factory> Provider::by_device(int) { return cuda()->by_options(options); }
void *Provider::c() { return nullptr; }
void Provider::d() {} void Provider::e() {} void Provider::f() {} void Provider::g() {} void Provider::h() {}
static Provider provider;
extern "C" Provider *GetProvider() { return &provider; }
"""
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state
kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CUDAExecutionProvider"]
print(json.dumps([onnxruntime.__version__, [[k.domain, k.op_name, k.version_range, k.type_constraints] for k in kernels]]))
"""


def stand_ins(provider, folder):
    """Libraries that have what the provider takes of CUDA, by name and version."""
    table = subprocess.run(["objdump", "-T", provider], capture_output=True, text=True, check=True).stdout
    needed = []
    for line in table.splitlines():
        if "*UND*" in line:
            version = re.search(r"\((\S+)\)", line)
            needed.append((line.split()[-1], version.group(1) if version else ""))
    for library, pattern in LIBRARIES.items():
        mine = [(name, version) for name, version in needed if re.match(pattern, name)]
        source, versions = [], collections.defaultdict(list)
        for name, version in mine:
            answer = "long {0}(void) {{ return 0; }}"
            if name.startswith("cudaGetDeviceProperties"):
                answer = "int {0}(char *p, int d) {{ for (int k = 0; k < 600; k++) p[k] = 0; return 0; }}"
            elif re.search("Create|Alloc", name):
                answer = "int {0}(void **p) {{ static char room[4096]; if (p) *p = room; return 0; }}"
            source.append(ANSWERS.get(name, answer).format(name))
            versions[version].append(name)
        (folder / "stand_in.c").write_text("\n".join(source))
        nodes = (f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items() if version)
        (folder / "stand_in.map").write_text("".join(nodes))
        script = [f"-Wl,--version-script={folder / 'stand_in.map'}"] if any(versions) else []
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", folder / "stand_in.c", "-o", folder / library,
                        f"-Wl,-soname,{library}", *script], check=True)


def registry(wheel):
    """ONNX Runtime's version, and its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        capi = folder / "onnxruntime/capi"
        provider = capi / "libonnxruntime_providers_cuda.so"
        stand_ins(provider, folder)
        (folder / "tensorrt.cc").write_text(TENSORRT)
        tensorrt = capi / "libonnxruntime_providers_tensorrt.so"
        tensorrt.unlink(missing_ok=True)
        subprocess.run(["g++", "-shared", "-fPIC", folder / "tensorrt.cc", "-o", tensorrt], check=True)
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "KILN_CUDA_PROVIDER": str(provider)}
        asked = subprocess.run([sys.executable, "-c", ASK, folder], capture_output=True, text=True, env=environment)
        if asked.returncode:
            sys.exit(f"the registry cannot be read: {asked.stderr[-500:]}")
        return json.loads(asked.stdout.splitlines()[-1])


def ports(domain, name, version):
    """Where the type variables of an operator first stand: `i0` is its first operand, `o1` its second result."""
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if domain in ("", "ai.onnx"):
        try:
            schema = onnx.defs.get_schema(name, version, "")
        except onnx.defs.SchemaError:
            schema = None
        operands = schema and [(p.type_str, "i") for p in schema.inputs] + [(p.type_str, "o") for p in schema.outputs]
    else:
        operands = None
    if operands is None:
        found = [s for s in state.get_all_operator_schema() if s.name == name and s.domain == domain]
        if not found:
            return {}
        operands = [(p.typeStr, "i") for p in found[-1].inputs] + [(p.typeStr, "o") for p in found[-1].outputs]
    places, counts = {}, collections.Counter()
    for variable, side in operands:
        places.setdefault(variable, f"{side}{counts[side]}")
        counts[side] += 1
    return places


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    version, kernels = registry(parser.parse_args().wheel)
    rows = collections.defaultdict(lambda: collections.defaultdict(set))
    for domain, name, (since, until), constraints in kernels:
        if until < OLDEST or domain not in ("", "com.microsoft"):
            continue
        row = rows[(domain, name, since, until)]
        places = ports(domain, name, since)
        for variable, types in constraints.items():
            tensors = {t[7:-1] for t in types if t.startswith("tensor(")}
            if tensors and variable in places:
                row[places[variable]] |= tensors
    print(f"# onnxruntime-gpu {version}")
    for (domain, name, since, until), row in sorted(rows.items()):
        prefix = f"{domain}:" if domain else ""
        end = "" if until == 2**31 - 1 else until
        types = (f" {place}={','.join(sorted(types))}" for place, types in sorted(row.items()))
        print(f"{prefix}{name} {since}..{end}{''.join(types)}")


if __name__ == "__main__":
    main()
