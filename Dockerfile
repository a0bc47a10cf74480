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
# What `kiln --version --verbose` names: --build-arg KILN_COMMIT=$(git describe --always --dirty). The checkout's .git is not copied.
ARG KILN_COMMIT=
RUN cargo build --release --locked --bin kiln \
    && strip target/release/kiln

# --- The libraries, out of the wheels that they come in.
FROM ${BASE} AS wheels
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip ca-certificates
COPY docker/libraries.sh /tmp/libraries.sh

FROM wheels AS libraries-cpu
COPY docker/cpu.txt /tmp/requirements.txt
RUN /tmp/libraries.sh /tmp/requirements.txt /opt/kiln

FROM wheels AS libraries-cuda
COPY docker/cuda.txt /tmp/requirements.txt
RUN /tmp/libraries.sh /tmp/requirements.txt /opt/kiln

# --- What both images are.
FROM ${BASE} AS kiln
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 kiln
COPY --from=build /src/target/release/kiln /opt/kiln/bin/kiln
ENV PATH=/opt/kiln/bin:/usr/local/bin:/usr/bin:/bin
USER kiln
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=30s CMD ["kiln", "doctor"]
ENTRYPOINT ["kiln"]

# --- Compiles and gates, without a GPU.
FROM kiln AS cpu
COPY --from=libraries-cpu /opt/kiln/.venv /opt/kiln/.venv

# --- Runs on GPUs. The driver's libraries come from the host, by nvidia-container-toolkit.
FROM kiln AS cuda
COPY --from=libraries-cuda /opt/kiln/.venv /opt/kiln/.venv
ENV NVIDIA_VISIBLE_DEVICES=all
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
