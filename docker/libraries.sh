#!/bin/sh
# The libraries out of the wheels that a list of requirements names, laid out as in an environment of Python: kiln looks for
# packages in a .venv above its executable, and needs no more than their libraries.
#
# usage: libraries.sh REQUIREMENTS.txt FOLDER
set -eu
pip3 install --no-cache-dir --no-deps --require-hashes --only-binary :all: --target /wheels -r "$1"
site=$2/.venv/lib/python3.11/site-packages
mkdir -p "$site"
cd /wheels
find . -name '*.so*' -not -name '*_pybind11_*' -exec cp --parents -t "$site" {} +
