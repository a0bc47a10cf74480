# Everything a newcomer needs: `make demo`, `make test`.

SHELL := /bin/bash
VENV := .venv
SITE = $(shell echo $(VENV)/lib/python3*/site-packages)
DEMO_MODEL = $(shell find $(VENV) -name 'paraphrase-MiniLM-L3-v2.onnx' 2>/dev/null | head -n 1)
KILN = target/release/kiln

.PHONY: setup demo test lint bless bench coverage clean

setup: $(VENV)/.ready

# System packages first: libclang for TensorRT's bindings, a C++ compiler, Python's venv.
$(VENV)/.ready: requirements.txt scripts/setup.sh
	@scripts/setup.sh $(VENV)

$(KILN): setup $(shell find src graph passes -name '*.rs' 2>/dev/null) Cargo.toml Cargo.lock
	cargo build --release

demo: $(KILN)
	@echo "kiln compile paraphrase-MiniLM-L3-v2.onnx --fp16 --target sm_89"
	$(KILN) compile "$(DEMO_MODEL)" --fp16 --target sm_89 -o target/demo.kiln
	@echo; cat target/demo.kiln/report.md

test: setup
	cargo test --workspace

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Writes the expected diffs of fixtures/passes again; read the result with `git diff`.
bless:
	KILN_BLESS=1 cargo test -p kiln-passes --test fixtures
	KILN_BLESS=1 cargo test -p kiln --test passes folding

# Wall, CPU and memory of compiling the demo's model without engine and proof.
bench: $(KILN)
	time $(KILN) compile "$(DEMO_MODEL)" --fp16 --no-engine --no-check --target sm_89 -o target/bench.kiln

# What kiln fuses of the models in a folder: make coverage MODELS=path/to/exports
MODELS = fixtures/models

coverage: setup
	cargo run --release --example coverage -- $(MODELS) > target/coverage.md
	@cat target/coverage.md

clean:
	cargo clean
	rm -rf $(VENV)
