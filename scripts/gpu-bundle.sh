#!/usr/bin/env bash
# Gathers in one folder what `kiln gpu-check` needs on a machine with a GPU and without a toolchain: the binary, TensorRT's and
# ONNX Runtime's libraries, models. CUDA and cuDNN are looked for there: in the system, or in the wheels nvidia-*.
#
# usage: gpu-bundle.sh BINARY VENV FOLDER [MODELS…]
set -euo pipefail
binary=$1 venv=$2 folder=$3
shift 3

rm -rf "$folder"
mkdir -p "$folder/lib" "$folder/models"
install -m 755 "$binary" "$folder/kiln"
install -m 755 "$(dirname "$0")/gpu-check.sh" "$folder/gpu-check.sh"
shopt -s nullglob
# onnxruntime-gpu has the CUDA provider; onnxruntime alone is a runtime for the CPU, and the check says so.
for library in "$venv"/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime*.so* \
               "$venv"/lib/python3*/site-packages/tensorrt_rtx_libs/*.so* \
               "$venv"/lib/python3*/site-packages/tensorrt_libs/*.so*; do
    cp -L "$library" "$folder/lib/"
done
for model in "$@"; do
    cp -L "$model" "$folder/models/"
done
for needed in libonnxruntime.so libtensorrt_rtx.so; do
    found=("$folder"/lib/$needed*)
    [ ${#found[@]} -gt 0 ] || echo "gpu-bundle: no $needed in $venv: run 'make setup', or the check goes without it" >&2
done
if [ ! -e "$folder/lib/libonnxruntime_providers_cuda.so" ]; then
    echo "gpu-bundle: $venv has no CUDA provider; on the machine with the GPU: pip install onnxruntime-gpu==1.31.1" >&2
fi
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
echo "gpu-bundle: $folder.tar.gz ($(du -h "$folder.tar.gz" | cut -f 1)); unpack it and run ./gpu-check.sh"
