#!/usr/bin/env bash
# Checks everything that takes a GPU, beside the binary and the libraries that gpu-bundle.sh gathered, or in a checkout that
# was built. Further arguments go to `kiln gpu-check`.
#
# Exit codes are kiln's: 0 all is right, 1 something that ran is wrong, 5 there is no GPU (it says what would run).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -x "$here/kiln" ]; then
    kiln=("$here/kiln")
    results=results
    # What a Python on this machine brings is newer, and has the CUDA provider.
    if ! [ -e "$here/lib/libonnxruntime_providers_cuda.so" ] && python3 -c 'import onnxruntime' 2>/dev/null; then
        :
    else
        kiln+=(--ort-lib "$here/lib")
    fi
    compgen -G "$here/lib/libtensorrt_rtx.so*" >/dev/null && kiln+=(--trt-lib "$here/lib")
    models=$here/models
else
    kiln=("$here/../target/release/kiln")
    results=$here/../benches/results
    models=$here/../target/gpu-models
fi
[ -d "$models" ] && set -- --models "$models" "$@"
exec "${kiln[@]}" gpu-check --results "$results" "$@"
