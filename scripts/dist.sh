#!/usr/bin/env bash
# What a release holds, out of the wheel that was built: a tarball with the wheel's own binary, the SBOM, and checksums.
#
# usage: dist.sh DIST, a folder with one wheel
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$(realpath "$1")
wheels=("$dist"/kiln_compiler-*.whl)
if [ ${#wheels[@]} -ne 1 ] || [ ! -f "${wheels[0]}" ]; then
    echo "dist: $dist must hold one wheel; \`make wheel\` builds it" >&2
    exit 2
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name="kiln-$version-x86_64-linux"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/$name/completions"
python3 - "${wheels[0]}" "$scratch/$name/kiln" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    inside = next(n for n in wheel.namelist() if n.endswith(".data/scripts/kiln"))
    with wheel.open(inside) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
chmod 755 "$scratch/$name/kiln"
for shell in bash zsh fish; do
    "$scratch/$name/kiln" completions "$shell" > "$scratch/$name/completions/kiln.$shell"
done
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE requirements.txt "$scratch/$name"
# The same bytes for the same contents: order, owner and time are fixed.
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}" \
    -cf - "$name" | gzip -n -9 > "$dist/$name.tar.gz"
scripts/sbom.py > "$dist/kiln-$version.cdx.json"
(cd "$dist" && rm -f SHA256SUMS && sha256sum -- * > "$scratch/sums" && mv "$scratch/sums" SHA256SUMS)
cat "$dist/SHA256SUMS"
