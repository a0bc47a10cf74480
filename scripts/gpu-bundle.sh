#!/usr/bin/env bash
# Gathers in one folder what `kiln gpu-check` needs on a machine with a GPU and without a toolchain: the binary, the runtimes'
# libraries out of a virtual environment, models. The libraries lie as in the environment, in a .venv beside the binary, where
# kiln looks for them; so every other `kiln` command works from there, too. CUDA and cuDNN come along if the environment has
# them, else they are looked for there: in the system, or in the wheels nvidia-*.
#
# With GPU=sm_90 it packs for machines that take files of limited size only: the CUDA provider's machine code of that GPU alone (the
# provider comes from PyPI where the environment has none), in packets of 44 MB in FOLDER-packets, with unpack.sh among them.
#
# usage: [GPU=sm_90] gpu-bundle.sh BINARY VENV FOLDER [MODELS…]
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
if [ -n "${GPU:-}" ]; then
    here=$(dirname "$0")
    if ! has libonnxruntime_providers_cuda.so; then
        fetched=$(mktemp -d)
        trap 'rm -rf "$fetched"' EXIT
        "$venv/bin/python" -m pip download -q --no-deps -d "$fetched" "${wheel/\[*\]/}"
        capi=$(find "$folder/.venv" -type d -path '*onnxruntime/capi' | head -1)
        capi=${capi:-$folder/.venv/lib/python3/site-packages/onnxruntime/capi}
        mkdir -p "$capi"
        # ONNX Runtime and its provider are of one build.
        rm -f "$capi"/libonnxruntime.so*
        unzip -q -o -j "$fetched"/onnxruntime_gpu-*.whl 'onnxruntime/capi/libonnxruntime*.so*' -d "$capi"
        rm -f "$capi/libonnxruntime_providers_tensorrt.so"
    fi
    find "$folder/.venv" -name libonnxruntime_providers_cuda.so -exec python3 "$here/thin_fatbin.py" {} "$GPU" \;
    strip "$folder/kiln" 2>/dev/null || true
    rm -rf "$folder-packets"
    mkdir -p "$folder-packets"
    tar -C "$(dirname "$folder")" -cf - "$(basename "$folder")" | xz -T0 -2 | split -b 44M -d - "$folder-packets/part-"
    install -m 755 "$here/unpack.sh" "$folder-packets/unpack.sh"
    echo "gpu-bundle: $(ls "$folder-packets" | wc -l) files in $folder-packets ($(du -sh "$folder-packets" | cut -f 1)); carry them over and run unpack.sh"
    exit 0
fi
has libonnxruntime_providers_cuda.so ||
    echo "gpu-bundle: $venv has no CUDA provider; on the machine with the GPU: pip install '$wheel'" >&2
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
echo "gpu-bundle: $folder.tar.gz ($(du -h "$folder.tar.gz" | cut -f 1)); unpack it and run ./gpu-check.sh"
