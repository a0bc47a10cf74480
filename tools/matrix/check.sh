#!/usr/bin/env bash
# Fills the templates of `kiln matrix` for a plan, and holds them against the schemas of those who read them.
#
# usage: check.sh KILN FOLDER, in which kubernetes-validate and check-jsonschema are
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
kiln=$(realpath "$1")
tools=$(realpath "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
cp "$root/fixtures/models/bert-tiny.ts.eager.opset11.onnx" tiny.onnx
# The second plan's cells take a GPU.
for base in "{}" "{build: {refittable: true}}"; do
    printf 'models: {tiny: tiny.onnx}\ntargets: [sm_89]\nprecisions: [fp32, fp16]\nbase: %s\noutput: fleet\n' "$base" > plan.yaml
    "$kiln" matrix template kubernetes plan.yaml > fleet.yaml
    "$tools/kubernetes-validate" --strict fleet.yaml
    "$kiln" matrix template github plan.yaml > fleet.yml
    "$tools/check-jsonschema" --builtin-schema vendor.github-workflows fleet.yml
    "$kiln" matrix template slurm plan.yaml > fleet.sh
    bash -n fleet.sh
done
"$tools/check-jsonschema" --builtin-schema vendor.github-workflows "$root/.github/workflows/release.yml" "$root/docs/ci/github.yml"
"$tools/check-jsonschema" --builtin-schema vendor.gitlab-ci "$root/docs/ci/gitlab.yml"
