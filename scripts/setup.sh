#!/usr/bin/env bash
# Makes the virtual environment with the runtimes, and installs the system packages that the build needs.
set -euo pipefail
venv=${1:-.venv}

packages=()
command -v c++ >/dev/null 2>&1 || packages+=(g++)
command -v cc >/dev/null 2>&1 || packages+=(gcc)
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3-venv)
# libclang-cpp, which clang's own packages bring, is another library.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    local folder name
    for folder in '/usr/lib' '/usr/lib/*' '/usr/lib/llvm-*/lib' '/usr/local/lib'; do
        for name in 'libclang.so*' 'libclang-[0-9]*.so*'; do
            compgen -G "$folder/$name" >/dev/null && return
        done
    done
    return 1
}
if ! has_libclang; then
    # TensorRT's bindings parse its headers with libclang older than 22.
    clang=libclang-dev
    for version in 14 15 16 17 18 19; do
        if apt-cache show "libclang-$version-dev" >/dev/null 2>&1; then clang="libclang-$version-dev"; break; fi
    done
    packages+=("$clang")
fi
if [ ${#packages[@]} -gt 0 ]; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    if command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }; then
        echo "setup: installing ${packages[*]}"
        $sudo apt-get update -qq
        # The list may have been empty before the update.
        packages=("${packages[@]/#libclang-dev/$(apt-cache show libclang-14-dev >/dev/null 2>&1 && echo libclang-14-dev || echo libclang-dev)}")
        DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    else
        echo "setup: these packages are missing; install them and run again:" >&2
        echo "    sudo apt-get install ${packages[*]}" >&2
        exit 1
    fi
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing; install it from https://rustup.rs and run again" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements.txt
touch "$venv/.ready"
echo "setup: done"
