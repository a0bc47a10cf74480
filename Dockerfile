# kiln in a container. `docker build --target cpu .` compiles and gates anywhere; `--target cuda` also runs engines, with
# `docker run --gpus all`. Both hold the binary and the runtimes' libraries, and no Python, compiler or package index.
#
# To pin an image beyond its tag, give its digest: --build-arg BASE=debian:bookworm-20261110-slim@sha256:…
# Packages of Python are pinned by version and digest in docker/*.txt.
ARG RUST=rust:1.92-slim-bookworm
ARG BASE=debian:bookworm-slim

# --- The binary.
FROM ${RUST} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libclang-14-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin kiln \
    && strip target/release/kiln

# --- The libraries, out of the wheels that they come in.
FROM ${BASE} AS libraries-cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip ca-certificates
COPY docker/cpu.txt /tmp/requirements.txt
RUN pip3 install --no-cache-dir --no-deps --require-hashes --only-binary :all: --target /wheels -r /tmp/requirements.txt
# kiln looks for Python's packages in a .venv above its executable; the libraries alone are enough.
RUN site=/opt/kiln/.venv/lib/python3.11/site-packages \
    && mkdir -p "$site" \
    && cd /wheels \
    && find . -name '*.so*' -not -name '*_pybind11_*' -exec cp --parents -t "$site" {} +

FROM ${BASE} AS libraries-cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip ca-certificates
COPY docker/cuda.txt /tmp/requirements.txt
RUN pip3 install --no-cache-dir --no-deps --require-hashes --only-binary :all: --target /wheels -r /tmp/requirements.txt
RUN site=/opt/kiln/.venv/lib/python3.11/site-packages \
    && mkdir -p "$site" \
    && cd /wheels \
    && find . -name '*.so*' -not -name '*_pybind11_*' -exec cp --parents -t "$site" {} +

# --- Compiles and gates, without a GPU.
FROM ${BASE} AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 kiln
COPY --from=libraries-cpu /opt/kiln /opt/kiln
COPY --from=build /src/target/release/kiln /opt/kiln/bin/kiln
ENV PATH=/opt/kiln/bin:/usr/local/bin:/usr/bin:/bin
USER kiln
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=30s CMD ["kiln", "doctor"]
ENTRYPOINT ["kiln"]

# --- Runs on GPUs. The driver's libraries come from the host, by nvidia-container-toolkit.
FROM ${BASE} AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 kiln
COPY --from=libraries-cuda /opt/kiln /opt/kiln
COPY --from=build /src/target/release/kiln /opt/kiln/bin/kiln
ENV PATH=/opt/kiln/bin:/usr/local/bin:/usr/bin:/bin
ENV NVIDIA_VISIBLE_DEVICES=all
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER kiln
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=30s CMD ["kiln", "doctor"]
ENTRYPOINT ["kiln"]
