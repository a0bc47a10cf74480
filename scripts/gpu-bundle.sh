#!/usr/bin/env bash
# Gathers in one folder what `kiln gpu-check` needs on a machine with a GPU and without a toolchain: the binary, the runtimes'
# libraries out of a virtual environment, models. The libraries lie as in the environment, in a .venv beside the binary, where
# kiln looks for them; so every other `kiln` command works from there, too. CUDA and cuDNN come along if the environment has
# them, else they are looked for there: in the system, or in the wheels nvidia-*.
#
# usage: gpu-bundle.sh BINARY VENV FOLDER [MODELS…]
set -euo pipefail
binary=$1 venv=$2 folder=$3
shift 3
wheel="onnxruntime-gpu[cuda,cudnn]==1.31.1"

rm -rf "$folder"
mkdir -p "$folder/models"
install -m 755 "$binary" "$folder/kiln"
install -m 755 "$(dirname "$0")/gpu-check.sh" "$folder/gpu-check.sh"
shopt -s nullglob
for site in "$venv"/lib/python3*/site-packages; do
    into=$(realpath -m "$folder/.venv/${site#"$venv"/}")
    mkdir -p "$into"
    for package in onnxruntime tensorrt_rtx_libs tensorrt_libs nvidia; do
        [ -d "$site/$package" ] || continue
        (cd "$site" && find -L "$package" -name '*.so*' -not -name '*_pybind11_*' -exec cp -L --parents -t "$into" {} +)
    done
done
for model in "$@"; do
    cp -L "$model" "$folder/models/"
done
has() { [ -n "$(find "$folder/.venv" -name "$1" 2>/dev/null)" ]; }
for needed in 'libonnxruntime.so*' 'libtensorrt_rtx.so*'; do
    has "$needed" || echo "gpu-bundle: no $needed in $venv: run 'make setup', or the check goes without it" >&2
done
has libonnxruntime_providers_cuda.so ||
    echo "gpu-bundle: $venv has no CUDA provider; on the machine with the GPU: pip install '$wheel'" >&2
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
echo "gpu-bundle: $folder.tar.gz ($(du -h "$folder.tar.gz" | cut -f 1)); unpack it and run ./gpu-check.sh"
