#!/usr/bin/env bash
# cargo-deny over all dependencies, with what can be had: says what did not run.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null 2>&1; then
    # Building it takes minutes, so set-up does not. `make lint` has checked licences and sources already.
    echo "deny: not run: cargo-deny is missing (cargo install cargo-deny --locked)"
    exit 0
fi
cargo deny check bans licenses sources
if cargo deny fetch db >/dev/null 2>&1; then
    cargo deny check advisories
else
    echo "deny: advisories: not run: their database cannot be fetched"
fi
