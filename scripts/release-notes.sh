#!/usr/bin/env bash
# The section of CHANGELOG.md on a version, which must be the one of Cargo.toml.
#
# usage: release-notes.sh 1.2.3
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [ "$1" != "$version" ]; then
    echo "release: the tag is $1 and Cargo.toml has $version" >&2
    exit 1
fi
notes=$(awk -v head="## $version" 'index($0, head) == 1 { found = 1; next } /^## / { found = 0 } found' CHANGELOG.md)
if [ -z "${notes//[[:space:]]/}" ]; then
    echo "release: CHANGELOG.md says nothing of $version" >&2
    exit 1
fi
echo "$notes"
