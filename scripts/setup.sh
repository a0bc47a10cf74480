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
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
can_install() {
    command -v apt-get >/dev/null 2>&1 && { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }
}
if [ ${#packages[@]} -gt 0 ]; then
    if can_install; then
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
# The pages of reports are tested in a browser. Where it cannot be installed, that test says that it is skipped.
has_browser() {
    command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1
}
if ! has_browser; then
    if can_install; then
        echo "setup: installing chromium"
        $sudo apt-get update -qq
        DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null || true
    fi
    has_browser || echo "setup: no Chromium; the tests of pages will be skipped" >&2
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing; install it from https://rustup.rs and run again" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements.txt
touch "$venv/.ready"
echo "setup: done"
