#!/usr/bin/env bash
# Checks everything that takes a GPU, beside the binary and the libraries that gpu-bundle.sh gathered, or in a checkout that
# was built. Further arguments go to `kiln gpu-check`.
#
# Exit codes are kiln's: 0 all is right, 1 something that ran is wrong, 5 there is no GPU (it says what would run).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -x "$here/kiln" ]; then
    kiln=("$here/kiln")
    results=$here/results
    models=$here/models
    # A Python on this machine may have the CUDA provider that the bundle lacks.
    if ! compgen -G "$here/.venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so" >/dev/null; then
        capi=$(python3 -c 'import onnxruntime, os; print(os.path.join(os.path.dirname(onnxruntime.__file__), "capi"))' 2>/dev/null || true)
        [ ! -e "$capi/libonnxruntime_providers_cuda.so" ] || kiln+=(--ort-lib "$capi")
    fi
else
    kiln=("$here/../target/release/kiln")
    results=$here/../benches/results
    models=$here/../target/gpu-models
fi
# What the user gives stands instead.
given=" $* "
[ ! -d "$models" ] || [[ $given == *" --models"* ]] || set -- --models "$models" "$@"
[[ $given == *" --results"* ]] || set -- --results "$results" "$@"
code=0
"${kiln[@]}" gpu-check "$@" || code=$?
# In a checkout, the page of all records is part of it.
if [ "$code" -le 1 ] && [ ! -x "$here/kiln" ] && [[ $given != *" --dry-run"* ]]; then
    "${kiln[@]}" gpu-check --page "$here/../docs/gpu.md"
fi
exit "$code"
