#!/usr/bin/env bash
# Joins the packets beside this script and unpacks them: unpack.sh [FOLDER] makes FOLDER/kiln-gpu. Then run ./gpu-check.sh in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-.}
mkdir -p "$into"
cat "$here"/part-* | tar -C "$into" -xJf -
echo "unpack: $into/kiln-gpu"
